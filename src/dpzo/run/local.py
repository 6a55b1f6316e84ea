"""local.yaml of a run: the local paths of the private data and the base model. Owner-only, never published."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from dpzo.config.plain import parse_yaml, read_regular, refusing
from dpzo.config.reading import with_values
from dpzo.config.schema import RunConfig
from dpzo.data import InMemory, parse_hub, read_records
from dpzo.data.in_memory import Table
from dpzo.data.tasks import Records, Task
from dpzo.data.tasks.tables import Tell, untold
from dpzo.errors import DpzoError
from dpzo.run.journal import Transcript, write_durably
from dpzo.run.output import no_run

LOCAL = "local.yaml"
NOT_KEPT: Literal["not kept"] = "not kept"
"""The entry in local.yaml for records that were held in memory."""
_LARGEST = 1 << 20
"""Maximum bytes of local.yaml; far more than any list of paths needs."""


@dataclass(frozen=True)
class DataSource:
    """The location of the private data. Never part of public output.

    Args:
        file: A csv, tsv, jsonl or parquet file, a folder of datasets' `save_to_disk`, or `hub:organisation/name`.
        more: Further files with the same columns, read after `file`.
        split: The split of a saved data set or a hub name.
        revision: The revision of a hub name.
        folder: Instead of all these, the folder that holds a built-in task's files.
        memory: Instead of all these, records in memory. No copy is kept: after reading a run's local.yaml, the value
            is `NOT_KEPT`.
    """

    file: str | Path | None = None
    folder: str | Path | None = None
    more: tuple[str | Path, ...] = ()
    split: str | None = None
    revision: str | None = None
    memory: InMemory | Literal["not kept"] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for option, chosen in (("--split", self.split), ("--data-revision", self.revision)):
            if self.folder is not None and chosen is not None:
                raise DpzoError(f"{option}: is not used with --data-dir; leave it out")
        for name, value in (("file", self.file), ("folder", self.folder)):
            if not isinstance(value, str | Path | None):
                raise DpzoError(f"data: {name} is a {type(value).__name__}; give a path (more files go into `more`)")

    @classmethod
    def of(cls, given: Data) -> DataSource:
        """Convert any form of `Data`: a DataSource, a path (or hub:NAME), several paths, or a table in memory."""
        if isinstance(given, cls):
            return given
        if isinstance(given, str | Path):
            return cls(file=given)
        if isinstance(given, list | tuple):
            if given and all(isinstance(place, str | Path) for place in given):
                return cls(file=given[0], more=tuple(given[1:]))
            if not any(isinstance(row, Mapping) for row in given):
                raise DpzoError("data: is a list of neither paths nor dicts; give a path, several, or a list of dicts")
        return cls(memory=InMemory(given))  # type: ignore[arg-type]  # which rejects anything else

    @property
    def data_folder(self) -> Path | None:
        """`folder` as a path."""
        return None if self.folder is None else Path(self.folder).expanduser()

    @property
    def places(self) -> tuple[str | Path | InMemory, ...]:
        """`file` and `more`, or `memory`."""
        if isinstance(self.memory, InMemory):
            return (self.memory,)
        return self.more if self.file is None else (self.file, *self.more)

    def to_dict(self) -> dict[str, Any]:
        """Absolute paths, for the owner-only file that a resume reads; unset fields are omitted."""
        given = {
            "file": None if self.file is None else _absolute(self.file),
            "folder": None if self.folder is None else _absolute(self.folder),
            "more": [_absolute(place) for place in self.more] if self.more else None,
            "split": self.split,
            "revision": self.revision,
            "memory": None if self.memory is None else NOT_KEPT,
        }
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> DataSource:
        """The source that `to_dict` wrote. TypeError for an unknown key."""
        folder = given.get("folder")
        return cls(
            **{**given, "folder": None if folder is None else Path(folder), "more": tuple(given.get("more", ()))}
        )


Data = DataSource | str | Path | Sequence[str | Path] | Table
"""Private records in any form: a path, several, a `DataSource`, a data frame, a `datasets.Dataset`, a list of dicts."""


def _absolute(place: str | Path) -> str:
    return str(place) if parse_hub(str(place)) is not None else str(Path(place).resolve())


def records_of(
    config: RunConfig,
    task: Task,
    source: DataSource,
    split: Literal["train", "dev", "test"] = "train",
    tell: Tell = untold,
) -> Records:
    """The records of a source as a run's config declares them; private data unless known to be public."""
    if source.data_folder is not None:
        return task.load(source.data_folder, split, config.data.layout)
    if not source.places:
        raise DpzoError("give --data FILE, or --task NAME with --data-dir FOLDER")
    return read_records(
        source.places, task, config.data, split=source.split, default_split=split, revision=source.revision, tell=tell
    )


