"""In-memory records (a data frame, a `datasets.Dataset` or a list of dicts) as a stream of rows.

No data frame library is imported: a frame is recognised by its type, because its own library is already loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dpzo.data.arrow import BATCH, Wanted, projection, rows_of_batches
from dpzo.data.tasks.tables import Row, fail
from dpzo.data.tasks.values import plain
from dpzo.errors import DpzoError

FORMS = "a pandas or polars DataFrame, a datasets.Dataset, or a list of dicts"
NAME = Path("data")
"""The name of in-memory records in errors, instead of a file's path."""


class Frame(Protocol):
    """A DataFrame of pandas or polars."""

    @property
    def columns(self) -> Any:
        """The names of the columns."""

    def __len__(self) -> int: ...


class Dataset(Protocol):
    """A `datasets.Dataset`."""

    @property
    def column_names(self) -> Any:
        """The names of the columns."""

    def __len__(self) -> int: ...


Table = Frame | Dataset | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class InMemory:
    """Records held by the caller, read in place and never written to a file.

    Its str and repr contain nothing of the records. DpzoError for a value that is none of `FORMS`.
    """

    table: Table = field(repr=False)

    def __post_init__(self) -> None:
        if is_stream(self.table):
            raise DpzoError("data: a stream can be read only once; collect it in a list, or give a datasets.Dataset")
        if _reader(self.table) is None:
            if isinstance(self.table, Mapping) and any(is_datasets(part) for part in self.table.values()):
                raise DpzoError("data: holds several splits; give one of them, such as data['train']")
            raise DpzoError(f"data: is a {type(self.table).__name__}; give a path, a list of paths, {FORMS}")

    def __str__(self) -> str:
        return str(NAME)

    def rows(self, columns: Wanted) -> Iterator[Row]:
        """Yield (record number from 1, {column: value}); of the columns those named, if the table has them all.

        Errors: DpzoError for a table without records or with two columns of one name, and where the table's own code
        raises an exception.
        """
        reader, number = _reader(self.table), 0
        assert reader is not None  # checked in __post_init__
        try:
            for number, values in reader(self.table, columns):
                yield number, values
        except DpzoError:
            raise
        except Exception as error:  # a library's message may quote a record
            kind = type(error).__name__
            fail(NAME, None, f"reading it raised {kind}, whose message is withheld: it may quote a record")
        if number == 0:
            fail(NAME, None, "has no records; give a table that has some")


def is_stream(given: object) -> bool:
    """Whether something can be iterated over only once, or has no length that is known."""
    return isinstance(given, Iterator) or type(given).__name__ in ("IterableDataset", "LazyFrame")


def is_datasets(given: object) -> bool:
    """Whether something is a `datasets.Dataset`."""
    return _is_of("datasets", given) and hasattr(given, "column_names") and not isinstance(given, Mapping)


def column_names(columns: Any) -> list[str] | None:
    """The names of a frame's columns as texts; None where two columns have one name."""
    names = [str(column) for column in columns]
    return names if len(set(names)) == len(names) else None


_Reader = Callable[[Any, Wanted], Iterator[Row]]


def _reader(table: object) -> _Reader | None:
    if is_datasets(table):
        return _datasets_rows
    if _is_of("pandas", table, "DataFrame"):
        return _pandas_rows
    if _is_of("polars", table, "DataFrame"):
        return _polars_rows
    return _dict_rows if isinstance(table, list | tuple) else None


def _is_of(library: str, given: object, name: str | None = None) -> bool:
    """Whether something is an instance of a library's class (called `name`), by names alone."""
    return any(
        kind.__module__.partition(".")[0] == library and name in (None, kind.__name__) for kind in type(given).__mro__
    )


def _dict_rows(rows: Sequence[Mapping[str, Any]], columns: Wanted) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            fail(NAME, number, f'is a {type(row).__name__}; each record must look like {{"text": …, "label": …}}')
        if any(not isinstance(column, str) for column in row):
            fail(NAME, number, "has a key that is not a text; name each column by a text")
        yield number, row


