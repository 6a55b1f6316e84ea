"""The files of a base model before any is opened: a pipe or a device that a loader reads would never end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpzo.config.plain import read_regular, require_regular
from dpzo.errors import DpzoError

_MOST_ENTRIES = 10_000
"""Files and folders in a base model's folder; models have tens. A folder such as / is not walked to its end."""
_LARGEST_TEXT = 1 << 28
"""Bytes of a JSON file or a chat template (256 MiB), which loaders read whole; the largest tokenizers take a tenth."""
_TEXTS = (".json", ".jinja")
_INDEX = ".index.json"
"""Ending of a file that names the files over which weights are spread."""


def require_readable(name: str) -> None:
    """DpzoError unless a base model's files are regular ones, folders within its folder and shards it names included.

    `name`: a path; a hub's name, or what does not exist, passes. Folders whose names begin with a dot (`.git`,
    `.cache`) are read by no loader and are left out.
    """
    root = Path(name).expanduser()
    if not root.is_dir():
        if root.exists():
            require_regular(root)
        return
    for path in _files(root):
        require_regular(path, _LARGEST_TEXT if path.suffix in _TEXTS else None)
        if path.name.endswith(_INDEX):
            for shard in filter(Path.exists, _shards(path)):  # a form of the weights may be left out of a download
                require_regular(shard)


def _files(root: Path) -> Iterator[Path]:
    """Everything below `root` but folders; links are followed, and each folder is entered once."""
    left, entered, count = [root], set[tuple[int, int]](), 0
    while left:
        folder = left.pop()
        found = folder.stat()
        if (found.st_dev, found.st_ino) in entered:
            continue
        entered.add((found.st_dev, found.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                count += 1
                if count > _MOST_ENTRIES:
                    raise DpzoError(f"{root}: holds more than {_MOST_ENTRIES} files; give the folder of one model")
                if not entry.is_dir():
                    yield Path(entry.path)
                elif not entry.name.startswith("."):
                    left.append(Path(entry.path))


def _shards(index: Path) -> Iterator[Path]:
    """The files that an index of shards names; none where it cannot be read, which the loader will say."""
    try:
        found: Any = json.loads(read_regular(index, _LARGEST_TEXT))
        names = set(found["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return
    yield from (index.parent / name for name in sorted(name for name in names if isinstance(name, str)))
