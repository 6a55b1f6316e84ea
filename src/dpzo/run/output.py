"""A run's output folder: new, owner-only, never shared with something else."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dpzo.data.owned import make_folders
from dpzo.errors import DpzoError
from dpzo.run.journal import JOURNAL

CONFIG, COUNT = "config.yaml", "count.json"


def require_new(folder: Path) -> None:
    """Refuse a folder that holds anything, before any time is spent."""
    if folder.exists() and not folder.is_dir():
        raise DpzoError(f"--output {folder}: is a file; choose a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        what = (
            "another run; dpzo resume it, set it aside with --overwrite, or"
            if (folder / JOURNAL).exists()
            else "other files;"
        )
        raise DpzoError(f"--output {folder}: holds {what} choose a new folder")


def is_run(folder: Path) -> bool:
    """Whether a run was begun in `folder`: what --overwrite may set aside."""
    return any((folder / name).exists() for name in (JOURNAL, COUNT, CONFIG))


def set_aside(folder: Path, tell: Callable[[str], None]) -> None:
    """Rename the run in `folder`, if there is one, to the first of `folder`.1, `folder`.2 … that is free.

    Nothing is deleted: a journal is the record of ε that is spent, whether or not the run is kept. DpzoError where
    another process works in it.
    """
    if not is_run(folder):
        return
    path = Path(os.path.abspath(folder))
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    with claimed(folder):
        try:
            path.rename(aside)
        except OSError as error:
            raise DpzoError(f"--output {folder}: cannot be set aside ({error.strerror}); choose a new folder") from None
    tell(f"the run in {folder} is kept in {aside}: what it spent of ε stays spent, and adds up with this run's")


def make_folder(folder: Path) -> None:
    """Create `folder` (and its parents) for the owner alone."""
    try:
        make_folders(folder)
        folder.chmod(0o700)
    except OSError as error:
        raise DpzoError(f"--output {folder}: {error.strerror}") from None


def no_run(journal: Path) -> str:
    """What to say of a journal that verifies, and whose header is none that a run writes."""
    return f"{journal}: line 1 is not the header of a run; it is damaged or of another version"


def require_begun(folder: Path) -> None:
    """Say what became of a run that died before its journal was made: there is nothing to go on with."""
    if (folder / JOURNAL).exists() or (not (folder / CONFIG).exists() and not (folder / COUNT).exists()):
        return
    if (folder / COUNT).exists():
        spent = f"the ε of its {COUNT} is spent, and a new run, in a new folder, would count anew: add both up"
    else:
        spent = "nothing was spent: delete the folder and train anew"
    raise DpzoError(f"{folder}: this run ended before its first step; {spent}")


@contextmanager
def claim_new(folder: Path) -> Iterator[None]:
    """Create `folder` for the owner alone and claim it while the block runs. DpzoError unless it is new."""
    require_new(folder)
    make_folder(folder)
    with claimed(folder):
        require_new(folder)  # another process may have been quicker
        yield


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """While the block runs no other process of ours works in `folder`, which must exist: two would mix their files.

    A file system without such locks on folders leaves it at the journal's own. DpzoError where another process works.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DpzoError(f"{folder}: {error.strerror}; give the folder that dpzo train wrote") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DpzoError(f"{folder}: another process is working on this run; wait for it or stop it") from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)
