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

from dpzo.run.journal import Burnt, read

SCRIPT = Path(__file__).resolve().parents[1] / "doubles" / "linear.py"


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def burnt(folder: Path) -> set[int]:
    return {entry.step for entry, _ in read(folder).entries() if isinstance(entry, Burnt)}


def drawn(linear: ModuleType, folder: Path) -> list[int]:
    return [step for step, _ in linear.drawn_keys(linear.key_log(folder))]


def undisturbed(linear: ModuleType, folder: Path, steps: int) -> str:
    """The trained bits of a run with the keys that were drawn; AssertionError where a step was drawn with two."""
    keys = linear.Keys(drawn=linear.drawn_keys(linear.key_log(folder))).by_step()
    assert sorted(keys) == list(range(steps))
    left = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert not any(key in left or key.hex().encode() in left for key in keys.values())
    trained: str = linear.expected(set(), steps, keys=keys, has_guarantee=True)
    return trained


@pytest.mark.slow
def test_kill_9_at_random_times(linear: ModuleType, tmp_path: Path) -> None:
    steps, kills = 120, 6
    folder = tmp_path / "run"
    done = subprocess.run(
        command("kill", folder, steps, kills), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert burnt(folder) == set()
    assert done.stdout.split() == [undisturbed(linear, folder, steps)]
    assert set(drawn(linear, folder)) == set(range(steps))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_request_to_stop_is_honoured_between_two_steps(linear: ModuleType, tmp_path: Path, number: int) -> None:
    folder = tmp_path / "run"
    steps = 150  # half a minute: it is still at work when the signal comes, however busy the machine is
    with subprocess.Popen(
        command("slow", folder, steps), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(drawn(linear, folder)) < 3:
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert "dpzo.run.loop.Stopped: stopped after step" in errors
    how = "press Ctrl-C" if number == signal.SIGINT else "send the signal"
    assert f"dpzo: stopping after this step; {how} again to stop now\n" in errors
    stopped = read(folder)
    assert stopped.closed
    assert 3 <= stopped.num_steps < steps
    assert drawn(linear, folder) == list(range(stopped.num_steps))
    done = subprocess.run(command("fit", folder, steps), capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == [undisturbed(linear, folder, steps)]
    assert burnt(folder) == set()
    assert drawn(linear, folder) == list(range(steps))


def test_a_full_disk_is_the_users_error_and_the_run_goes_on_after_it(linear: ModuleType, tmp_path: Path) -> None:
    """A limit on the size of a file makes every write beyond it fail, as a full disk would."""
    steps, folder = 60, tmp_path / "run"

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    done = subprocess.run(
        command("fit", folder, steps),
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
    spent = read(folder)
    assert 0 < spent.num_steps < steps
    done = subprocess.run(command("fit", folder, steps), capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == [undisturbed(linear, folder, steps)]
    assert burnt(folder) == set()
