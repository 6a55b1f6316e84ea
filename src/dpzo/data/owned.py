"""Create files and folders that only their owner can read, whatever the shell's umask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def owner_only() -> Iterator[None]:
    """While the block runs every new file has at most mode 0600 and every new folder 0700, libraries' files too.

    The umask is the process's: what other threads create meanwhile is the owner's as well. Files that exist keep
    their modes.
    """
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def make_folders(folder: Path) -> None:
    """Create `folder` and the parents that are missing, all of mode 0700; what exists stays as it is. OSError."""
    with owner_only():
        folder.mkdir(parents=True, exist_ok=True)
