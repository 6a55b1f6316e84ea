"""Parquet files and folders of `datasets.save_to_disk`, read in place and in batches by pyarrow alone.

The `datasets` library is not used: it copies what it opens into a cache that others may read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dpzo.data.tasks.tables import Row, fail, shown
from dpzo.data.tasks.values import ClassLabel
from dpzo.errors import DpzoError

_NARROW = ("halffloat", "float")
"""Arrow's floats of 16 and 32 bits: their width tells how large a whole number they hold exactly."""

BATCH = 4096
"""Records decoded at a time; it bounds memory and changes nothing else."""


Wanted = tuple[Sequence[str], Sequence[str]]
"""Columns that every row must have, and those that are read where they are."""


def parquet_rows(path: Path, columns: Wanted) -> Iterator[Row]:
    """Yield (record number from 1, {column: value}) of a parquet file; of its columns those named, if it has them all.

    The file is mapped, and one batch is decoded at a time. Nothing is written anywhere. Class labels, where `datasets`
    wrote the file, are given by name.

    Errors: DpzoError for a file that is not there, is no parquet, is damaged or empty, or lacks pyarrow to read it.
    """
    if path.is_dir():
        fail(path, None, "is a folder; give a file")
    parquet = _pyarrow("pyarrow.parquet")

    def read() -> Iterator[Any]:
        source = parquet.ParquetFile(path, memory_map=True)
        classes.update(_class_names(source.schema_arrow.metadata))
        wanted = projection(path, source.schema_arrow, columns)
        yield from source.iter_batches(batch_size=BATCH, columns=wanted, use_threads=False)

    classes: dict[str, tuple[str, ...]] = {}
    return rows_of_batches(path, "a whole parquet file", classes, read)


def saved_rows(
    path: Path,
    columns: Wanted,
    split: str | None,
    default_split: str,
    *,
    name: Path | None = None,
    opened: Callable[[], None] = lambda: None,
) -> Iterator[Row]:
    """Yield the records of a folder that `save_to_disk` wrote, as `parquet_rows` does; class labels by their names.

    `split` must name one of its splits; without it a folder of several splits gives `default_split`, and a folder of
    one table gives that. Its Arrow files are mapped in place; nothing is written. `name` stands for the
    folder in errors; `opened` is called when all files are open, and may then remove them.

    Errors: DpzoError for a folder that holds no data set, an unknown split, a damaged file.
    """
    folder = _split_folder(path, split, default_split)
    state, info = _json(folder / "state.json"), _json(folder / "dataset_info.json")
    name = path if name is None else name
    try:
        files = [folder / entry["filename"] for entry in state["_data_files"]]
        features = info["features"]
        names = _classes(features)
    except (KeyError, TypeError, AttributeError):
        fail(name, None, "is no folder that datasets' save_to_disk wrote; save the data set there again")
    arrow = _pyarrow("pyarrow")

    def read() -> Iterator[Any]:
        readers = [arrow.ipc.open_stream(arrow.memory_map(str(file))) for file in files]
        opened()
        for reader in readers:
            wanted = projection(name, reader.schema, columns)
            for batch in reader:
                part = batch if wanted is None else batch.select(wanted)
                for start in range(0, part.num_rows, BATCH):
                    yield part.slice(start, BATCH)

    return rows_of_batches(name, "a whole data set", names, read)


def _split_folder(path: Path, split: str | None, default_split: str) -> Path:
    several = path / "dataset_dict.json"
    if several.is_file():
        found = _json(several)
        splits = found.get("splits") if isinstance(found, dict) else None
        if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
            fail(path, None, "is no folder that datasets' save_to_disk wrote; save the data set there again")
        return path / chosen_split(shown(path), splits, split, default_split)
    if not (path / "state.json").is_file() or not (path / "dataset_info.json").is_file():
        fail(path, None, "is a folder, but no data set; give a file, or a folder that datasets' save_to_disk wrote")
    if split is not None:
        fail(path, None, "holds one table and no splits; leave out --split")
    return path


def chosen_split(place: str, splits: Sequence[str], split: str | None, default_split: str) -> str:
    """`split`, or the default one, if `place` has it. Errors: DpzoError with what was meant or what there is."""
    wanted = default_split if split is None else split
    if wanted in splits:
        return wanted
    near = get_close_matches(wanted, splits, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(splits) if splits else 'none'}"
    raise DpzoError(f"{place}: has no split {wanted!r}; {hint} (--split names another)")


def projection(path: Path, schema: Any, columns: Wanted) -> list[str] | None:
    """The columns to read; all of them if none is needed or one is missing, so that an error can list them."""
    if len(set(schema.names)) != len(schema.names):
        fail(path, None, "has two columns of one name; rename one of them")
    needed, beside = columns
    if not needed:
        return None
    there = set(schema.names)
    return list(dict.fromkeys((*needed, *(name for name in beside if name in there)))) if set(needed) <= there else None


def _classes(features: Any) -> dict[str, tuple[str, ...]]:
    """Column → names of its classes. TypeError, KeyError, AttributeError for what `datasets` did not write."""
    return {column: tuple(part["names"]) for column, part in features.items() if part.get("_type") == "ClassLabel"}


def _class_names(metadata: Any) -> dict[str, tuple[str, ...]]:
    """`_classes` of a parquet file's own note, which only `datasets` writes; empty without one."""
    try:
        return _classes(json.loads(metadata[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return {}


def rows_of_batches(
    path: Path, what: str, classes: Mapping[str, tuple[str, ...]], read: Callable[[], Iterator[Any]]
) -> Iterator[Row]:
    """Yield (record number from 1, {column: value}) of the Arrow batches that `read` gives.

    `what` the source should be is named in errors; `classes`: column → the names for which its numbers stand.
    """
    number = 0
    try:
        for batch in read():
            narrow = [(one.name, one.type.to_pandas_dtype()) for one in batch.schema if str(one.type) in _NARROW]
            for values in batch.to_pylist():
                number += 1
                for column in classes.keys() & values.keys():
                    values[column] = _class_label(classes[column], values[column])
                for column, width in narrow:
                    values[column] = None if values[column] is None else width(values[column])
                yield number, values
    except DpzoError:
        raise
    except FileNotFoundError:
        fail(path, None, "no such file; check the path")
    except PermissionError:
        fail(path, None, "may not be read; give yourself permission to read it")
    except UnicodeDecodeError:
        fail(path, None, "holds a text that is not UTF-8; write the file again")
    except Exception as error:
        # pyarrow's own texts quote what they stumbled over, and its exceptions are many: ValueErrors, OSErrors …
        if type(error).__module__.partition(".")[0] != "pyarrow" and not isinstance(error, OSError | ValueError):
            raise
        fail(path, None, f"is not {what}, or it is damaged; write it again")
    if number == 0:
        fail(path, None, "has no records; give a file that has some")


def _class_label(names: tuple[str, ...], value: Any) -> Any:
    """datasets keeps a label as its number, and −1 for none."""
    if not isinstance(value, int):
        return value
    return ClassLabel(value, names) if 0 <= value < len(names) else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        fail(path, None, "is missing or damaged; save the data set there again")


def _pyarrow(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise DpzoError("--data: this format needs pyarrow; pip install 'dpzo[data]'") from None
