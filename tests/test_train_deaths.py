"""The end of the process at every point of a step: one step lost, none drawn twice, and the rest the same bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dpzo import train
from dpzo.checkpoint import CHECKPOINT
from dpzo.journal import Journal, read
from dpzo.privacy import Release

STEPS = 12


def _before_the_draw(
    linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: dict[str, Any], draws: Any
) -> int:
    real = draws.__class__.__call__

    def call(self: Any, asked: int) -> Any:
        linear.at(step, linear.Died())(asked)
        return real(self, asked)

    patch.setattr(draws.__class__, "__call__", call)
    return step


def _between_draw_and_line(
    linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: dict[str, Any], draws: Any
) -> int:
    patch.setattr(Journal, "append", _dies_before(linear, step))
    return step


def _within_the_line(
    linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: dict[str, Any], draws: Any
) -> int:
    real = os.write

    def half(descriptor: int, data: bytes) -> int:
        if f'"step":{step},"values"'.encode() in data:
            real(descriptor, data[: len(data) // 2])
            raise linear.Died
        return real(descriptor, data)

    patch.setattr(os, "write", half)
    return step


def _between_line_and_head(
    linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: dict[str, Any], draws: Any
) -> int:
    real = Journal._move_head

    def move(self: Journal, *, closed: bool) -> None:
        if self.num_steps == step + 1:
            raise linear.Died
        real(self, closed=closed)

    patch.setattr(Journal, "_move_head", move)
    return step + 1


def _within_the_head(
    linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: dict[str, Any], draws: Any
) -> int:
    real = Path.replace

    def replace_file(path: Path, target: Path) -> Path:
        if path.name == "journal.head.new" and f'"step":{step + 1}}}'.encode() in path.read_bytes():
            path.write_bytes(path.read_bytes()[:9])
            raise linear.Died
        return real(path, target)

    patch.setattr(Path, "replace", replace_file)
    return step + 1


def _between_head_and_update(
    linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: dict[str, Any], draws: Any
) -> int:
    hooks["before"] = linear.at(step, linear.Died())
    return step + 1


def _after_the_update(
    linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: dict[str, Any], draws: Any
) -> int:
    hooks["observe"] = linear.at(step, linear.Died())
    return step + 1


def _within_the_checkpoint(
    linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: dict[str, Any], draws: Any
) -> int:
    real = Path.replace

    def replace_file(path: Path, target: Path) -> Path:
        if path.name == CHECKPOINT + ".new":
            path.write_bytes(path.read_bytes()[:100])
            raise linear.Died
        return real(path, target)

    patch.setattr(Path, "replace", replace_file)
    return 5  # the first checkpoint falls due after step 4


def _dies_before(linear: ModuleType, step: int) -> Callable[..., None]:
    real = Journal.append

    def call(self: Journal, release: Release) -> None:
        linear.at(step, linear.Died())(release)
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
        lost = death(linear, step, patch, hooks, draws)
        with pytest.raises(linear.Died):
            linear.run(train.fit, tmp_path, draws, **hooks)
    job = linear.run(train.resume, tmp_path, draws)
    wanted = {lost} if lost < STEPS else set()
    assert linear.burnt(tmp_path) == wanted
    assert linear.fingerprint(job) == linear.expected(wanted)
    assert len(draws.steps) == len(set(draws.steps))
    assert set(draws.steps) | wanted == set(range(STEPS))
    assert read(tmp_path).num_steps == STEPS
    rebuilt = linear.make_job()
    train.replay(rebuilt, read(tmp_path))
    assert linear.fingerprint(rebuilt) == linear.fingerprint(job)


def test_a_run_may_die_again_and_again(linear: ModuleType, tmp_path: Path) -> None:
    draws = linear.Draws()
    with pytest.raises(linear.Died):
        linear.run(train.fit, tmp_path, draws, observe=linear.at(0, linear.Died()))
    for step in (2, 4, 6, 8):
        with pytest.raises(linear.Died):
            linear.run(train.resume, tmp_path, draws, before=linear.at(step, linear.Died()))
    job = linear.run(train.resume, tmp_path, draws)
    assert linear.burnt(tmp_path) == {1, 3, 5, 7, 9}
    assert linear.fingerprint(job) == linear.expected({1, 3, 5, 7, 9})
    assert len(draws.steps) == len(set(draws.steps))


def test_a_death_while_the_steps_are_taken_up_again_burns_at_most_one_more(linear: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(linear.Died):
        linear.run(train.fit, tmp_path, observe=linear.at(3, linear.Died()))
    with pytest.raises(linear.Died):
        linear.run(train.resume, tmp_path, observe=linear.at(2, linear.Died()))
    job = linear.run(train.resume, tmp_path)
    assert linear.burnt(tmp_path) == {4, 5}
    assert linear.fingerprint(job) == linear.expected({4, 5})


# --- how much a resume does again


@pytest.mark.parametrize("last", range(1, 20))
def test_a_resume_applies_fewer_steps_again_than_lie_between_checkpoints(
    linear: ModuleType, tmp_path: Path, last: int
) -> None:
    with pytest.raises(linear.Died):
        linear.run(train.fit, tmp_path, observe=linear.at(last, linear.Died()), steps=20)
    job = linear.run(train.resume, tmp_path, steps=20)
    again = [step for step in job.update.applied if step <= last]
    assert again == list(range((last + 1) // 5 * 5, last + 1))
    assert len(again) < job.checkpoint_every


def test_a_checkpoint_that_falls_due_on_a_burnt_step_is_written_at_the_next(linear: ModuleType, tmp_path: Path) -> None:
    draws = linear.Draws()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", _dies_before(linear, 4))
        with pytest.raises(linear.Died):
            linear.run(train.fit, tmp_path, draws)
    assert not (tmp_path / CHECKPOINT).exists()
    with pytest.raises(linear.Died):
        linear.run(train.resume, tmp_path, draws, observe=linear.at(7, linear.Died()))
    job = linear.run(train.resume, tmp_path, draws)
    assert [step for step in job.update.applied if step <= 7] == [6, 7]
    assert linear.fingerprint(job) == linear.expected({4, 8})


def test_without_a_checkpoint_a_resume_replays_all(linear: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(linear.Died):
        linear.run(train.fit, tmp_path, observe=linear.at(8, linear.Died()))
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    job = linear.run(train.resume, tmp_path)
    assert job.update.applied == [*range(9), *range(10, STEPS)]
    assert linear.fingerprint(job) == linear.expected({9})


# --- being asked to stop


def _asks_at(step: int, times: int = 1) -> Callable[[Release | None], None]:
    def observe(release: Release | None) -> None:
        if release is not None and release.step == step:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    return observe


def test_a_stop_while_steps_are_taken_up_again_burns_nothing(linear: ModuleType, tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(linear.Died):
        linear.run(train.fit, tmp_path, observe=linear.at(8, linear.Died()))
    for _ in range(2):
        with pytest.raises(train.Stopped, match="while taking up step 3"):
            linear.run(train.resume, tmp_path, observe=_asks_at(2))
        assert read(tmp_path).closed
        assert linear.burnt(tmp_path) == {9}
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    job = linear.run(train.resume, tmp_path)
    assert linear.fingerprint(job) == linear.expected({9})


def test_a_stop_writes_a_checkpoint_and_the_next_start_applies_nothing_again(
    linear: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(train.Stopped, match="stopped after step 9 of 12"):
        linear.run(train.fit, tmp_path, observe=_asks_at(8))
    job = linear.run(train.resume, tmp_path)
    assert job.update.applied == [9, 10, 11]
    assert linear.burnt(tmp_path) == set()
    assert linear.fingerprint(job) == linear.expected(set())


def test_a_stop_after_the_last_step_is_an_end(linear: ModuleType, tmp_path: Path) -> None:
    job = linear.run(train.fit, tmp_path, observe=_asks_at(STEPS - 1))
    assert linear.fingerprint(job) == linear.expected(set())


def test_a_second_request_is_immediate_and_costs_a_step(linear: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        linear.run(train.fit, tmp_path, observe=_asks_at(4, times=2))
    assert not read(tmp_path).closed
    job = linear.run(train.resume, tmp_path)
    assert linear.burnt(tmp_path) == {5}
    assert linear.fingerprint(job) == linear.expected({5})
