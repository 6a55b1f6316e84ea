"""Commands in this process: quick enough to try every mistake. What only a process can show has its own tests."""

from __future__ import annotations

import contextlib
import csv
import io
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dpzo.cli import main

MARK = "zqj7xk"
"""Part of every record's text: it may never be shown."""


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def invoke(*arguments: object) -> Said:
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["dpzo", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            main()
    finally:
        sys.argv = before
    assert isinstance(end.value.code, int)
    return Said(end.value.code, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C as a terminal gives it: a test run in the background starts with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def dpzo() -> Callable[..., Said]:
    return invoke


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 marked records with text, label and who."""
    path = tmp_path_factory.mktemp("data") / "notes.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "who"])
        writer.writerows([f"note {MARK}{i}", "yes" if i % 3 else "no", f"p{i // 2}"] for i in range(40))
    return path


@pytest.fixture(scope="session")
def options(tiny_bert: Path, records: Path) -> dict[str, object]:
    """What `dpzo train` needs for a run of a second."""
    return {
        "--model": tiny_bert,
        "--data": records,
        "--labels": "yes,no",
        "--num-examples": 40,
        "--delta": 1e-5,
        "--noise-multiplier": 4,
        "--expected-batch-size": 8,
        "--num-directions": 2,
        "--max-length": 16,
        "--steps": 4,
    }


def train_arguments(options: dict[str, object], output: Path, **changes: object) -> list[object]:
    """The arguments with some options changed; None leaves one out."""
    chosen = options | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return ["train", "--output", output, *(x for pair in chosen.items() if pair[1] is not None for x in pair)]


@pytest.fixture(scope="session")
def arguments(options: dict[str, object]) -> Callable[..., list[object]]:
    return lambda output, **changes: train_arguments(options, output, **changes)


@pytest.fixture(scope="session")
def finished(options: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run. Copy it before you spoil it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    said = invoke(*train_arguments(options, folder))
    assert said.code == 0, said.err
    return folder
