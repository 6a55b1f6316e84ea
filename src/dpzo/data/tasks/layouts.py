"""The layout of each public data set: folders and archives, splits, columns, published sizes, hub names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from dpzo.data.tasks.archives import is_there
from dpzo.data.tasks.files import Columns, records_from_tables
from dpzo.data.tasks.readers import READERS, REFERENCES
from dpzo.data.tasks.records import COMPLETION, Records
from dpzo.data.tasks.tables import Row, read_table

Split = Literal["train", "dev", "test"]
TABLE = "table"
_BUCKETS: Mapping[Split, frozenset[int]] = MappingProxyType(
    {"train": frozenset(range(8)), "dev": frozenset({8}), "test": frozenset({9})}
)


@dataclass(frozen=True)
class Layout:
    """One form in which a public data set is passed around: file names, columns, and the sizes of its splits.

    - `files`: split → names under the data folder, any of which may hold it; the first that exists is read.
      `archive.tar.xz!name` is a file inside an archive, which is read in memory and never unpacked.
    - `fields`: field of the task → column. `header`: columns of files that have no header line of their own.
    - `file_labels`: a label's text in the files, in the order of the task's labels.
    - `num_examples`: split → its published number of records. A public fact, so N need not be declared.
    - `format`: `table`, or a name of `READERS`.
    - `carve_by`: for a set of which one file is public: the column by whose hash a row belongs to train (8 of 10
      buckets), dev or test. It looks at nothing but the row, so other records cannot move it.
    - `group_by`: outside training, rows with one value of this column are one record, all their answers accepted.
    """

    name: str
    files: Mapping[Split, tuple[str, ...]]
    num_examples: Mapping[Split, int]
    fields: Mapping[str, str]
    label_column: str | None = None
    file_labels: tuple[str, ...] = ()
    header: tuple[str, ...] | None = None
    quoted: bool = False
    format: str = TABLE
    carve_by: str | None = None
    group_by: str | None = None

    def find(self, folder: Path, split: Split) -> Path | None:
        """The file of a split, or None if the folder holds none."""
        candidates = (folder / name for name in self.files.get(split, ()))
        return next((path for path in candidates if is_there(path)), None)

    def read(self, path: Path, split: Split) -> Records:
        """The records of a split that `path` holds. Errors: DpzoError naming the file, the row and the fix."""
        if self.format == TABLE:
            rows: Iterator[Row] = read_table(path, columns=self.header, quoted=self.quoted)
        else:
            rows = READERS[self.format](path)
        if self.carve_by is not None:
            rows = _carved(rows, self.carve_by, split)
        answered = COMPLETION in self.fields
        if self.group_by is not None and split != "train":
            rows = _grouped(rows, self.group_by, self.fields[COMPLETION])
        columns = Columns(
            self.fields,
            label=self.label_column,
            labels=self.file_labels,
            references=REFERENCES if answered else None,
            strip=True,
        )
        return records_from_tables([(path, rows)], columns)


@dataclass(frozen=True)
class HubSource:
    """Where a hub keeps a data set: its name and configuration, and the names of its splits and columns.

    `columns`: field of the task → column. `label_values`: the label column's values, as text, in the task's order.
    `list_column`: for a column that holds a list of accepted answers (the completion is the first of them).
    """

    name: str
    columns: Mapping[str, str]
    config: str | None = None
    splits: Mapping[Split, str] = field(
        default_factory=lambda: MappingProxyType({"train": "train", "dev": "validation", "test": "test"})
    )
    label_column: str | None = None
    label_values: tuple[str, ...] = ()


def k_shot_layouts(
    folder: str,
    files: Mapping[Split, str],
    *,
    fields: Mapping[str, str],
    num_examples: Mapping[int, Mapping[Split, int]],
    label_column: str,
    file_labels: tuple[str, ...],
    header: tuple[str, ...] | None = None,
    quoted: bool = False,
    format: str = TABLE,
) -> tuple[Layout, ...]:
    """The ready-made few-shot splits of LM-BFF: 512 or 16 a class, five seeds, tests cut to 1000. `k-512/seed-42` …

    They are found in the archive, in the folder it unpacks to, or in that folder's part for the task.
    """
    return tuple(
        Layout(
            name=f"k-{k}/seed-{seed}",
            files={
                split: tuple(
                    f"{before}{k}-{seed}/{name}"
                    for before in (
                        f"lmbff_k-shot-1k-test.tar.xz!k-shot-1k-test/{folder}/",
                        f"k-shot-1k-test/{folder}/",
                        f"{folder}/",
                        "",
                    )
                )
                for split, name in files.items()
            },
            num_examples=num_examples[k],
            fields=fields,
            label_column=label_column,
            file_labels=file_labels,
            header=header,
            quoted=quoted,
            format=format,
        )
        for k in (512, 16)
        for seed in (42, 13, 21, 87, 100)
    )


def frozen_map(**items: str) -> Mapping[str, str]:
    """A mapping that cannot be changed, for the fields of a layout."""
    return MappingProxyType(items)


def _carved(rows: Iterable[Row], column: str, split: Split) -> Iterator[Row]:
    wanted = _BUCKETS[split]
    for row, values in rows:
        digest = hashlib.sha256(str(values.get(column, "")).encode("utf-8", "surrogatepass")).digest()
        if int.from_bytes(digest[:8], "big") % 10 in wanted:
            yield row, values


def _grouped(rows: Iterable[Row], column: str, answer: str) -> Iterator[Row]:
    first: dict[object, Row] = {}
    golds: dict[object, list[object]] = {}
    for row, values in rows:
        key = values.get(column)
        first.setdefault(key, (row, values))
        golds.setdefault(key, []).append(values.get(answer))
    for key, (row, values) in first.items():
        yield row, {**values, REFERENCES: golds[key]}
