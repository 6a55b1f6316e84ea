"""local.yaml of a run: where the private data and the base model lie on this machine. Owner-only, never published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dpzo.data import parse_hub
from dpzo.errors import DpzoError
from dpzo.journal import write_durably
from dpzo.plain import parse_yaml

LOCAL = "local.yaml"


@dataclass(frozen=True)
class DataSource:
    """Where the private records lie. Kept out of all that is public.

    - `file`: a csv, tsv, jsonl or parquet file, a folder of datasets' `save_to_disk`, or `hub:organisation/name`;
      `more`: further ones with the same columns, read after it.
    - `split` and `revision`: of a saved data set or a hub name.
    - `folder`: in place of all these, the folder that holds a built-in task's files.
    """

    file: str | Path | None = None
    folder: Path | None = None
    more: tuple[str | Path, ...] = ()
    split: str | None = None
    revision: str | None = None

    @property
    def places(self) -> tuple[str | Path, ...]:
        """`file` and `more`."""
        return self.more if self.file is None else (self.file, *self.more)

    def to_dict(self) -> dict[str, Any]:
        """Absolute paths, for the owner-only file that a resume reads; what is not given is left out."""
        given = {
            "file": None if self.file is None else _absolute(self.file),
            "folder": None if self.folder is None else _absolute(self.folder),
            "more": [_absolute(place) for place in self.more] if self.more else None,
            "split": self.split,
            "revision": self.revision,
        }
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> DataSource:
        """What `to_dict` gave. TypeError for another key."""
        folder = given.get("folder")
        return cls(
            **{**given, "folder": None if folder is None else Path(folder), "more": tuple(given.get("more", ()))}
        )


def _absolute(place: str | Path) -> str:
    return str(place) if parse_hub(str(place)) is not None else str(Path(place).resolve())


def write_local(folder: Path, source: DataSource, base: str) -> None:
    """Note where the records lie, and the base model if it is a local folder."""
    model = Path(base).expanduser()
    local = {"data": source.to_dict(), "base": str(model.resolve()) if model.is_dir() else None}
    write_durably(folder / LOCAL, yaml.safe_dump(local).encode())


def read_local(folder: Path) -> tuple[DataSource, str | None]:
    """What `write_local` noted. DpzoError where it is missing or damaged."""
    try:
        local = parse_yaml((folder / LOCAL).read_text())
        return DataSource.from_dict(local["data"]), local["base"]
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        raise DpzoError(f"{folder / LOCAL}: missing or damaged; it names where the private data lies") from None
