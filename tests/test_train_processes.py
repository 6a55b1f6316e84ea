"""A run against the operating system: kill -9, Ctrl-C, SIGTERM, and a disk that is full, in processes of its own."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from dpzo.journal import Burnt, read

SCRIPT = Path(__file__).resolve().parent / "doubles" / "linear.py"


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def burnt(folder: Path) -> set[int]:
    return {entry.step for entry, _ in read(folder).entries() if isinstance(entry, Burnt)}


def drawn(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "draws.log").read_text().splitlines()]


def test_kill_9_at_random_times(linear: ModuleType, tmp_path: Path) -> None:
    steps, kills = 120, 6
    done = subprocess.run(
        command("kill", tmp_path, steps, kills), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    lost = burnt(tmp_path)
    assert 1 <= len(lost) <= kills
    assert done.stdout.split() == [linear.expected(lost, steps)]
    draws = drawn(tmp_path)
    assert len(draws) == len(set(draws))
    assert set(draws) | lost == set(range(steps))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_request_to_stop_is_honoured_between_two_steps(linear: ModuleType, tmp_path: Path, number: int) -> None:
    steps = 150  # half a minute: it is still at work when the signal comes, however busy the machine is
    with subprocess.Popen(
        command("slow", tmp_path, steps), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and (not (tmp_path / "draws.log").exists() or len(drawn(tmp_path)) < 3):
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert "dpzo.train.Stopped: stopped after step" in errors
    stopped = read(tmp_path)
    assert stopped.closed
    assert 3 <= stopped.num_steps < steps
    assert drawn(tmp_path) == list(range(stopped.num_steps))
    assert linear.go(tmp_path, steps) == linear.expected(set(), steps)
    assert burnt(tmp_path) == set()
    assert drawn(tmp_path) == list(range(steps))


def test_a_full_disk_is_the_users_error_and_the_run_goes_on_after_it(linear: ModuleType, tmp_path: Path) -> None:
    """A limit on the size of a file makes every write beyond it fail, as a full disk would."""
    steps = 60

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    done = subprocess.run(
        command("fit", tmp_path, steps),
        preexec_fn=little_room,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("dpzo.errors.DpzoError: ")
    assert last.endswith(
        "journal.jsonl: File too large; the run is intact up to its last journalled step: make room, resume"
    )
    spent = read(tmp_path)
    assert 0 < spent.num_steps < steps
    assert linear.go(tmp_path, steps) == linear.expected({spent.num_steps}, steps)
    assert burnt(tmp_path) == {spent.num_steps}
    draws = drawn(tmp_path)
    assert len(draws) == len(set(draws))
