"""A user's own csv or jsonl file as `Records`: which columns are read, what a label may be, what is refused."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dpzo.errors import DpzoError
from dpzo.tasks.records import COMPLETION, PROMPT, TEXT, Records, number_units
from dpzo.tasks.tables import Row, fail, read_table

Kind = Literal["classification", "completion"]

_JSON_NAMES = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}


def load_records(
    path: str | Path,
    *,
    kind: Kind = "classification",
    text_column: str = "text",
    label_column: str = "label",
    prompt_column: str = "prompt",
    completion_column: str = "completion",
    unit_column: str | None = None,
    labels: Sequence[str] | None = None,
) -> Records:
    """Read a classification (text, label) or completion (prompt, completion) file.

    - `labels`: the declared labels in the order of their indices; needed for classification, because a label set taken
      from the file would be derived from private data. A file's label, its outer white space removed, must equal one of
      them, case and all; an index is not a label unless it is declared as one. In jsonl a number counts as its decimal
      text and true/false as these words.
    - `unit_column`: whose record it is (a patient, a customer); equal after outer white space is removed. None: each
      record is its own unit.
    - Texts are kept as they are, empty ones too. A lone surrogate, which only a JSON escape can make, becomes U+FFFD,
      for no tokenizer can encode it.

    Errors: DpzoError naming file, row, column and the mend; never anything of a record.
    """
    if kind == "completion":
        return records_from_rows(
            Path(path),
            read_table(path),
            fields={PROMPT: prompt_column, COMPLETION: completion_column},
            unit_column=unit_column,
        )
    if kind != "classification":
        raise DpzoError("kind: must be classification or completion")
    if labels is None:
        raise DpzoError("--labels: declare the labels, as in --labels a,b,c; read from the file they would be private")
    return records_from_rows(
        Path(path),
        read_table(path),
        fields={TEXT: text_column},
        label_column=label_column,
        labels=check_labels(labels),
        unit_column=unit_column,
    )


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The declared labels, outer white space removed: two or more, none empty, none twice; else DpzoError."""
    names = tuple(label.strip() for label in labels)
    if len(names) < 2:
        raise DpzoError("--labels: declare two or more, as in --labels a,b,c")
    if "" in names:
        raise DpzoError("--labels: one of them is empty; give each a name")
    if len(set(names)) != len(names):
        raise DpzoError("--labels: one of them is declared twice; keep one")
    return names


def records_from_rows(
    path: Path,
    rows: Iterable[Row],
    *,
    fields: Mapping[str, str],
    label_column: str | None = None,
    labels: Sequence[str] = (),
    unit_column: str | None = None,
    strip: bool = False,
) -> Records:
    """Collect rows into records. `fields` maps a field's name to its column; `strip` removes a text's outer space.

    Errors: as `load_records`.
    """
    asked = [*fields.values(), *(column for column in (label_column, unit_column) if column is not None)]
    if len(set(asked)) != len(asked):
        raise DpzoError("one column is named for two purposes; name a column once")
    index = {label: position for position, label in enumerate(labels)}
    texts: dict[str, list[str]] = {name: [] for name in fields}
    targets: list[int] = []
    owners: list[str] = []
    schema: tuple[str, ...] | None = None
    for row, values in rows:
        if schema is None:
            schema = tuple(values)
            _check_columns(path, asked, schema)
        for name, column in fields.items():
            text = _text(path, row, column, values)
            texts[name].append(text.strip() if strip else text)
        if label_column is not None:
            label = _name(path, row, label_column, values, "a label")
            if label not in index:
                declared = ", ".join(map(repr, labels))
                fail(path, row, f"column {label_column!r} holds a label that is not declared; declared are {declared}")
            targets.append(index[label])
        if unit_column is not None:
            owners.append(_name(path, row, unit_column, values, "a unit"))
    return Records(
        fields=texts,
        labels=None if label_column is None else np.array(targets, np.int64),
        units=None if unit_column is None else number_units(owners),
    )


def _check_columns(path: Path, asked: Sequence[str], schema: Sequence[str]) -> None:
    """Refuse a file that lacks a column.

    Column names are schema and may be shown; but the "header" of a file without one is a record. A first row counts as
    a header only if it names one of the columns asked for. Short of that, all that is shown is a name that the user all
    but typed.
    """
    missing = [column for column in asked if column not in schema]
    if not missing:
        return
    column = missing[0]
    folded = {name.casefold(): name for name in schema}
    near = difflib.get_close_matches(column.casefold(), folded, n=1, cutoff=0.75)
    hint = f"; did you mean {folded[near[0]]!r}?" if near else ""
    if len(missing) < len(asked):
        fail(path, None, f"has no column {column!r}{hint or '; name another'} (it has {', '.join(map(repr, schema))})")
    fail(path, None, f"has no column {column!r}{hint or '; name the right one, or add a header if the file has none'}")


def _text(path: Path, row: int, column: str, values: Mapping[str, object]) -> str:
    if column not in values:
        fail(path, row, f"lacks the column {column!r}; every record needs it")
    value = values[column]
    if not isinstance(value, str):
        kind = _JSON_NAMES.get(type(value), "an object")
        fail(path, row, f'column {column!r} holds {kind}, not a text; put it in quotes, or write "" for an empty text')
    return _scalar_values(value)


def _name(path: Path, row: int, column: str, values: Mapping[str, object], what: str) -> str:
    value = values.get(column, "")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if value is None:
        value = ""
    if not isinstance(value, str):
        fail(path, row, f"column {column!r} holds a list or an object, not {what}; write a text or a number")
    name = value.strip()
    if not name:
        fail(path, row, f"column {column!r} is empty; every record needs {what}")
    return name


def _scalar_values(text: str) -> str:
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
