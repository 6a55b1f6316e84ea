"""What a run shows: on a terminal a bar of public things, elsewhere ten lines; and how it ends on Ctrl-C."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.core

from dpzo.cli.screen import rounded_up
from dpzo.privacy import PrivateChannel, Release
from dpzo.run import finished as finished_run
from dpzo.run import folders as runs
from dpzo.run import trained_model

Dpzo = Callable[..., Any]
Arguments = Callable[..., list[object]]
LEFT = r"(\d+ s|\d+ min|\d+\.\d h|[\d,]+ days) left by plan"  # a busy machine forecasts as much as it likes
BAR = re.compile(rf"step (\d+)/4000 \S+ ε = \d+(\.\d+)? · ~\d+ MiB planned · {LEFT}")


def on_a_terminal(arguments: list[str], interrupt_after: bytes) -> tuple[int, str]:
    """Run dpzo on a terminal of 80 columns, press Ctrl-C once `interrupt_after` was shown; exit code and screen."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS="80", OMP_NUM_THREADS="1")
        os.execv(sys.executable, [sys.executable, "-c", "from dpzo.cli import main; main()", *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shown, pressed = b"", False
    while True:
        try:
            read = os.read(terminal, 4096)
        except OSError:  # the other side is closed
            break
        if not read:
            break
        shown += read
        if not pressed and interrupt_after in shown:
            os.write(terminal, b"\x03")
            pressed = True
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode()


# Python warns of a fork in a process with threads; the child becomes another program at once.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_bar_and_ctrl_c(dpzo: Dpzo, arguments: Arguments, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, shown = on_a_terminal([str(x) for x in arguments(run, steps=4000)], b"step 2")
    assert code == 130
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") > 0  # the cursor is back
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown))
    drawn = [line for line in lines if line.startswith("step")]
    assert len(drawn) >= 2
    for line in drawn:
        assert BAR.fullmatch(line.replace("^C", "").rstrip()), line
        assert len(line) <= 80
    last = [line for line in lines if line][-1]
    how = f"continue with dpzo resume {run}"
    stopped = re.fullmatch(rf"dpzo: stopped after step (\d+) of 4000; {re.escape(how)}", last)
    assert stopped, last
    journalled = (run / "journal.jsonl").read_text().count("\n") - 1
    assert journalled == int(stopped[1]) < 4000


def test_ctrl_c_between_steps_then_resume(
    dpzo: Dpzo, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    release = PrivateChannel.release

    def pressed(self: PrivateChannel, rows: Any) -> Release:
        made = release(self, rows)
        if made.step == 4:
            signal.raise_signal(signal.SIGINT)
        return made

    with monkeypatch.context() as patched:
        patched.setattr(PrivateChannel, "release", pressed)
        said = dpzo(*arguments(run, steps=9))
    assert said.code == 130
    assert said.err.splitlines()[-1] == f"dpzo: stopped after step 5 of 9; continue with dpzo resume {run}"
    assert not (run / "model").exists()
    assert dpzo("evaluate", run, "--data", "x.csv", "--data-is", "public").code == 2
    resumed = json.loads(dpzo("resume", run, "--json").out)
    assert resumed["card"]["steps"] | {"note": None} == {"planned": 9, "spent": 9, "burnt": 0, "note": None}
    replayed = dpzo("replay", run, "--output", tmp_path / "rebuilt", "--json")
    assert json.loads(replayed.out)["equals_run"] is True


@pytest.mark.parametrize("stage", ["load", "prepare"])
def test_ctrl_c_before_the_first_step(
    dpzo: Dpzo, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def pressed(*given: object, **more: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(runs, "start" if stage == "load" else "objective", pressed)
    said = dpzo(*arguments(tmp_path / "run"))
    assert said.code == 130
    assert said.err.splitlines()[-1] == "dpzo: stopped before the first step; nothing was spent"
    assert not (tmp_path / "run").exists()


def test_ctrl_c_in_other_commands(
    dpzo: Dpzo, finished: Path, tmp_path: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*given: object, **more: object) -> None:
        signal.raise_signal(signal.SIGINT)

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for module in (runs, trained_model, finished_run):
        monkeypatch.setattr(module, "read", pressed)
    for command in (["replay", run, "--output", tmp_path / "new"], ["evaluate", run, "--data", records]):
        extra = ["--data-is", "public"] if command[0] == "evaluate" else []
        said = dpzo(*command, *extra)
        assert (said.code, said.out, said.err) == (130, "", "dpzo: stopped\n")
    said = dpzo("resume", run)
    assert (said.code, said.err) == (130, f"dpzo: stopped; continue with dpzo resume {run}\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("method", ["parse_args", "invoke"])
def test_a_stop_outside_every_command_is_told_too(
    dpzo: Dpzo, monkeypatch: pytest.MonkeyPatch, method: str, number: int, code: int
) -> None:
    """While the arguments are read, and in a command that says nothing of its own: typer swallows the interrupt."""
    monkeypatch.setattr(typer.core.TyperCommand, method, lambda *_: signal.raise_signal(number))
    said = dpzo("env")
    assert (said.code, said.out, said.err.strip()) == (code, "", "dpzo: stopped")
    monkeypatch.undo()
    assert dpzo("env").code == 0


def test_elsewhere_a_line_before_the_first_step_after_the_first_few_and_at_each_tenth(
    dpzo: Dpzo, arguments: Arguments, tmp_path: Path
) -> None:
    said = dpzo(*arguments(tmp_path / "run", steps=37))
    steps = [line for line in said.err.splitlines() if line.startswith("dpzo: step")]
    done = [int(line.split()[2].partition("/")[0]) for line in steps]
    assert done == [0, 1, 2, 4, 5, 8, 10, 12, 15, 19, 23, 26, 30, 34, 37]
    assert all(re.fullmatch(rf"dpzo: step \d+/37, {LEFT}", line) for line in steps)
    assert "\x1b" not in said.err + said.out
    assert said.out.startswith("Whatever the run published")
    assert not re.search("loss|accuracy", said.err + said.out)


def test_epsilon_is_never_shown_smaller_than_it_is() -> None:
    for epsilon in (1.99991, 2.0, 0.99969943, 1e-9, 123456.7, 3.00001):
        assert epsilon <= float(rounded_up(epsilon, 4)) <= epsilon * 1.001
    assert rounded_up(2.0, 4) == "2"


def test_a_bug_of_ours_withholds_its_message(
    dpzo: Dpzo, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object, **more: object) -> None:
        raise RuntimeError("zqj7xk")

    monkeypatch.setattr(runs, "start", broken)
    said = dpzo(*arguments(tmp_path / "run"))
    assert said.code == 1
    assert "internal error: RuntimeError in test_screen.py" in said.err
    assert "zqj7xk" not in said.err
    assert "Traceback" not in said.err
    monkeypatch.setenv("DPZO_NONPRIVATE_TRACEBACK", "1")
    assert "zqj7xk" in dpzo(*arguments(tmp_path / "run")).err
