"""The journal on disk: one writer at a time, write → fsync → head, and a disk that refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpzo.errors import DpzoError
from dpzo.privacy import Release
from dpzo.run.journal import HEAD, JOURNAL, Burnt, Journal, read
from dpzo.run.step_key import STEP_KEY

HEADER: dict[str, Any] = {"plan": {"num_directions": 2, "steps": 9}, "lattice_unit": 0.125}


def release(step: int) -> Release:
    return Release(step, (step, -step), 0.125)


def write(folder: Path, steps: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    journal = Journal.create(folder, HEADER)
    for step in range(steps):
        journal.append(release(step))
    journal.close(clean=True)
    return folder


def entries(folder: Path) -> list[Any]:
    return [entry for entry, _ in read(folder).entries()]


def burn_on_reopen(folder: Path) -> list[int]:
    before = read(folder).num_steps
    (folder / STEP_KEY).unlink(missing_ok=True)
    Journal.reopen(folder).close(clean=True)
    after = entries(folder)
    assert all(isinstance(entry, Burnt) for entry in after[before:])
    return [entry.step for entry in after[before:]]


_HOLD = """
import sys
from pathlib import Path
from dpzo.errors import DpzoError
from dpzo.run.journal import Journal
try:
    journal = Journal.reopen(Path(sys.argv[1]))
except DpzoError as error:
    print(f"refused: {error}", flush=True)
    sys.exit(2)
print("holding", flush=True)
sys.stdin.readline()
journal.close(clean=True)
"""


def _holder(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_second_process_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    with _holder(folder) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "holding\n"
        before = (folder / JOURNAL).read_bytes()
        with pytest.raises(DpzoError, match="another process is working on this run"):
            Journal.reopen(folder)
        assert (folder / JOURNAL).read_bytes() == before
        first.communicate("\n", timeout=60)
    assert first.returncode == 0
    assert burn_on_reopen(folder) == []


def test_a_process_is_refused_while_this_one_holds_the_run(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    journal = Journal.reopen(folder)
    with _holder(folder) as second:
        out, _ = second.communicate("\n", timeout=60)
    assert second.returncode == 2
    assert "another process is working on this run" in out
    journal.append(release(4))
    journal.close(clean=True)


def test_a_journal_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    """A process that dies while it creates a run leaves nothing that looks like one, and nothing in the way."""
    for act in ("fsync", "_move_head", "replace"):
        with pytest.MonkeyPatch.context() as patch:
            place = {"fsync": os, "_move_head": Journal, "replace": Path}[act]
            patch.setattr(place, act, _dies)
            with pytest.raises(_Died):
                Journal.create(tmp_path, HEADER)
        with pytest.raises(DpzoError, match=r"no readable journal\.jsonl"):
            read(tmp_path)
    (tmp_path / f"{JOURNAL}.new").write_bytes(b"left by a process that was killed")
    Journal.create(tmp_path, HEADER).close(clean=True)
    assert read(tmp_path).num_steps == 0
    assert not (tmp_path / f"{JOURNAL}.new").exists()


class _Died(BaseException):
    pass


def _dies(*arguments: object, **options: object) -> None:
    raise _Died


@pytest.mark.parametrize("attempts", [1, 10])
def test_a_run_can_be_read_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempts: int) -> None:
    """Someone may look at any moment: what is found is a run, never one that was cut short."""
    monkeypatch.setattr("dpzo.run.journal._READS", attempts)
    steps = 400
    header = {**HEADER, "plan": {**HEADER["plan"], "steps": steps}}
    journal = Journal.create(tmp_path, header)

    def fill() -> None:
        for step in range(steps):
            journal.append(release(step))

    writer = threading.Thread(target=fill)
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(read(tmp_path).num_steps)
    writer.join()
    journal.close(clean=True)
    assert seen == sorted(seen)
    assert len(set(seen)) > 10
    assert read(tmp_path).num_steps == steps


def test_a_second_death_while_a_step_is_burnt_loses_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two deaths in a row, each between a line and the head's move: the head may not fall two lines behind."""
    journal = Journal.create(tmp_path, HEADER)
    moves: list[bool] = []
    real = Journal._move_head

    def move(self: Journal, *, closed: bool) -> None:
        moves.append(closed)
        if self.num_steps == dies_at:
            raise _Died
        real(self, closed=closed)

    monkeypatch.setattr(Journal, "_move_head", move)
    dies_at = 1
    with pytest.raises(_Died):
        journal.append(release(0))
    os.close(journal._file)
    (tmp_path / STEP_KEY).unlink()
    dies_at = 2
    with pytest.raises(_Died):
        Journal.reopen(tmp_path)
    monkeypatch.undo()
    assert burn_on_reopen(tmp_path) == [2]
    assert entries(tmp_path) == [release(0), Burnt(1), Burnt(2)]


