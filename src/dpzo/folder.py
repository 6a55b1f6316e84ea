"""A run's output folder: new, owner-only, never shared with something else."""

from __future__ import annotations

from pathlib import Path

from dpzo.errors import DpzoError
from dpzo.journal import JOURNAL


def require_new(folder: Path) -> None:
    """Refuse a folder that holds anything, before any time is spent."""
    if folder.exists() and not folder.is_dir():
        raise DpzoError(f"--output {folder}: is a file; choose a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        what = "another run; dpzo resume it, or" if (folder / JOURNAL).exists() else "other files;"
        raise DpzoError(f"--output {folder}: holds {what} choose a new folder")


def make_folder(folder: Path) -> None:
    """Create `folder` (and its parents) for the owner alone."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise DpzoError(f"--output {folder}: {error.strerror}") from None
