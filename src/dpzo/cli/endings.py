"""How a command that works on a run may end early: on Ctrl-C or SIGTERM, or because the disk refuses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer

from dpzo.cli.signals import say_stopped, stop_asked, stop_code
from dpzo.errors import DpzoError


@contextmanager
def ending_well(folder: Path | None, *, resumable: bool, again: bool = False) -> Iterator[None]:
    """Turn a stop into one line that says how to go on, and its exit code; a disk that refuses into a DpzoError.

    `folder` is where the command writes; `resumable` says that it holds a run, which `dpzo resume` can take up;
    `again`, that the command itself goes on when it is given once more. Enter it before the heavy imports: most early
    stops fall into them.
    """
    try:
        yield
    except KeyboardInterrupt:
        _stop("stopped", folder, resumable, again)
    except Exception as error:
        kind = type(error).__name__
        if kind == "Stopped":
            _stop(str(error), folder, resumable, again, getattr(error, "number", None))
        if stop_asked():  # a library has made an error of its own of the interrupt
            _stop("stopped", folder, resumable, again)
        if folder is not None and (isinstance(error, OSError) or kind == "SafetensorError"):
            raise DpzoError(_refused(error, folder, resumable)) from None
        if folder is not None and not isinstance(error, DpzoError) and not hasattr(error, "exit_code"):
            _record_traceback(folder)
        raise


def _record_traceback(folder: Path) -> None:
    """A traceback that is about to be shown may quote a record: the run's card says that one was."""
    from dpzo.cli import TRACEBACK_VARIABLE

    if os.environ.get(TRACEBACK_VARIABLE) == "1" and _begun(folder):
        from dpzo.report.private_uses import TRACEBACK
        from dpzo.run.trained_model import note_private_use

        note_private_use(folder, TRACEBACK)


def _refused(error: Exception, folder: Path, resumable: bool) -> str:
    """The system's own word for what went wrong: a library's message may quote what it was writing."""
    reason, name = "cannot be written", str(folder)
    if isinstance(error, OSError):
        reason = reason if error.strerror is None else error.strerror
        name = error.filename if isinstance(error.filename, str) else name
    mend = f"dpzo resume {folder}" if resumable and _begun(folder) else "run the command again"
    return f"{name}: {reason}; check the disk (is it full?) and its permissions, then {mend}"


def _begun(folder: Path) -> bool:
    return (folder / "journal.jsonl").exists()


def _stop(said: str, folder: Path | None, resumable: bool, again: bool, number: int | None = None) -> NoReturn:
    if again:
        how = "; finished cells are kept, and the same command resumes"
    elif folder is None or not resumable:
        how = ""
    elif _begun(folder):
        how = f"; continue with dpzo resume {folder}"
    elif (folder / "count.json").exists():
        how = f" before the first step; only the ε of the private count in {folder / 'count.json'} was spent"
    else:
        how = " before the first step; nothing was spent"
    say_stopped(f"{said}{how}")
    raise typer.Exit(stop_code(number))
