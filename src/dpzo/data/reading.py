"""A user's own data, of any kind and in several pieces, as records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dpzo.config import DataConfig
from dpzo.data.chats import MESSAGES, chat_rows
from dpzo.data.sources import open_table
from dpzo.errors import DpzoError
from dpzo.tasks import Records, Task
from dpzo.tasks.files import records_from_tables
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
    fields, label_column, references = _columns(task, data)
    asked = [*fields.values(), *(name for name in (label_column, data.unit_column, references) if name is not None)]

    def tables() -> Iterator[tuple[Path, Iterator[Row]]]:
        for place in places:
            path, rows = open_table(place, asked, split=split, default_split=default_split, revision=revision)
            yield path, chat_rows(path, rows, data.messages_column) if MESSAGES in fields else rows

    return records_from_tables(
        tables(),
        fields=fields,
        label_column=label_column,
        labels=() if task.labels is None else task.labels,
        unit_column=data.unit_column,
        references=references,
    )


def _columns(task: Task, data: DataConfig) -> tuple[dict[str, str], str | None, str | None]:
    """Field → column; the column of the label; the column of all accepted answers."""
    label_column = None if task.labels is None else data.label_column
    if data.task is not None:
        fields = {name: name for name in task.text_fields}
        if task.kind != "completion":
            return fields, label_column, None
        return {**fields, COMPLETION: COMPLETION}, label_column, REFERENCES
    if data.kind == "chat":
        return {MESSAGES: data.messages_column}, None, None
    if task.kind == "completion":
        return {PROMPT: data.prompt_column, COMPLETION: data.completion_column}, None, None
    return {TEXT: data.text_column}, label_column, None
