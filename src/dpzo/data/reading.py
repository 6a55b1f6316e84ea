"""A user's own data, of any kind and in several pieces, as records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dpzo.config import DataConfig
from dpzo.data.chats import MESSAGES, chat_rows
from dpzo.data.sources import open_table
from dpzo.errors import DpzoError
from dpzo.tasks import Records, Task
from dpzo.tasks.files import Columns, records_from_tables
from dpzo.tasks.records import COMPLETION, PROMPT, TEXT
from dpzo.tasks.tables import Row

REFERENCES = "references"


def read_records(
    places: Sequence[str | Path],
    task: Task,
    data: DataConfig,
    *,
    split: str | None = None,
    default_split: str = "train",
    revision: str | None = None,
) -> Records:
    """The records of one place after another: each what `open_table` takes, all with the same columns.

    The columns are those that `data` names; for a built-in task, or one's own task file, they bear the names of the
    task's fields. A unit may own records in several places. Texts beyond memory lie in a mapped file.

    Errors: DpzoError naming the place, the row, the column and the mend; never anything of a record.
    """
    if not places:
        raise DpzoError("--data is missing: a file, a folder of datasets' save_to_disk, or hub:organisation/name")
    columns = _columns(task, data)
    asked = [*columns.asked, *([] if columns.references is None else [columns.references])]

    def tables() -> Iterator[tuple[Path, Iterator[Row]]]:
        for place in places:
            path, rows = open_table(place, asked, split=split, default_split=default_split, revision=revision)
            yield path, chat_rows(path, rows, data.messages_column) if MESSAGES in columns.fields else rows

    return records_from_tables(tables(), columns)


def _columns(task: Task, data: DataConfig) -> Columns:
    """Which column holds what; those of a task bear the names of its fields, but for completion, label and unit."""
    label = None if task.labels is None else data.label_column
    references = None
    if data.task is not None:
        fields = {name: name for name in task.text_fields}
        if task.kind == "completion":
            fields, references = {**fields, COMPLETION: data.completion_column}, REFERENCES
    elif data.kind == "chat":
        fields = {MESSAGES: data.messages_column}
    elif task.kind == "completion":
        fields = {PROMPT: data.prompt_column, COMPLETION: data.completion_column}
    else:
        fields = {TEXT: data.text_column}
    flags = {} if data.task is not None else {column: _FLAGS[field] for field, column in fields.items()}
    if COMPLETION in fields:
        flags[data.completion_column] = _FLAGS[COMPLETION]
    if label is not None:
        flags[label] = "--label-column"
    if data.max_records_per_unit is not None and data.unit_column is None:
        raise DpzoError("--max-records-per-unit: needs --unit-column, the column that names the unit; give it too")
    if data.unit_column is not None:
        flags[data.unit_column] = "--unit-column"
    return Columns(
        fields,
        label=label,
        labels=() if task.labels is None else task.labels,
        unit=data.unit_column,
        references=references,
        flags=flags,
    )


_FLAGS = {
    TEXT: "--text-column",
    PROMPT: "--prompt-column",
    COMPLETION: "--completion-column",
    MESSAGES: "--set data.messages_column=NAME",
}
"""Field of a file of one's own → the option that names its column."""
