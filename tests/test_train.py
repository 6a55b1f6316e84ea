"""fit, resume, replay: the same bits whatever happened on the way, and no step drawn twice."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from dpzo import checkpoint, train
from dpzo.checkpoint import CHECKPOINT
from dpzo.errors import DpzoError
from dpzo.journal import Burnt, Journal, read
from dpzo.privacy import BudgetExhausted, Release

STEPS = 12


class Died(BaseException):
    """Stands for the end of the process: nothing in the program catches it."""


def fit(linear: ModuleType, folder: Path, draws: Any = None, **options: Any) -> Any:
    return _act(train.fit, linear, folder, draws, **options)


def resume(linear: ModuleType, folder: Path, draws: Any = None, **options: Any) -> Any:
    return _act(train.resume, linear, folder, draws, **options)


def _act(
    act: Callable[..., None],
    linear: ModuleType,
    folder: Path,
    draws: Any,
    observe: Callable[[Release | None], None] = lambda release: None,
    before: Callable[[int], None] = lambda step: None,
    **options: Any,
) -> Any:
    job = linear.make_job(**{"steps": STEPS, **options})
    job.update.before = before
    act(
        job,
        linear.objective(job),
        linear.NUM_UNITS,
        folder,
        observe=observe,
        nonprivate_randomness=linear.Draws() if draws is None else draws,
    )
    return job


def burnt(folder: Path) -> set[int]:
    return {entry.step for entry, _ in read(folder).entries() if isinstance(entry, Burnt)}


def at(step: int, error: BaseException) -> Callable[[Any], None]:
    """Raises `error` when called for `step`, by number or by release."""

    def call(seen: Any) -> None:
        if (seen.step if isinstance(seen, Release) else seen) == step:
            raise error

    return call


# --- one run


def test_a_run_learns_and_is_the_loop_of_the_design(linear: ModuleType, tmp_path: Path) -> None:
    draws = linear.Draws()
    job = fit(linear, tmp_path, draws)
    assert linear.fingerprint(job) == linear.expected(set())
    assert draws.steps == list(range(STEPS))
    assert job.update.applied == list(range(STEPS))
    assert read(tmp_path).closed
    everyone = np.arange(linear.NUM_UNITS)
    untrained = linear.make_job()
    with torch.no_grad():
        assert linear.objective(job).losses(everyone).mean() < linear.objective(untrained).losses(everyone).mean()


def test_a_replay_gives_the_same_bits_without_data_noise_or_evaluations(linear: ModuleType, tmp_path: Path) -> None:
    fitted = fit(linear, tmp_path)
    job = linear.make_job()
    seen: list[Any] = []
    train.replay(job, read(tmp_path), observe=seen.append)
    assert linear.fingerprint(job) == linear.fingerprint(fitted)
    assert [release.step for release in seen] == list(range(STEPS))


def test_observers_see_each_release_and_none_for_a_burnt_step(linear: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(Died):
        fit(linear, tmp_path, observe=at(2, Died()))
    seen: list[Release | None] = []
    resume(linear, tmp_path, observe=seen.append)
    assert [None if release is None else release.step for release in seen] == [0, 1, 2, None, *range(4, STEPS)]


def test_an_update_is_applied_only_after_its_release_is_on_disk(linear: ModuleType, tmp_path: Path) -> None:
    def look(step: int) -> None:
        found = read(tmp_path)
        assert found.num_steps == step + 1
        assert not found.torn

    fit(linear, tmp_path, before=look)


def test_the_last_step_is_the_last(linear: ModuleType, tmp_path: Path) -> None:
    """The loop ends with the plan's steps: the channel's own refusal is a second lock that it never reaches."""
    first = fit(linear, tmp_path)
    before = (tmp_path / "journal.jsonl").read_bytes()
    draws = linear.Draws()
    for _ in range(2):
        again = resume(linear, tmp_path, draws)
        assert linear.fingerprint(again) == linear.fingerprint(first)
    assert draws.steps == []
    assert (tmp_path / "journal.jsonl").read_bytes() == before
    channel = train.PrivateChannel(first.plan, spent=STEPS, nonprivate_randomness=linear.Draws())
    with pytest.raises(BudgetExhausted):
        channel.draw_batch(linear.NUM_UNITS)


def test_global_generators_are_as_they_were(linear: ModuleType, tmp_path: Path) -> None:
    def states() -> tuple[Any, ...]:
        numpy_state = np.random.get_state()  # noqa: NPY002  the global state is what is looked at
        return random.getstate(), tuple(map(str, numpy_state)), torch.random.get_rng_state().tolist()

    before = states()
    with pytest.raises(Died):
        fit(linear, tmp_path, observe=at(6, Died()))
    job = resume(linear, tmp_path)
    train.replay(linear.make_job(), read(tmp_path))
    secret = linear.make_job(has_guarantee=True)
    train.fit(secret, linear.objective(secret), linear.NUM_UNITS, _new(tmp_path / "secret"))
    assert states() == before
    assert job.update.applied


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_secret_runs_differ(linear: ModuleType, tmp_path: Path) -> None:
    prints = set()
    for number in range(2):
        job = linear.make_job(has_guarantee=True)
        train.fit(job, linear.objective(job), linear.NUM_UNITS, _new(tmp_path / str(number)))
        prints.add(linear.fingerprint(job))
    assert len(prints) == 2


def test_a_whole_batch_of_nan_is_noise_alone(linear: ModuleType, tmp_path: Path) -> None:
    class Broken:
        def losses(self, units: Any) -> Any:
            return np.full(len(units), np.nan)

    class Zero:
        def losses(self, units: Any) -> Any:
            return np.zeros(len(units))

    prints = []
    for name, judge in (("nan", Broken()), ("zero", Zero())):
        job = linear.make_job()
        train.fit(job, judge, linear.NUM_UNITS, _new(tmp_path / name), nonprivate_randomness=linear.Noise)
        prints.append(linear.fingerprint(job))
    assert prints[0] == prints[1] != linear.fingerprint(linear.make_job())


# --- death at every point of a step


def _before_the_draw(step: int, patch: pytest.MonkeyPatch, hooks: dict[str, Any], draws: Any) -> int:
    real = draws.__class__.__call__

    def call(self: Any, asked: int) -> Any:
        at(step, Died())(asked)
        return real(self, asked)

    patch.setattr(draws.__class__, "__call__", call)
    return step


def _between_draw_and_line(step: int, patch: pytest.MonkeyPatch, hooks: dict[str, Any], draws: Any) -> int:
    patch.setattr(Journal, "append", _dies_before(Journal.append, step))
    return step


def _within_the_line(step: int, patch: pytest.MonkeyPatch, hooks: dict[str, Any], draws: Any) -> int:
    real = os.write

    def half(descriptor: int, data: bytes) -> int:
        if f'"step":{step},"values"'.encode() in data:
            real(descriptor, data[: len(data) // 2])
            raise Died
        return real(descriptor, data)

    patch.setattr(os, "write", half)
    return step


def _between_line_and_head(step: int, patch: pytest.MonkeyPatch, hooks: dict[str, Any], draws: Any) -> int:
    real = Journal._move_head

    def move(self: Journal, *, closed: bool) -> None:
        if self.num_steps == step + 1:
            raise Died
        real(self, closed=closed)

    patch.setattr(Journal, "_move_head", move)
    return step + 1


def _within_the_head(step: int, patch: pytest.MonkeyPatch, hooks: dict[str, Any], draws: Any) -> int:
    real = Path.replace

    def replace_file(path: Path, target: Path) -> Path:
        if path.name == "journal.head.new" and f'"step":{step + 1}}}'.encode() in path.read_bytes():
            path.write_bytes(path.read_bytes()[:9])
            raise Died
        return real(path, target)

    patch.setattr(Path, "replace", replace_file)
    return step + 1


def _between_head_and_update(step: int, patch: pytest.MonkeyPatch, hooks: dict[str, Any], draws: Any) -> int:
    hooks["before"] = at(step, Died())
    return step + 1


def _after_the_update(step: int, patch: pytest.MonkeyPatch, hooks: dict[str, Any], draws: Any) -> int:
    hooks["observe"] = at(step, Died())
    return step + 1


def _within_the_checkpoint(step: int, patch: pytest.MonkeyPatch, hooks: dict[str, Any], draws: Any) -> int:
    real = Path.replace

    def replace_file(path: Path, target: Path) -> Path:
        if path.name == CHECKPOINT + ".new":
            path.write_bytes(path.read_bytes()[:100])
            raise Died
        return real(path, target)

    patch.setattr(Path, "replace", replace_file)
    return 5  # the first checkpoint falls due after step 4


def _dies_before(real: Callable[..., None], step: int) -> Callable[..., None]:
    def call(self: Journal, release: Release) -> None:
        at(step, Died())(release)
        real(self, release)

    return call


DEATHS = [
    _before_the_draw,
    _between_draw_and_line,
    _within_the_line,
    _between_line_and_head,
    _within_the_head,
    _between_head_and_update,
    _after_the_update,
    _within_the_checkpoint,
]


@pytest.mark.parametrize("step", [0, 4, 7, STEPS - 1])
@pytest.mark.parametrize("death", DEATHS, ids=[death.__name__.strip("_") for death in DEATHS])
def test_a_death_costs_one_step_and_changes_nothing_else(
    linear: ModuleType, tmp_path: Path, death: Callable[..., int], step: int
) -> None:
    draws = type("Draws", (linear.Draws,), {})()
    hooks: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        lost = death(step, patch, hooks, draws)
        with pytest.raises(Died):
            fit(linear, tmp_path, draws, **hooks)
    job = resume(linear, tmp_path, draws)
    wanted = {lost} if lost < STEPS else set()
    assert burnt(tmp_path) == wanted
    assert linear.fingerprint(job) == linear.expected(wanted)
    assert len(draws.steps) == len(set(draws.steps))
    assert set(draws.steps) | wanted == set(range(STEPS))
    assert read(tmp_path).num_steps == STEPS
    rebuilt = linear.make_job()
    train.replay(rebuilt, read(tmp_path))
    assert linear.fingerprint(rebuilt) == linear.fingerprint(job)


def test_a_run_may_die_again_and_again(linear: ModuleType, tmp_path: Path) -> None:
    draws = linear.Draws()
    with pytest.raises(Died):
        fit(linear, tmp_path, draws, observe=at(0, Died()))
    for step in (2, 4, 6, 8):
        with pytest.raises(Died):
            resume(linear, tmp_path, draws, before=at(step, Died()))
    job = resume(linear, tmp_path, draws)
    assert burnt(tmp_path) == {1, 3, 5, 7, 9}
    assert linear.fingerprint(job) == linear.expected({1, 3, 5, 7, 9})
    assert len(draws.steps) == len(set(draws.steps))


def test_a_death_while_the_steps_are_taken_up_again_burns_at_most_one_more(linear: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(Died):
        fit(linear, tmp_path, observe=at(3, Died()))
    with pytest.raises(Died):
        resume(linear, tmp_path, observe=at(2, Died()))
    job = resume(linear, tmp_path)
    assert burnt(tmp_path) == {4, 5}
    assert linear.fingerprint(job) == linear.expected({4, 5})


# --- how much a resume does again


@pytest.mark.parametrize("last", range(1, 20))
def test_a_resume_applies_fewer_steps_again_than_lie_between_checkpoints(
    linear: ModuleType, tmp_path: Path, last: int
) -> None:
    with pytest.raises(Died):
        fit(linear, tmp_path, observe=at(last, Died()), steps=20)
    job = resume(linear, tmp_path, steps=20)
    again = [step for step in job.update.applied if step <= last]
    assert again == list(range((last + 1) // 5 * 5, last + 1))
    assert len(again) < job.checkpoint_every


def test_a_checkpoint_that_falls_due_on_a_burnt_step_is_written_at_the_next(linear: ModuleType, tmp_path: Path) -> None:
    draws = linear.Draws()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", _dies_before(Journal.append, 4))
        with pytest.raises(Died):
            fit(linear, tmp_path, draws)
    assert not (tmp_path / CHECKPOINT).exists()
    with pytest.raises(Died):
        resume(linear, tmp_path, draws, observe=at(7, Died()))
    job = resume(linear, tmp_path, draws)
    assert [step for step in job.update.applied if step <= 7] == [6, 7]
    assert linear.fingerprint(job) == linear.expected({4, 8})


def test_without_a_checkpoint_a_resume_replays_all(linear: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(Died):
        fit(linear, tmp_path, observe=at(8, Died()))
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    job = resume(linear, tmp_path)
    assert job.update.applied == [*range(9), *range(10, STEPS)]
    assert linear.fingerprint(job) == linear.expected({9})


# --- whose run it is


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": 4}, "seed"),
        ({"steps": STEPS + 1}, "plan"),
        ({"base": "another model"}, "base"),
        ({"has_guarantee": True}, "secret_randomness"),
    ],
)
def test_another_job_is_refused_by_name_and_changes_nothing(
    linear: ModuleType, tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(Died):
        fit(linear, tmp_path, observe=at(3, Died()))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    job = linear.make_job(**{"steps": STEPS, **options})
    with pytest.raises(DpzoError, match=f"written for another run; its {named} is not the one found now"):
        train.resume(job, linear.objective(job), linear.NUM_UNITS, tmp_path)
    with pytest.raises(DpzoError, match=f"its {named} is not"):
        train.replay(job, read(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert job.update.applied == []


def test_other_software_versions_are_the_same_run(linear: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(Died):
        fit(linear, tmp_path, observe=at(3, Died()), environment={"torch": "1"})
    resume(linear, tmp_path, environment={"torch": "2"})


def test_a_double_never_takes_a_step_of_a_run_that_promises_secret_noise(linear: ModuleType, tmp_path: Path) -> None:
    secret = linear.make_job(has_guarantee=True)
    with pytest.raises(ValueError, match="needs a header that says so"):
        train.fit(secret, linear.objective(secret), linear.NUM_UNITS, tmp_path, nonprivate_randomness=linear.Draws())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Died):
        train.fit(secret, linear.objective(secret), linear.NUM_UNITS, tmp_path, observe=at(3, Died()))
    again = linear.make_job(has_guarantee=True)
    with pytest.raises(ValueError, match="needs a header that says so"):
        train.resume(again, linear.objective(again), linear.NUM_UNITS, tmp_path, nonprivate_randomness=linear.Draws())
    assert read(tmp_path).num_steps == 4


def test_a_second_fit_into_the_folder_is_refused(linear: ModuleType, tmp_path: Path) -> None:
    fit(linear, tmp_path)
    with pytest.raises(DpzoError, match="already holds a run"):
        fit(linear, tmp_path)


# --- a disk that refuses


def test_a_failing_checkpoint_is_the_users_error_and_the_run_goes_on_after_it(
    linear: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise DpzoError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", refuse)
        with pytest.raises(DpzoError, match="no room"):
            fit(linear, tmp_path)
    job = resume(linear, tmp_path)
    assert linear.fingerprint(job) == linear.expected({5})


def test_training_outside_the_main_thread_leaves_signals_alone(linear: ModuleType, tmp_path: Path) -> None:
    prints: list[str] = []
    thread = threading.Thread(target=lambda: prints.append(linear.fingerprint(fit(linear, tmp_path))))
    thread.start()
    thread.join(timeout=120)
    assert prints == [linear.expected(set())]


def test_a_job_is_replaced_and_not_changed(linear: ModuleType) -> None:
    job = linear.make_job()
    with pytest.raises(AttributeError):
        job.smoothing = 1.0
    assert replace(job, smoothing=1.0).smoothing == 1.0