def _datasets_rows(dataset: Any, columns: Wanted) -> Iterator[Row]:
    """Through Arrow, as a folder of `save_to_disk` is read; a transform that the caller set is applied instead."""
    if dataset.format["type"] == "custom":
        return _dict_rows(dataset, columns)
    table = dataset.with_format("arrow", columns=dataset.format["columns"])
    classes = {
        name: tuple(feature.names)
        for name, feature in dataset.features.items()
        if type(feature).__name__ == "ClassLabel" and feature.names is not None
    }

    def batches() -> Iterator[Any]:
        for batch in table.iter(batch_size=BATCH):
            wanted = projection(NAME, batch.schema, columns)
            yield batch if wanted is None else batch.select(wanted)

    return rows_of_batches(NAME, "a whole data set", classes, batches)


def _pandas_rows(frame: Any, columns: Wanted) -> Iterator[Row]:
    places = _frame_columns(frame.columns, columns)
    widths = {name: _narrow(frame.dtypes.iloc[place]) for name, place in places.items()}

    def block(start: int) -> dict[str, list[Any]]:
        return {name: list(frame.iloc[start : start + BATCH, place].array) for name, place in places.items()}

    return _frame_rows(len(frame), block, widths)


def _polars_rows(frame: Any, columns: Wanted) -> Iterator[Row]:
    names = list(_frame_columns(frame.columns, columns))
    widths = {name: _NARROW.get(str(frame.schema[name])) for name in names}

    def block(start: int) -> dict[str, list[Any]]:
        return {name: frame.get_column(name).slice(start, BATCH).to_list() for name in names}

    return _frame_rows(len(frame), block, widths)


def _frame_rows(
    length: int, block: Callable[[int], dict[str, list[Any]]], widths: Mapping[str, type[np.floating[Any]] | None]
) -> Iterator[Row]:
    for start in range(0, length, BATCH):
        cells = block(start)
        for place in range(min(BATCH, length - start)):
            yield start + place + 1, {name: _cell(cells[name][place], width) for name, width in widths.items()}


_NARROW: Mapping[str, type[np.floating[Any]]] = {"Float16": np.float16, "Float32": np.float32}
"""polars' floats whose width tells how large a whole number they hold exactly."""


def _narrow(dtype: Any) -> type[np.floating[Any]] | None:
    """The NumPy type of a pandas column of 16- or 32-bit floats: plain, nullable, of Arrow, or as categories."""
    dtype = getattr(getattr(dtype, "categories", None), "dtype", dtype)
    dtype = getattr(dtype, "numpy_dtype", dtype)
    return next((kind for kind in (np.float16, np.float32) if dtype == np.dtype(kind)), None)


def _cell(value: Any, width: type[np.floating[Any]] | None) -> Any:
    """A cell as a file's reader would give it: its column's width, which iteration drops, and lists for arrays."""
    if width is not None:
        return value if plain(value) is None else width(value)
    return _listed(value) if isinstance(value, np.ndarray | list | dict) else value


def _listed(value: Any) -> Any:
    """Lists in place of arrays, at any depth: pandas makes arrays of the lists in a parquet file, such as messages."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [_listed(part) for part in value]
    return {key: _listed(part) for key, part in value.items()} if isinstance(value, dict) else value


def _frame_columns(found: Any, columns: Wanted) -> dict[str, int]:
    """Column → its position: those that are wanted and looked at, or all of them where one is missing."""
    names = column_names(found)
    if names is None:
        fail(NAME, None, "has two columns of one name; rename one of them")
    needed, beside = columns
    places = {name: place for place, name in enumerate(names)}
    if not needed or not set(needed) <= places.keys():
        return places
    return {name: places[name] for name in dict.fromkeys((*needed, *beside)) if name in places}
