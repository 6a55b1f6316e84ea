"""The end of the process at every point of a step: nothing lost, no step drawn twice, the same bits as without it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dpzo.privacy import Release
from dpzo.run import loop as train
from dpzo.run.checkpoint import CHECKPOINT
from dpzo.run.journal import Journal, read
from dpzo.run.step_key import STEP_KEY, StepKey

STEPS = 12
SECRET: dict[str, Any] = {"has_guarantee": True}
Hooks = dict[str, Any]


def _before_the_draw(linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: Hooks, keys: Any) -> int:
    keys.before = linear.at(step, linear.Died())
    return step


def _between_draw_and_line(linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: Hooks, keys: Any) -> int:
    patch.setattr(Journal, "append", _dies_before(linear, step))
    return step


def _within_the_line(linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: Hooks, keys: Any) -> int:
    real = os.write

    def half(descriptor: int, data: bytes) -> int:
        if f'"step":{step},"values"'.encode() in data:
            real(descriptor, data[: len(data) // 2])
            raise linear.Died
        return real(descriptor, data)

    patch.setattr(os, "write", half)
    return step


def _between_line_and_head(linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: Hooks, keys: Any) -> int:
    real = Journal._move_head

    def move(self: Journal, *, closed: bool) -> None:
        if self.num_steps == step + 1:
            raise linear.Died
        real(self, closed=closed)

    patch.setattr(Journal, "_move_head", move)
    return step + 1


def _within_the_head(linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: Hooks, keys: Any) -> int:
    real = Path.replace

    def replace_file(path: Path, target: Path) -> Path:
        if path.name == "journal.head.new" and f'"step":{step + 1}}}'.encode() in path.read_bytes():
            path.write_bytes(path.read_bytes()[:9])
            raise linear.Died
        return real(path, target)

    patch.setattr(Path, "replace", replace_file)
    return step + 1


def _between_head_and_next_key(
    linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: Hooks, keys: Any
) -> int:
    def die_once(self: StepKey, *arguments: Any) -> None:
        if _held(self) == step:
            raise linear.Died
        real(self, *arguments)

    act = "destroy" if step == STEPS - 1 else "move_on"
    real = getattr(StepKey, act)
    patch.setattr(StepKey, act, die_once)
    return step + 1


def _held(key: StepKey) -> int | None:
    return None if key._held is None else key._held.step


def _within_the_next_key(linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: Hooks, keys: Any) -> int:
    """Half of the next key is on the disk; after the last step, the spent one is half overwritten."""
    real = os.pwrite
    whole = StepKey.destroy

    def half(descriptor: int, data: bytes, place: int) -> int:
        if len(data) < 4096 and data.startswith((step + 1).to_bytes(8, "big")):
            real(descriptor, data[: len(data) // 2], place)
            raise linear.Died
        return real(descriptor, data, place)

    def destroy(self: StepKey) -> None:
        if _held(self) == STEPS - 1:
            file = os.open(hooks["folder"] / STEP_KEY, os.O_WRONLY)
            real(file, bytes(4096 + 60), 0)
            os.close(file)
            raise linear.Died
        whole(self)

    patch.setattr(os, "pwrite", half)
    patch.setattr(StepKey, "destroy", destroy)
    return step + 1


def _between_next_key_and_spent_one(
    linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: Hooks, keys: Any
) -> int:
    """The next key is on the disk, and the spent one half overwritten."""
    real = os.pwrite

    def half(descriptor: int, data: bytes, place: int) -> int:
        if len(data) < 4096 and data.startswith(step.to_bytes(8, "big")) and not any(data[40:72]):
            real(descriptor, data[:56], place)
            raise linear.Died
        return real(descriptor, data, place)

    patch.setattr(os, "pwrite", half)
    if step == STEPS - 1:
        hooks["observe"] = linear.at(step, linear.Died())
    return step + 1


def _between_key_and_update(linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: Hooks, keys: Any) -> int:
    hooks["before"] = linear.at(step, linear.Died())
    return step + 1


def _after_the_update(linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: Hooks, keys: Any) -> int:
    hooks["observe"] = linear.at(step, linear.Died())
    return step + 1


def _within_the_checkpoint(linear: ModuleType, step: int, patch: pytest.MonkeyPatch, hooks: Hooks, keys: Any) -> int:
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
    _between_head_and_next_key,
    _within_the_next_key,
    _between_next_key_and_spent_one,
    _between_key_and_update,
    _after_the_update,
    _within_the_checkpoint,
]


def die(linear: ModuleType, folder: Path, death: Callable[..., int], step: int, keys: Any) -> int:
    """A run that dies there; the step that was due."""
    hooks: Hooks = {}
    with pytest.MonkeyPatch.context() as patch:
        hooks["folder"] = folder
        due = death(linear, step, patch, hooks, keys)
        with pytest.raises(linear.Died):
            linear.run(train.fit, **hooks, **SECRET)
    keys.before = lambda step: None
    return due


@pytest.mark.parametrize("step", [0, 4, 7, STEPS - 1])
@pytest.mark.parametrize("death", DEATHS, ids=[death.__name__.strip("_") for death in DEATHS])
def test_a_death_changes_nothing(
    linear: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: Callable[..., int], step: int
) -> None:
    """The files are, bit for bit, those of a run with the same keys that nobody disturbed; no key is left in any."""
    died, undisturbed = tmp_path / "died", tmp_path / "undisturbed"
    died.mkdir()
    undisturbed.mkdir()
    keys = linear.Keys().watch(monkeypatch.setattr)
    due = die(linear, died, death, step, keys)
    assert read(died).num_steps == due
    job = linear.run(train.resume, died, **SECRET)
    by_step = keys.by_step()
    assert list(by_step) == list(range(STEPS))
    assert len(set(by_step.values())) == STEPS
    assert linear.fingerprint(job) == linear.expected(set(), keys=by_step, **SECRET)
    monkeypatch.setattr(Journal, "step_key", lambda journal, asked: by_step[asked])
    linear.run(train.fit, undisturbed, **SECRET)
    assert files(died) == files(undisturbed)
    assert STEP_KEY not in files(died)
    assert not any(
        key in content or key.hex().encode() in content for key in by_step.values() for content in files(died).values()
    )
    rebuilt = linear.make_job(**SECRET)
    train.replay(rebuilt, read(died))
    assert linear.fingerprint(rebuilt) == linear.fingerprint(job)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_may_die_again_and_again(linear: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = linear.Keys().watch(monkeypatch.setattr)
    for act, step in ((train.fit, 0), *((train.resume, step) for step in (0, 2, 2, 3, 8, 11))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Journal, "append", _dies_before(linear, step))
            with pytest.raises(linear.Died):
                linear.run(act, tmp_path, **SECRET)
    job = linear.run(train.resume, tmp_path, **SECRET)
    assert linear.burnt(tmp_path) == set()
    assert [step for step, _ in keys.drawn] == [0, 0, 0, 1, 2, 2, 2, 3, 3, *range(4, 9), *range(8, 12), 11]
    assert linear.fingerprint(job) == linear.expected(set(), keys=keys.by_step(), **SECRET)


def test_a_death_while_the_steps_are_taken_up_again_changes_nothing(linear: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(linear.Died):
        linear.run(train.fit, tmp_path, observe=linear.at(3, linear.Died()))
    with pytest.raises(linear.Died):
        linear.run(train.resume, tmp_path, observe=linear.at(2, linear.Died()))
    job = linear.run(train.resume, tmp_path)
    assert linear.burnt(tmp_path) == set()
    assert linear.fingerprint(job) == linear.expected(set())


def _gone(path: Path) -> None:
    path.unlink()


def _short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in (50, 4096 + 50):
        content[place] ^= 1
    path.write_bytes(bytes(content))


def _readable_by_others(path: Path) -> None:
    path.chmod(0o644)


def _a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("loss", [_gone, _short, _flipped, _readable_by_others, _a_link])
def test_a_step_whose_key_is_lost_is_burnt(
    linear: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: Callable[[Path], None]
) -> None:
    keys = linear.Keys().watch(monkeypatch.setattr)
    assert die(linear, tmp_path, _between_draw_and_line, 4, keys) == 4
    loss(tmp_path / STEP_KEY)
    job = linear.run(train.resume, tmp_path, **SECRET)
    assert linear.burnt(tmp_path) == {4}
    by_step = keys.by_step()
    assert linear.fingerprint(job) == linear.expected({4}, keys=by_step, **SECRET)
    assert not (tmp_path / STEP_KEY).exists()


def test_a_key_of_another_run_or_step_is_no_key(
    linear: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = linear.Keys().watch(monkeypatch.setattr)
    for name, step in (("own", 4), ("other run", 4), ("later", 6)):
        (tmp_path / name).mkdir()
        die(linear, tmp_path / name, _between_draw_and_line, step, keys)
    for stranger in ("other run", "later"):
        copy = tmp_path / f"with the key of {stranger}"
        shutil.copytree(tmp_path / "own", copy)
        shutil.copy(tmp_path / stranger / STEP_KEY, copy / STEP_KEY)
        linear.run(train.resume, copy, **SECRET)
        assert linear.burnt(copy) == {4}


def test_a_death_while_a_step_is_burnt_burns_no_other(
    linear: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = linear.Keys().watch(monkeypatch.setattr)
    die(linear, tmp_path, _between_draw_and_line, 4, keys)
    (tmp_path / STEP_KEY).unlink()
    for act, number in (("_write_line", 4), ("_move_head", 4), ("_move_head", 5)):
        with pytest.MonkeyPatch.context() as patch:
            real = getattr(Journal, act)

            def write(self: Journal, *arguments: Any, real: Any = real, number: int = number, **options: Any) -> None:
                if self.num_steps == number:
                    raise linear.Died
                real(self, *arguments, **options)

            patch.setattr(Journal, act, write)
            with pytest.raises(linear.Died):
                linear.run(train.resume, tmp_path, **SECRET)
    job = linear.run(train.resume, tmp_path, **SECRET)
    assert linear.burnt(tmp_path) == {4}
    assert linear.fingerprint(job) == linear.expected({4}, keys=keys.by_step(), **SECRET)


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


def test_a_checkpoint_that_falls_due_on_a_burnt_step_is_written_at_the_next(
    linear: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = linear.Keys().watch(monkeypatch.setattr)
    die(linear, tmp_path, _between_draw_and_line, 4, keys)
    (tmp_path / STEP_KEY).unlink()
    assert not (tmp_path / CHECKPOINT).exists()
    with pytest.raises(linear.Died):
        linear.run(train.resume, tmp_path, observe=linear.at(7, linear.Died()), **SECRET)
    job = linear.run(train.resume, tmp_path, **SECRET)
    assert [step for step in job.update.applied if step <= 7] == [6, 7]
    assert linear.fingerprint(job) == linear.expected({4}, keys=keys.by_step(), **SECRET)


def test_checkpoints_do_not_tell_where_a_run_was_stopped(linear: ModuleType, tmp_path: Path) -> None:
    for name, stop in (("undisturbed", None), ("stopped", 6)):
        (tmp_path / name).mkdir()
        if stop is None:
            linear.run(train.fit, tmp_path / name)
        else:
            with pytest.raises(train.Stopped):
                linear.run(train.fit, tmp_path / name, observe=_asks_at(stop))
            linear.run(train.resume, tmp_path / name)
    assert files(tmp_path / "stopped") == files(tmp_path / "undisturbed")


def test_without_a_checkpoint_a_resume_replays_all(linear: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(linear.Died):
        linear.run(train.fit, tmp_path, observe=linear.at(8, linear.Died()))
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    job = linear.run(train.resume, tmp_path)
    assert job.update.applied == list(range(STEPS))
    assert linear.fingerprint(job) == linear.expected(set())


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
        assert not read(tmp_path).closed  # a step may be in flight, and stays so
        assert linear.burnt(tmp_path) == set()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    job = linear.run(train.resume, tmp_path)
    assert linear.fingerprint(job) == linear.expected(set())


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


def test_a_second_request_is_immediate_and_the_step_is_made_again(
    linear: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = linear.Keys().watch(monkeypatch.setattr)
    with pytest.raises(KeyboardInterrupt):
        linear.run(train.fit, tmp_path, observe=_asks_at(4, times=2), **SECRET)
    assert not read(tmp_path).closed
    job = linear.run(train.resume, tmp_path, **SECRET)
    assert linear.burnt(tmp_path) == set()
    assert linear.fingerprint(job) == linear.expected(set(), keys=keys.by_step(), **SECRET)


@pytest.mark.parametrize("stop", [2, 5], ids=["while steps are taken up again", "before the step is made again"])
def test_a_stop_before_the_step_in_flight_is_made_again_keeps_its_key(
    linear: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Else a death, a stop and a resume would draw it a second time."""
    keys = linear.Keys().watch(monkeypatch.setattr)
    assert die(linear, tmp_path, _between_draw_and_line, 6, keys) == 6
    with pytest.raises(train.Stopped):
        linear.run(train.resume, tmp_path, observe=_asks_at(stop), **SECRET)
    job = linear.run(train.resume, tmp_path, **SECRET)
    assert linear.fingerprint(job) == linear.expected(set(), keys=keys.by_step(), **SECRET)


def test_a_clean_stop_leaves_no_key(linear: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(train.Stopped):
        linear.run(train.fit, tmp_path, observe=_asks_at(6))
    assert not (tmp_path / STEP_KEY).exists()
