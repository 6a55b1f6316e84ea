"""A user's own csv or jsonl file as `Records`: which columns are read, what a label may be, what is refused."""

from __future__ import annotations

import difflib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Number
from pathlib import Path
from typing import Literal

import numpy as np

from dpzo.data.spool import TextSpool
from dpzo.data.tasks.records import COMPLETION, PROMPT, TEXT, Records
from dpzo.data.tasks.tables import Row, fail, read_table
from dpzo.data.tasks.unit_ids import UnitIds
from dpzo.data.tasks.values import ClassLabel, class_text, label_text, plain
from dpzo.errors import DpzoError

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
      from the file would be derived from private data. A file's label must equal one of them by value, as
      `values.label_text` says: 1, 1.0 and "1.0" are one label, "A" and "a" are two; an index is not a label unless it
      is declared as one.
    - `unit_column`: column that identifies the privacy unit (a patient, a customer); equal ids as `UnitIds` says.
      None: each record is its own unit.
    - Texts are kept as they are, empty ones too. A lone surrogate, which only a JSON escape can make, becomes U+FFFD,
      for no tokenizer can encode it.

    Errors: DpzoError naming the file, the row, the column and the fix; never anything of a record.
    """
    if kind == "completion":
        columns = Columns({PROMPT: prompt_column, COMPLETION: completion_column}, unit=unit_column)
        return records_from_tables([(Path(path), read_table(path))], columns)
    if kind != "classification":
        raise DpzoError("kind: must be classification or completion")
    if labels is None:
        raise DpzoError("--labels: declare the labels, as in --labels a,b,c; read from the file they would be private")
    columns = Columns({TEXT: text_column}, label=label_column, labels=check_labels(labels), unit=unit_column)
    return records_from_tables([(Path(path), read_table(path))], columns)


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The declared labels, outer white space removed: two or more, none empty, no two of one value; else DpzoError."""
    names = tuple(label.strip() for label in labels)
    if len(names) < 2:
        raise DpzoError("--labels: declare two or more, as in --labels a,b,c")
    if "" in names:
        raise DpzoError("--labels: one of them is empty; give each a name")
    if len({label_text(name) for name in names}) != len(names):
        raise DpzoError("--labels: one of them is declared twice (1 and 1.0, true and True are one); keep one")
    return names


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read, and as what.

    - `fields`: a field's name → its column. `label`: the label's column, whose values are among `labels`.
    - `unit`: the column that names the privacy unit. `references`: that of the list of all accepted answers; a row
      without it accepts its completion alone.
    - `strip` removes a text's outer space.
    - `flags`: a column → the option that names it, for errors.
    """

    fields: Mapping[str, str]
    label: str | None = None
    labels: Sequence[str] = ()
    unit: str | None = None
    references: str | None = None
    strip: bool = False
    flags: Mapping[str, str] = field(default_factory=dict)

    @property
    def asked(self) -> list[str]:
        """The columns that every row must have."""
        return [*self.fields.values(), *(column for column in (self.label, self.unit) if column is not None)]


def records_from_tables(tables: Iterable[tuple[Path, Iterable[Row]]], columns: Columns) -> Records:
    """Collect the rows of one file after another into records; a unit may own records of several.

    Errors: as `load_records`.
    """
    if len(set(columns.asked)) != len(columns.asked):
        raise DpzoError("one column is named for two purposes; name a column once")
    index = {_declared(label): position for position, label in enumerate(columns.labels)}
    texts = {name: TextSpool() for name in columns.fields}
    targets, owners = array("q"), array("q")
    ids = UnitIds()
    accepted: list[tuple[str, ...]] = []
    for path, rows in tables:
        checked = False
        for row, values in rows:
            if not checked:
                _check_columns(path, columns, tuple(values))
                checked = True
            for name, column in columns.fields.items():
                text = _text(path, row, column, values)
                text = text.strip() if columns.strip else text
                texts[name].append(text)
                if columns.references is not None and name == COMPLETION:
                    accepted.append(_references(path, row, columns.references, values) or (text,))
            if columns.label is not None:
                targets.append(_label(path, row, columns, values.get(columns.label), index))
            if columns.unit is not None:
                owners.append(_unit(path, row, columns.unit, values.get(columns.unit), ids))
    return Records(
        fields={name: column.finish() for name, column in texts.items()},
        labels=None if columns.label is None else np.array(targets, np.int64),
        units=None if columns.unit is None else np.array(owners, np.int64),
        references=None if columns.references is None else accepted,
    )


def _references(path: Path, row: int, column: str, values: Mapping[str, object]) -> tuple[str, ...]:
    found = plain(values.get(column))
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        fail(path, row, f"column {column!r} does not hold a list of texts; it lists the accepted answers")
    return tuple(_scalar_values(text) for text in found)


def _check_columns(path: Path, columns: Columns, schema: Sequence[str]) -> None:
    """Refuse a file that lacks a column.

    Column names are schema and may be shown; but the "header" of a file without one is a record. A first row counts as
    a header only if it names one of the columns asked for, or two usual ones. Short of that, all that is shown is a
    name that the user all but typed.
    """
    missing = [column for column in columns.asked if column not in schema]
    if not missing:
        return
    column = missing[0]
    flag = f" ({columns.flags[column]})" if column in columns.flags else ""
    folded = {name.casefold(): name for name in schema}
    near = difflib.get_close_matches(column.casefold(), folded, n=1, cutoff=0.75)
    hint = f"; did you mean {folded[near[0]]!r}?" if near else ""
    if len(missing) < len(columns.asked) or len(USUAL & folded.keys()) > 1:
        fail(path, None, f"has no column {column!r}{flag}{hint or '; name another'} (it has {_listed(schema)})")
    problem = f"has no column {column!r}{flag}{hint or '; name the right one, or add a header if the file has none'}"
    fail(path, None, problem + ("" if near else "; what its first row holds is not shown: it may be a record"))


USUAL = frozenset(
    {
        *("id", "text", "label", "labels", "sentence", "sentence1", "sentence2", "content", "review", "comment"),
        *(
            "sentiment",
            "rating",
            "stars",
            "score",
            "category",
            "class",
            "target",
            "title",
            "body",
            "subject",
            "message",
        ),
        *("prompt", "completion", "question", "answer", "context", "query", "response", "messages", "conversations"),
        *(
            "instruction",
            "input",
            "output",
            "premise",
            "hypothesis",
            "chosen",
            "rejected",
            "user",
            "date",
            "name",
            "message",
        ),
    }
)
"""Names, in lower case, that data sets often give their columns: a first row with two of them is a header."""


def _listed(schema: Sequence[str]) -> str:
    names = [repr(name if len(name) <= _NAME_SHOWN else f"{name[:_NAME_SHOWN]}…") for name in schema[:_COLUMNS_SHOWN]]
    return ", ".join(names) + (" …" if len(schema) > _COLUMNS_SHOWN else "")


_NAME_SHOWN, _COLUMNS_SHOWN = 40, 20


def _text(path: Path, row: int, column: str, values: Mapping[str, object]) -> str:
    if column not in values:
        fail(path, row, f"lacks the column {column!r}; every record needs it")
    value = plain(values[column])
    if not isinstance(value, str):
        kind = "a number" if isinstance(value, Number) else "an object"
        kind = _JSON_NAMES.get(type(value), kind)
        fail(path, row, f'column {column!r} holds {kind}, not a text; put it in quotes, or write "" for an empty text')
    return _scalar_values(value)


def _label(path: Path, row: int, columns: Columns, value: object, index: Mapping[str, int]) -> int:
    column = columns.label
    try:
        label = class_text(value, index) if isinstance(value, ClassLabel) else label_text(value)
    except TypeError:
        fail(path, row, f"column {column!r} holds a list or an object, not a label; write a text or a number")
    if label is None:
        fail(path, row, f"column {column!r} is empty; every record needs a label")
    if label not in index:
        declared = ", ".join(map(repr, columns.labels))
        problem = f"column {column!r} holds a label that is not declared; declared are {declared}"
        fail(path, row, problem + _label_hint(value, index))
    return index[label]


def _label_hint(value: object, index: Mapping[str, int]) -> str:
    """What helps with a label that is not declared: of the value its kind alone."""
    if isinstance(value, ClassLabel):
        return "; the column holds numbers of named classes: declare these names"
    if isinstance(value, bool) and not {"true", "false"} <= set(index):
        return "; the column holds truth values: declare --labels false,true"
    return ""


def _unit(path: Path, row: int, column: str, value: object, ids: UnitIds) -> int:
    try:
        return ids.number(value)
    except ValueError as problem:
        fail(path, row, f"column {column!r} {problem}")


def _declared(label: str) -> str:
    text = label_text(label)
    assert text is not None  # check_labels has seen it
    return text


def _scalar_values(text: str) -> str:
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
