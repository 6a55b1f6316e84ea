"""Ctrl-C and SIGTERM in every phase of `dpzo train`, `resume` and `replay`, as the shell sees them end."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from deaths import After, Death, Life, live
from subjects import MARK, Whole, burnt

import dpzo.run.build as assembly
from dpzo.cli import main
from dpzo.privacy import PrivateChannel
from dpzo.run import checkpoint
from dpzo.run import folders as runs
from dpzo.run.journal import JOURNAL, Journal, read

PHASES: dict[str, tuple[Any, str]] = {
    "reading": (runs, "records_of"),
    "loading": (assembly, "load_model"),
    "calibration": (assembly, "build_plan"),
    "isolation check": (assembly, "isolated_or_refused"),
    "forecast": (assembly, "timed_evaluations"),
    "preparing": (runs, "objective"),
    "folder": (runs, "config_text"),
    "draw": (PrivateChannel, "draw_batch"),
    "release": (PrivateChannel, "release"),
    "step": (Journal, "append"),
    "checkpoint": (checkpoint, "save"),
    "finishing": (runs, "save_model"),
    "card": (runs, "write_card"),
}
"""What a command is busy with → the function that the signal arrives in."""

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def arguments(whole: Whole, output: Path) -> list[str]:
    """The command line of such a run, with secret noise and an ε to solve for."""
    config, privacy = whole.config, whole.config.privacy
    return [
        "train",
        *("--model", config.model.name, "--data", str(whole.source.file), "--output", str(output)),
        *("--labels", "calm,loud", "--num-examples", "24", "--delta", str(privacy.delta), "--epsilon", "3"),
        *("--expected-batch-size", "6", "--num-directions", "2", "--max-length", "16", "--steps", str(whole.steps)),
        *("--set", "training.checkpoint_every=4", "--set", "training.microbatch_size=8"),
    ]


def command(room: Path, words: list[str], phase: str | None = None, number: int = 0, call: int = 0) -> int:
    """Run a command in this process; the signal arrives as the phase's function is called for the `call`-th time."""
    draw = PrivateChannel.draw_batch

    def logged(channel: PrivateChannel, num_units: int) -> Any:
        with (room / "draws.log").open("a") as log:
            log.write(f"{channel.spent}\n")
        return draw(channel, num_units)

    PrivateChannel.draw_batch = logged  # type: ignore[method-assign]
    sys.argv = ["dpzo", *words]
    if phase is None:
        main()
    place, name = PHASES[str(phase)]
    real, calls = getattr(place, name), []

    def interrupted(*given: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == call + 1:
            os.kill(os.getpid(), number)
        return real(*given, **options)

    with mock.patch.object(place, name, interrupted):
        main()
    raise AssertionError("main returns")


Check = Callable[[bool, str], None]


def stopped_in(whole: Whole, room: Path, phase: str, number: int, check: Check) -> None:
    """One signal in one phase of a run; then `resume` to the end, if there is a run, and a replay."""
    output, what = room / "run", f"{signal.Signals(number).name} while {phase}"
    calls = 3 if phase in ("draw", "release", "step") else 0
    life = live(lambda: command(room, arguments(whole, output), phase, number, calls), output)
    _ended_well(life, what, check, number)
    began = (output / JOURNAL).exists()
    expects_run = phase in ("draw", "release", "step", "checkpoint", "finishing", "card")
    check(began == expects_run, f"{what}: {'a' if began else 'no'} run was left")
    if began:
        check(f"continue with dpzo resume {output}" in " ".join(life.said.split()), f"{what}: says not how to go on")
        check(not burnt(output), f"{what}: a step is burnt")
        finish(whole, room, what, check)
        check(not burnt(output), f"{what}: a step is burnt by the resume")
    else:
        check("nothing was spent" in life.said, f"{what}: says not that nothing was spent")


def finish(whole: Whole, room: Path, what: str, check: Check) -> None:
    """Resume, replay, and look: no step twice, all steps there, the same bits."""
    output = room / "run"
    resumed = live(lambda: command(room, ["resume", str(output)]), output)
    check(resumed.code == 0, f"{what}: resume ends with {resumed.code}: {resumed.said[-500:]}")
    drawn = [int(line) for line in (room / "draws.log").read_text().split()]
    check(len(drawn) == len(set(drawn)), f"{what}: drawn twice: {drawn}")
    check(set(drawn) | burnt(output) == set(range(whole.steps)), f"{what}: a step is missing")
    check(read(output).closed, f"{what}: the run is not closed")
    again = live(lambda: command(room, ["replay", str(output), "--output", str(room / "again")]), room / "again")
    check("equal to the run's, bit for bit" in again.said, f"{what}: replay says {again.said[-500:]}")


def stopped_at_random(whole: Whole, room: Path, clock: random.Random, check: Check, seconds: float) -> Life:
    """A signal at any time of a run, or of its resume or replay; a run that was begun is then finished."""
    output, number = room / "run", clock.choice(list(CODES))
    act = clock.choice(("train", "resume", "replay"))
    words = {
        "train": arguments(whole, output),
        "resume": ["resume", str(output)],
        "replay": ["replay", str(output), "--output", str(room / "copy")],
    }
    if act != "train":
        live(lambda: command(room, words["train"], "step", signal.SIGINT, 4), output)
    death: Death = After(clock.uniform(0, seconds), number)
    life = live(lambda: command(room, words[act]), output, death)
    what = f"{signal.Signals(number).name} in {act} after {death.seconds:.3f} s"
    if life.code != 0 and not (life.code == -number and not life.said):  # before `main`: Python's own way
        _ended_well(life, what, check, number)
    if (output / JOURNAL).exists():
        finish(whole, room, what, check)
    shutil.rmtree(room / "again", ignore_errors=True)
    return life


def _ended_well(life: Life, what: str, check: Check, number: int) -> None:
    check(life.code == CODES[signal.Signals(number)], f"{what}: ends with {life.code}: {life.said[-500:]}")
    ends = [line for line in life.said.splitlines() if re.match(r"dpzo: stopped\b", line)]
    check(len(ends) == 1, f"{what}: {len(ends)} lines say so: {life.said[-800:]}")
    for word in ("Traceback", "Error", "Exception", MARK):
        check(word not in life.said, f"{what}: shows {word}: {life.said[-800:]}")
