"""Read a user's own data, of any kind and from several places, as records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpzo.config.schema import DataConfig
from dpzo.data.chats import BESIDE, CONVERSATIONS, MESSAGES, chat_rows
from dpzo.data.hub import parse_hub
from dpzo.data.in_memory import InMemory
from dpzo.data.prompts import ALPACA, INSTRUCTION, OUTPUT, prompt_rows
from dpzo.data.sources import open_table
from dpzo.data.tasks import Records, Task
from dpzo.data.tasks.files import Columns, records_from_tables
from dpzo.data.tasks.records import COMPLETION, PROMPT, TEXT
from dpzo.data.tasks.tables import Row, Tell, shown, untold
from dpzo.errors import DpzoError

REFERENCES = "references"


def read_records(
    places: Sequence[str | Path | InMemory],
    task: Task,
    data: DataConfig,
    *,
    split: str | None = None,
    default_split: str = "train",
    revision: str | None = None,
    tell: Tell = untold,
) -> Records:
    """The records of one place after another: each what `open_table` takes, all with the same columns.

    The columns are those that `data` names; for a built-in task, or one's own task file, they bear the names of the
    task's fields. A unit may own records in several places. Texts beyond memory are stored in a mapped file.

    Errors: DpzoError naming the place, the row, the column and the fix; never anything of a record.
    """
    if not places:
        raise DpzoError("--data is missing: a file, a folder of datasets' save_to_disk, or hub:organisation/name")
    columns = _columns(task, data)
    beside = [] if columns.references is None else [columns.references]
    form = _own_form(data, tell)
    if form is not None:
        beside += form.beside

    def tables() -> Iterator[tuple[Path, Iterator[Row]]]:
        for place in places:
            path, rows = open_table(
                place,
                columns.asked,
                beside=beside,
                split=split,
                default_split=default_split,
                revision=revision,
                tell=tell,
            )
            yield path, rows if form is None else form.rows(path, rows)

    return records_from_tables(tables(), columns)


def kind_by_columns(
    place: str | Path | InMemory, data: DataConfig, *, split: str | None = None, tell: Tell = untold
) -> Literal["completion", "chat"] | None:
    """The kind of records in a file if its columns determine it unambiguously; else None.

    Column names decide (in jsonl those of the first record), never the contents of a record. No hub is contacted.
    """
    if parse_hub(str(place)) is not None:
        return None
    _, values = next(open_table(place, (), split=split)[1])
    names = values.keys()
    prompts = {data.prompt_column, data.completion_column} <= names or {INSTRUCTION, OUTPUT} <= names
    chats = not {data.messages_column, CONVERSATIONS}.isdisjoint(names)
    labels = {data.text_column, data.label_column} <= names
    if labels or prompts == chats:
        return None
    kind: Literal["completion", "chat"] = "completion" if prompts else "chat"
    tell(f"{shown(Path(str(place)))}: read as --kind {kind}, by the names of its columns")
    return kind


@dataclass(frozen=True)
class _Form:
    """How rows of a user's chats or completions become the requested columns, and the other columns that are read."""

    beside: Sequence[str]
    rows: Callable[[Path, Iterator[Row]], Iterator[Row]]


def _own_form(data: DataConfig, tell: Tell) -> _Form | None:
    if data.task is not None:
        return None
    if data.kind == "chat":
        return _Form(BESIDE, lambda path, rows: chat_rows(path, rows, data.messages_column, tell))
    if data.kind == "completion":
        prompt, completion = data.prompt_column, data.completion_column
        return _Form(ALPACA, lambda path, rows: prompt_rows(path, rows, prompt, completion, tell))
    return None


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
"""Field of a user's own file → the option that names its column."""
