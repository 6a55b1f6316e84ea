"""A run's output folder: new, owner-only, and used by one run alone."""

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
    """Reject a folder that is not empty, before any computation."""
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
    """Whether a run was started in `folder`, which --overwrite may then rename."""
    return any((folder / name).exists() for name in (JOURNAL, COUNT, CONFIG))


def set_aside(folder: Path, tell: Callable[[str], None]) -> None:
    """Rename the run in `folder`, if there is one, to the first of `folder`.1, `folder`.2 … that is free.

    Nothing is deleted: the journal records spent ε even if the run is discarded. DpzoError if another process uses the
    folder.
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
    """The message for a journal that verifies but whose header no run writes."""
    return f"{journal}: line 1 is not the header of a run; it is damaged or of another version"


def require_begun(folder: Path) -> None:
    """Raise DpzoError for a run that stopped before its journal was created: it cannot be resumed."""
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
        require_new(folder)  # another process may have claimed it first
        yield


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Lock the existing `folder` against other dpzo processes while the block runs.

    On a file system without folder locks, only the journal's own lock applies. DpzoError if the folder is locked.
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
