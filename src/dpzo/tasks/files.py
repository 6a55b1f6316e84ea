"""A user's own csv or jsonl file as `Records`: which columns are read, what a label may be, what is refused."""

from __future__ import annotations

import difflib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dpzo.errors import DpzoError
from dpzo.spool import TextSpool
from dpzo.tasks.records import COMPLETION, PROMPT, TEXT, Records
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
    references: str | None = None,
    strip: bool = False,
) -> Records:
    """`records_from_tables` of one file."""
    return records_from_tables(
        [(path, rows)],
        fields=fields,
        label_column=label_column,
        labels=labels,
        unit_column=unit_column,
        references=references,
        strip=strip,
    )


def records_from_tables(
    tables: Iterable[tuple[Path, Iterable[Row]]],
    *,
    fields: Mapping[str, str],
    label_column: str | None = None,
    labels: Sequence[str] = (),
    unit_column: str | None = None,
    references: str | None = None,
    strip: bool = False,
) -> Records:
    """Collect the rows of one file after another into records; a unit may own records of several.

    `fields` maps a field's name to its column; `strip` removes a text's outer space.

    `references`: the column with the list of all accepted answers; a row without it accepts its completion alone.

    Errors: as `load_records`.
    """
    asked = [*fields.values(), *(column for column in (label_column, unit_column) if column is not None)]
    if len(set(asked)) != len(asked):
        raise DpzoError("one column is named for two purposes; name a column once")
    index = {label: position for position, label in enumerate(labels)}
    texts = {name: TextSpool() for name in fields}
    targets = array("q")
    owners = array("q")
    numbers: dict[str, int] = {}
    accepted: list[tuple[str, ...]] = []
    for path, rows in tables:
        checked = False
        for row, values in rows:
            if not checked:
                _check_columns(path, asked, tuple(values))
                checked = True
            for name, column in fields.items():
                text = _text(path, row, column, values)
                text = text.strip() if strip else text
                texts[name].append(text)
                if references is not None and name == COMPLETION:
                    accepted.append(_references(path, row, references, values) or (text,))
            if label_column is not None:
                label = _name(path, row, label_column, values, "a label")
                if label not in index:
                    declared = ", ".join(map(repr, labels))
                    problem = f"column {label_column!r} holds a label that is not declared; declared are {declared}"
                    fail(path, row, problem)
                targets.append(index[label])
            if unit_column is not None:
                owner = _name(path, row, unit_column, values, "a unit")
                owners.append(numbers.setdefault(owner, len(numbers)))
    return Records(
        fields={name: column.finish() for name, column in texts.items()},
        labels=None if label_column is None else np.array(targets, np.int64),
        units=None if unit_column is None else np.array(owners, np.int64),
        references=None if references is None else accepted,
    )


def _references(path: Path, row: int, column: str, values: Mapping[str, object]) -> tuple[str, ...]:
    found = values.get(column, [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        fail(path, row, f"column {column!r} does not hold a list of texts; it lists the accepted answers")
    return tuple(_scalar_values(text) for text in found)


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
        fail(path, None, f"has no column {column!r}{hint or '; name another'} (it has {_listed(schema)})")
    fail(path, None, f"has no column {column!r}{hint or '; name the right one, or add a header if the file has none'}")


def _listed(schema: Sequence[str]) -> str:
    names = [repr(name if len(name) <= _NAME_SHOWN else f"{name[:_NAME_SHOWN]}…") for name in schema[:_COLUMNS_SHOWN]]
    return ", ".join(names) + (" …" if len(schema) > _COLUMNS_SHOWN else "")


_NAME_SHOWN, _COLUMNS_SHOWN = 40, 20


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
