"""What may lie in a run's folder: every file is compared with what the journal gives, or named as not compared."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from dpzo.report import CARD_JSON, CARD_MARKDOWN, PRIVATE_USES
from dpzo.run.checkpoint import CHECKPOINT
from dpzo.run.folders import PLAN
from dpzo.run.journal import HEAD, JOURNAL
from dpzo.run.local import LOCAL
from dpzo.run.modules import WEIGHTS
from dpzo.run.output import CONFIG, COUNT
from dpzo.run.step_key import STEP_KEY
from dpzo.run.trained_model import MODEL
from dpzo.verify.report import Check, failed, passed
from dpzo.verify.signature import SIGNATURE, SUMS

COMPARED = frozenset({JOURNAL, HEAD, CONFIG, PLAN, COUNT, CARD_JSON, CARD_MARKDOWN, PRIVATE_USES, CHECKPOINT, WEIGHTS})
"""Files whose whole content follows from the journal, the base model and the code."""
SIGNED = frozenset({SUMS, SIGNATURE})
"""What `dpzo sign` writes; the signature check reads them."""
PRIVATE = frozenset({LOCAL, STEP_KEY})
"""Owner-only files: not compared, not to be published. Whether a step's key may be there, the check of steps says."""
_SCRATCH = ".new"
"""What a file is called while it is written; one may be left where a process was killed."""
_LARGEST_TEXT = 1 << 26
"""Bytes of a file that is read whole (64 MiB: the plan of the largest noise table takes a tenth)."""
_LARGE = frozenset({JOURNAL, CHECKPOINT, WEIGHTS})


def check_kinds(run: Path) -> Check | None:
    """A failure where something in the folder must not even be opened; None where all may be read."""
    for path, place in _entries(run):
        kind = path.lstat().st_mode
        if stat.S_ISLNK(kind):
            return failed("folder", f"{place} is a symbolic link to content elsewhere; nothing was read")
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            return failed(
                "folder", f"{place} is a pipe, a device or a socket, not a file or a folder; nothing was read"
            )
        size = path.lstat().st_size
        if stat.S_ISREG(kind) and path.parent == run and place not in _LARGE and size > _LARGEST_TEXT:
            return failed("folder", f"{place} has {size} bytes, more than a run writes; nothing was read")
    return None


def check_contents(run: Path, *, finished: bool) -> Check:
    """No file that no run writes; `finished`: the journal holds all steps of the plan."""
    known = COMPARED | SIGNED | PRIVATE
    if not finished:
        known |= {name + _SCRATCH for name in known}
    kept = []
    for path, place in _entries(run):
        if path.parent != run:
            continue  # model/ is compared with what a replay writes
        if path.is_dir() != (place == MODEL) or (place != MODEL and place not in known):
            return failed("folder", f"{place} is unexpected: no run writes it")
        if place not in COMPARED | SIGNED | {MODEL}:
            kept.append(place)
    if not kept:
        return passed("folder", "contains only the files of a run")
    return passed(
        "folder", f"contains only the files of a run; private to the owner, do not publish: {', '.join(kept)}"
    )


def owners_files(run: Path) -> tuple[str, ...]:
    """The files of the folder that are not compared with anything."""
    others = COMPARED | SIGNED | {MODEL}
    return tuple(place for path, place in _entries(run) if path.parent == run and place not in others)


def _entries(run: Path) -> Iterator[tuple[Path, str]]:
    """Every entry below the folder with its place in it, in the order of names; links are not followed."""
    for folder, folders, files in os.walk(run):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = Path(folder, name)
            yield path, path.relative_to(run).as_posix()
