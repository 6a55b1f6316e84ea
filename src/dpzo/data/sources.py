"""Open any kind of table: a text file, parquet, a saved data set, a hub name, a table in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dpzo.data.arrow import parquet_rows, saved_rows
from dpzo.data.hub import hub_rows, parse_hub
from dpzo.data.in_memory import NAME, InMemory
from dpzo.data.tasks.tables import Row, Tell, read_table, untold
from dpzo.errors import DpzoError

PARQUET = (".parquet", ".pq")


def open_table(
    place: str | Path | InMemory,
    columns: Sequence[str],
    *,
    beside: Sequence[str] = (),
    split: str | None = None,
    default_split: str = "train",
    revision: str | None = None,
    tell: Tell = untold,
) -> tuple[Path, Iterator[Row]]:
    """(its name for errors, its rows): what `place` is shows by its name, and for a folder by what it holds.

    - `hub:organisation/name[:configuration]`: a data set of the Hugging Face hub, at `revision`.
    - a folder: one that datasets' `save_to_disk` wrote.
    - an `InMemory`: what the caller holds.
    - `.parquet`, `.pq`; everything else as `read_table`: csv, tsv, jsonl, json, also compressed.

    `columns` are those that will be asked of each row, `beside` those that are looked at where they are; a reader may
    leave out the others. `split` is for the first two. `tell` is called with the detected form of a file.

    Errors: DpzoError naming the place, at once or at the first row.
    """
    if isinstance(place, InMemory):
        return NAME, place.rows((columns, beside))
    text = str(place)
    hub = parse_hub(text)
    path = Path(text)
    if hub is not None:
        return path, hub_rows(hub, (columns, beside), split, default_split, revision)
    if revision is not None:
        raise DpzoError("--data-revision: is for a data set of the hub, given as --data hub:organisation/name")
    if path.is_dir():
        return path, saved_rows(path, (columns, beside), split, default_split)
    if split is not None:
        raise DpzoError("--split: is for a saved data set or a hub name; a file has no splits")
    if path.name.lower().endswith(PARQUET):
        return path, parquet_rows(path, (columns, beside))
    return path, read_table(path, asked=columns, tell=tell)