def test_a_refused_journal_can_be_mended_and_taken_up_by_the_same_process(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    whole = (folder / HEAD).read_bytes()
    (folder / HEAD).unlink()
    with pytest.raises(DpzoError, match="missing or damaged"):
        Journal.reopen(folder)
    (folder / HEAD).write_bytes(whole)
    assert burn_on_reopen(folder) == []


# --- write → fsync → head


class Recorder:
    """Every write, sync and rename, in order, by the name of the file it went to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.acts: list[str] = []
        self.most = 1 << 30
        self.fail_after: int | None = None
        real_write, real_place, real_sync = os.write, os.pwrite, os.fsync
        real_replace, real_unlink = Path.replace, Path.unlink

        def name(descriptor: int) -> str:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            return "folder" if path.is_dir() else path.name

        def room(data: bytes) -> bytes:
            if self.fail_after is not None:
                if self.fail_after == 0:
                    raise OSError(28, "No space left on device")
                data, self.fail_after = data[: self.fail_after], max(0, self.fail_after - len(data))
            return data

        def place(descriptor: int, data: bytes, offset: int) -> int:
            self.acts.append(f"place {name(descriptor)}")
            return real_place(descriptor, room(data), offset)

        def unlink(path: Path, missing_ok: bool = False) -> None:
            if path.exists():
                self.acts.append(f"unlink {path.name}")
            real_unlink(path, missing_ok=missing_ok)

        def write(descriptor: int, data: bytes) -> int:
            data = room(data)
            self.acts.append(f"write {name(descriptor)}")
            return real_write(descriptor, data[: self.most])

        def sync(descriptor: int) -> None:
            self.acts.append(f"sync {name(descriptor)}")
            real_sync(descriptor)

        def replace(path: Path, target: Path) -> Path:
            self.acts.append(f"rename {path.name} to {Path(target).name}")
            return real_replace(path, target)

        monkeypatch.setattr(os, "write", write)
        monkeypatch.setattr(os, "pwrite", place)
        monkeypatch.setattr(Path, "unlink", unlink)
        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(Path, "replace", replace)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc to name descriptors by")
    with monkeypatch.context() as patch:
        yield Recorder(patch)


HEAD_MOVES = [
    "write journal.head.new",
    "sync journal.head.new",
    "rename journal.head.new to journal.head",
    "sync folder",
]
NEXT_KEY = ["place journal.key", "place journal.key", "sync journal.key"]  # the next key, and zeros over the last one
STEP = ["write journal.jsonl", "sync journal.jsonl", *HEAD_MOVES, *NEXT_KEY]
MAKE_KEY = ["place journal.key", "place journal.key", "sync journal.key"]  # room for two, and the first
DESTROY_KEY = ["place journal.key", "sync journal.key", "unlink journal.key", "sync folder"]


def test_a_release_is_written_synced_and_then_the_head_moves(tmp_path: Path, recorder: Recorder) -> None:
    journal = Journal.create(tmp_path, HEADER)
    begun = ["write journal.jsonl.new", "sync journal.jsonl.new", *MAKE_KEY, *HEAD_MOVES]
    assert recorder.acts == [*begun, "rename journal.jsonl.new to journal.jsonl", "sync folder"]
    for step in range(2):
        recorder.acts.clear()
        journal.append(release(step))
        assert recorder.acts == STEP
    journal.close(clean=False)
    recorder.acts.clear()
    again = Journal.reopen(tmp_path)
    again.append(release(2))
    again.close(clean=True)
    assert recorder.acts == [*HEAD_MOVES, *STEP, *HEAD_MOVES, *DESTROY_KEY]
    recorder.acts.clear()
    Journal.reopen(tmp_path).close(clean=False)
    assert recorder.acts == [*MAKE_KEY, "sync folder", *HEAD_MOVES]
    (tmp_path / STEP_KEY).unlink()
    recorder.acts.clear()
    Journal.reopen(tmp_path).close(clean=False)
    assert recorder.acts == [*MAKE_KEY, "sync folder", *HEAD_MOVES, *STEP]


def test_a_short_write_is_completed(tmp_path: Path, recorder: Recorder) -> None:
    recorder.most = 7
    folder = write(tmp_path / "run", 3)
    assert entries(folder) == [release(step) for step in range(3)]


@pytest.mark.parametrize("room", [0, 10])
def test_a_full_disk_tears_a_line_and_burns_its_step(tmp_path: Path, recorder: Recorder, room: int) -> None:
    journal = Journal.create(tmp_path, HEADER)
    journal.append(release(0))
    recorder.fail_after = room
    with pytest.raises(DpzoError, match="No space left on device; the run is intact"):
        journal.append(release(1))
    journal.close(clean=False)
    recorder.fail_after = None
    assert entries(tmp_path) == [release(0)]
    assert burn_on_reopen(tmp_path) == [1]


def test_a_disk_that_fills_up_before_the_head_moves_burns_the_next_step(tmp_path: Path, recorder: Recorder) -> None:
    journal = Journal.create(tmp_path, HEADER)
    line = len((write(tmp_path / "other", 1) / JOURNAL).read_bytes().splitlines(keepends=True)[1])
    recorder.fail_after = line
    with pytest.raises(DpzoError, match="No space left on device"):
        journal.append(release(0))
    journal.close(clean=False)
    recorder.fail_after = None
    assert entries(tmp_path) == [release(0)]
    assert burn_on_reopen(tmp_path) == [1]


def test_a_disk_that_is_full_from_the_start_leaves_no_half_a_run(tmp_path: Path, recorder: Recorder) -> None:
    for room in (0, 10):
        recorder.fail_after = room
        with pytest.raises(DpzoError, match="No space left on device"):
            Journal.create(tmp_path, HEADER)
        assert not (tmp_path / JOURNAL).exists()
    recorder.fail_after = None
    Journal.create(tmp_path, HEADER).close(clean=True)
    assert read(tmp_path).num_steps == 0
