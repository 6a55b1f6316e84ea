"""Faults of the loop and its journal: a step too many, one too few, one twice, and numbers told that are no release."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from dpzo.privacy import BudgetExhausted, PoissonSampling, channel
from dpzo.run import journal
from dpzo.run import loop as train
from dpzo.run.header import journal_header
from dpzo.run.journal import read
from dpzo.zo import central_difference

Plant = Callable[..., ModuleType]
LOOP = "for step in range(journal.num_steps, job.plan.steps):"
FORGET = "del units, rows  # code below must not access the data"
DRAW = "units = channel.draw_batch(num_units)"
STEPS = 12


def fresh(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


# --- as many steps as are accounted


def count_steps(checks: ModuleType, linear: ModuleType, trainer: ModuleType, folder: Path) -> None:
    draws = linear.Draws()
    job = linear.run(trainer.fit, folder, draws)
    checks.check_steps_equal_plan(STEPS, draws.steps, read(folder).num_steps, job.update.applied)


def test_one_update_more_than_accounted(checks: ModuleType, linear: ModuleType, planted: Plant, tmp_path: Path) -> None:
    count_steps(checks, linear, train, fresh(tmp_path, "own"))
    one_more = (LOOP, LOOP.replace("job.plan.steps", "job.plan.steps + 1"))
    # The channel is a second lock: with the fault in the loop alone, nothing beyond T is drawn.
    locked, draws = planted(train, one_more), linear.Draws()
    with pytest.raises(BudgetExhausted):
        linear.run(locked.fit, fresh(tmp_path, "locked"), draws)
    assert draws.steps == list(range(STEPS))
    unlocked = planted(channel, ("if self._step >= self.plan.steps:", "if False:"))
    mutant = planted(train, one_more, PrivateChannel=unlocked.PrivateChannel)
    with pytest.raises(checks.Caught, match="13 draws, of 13 steps, for 12 accounted"):
        count_steps(checks, linear, mutant, fresh(tmp_path, "planted"))


def test_an_update_too_few_is_noticed_too(
    checks: ModuleType, linear: ModuleType, planted: Plant, tmp_path: Path
) -> None:
    mutant = planted(train, (LOOP, LOOP.replace("job.plan.steps", "job.plan.steps - 1")))
    with pytest.raises(checks.Caught, match="11 draws, of 11 steps, for 12 accounted"):
        count_steps(checks, linear, mutant, tmp_path)


def test_a_release_drawn_again_until_it_pleases(
    checks: ModuleType, linear: ModuleType, planted: Plant, tmp_path: Path
) -> None:
    release = "release = channel.release(rows)"
    again = f"channel._step -= 1\n                channel.draw_batch(num_units)\n                {release}"
    mutant = planted(train, (release, f"{release}\n            if release.values[0] < 0:\n                {again}"))
    with pytest.raises(checks.Caught, match="draws, of 12 steps, for 12 accounted"):
        count_steps(checks, linear, mutant, tmp_path)


# --- empty batches


def count_empty_steps(checks: ModuleType, linear: ModuleType, trainer: ModuleType, folder: Path) -> None:
    job = linear.make_job(STEPS)
    plan = replace(job.plan, sampler=PoissonSampling(1e-15))
    job = replace(job, plan=plan, header=journal_header(plan, False, {"shapes": job.parameters.shapes}))
    draws = linear.Draws()
    trainer.fit(job, linear.objective(job), linear.NUM_UNITS, folder, nonprivate_randomness=draws)
    checks.check_steps_equal_plan(STEPS, draws.steps, read(folder).num_steps, job.update.applied)
    values = [entry.values for entry, _ in read(folder).entries()]
    if len(set(values)) != STEPS or not all(map(any, values)):
        raise checks.Caught("an empty batch shows: its release is not noise like any other's")


def test_an_empty_batch_is_skipped(checks: ModuleType, linear: ModuleType, planted: Plant, tmp_path: Path) -> None:
    count_empty_steps(checks, linear, train, fresh(tmp_path, "own"))
    skips = f"{DRAW}\n            if len(units) == 0:\n                continue"
    with pytest.raises(ValueError, match="choose among batches"):  # the channel itself stops it
        count_empty_steps(checks, linear, planted(train, (DRAW, skips)), fresh(tmp_path, "stopped"))
    lax = planted(channel, ("if self._batch_size is not None:", "if False:"))
    mutant = planted(train, (DRAW, skips), PrivateChannel=lax.PrivateChannel)
    with pytest.raises(checks.Caught, match="12 draws, of 1 steps"):
        count_empty_steps(checks, linear, mutant, fresh(tmp_path, "skips"))
    noise = "self.plan.mechanism.draw(self._lattice.bits, self.plan.num_directions, self._source.words())"
    silent = planted(channel, (noise, f"{noise} if len(rows) else [0] * self.plan.num_directions"))
    mutant = planted(train, PrivateChannel=silent.PrivateChannel)
    with pytest.raises(checks.Caught, match="an empty batch shows"):
        count_empty_steps(checks, linear, mutant, fresh(tmp_path, "silent"))


# --- the divisor


def compare_with_replay(checks: ModuleType, linear: ModuleType, trainer: ModuleType, folder: Path) -> None:
    fitted, rebuilt = linear.run(trainer.fit, folder), linear.make_job()
    train.replay(rebuilt, read(folder))
    checks.check_weights_follow_from_releases(linear.fingerprint(fitted), linear.fingerprint(rebuilt))


def test_division_by_the_realised_batch(checks: ModuleType, linear: ModuleType, planted: Plant, tmp_path: Path) -> None:
    compare_with_replay(checks, linear, train, fresh(tmp_path, "own"))
    mutant = planted(
        train,
        (FORGET, f"realised = max(1, len(units))\n            {FORGET}"),
        ("release.slopes()", "release.slopes() * (job.plan.expected_batch_size / realised)"),
    )
    with pytest.raises(checks.Caught, match="more than the releases"):
        compare_with_replay(checks, linear, mutant, fresh(tmp_path, "planted"))


def test_an_update_that_looks_at_a_loss(checks: ModuleType, linear: ModuleType, planted: Plant, tmp_path: Path) -> None:
    mutant = planted(
        train,
        (FORGET, f"fell = bool(rows.sum() > 0)\n            {FORGET}"),
        ("release.slopes()", "release.slopes() * (1.0 if fell else 0.5)"),
    )
    with pytest.raises(checks.Caught, match="more than the releases"):
        compare_with_replay(checks, linear, mutant, tmp_path)


# --- what is told


TOLD = {
    "the loss, logged": (
        FORGET,
        f'__import__("logging").getLogger("dpzo").debug("%s", objective.losses(units).mean())\n            {FORGET}',
        "logs or the screen",
    ),
    "the loss, every tenth step": (
        FORGET,
        f"if step % 10 == 9: print(objective.losses(units)[:1])\n            {FORGET}",
        "logs or the screen",
    ),
    "the batch's size, in a file": (
        FORGET,
        f'(journal.folder / "sizes").open("a").write(f"{{len(units)}} ")\n            {FORGET}',
        "files",
    ),
    "how many rows are NaN, to observers": (
        "observe(release)",
        "observe((release, int(torch.tensor(objective.losses([0, 1])).isnan().sum())))",
        "observers",
    ),
    "an early stop, by the loss": (
        FORGET,
        f"{FORGET}\n            if objective.losses([0])[0] > 1: break",
        "files",
    ),
}


def whisper(checks: ModuleType, linear: ModuleType, trainer: ModuleType, folder: Path) -> None:
    def run(objective: Any, num_units: int, place: Path, observe: Callable[[Any], None]) -> None:
        trainer.fit(linear.make_job(), objective, num_units, place, observe=observe, nonprivate_randomness=linear.Noise)

    checks.check_only_releases_are_told(run, folder)


def test_dpzo_tells_its_releases_alone(checks: ModuleType, linear: ModuleType, tmp_path: Path) -> None:
    whisper(checks, linear, train, tmp_path)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", TOLD)
def test_a_raw_number_is_told(
    checks: ModuleType, linear: ModuleType, planted: Plant, tmp_path: Path, fault: str
) -> None:
    old, new, place = TOLD[fault]
    mutant = planted(train, (old, new))
    with pytest.raises(checks.Caught, match=f"{place} tell more"):
        whisper(checks, linear, mutant, tmp_path)


# --- a second draw after a kill


def die_and_resume(checks: ModuleType, linear: ModuleType, trainer: ModuleType, folder: Path, step: int) -> None:
    """Dies between the draw and the line of `step`, and again right after the resume's first draw."""
    keys, batches = linear.Keys(), []
    with pytest.MonkeyPatch.context() as watched:
        keys.watch(watched.setattr, trainer.Journal)
        real = trainer.PrivateChannel.draw_batch

        def draw_batch(channel: Any, num_units: int) -> Any:
            units = real(channel, num_units)
            batches.append((channel.spent, units.tolist()))
            return units

        watched.setattr(trainer.PrivateChannel, "draw_batch", draw_batch)
        for act, last in ((trainer.fit, step), (trainer.resume, step + 2)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(trainer.Journal, "append", _dying(trainer.Journal.append, linear, last))
                with pytest.raises(linear.Died):
                    linear.run(act, folder, has_guarantee=True)
        linear.run(trainer.resume, folder, has_guarantee=True)
    checks.check_no_step_is_drawn_twice(keys.drawn)
    checks.check_a_repeated_step_has_the_same_batch(batches)


def _dying(append: Callable[..., None], linear: ModuleType, step: int) -> Callable[..., None]:
    def call(self: Any, release: Any) -> None:
        if release.step >= step:
            raise linear.Died
        append(self, release)

    return call


@pytest.mark.parametrize("step", [0, 4, 8])
def test_a_second_draw_after_a_kill(
    checks: ModuleType, linear: ModuleType, planted: Plant, tmp_path: Path, step: int
) -> None:
    die_and_resume(checks, linear, train, fresh(tmp_path, "own"), step)
    forgetful = planted(
        journal,
        ("elif self._key.recover(self.num_steps, self.last_hash):", "elif False:"),
        ("elif found.closed:", "elif True:"),
    )
    names = {name: getattr(forgetful, name) for name in ("Journal", "Transcript", "read")}
    with pytest.raises(checks.Caught, match="drawn twice"):
        die_and_resume(checks, linear, planted(train, **names), fresh(tmp_path, "planted"), step)


def test_a_batch_drawn_again_after_a_kill(
    checks: ModuleType, linear: ModuleType, planted: Plant, tmp_path: Path
) -> None:
    """The noise comes from the step's key, and the batch does not: a death then chooses among batches."""
    swap = ("self.plan.sampler.draw(num_units, self._source)", "self.plan.sampler.draw(num_units, SecretRandom())")
    mutant = planted(train, PrivateChannel=planted(channel, swap).PrivateChannel)
    with pytest.raises(checks.Caught, match="with another batch"):
        die_and_resume(checks, linear, mutant, tmp_path, 4)


def test_a_release_used_before_it_is_on_disk(
    checks: ModuleType, linear: ModuleType, planted: Plant, tmp_path: Path
) -> None:
    """Shown first and written later: a kill in between leaves a published release that a resume draws anew."""

    def shown_and_kept(trainer: ModuleType, folder: Path) -> None:
        def look(release: Any) -> None:
            if read(folder).num_steps <= release.step:
                raise checks.Caught("a release is used before it is on disk")

        linear.run(trainer.fit, folder, observe=look)

    shown_and_kept(train, fresh(tmp_path, "own"))
    mutant = planted(train, ("journal.append(release)", "observe(release); journal.append(release)"))
    with pytest.raises(checks.Caught, match="before it is on disk"):
        shown_and_kept(mutant, fresh(tmp_path, "planted"))


# --- one loss for the whole batch


class PerUnit:
    """A loss of each unit by itself, one unit at a time."""

    def __init__(self, module: torch.nn.Linear) -> None:
        self.module = module

    def losses(self, units: Any) -> Any:
        weight = self.module.weight.double().numpy()[0]
        return np.array([float((weight * np.array([u, 1.0, -u])).sum() - 1) ** 2 for u in units])


class BatchMean(PerUnit):
    """The batch's mean loss for every unit: what remains when a model's own scalar loss is taken."""

    def losses(self, units: Any) -> Any:
        return np.full(len(units), super().losses(units).mean())


class Normalised(PerUnit):
    """Losses less the batch's mean, as for a baseline."""

    def losses(self, units: Any) -> Any:
        found = super().losses(units)
        return found - found.mean() * 1e-12


def test_one_loss_for_the_batch(checks: ModuleType, linear: ModuleType) -> None:
    job = linear.make_job()
    module = job.parameters.module

    def rows_of(objective: Any) -> Callable[[Any], Any]:
        def rows(units: Any) -> Any:
            with torch.no_grad():
                return central_difference(objective, job.parameters, units, job.scheme.at(0), job.smoothing)

        return rows

    checks.check_rows_are_isolated(rows_of(PerUnit(module)), 12)
    for mutant in (BatchMean(module), Normalised(module)):
        with pytest.raises(checks.Caught, match="other units"):
            checks.check_rows_are_isolated(rows_of(mutant), 12)


def test_a_scalar_loss_is_refused(linear: ModuleType) -> None:
    class Scalar(PerUnit):
        def losses(self, units: Any) -> Any:
            return super().losses(units).mean()

    job = linear.make_job()
    with torch.no_grad(), pytest.raises(ValueError, match="one loss a unit"):
        central_difference(Scalar(job.parameters.module), job.parameters, np.arange(3), job.scheme.at(0), 0.1)
