"""fit, resume, replay: the same bits whatever happened on the way, and no step drawn twice."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from dpzo.errors import DpzoError
from dpzo.privacy import BudgetExhausted, Release
from dpzo.run import checkpoint
from dpzo.run import loop as train
from dpzo.run.journal import read
from dpzo.run.step_key import STEP_KEY

STEPS = 12


# --- one run


def test_a_run_learns_and_is_the_loop_of_the_design(linear: ModuleType, tmp_path: Path) -> None:
    draws = linear.Draws()
    job = linear.run(train.fit, tmp_path, draws)
    assert linear.fingerprint(job) == linear.expected(set())
    assert draws.steps == list(range(STEPS))
    assert job.update.applied == list(range(STEPS))
    assert read(tmp_path).closed
    everyone = np.arange(linear.NUM_UNITS)
    untrained = linear.make_job()
    with torch.no_grad():
        assert linear.objective(job).losses(everyone).mean() < linear.objective(untrained).losses(everyone).mean()


def test_a_replay_gives_the_same_bits_without_data_noise_or_evaluations(linear: ModuleType, tmp_path: Path) -> None:
    fitted = linear.run(train.fit, tmp_path)
    job = linear.make_job()
    seen: list[Any] = []
    train.replay(job, read(tmp_path), observe=seen.append)
    assert linear.fingerprint(job) == linear.fingerprint(fitted)
    assert [release.step for release in seen] == list(range(STEPS))


def test_observers_see_each_release_and_none_for_a_burnt_step(linear: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(linear.Died):
        linear.run(train.fit, tmp_path, observe=linear.at(2, linear.Died()))
    (tmp_path / STEP_KEY).unlink()
    seen: list[Release | None] = []
    linear.run(train.resume, tmp_path, observe=seen.append)
    assert [None if release is None else release.step for release in seen] == [0, 1, 2, None, *range(4, STEPS)]


def test_an_update_is_applied_only_after_its_release_is_on_disk(linear: ModuleType, tmp_path: Path) -> None:
    def look(step: int) -> None:
        found = read(tmp_path)
        assert found.num_steps == step + 1
        assert not found.torn

    linear.run(train.fit, tmp_path, before=look)


def test_the_last_step_is_the_last(linear: ModuleType, tmp_path: Path) -> None:
    """The loop ends with the plan's steps: the channel's own refusal is a second lock that it never reaches."""
    first = linear.run(train.fit, tmp_path)
    before = (tmp_path / "journal.jsonl").read_bytes()
    draws = linear.Draws()
    for _ in range(2):
        again = linear.run(train.resume, tmp_path, draws)
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
    with pytest.raises(linear.Died):
        linear.run(train.fit, tmp_path, observe=linear.at(6, linear.Died()))
    job = linear.run(train.resume, tmp_path)
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
    with pytest.raises(linear.Died):
        linear.run(train.fit, tmp_path, observe=linear.at(3, linear.Died()))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    job = linear.make_job(**{"steps": STEPS, **options})
    with pytest.raises(DpzoError, match=f"written for another run; its {named} is not the one found now"):
        train.resume(job, linear.objective(job), linear.NUM_UNITS, tmp_path)
    with pytest.raises(DpzoError, match=f"its {named} is not"):
        train.replay(job, read(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert job.update.applied == []


def test_other_software_versions_are_the_same_run(linear: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(linear.Died):
        linear.run(train.fit, tmp_path, observe=linear.at(3, linear.Died()), environment={"torch": "1"})
    linear.run(train.resume, tmp_path, environment={"torch": "2"})


def test_a_double_never_takes_a_step_of_a_run_that_promises_secret_noise(linear: ModuleType, tmp_path: Path) -> None:
    secret = linear.make_job(has_guarantee=True)
    with pytest.raises(ValueError, match="needs a header that says so"):
        train.fit(secret, linear.objective(secret), linear.NUM_UNITS, tmp_path, nonprivate_randomness=linear.Draws())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(linear.Died):
        train.fit(secret, linear.objective(secret), linear.NUM_UNITS, tmp_path, observe=linear.at(3, linear.Died()))
    again = linear.make_job(has_guarantee=True)
    with pytest.raises(ValueError, match="needs a header that says so"):
        train.resume(again, linear.objective(again), linear.NUM_UNITS, tmp_path, nonprivate_randomness=linear.Draws())
    assert read(tmp_path).num_steps == 4


def test_a_second_fit_into_the_folder_is_refused(linear: ModuleType, tmp_path: Path) -> None:
    linear.run(train.fit, tmp_path)
    with pytest.raises(DpzoError, match="already holds a run"):
        linear.run(train.fit, tmp_path)


# --- a disk that refuses


def test_a_failing_checkpoint_is_the_users_error_and_the_run_goes_on_after_it(
    linear: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise DpzoError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", refuse)
        with pytest.raises(DpzoError, match="no room"):
            linear.run(train.fit, tmp_path)
    job = linear.run(train.resume, tmp_path)
    assert linear.fingerprint(job) == linear.expected(set())


def test_training_outside_the_main_thread_leaves_signals_alone(linear: ModuleType, tmp_path: Path) -> None:
    prints: list[str] = []
    thread = threading.Thread(target=lambda: prints.append(linear.fingerprint(linear.run(train.fit, tmp_path))))
    thread.start()
    thread.join(timeout=120)
    assert prints == [linear.expected(set())]


def test_a_job_is_replaced_and_not_changed(linear: ModuleType) -> None:
    job = linear.make_job()
    with pytest.raises(AttributeError):
        job.smoothing = 1.0
    assert replace(job, smoothing=1.0).smoothing == 1.0
