"""The records of a comparison, declared public: a built-in task's files, or the user's own files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpzo.config.schema import RunConfig
from dpzo.data import parse_hub
from dpzo.data.tasks import Records
from dpzo.errors import DpzoError
from dpzo.run.local import DataSource, records_of
from dpzo.run.subject import task_of

HELD_OUT: Literal["held-out"] = "held-out"
Split = Literal["train", "dev", "test", "held-out"]


@dataclass(frozen=True)
class TaskFolder:
    """The folder with the files of built-in tasks, in their published layouts."""

    folder: Path

    @property
    def source(self) -> DataSource:
        """The source of the training records."""
        return DataSource(folder=self.folder)

    def identity(self) -> dict[str, Any] | None:
        """None: a cell is identified by its task and layout, as published."""
        return None

    def require(self, config: RunConfig) -> None:
        """Reject at once files that would fail in a later cell."""
        task, layout = task_of(config), config.data.layout
        if task.layout(self.folder, layout).find(self.folder, "train") is None:
            task.load(self.folder, "train", layout)  # the error says which file is missing

    def num_examples(self, config: RunConfig) -> int:
        """N as published."""
        task = task_of(config)
        number = task.public_num_examples(self.folder, "train", config.data.layout)
        if number is None:
            raise DpzoError(f"--task {task.name}: its layout has no published number of training records")
        return number

    def held_out(self, config: RunConfig) -> Split:
        """The split for the score: test, or dev if a public copy has no labelled test split."""
        return "test" if "test" in task_of(config).layout(self.folder, config.data.layout).files else "dev"

    def load(self, split: Split, config: RunConfig) -> Records:
        """The records of a split."""
        assert split != HELD_OUT
        return task_of(config).load(self.folder, split, config.data.layout)


@dataclass(frozen=True)
class OwnFiles:
    """The user's own files: the records for training, and the records for scoring."""

    source: DataSource
    held_out_source: DataSource

    def identity(self) -> dict[str, Any] | None:
        """A hash of both sources' contents, which are public: changed content makes new cells, moving a file none."""
        return {
            "train": _identity("--data", self.source),
            HELD_OUT: _identity("--eval-data", self.held_out_source),
        }

    def require(self, config: RunConfig) -> None:
        """Do nothing: invalid files are rejected when they are read, before the first cell is trained."""

    def num_examples(self, config: RunConfig) -> int:
        """N as declared."""
        assert isinstance(config.privacy.num_examples, int)
        return config.privacy.num_examples

    def held_out(self, config: RunConfig) -> Split:
        """The source that the user gave for scoring."""
        return "held-out"

    def load(self, split: Split, config: RunConfig) -> Records:
        """The records of a source."""
        if split == HELD_OUT:
            return records_of(config, task_of(config), self.held_out_source, "test")
        return records_of(config, task_of(config), self.source, "train")


PublicData = TaskFolder | OwnFiles


def _identity(option: str, source: DataSource) -> list[str]:
    found = [] if source.split is None else [f"split {source.split}"]
    for place in map(str, source.places):
        if parse_hub(place) is not None:
            found.append(place if source.revision is None else f"{place}@{source.revision}")
            continue
        try:
            digest = hashlib.sha256()
            for name, path in _files(Path(place).expanduser()):
                digest.update(name.encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DpzoError(f"{option} {place}: {error.strerror}; name a file, a saved folder or hub:NAME") from None
        found.append(digest.hexdigest()[:16])
    return found


def _files(place: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of each file in a folder; a single file without its name, so that renaming it changes nothing."""
    if not place.is_dir():
        yield "", place
        return
    for path in sorted(place.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(place)), path