def as_folder(given: str | Path, what: str) -> Path:
    """Convert a string or a path to a path. DpzoError naming `what` for anything else."""
    if not isinstance(given, str | Path) or not str(given):
        raise DpzoError(f"{what}: is a {type(given).__name__}; give a folder's path")
    return Path(given).expanduser()


def located(config: RunConfig) -> RunConfig:
    """The config with absolute paths for its local files: base model and public basis.

    The published journal, card and adapter configuration contain these paths.
    """
    folder, basis = Path(config.model.name).expanduser(), config.training.basis
    if basis is not None:
        config = with_values(config, training={"basis": os.path.abspath(Path(basis).expanduser())})
    return with_values(config, model={"name": os.path.abspath(folder)}) if folder.is_dir() else config


def base_name(transcript: Transcript) -> str:
    """The base model's name in a journal."""
    with refusing(no_run(transcript.path)):
        return str(transcript.header["base"]["name"])


def found_base(run: Path, name: str, base: str | None) -> str | None:
    """`base`, or else the folder in local.yaml if the header's `name` is a relative path (older versions)."""
    if base is not None:
        return base
    if Path(name).is_absolute() or Path(name).expanduser().is_dir() or not (run / LOCAL).is_file():
        return None
    noted = read_local(run)[1]
    return noted if noted is not None and Path(noted).is_dir() else None


@contextmanager
def naming_base(base: str | None) -> Iterator[None]:
    """Add the option --base, which fixes them, to errors about the base model."""
    try:
        yield
    except DpzoError as error:
        said = str(error)
        if not said.startswith("--model "):
            raise
        if base is not None:
            raise DpzoError(f"--base {said.removeprefix('--model ')}") from None
        raise DpzoError(f"{said}; if the base model lies elsewhere now, name it with --base") from None


def write_local(folder: Path, source: DataSource, base: str) -> None:
    """Write the location of the records, and of the base model if it is a local folder."""
    model = Path(base).expanduser()
    local = {"data": source.to_dict(), "base": str(model.resolve()) if model.is_dir() else None}
    write_durably(folder / LOCAL, yaml.safe_dump(local).encode())


def source_again(run: Path, noted: DataSource, given: Data | None) -> DataSource:
    """The current location of a run's records: `given`, or from local.yaml. DpzoError if no copy was kept."""
    if given is not None:
        return DataSource.of(given)
    if noted.memory == NOT_KEPT:
        raise DpzoError(
            f"{run}: the run reads data from memory, of which no copy is kept; give the same data again from Python: "
            f"dpzo.resume({str(run)!r}, data)"
        )
    return noted


def read_local(folder: Path) -> tuple[DataSource, str | None]:
    """Read what `write_local` wrote. DpzoError if it is missing or damaged."""
    try:
        local = parse_yaml(read_regular(folder / LOCAL, _LARGEST).decode())
        return DataSource.from_dict(local["data"]), local["base"]
    except (DpzoError, OSError, ValueError, TypeError, AttributeError, KeyError):
        raise DpzoError(f"{folder / LOCAL}: missing or damaged; it names where the private data lies") from None
