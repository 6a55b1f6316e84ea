"""Normalise a record's values: the same number, truth value or missing value for every file format."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+")
_TRUTH = frozenset({"true", "false"})
_MISSING_TYPES = frozenset({"NAType", "NaTType"})
"""pandas' marks, told by their names: pandas is not needed to read a file."""


class ClassLabel(NamedTuple):
    """A label that a data set stores as a number, with a list of all class names (`datasets.ClassLabel`)."""

    number: int
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """The class of the number."""
        return self.names[self.number]


def plain(value: object) -> Any:
    """The value as Python's own: numpy and Arrow scalars unwrapped, every kind of missing value as None.

    Missing are None, NaN (float or Decimal), NaT and pandas' NA. An empty text is a text. A numpy float narrower than
    64 bits keeps its type, which says how many digits it has.
    """
    if isinstance(value, ClassLabel):
        return value.name
    if hasattr(value, "as_py"):
        value = value.as_py()
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, np.datetime64 | np.timedelta64):
        return None if np.isnat(value) else value
    if isinstance(value, np.float16 | np.float32):
        return None if np.isnan(value) else value
    if isinstance(value, np.generic):
        value = value.item()
    if type(value).__name__ in _MISSING_TYPES:
        return None
    if isinstance(value, Decimal):
        return None if value.is_nan() else value
    return None if isinstance(value, float) and math.isnan(value) else value


def normal(text: str) -> str:
    """A text without outer white space, in Unicode's composed form (NFC), in which é is one character."""
    stripped = text.strip()
    return stripped if stripped.isascii() else unicodedata.normalize("NFC", stripped)


def label_text(value: object) -> str | None:
    """The one text of a label's value: equal values have equal texts. None where it is missing.

    1, 1.0, Decimal("1.00") and the text "1.0" are `1`; true, "True" and "TRUE" are `true` and no number; other texts
    are compared case and all, in their composed form, without outer white space. A text such as "01" stays as it is.

    Errors: TypeError for a list, an object or another kind of value.
    """
    found = plain(value)
    if found is None:
        return None
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, int):
        return str(found)
    if isinstance(found, float | Decimal | np.floating):
        return _number_text(found)
    if not isinstance(found, str):
        raise TypeError("neither a text nor a number")
    text = normal(found)
    if text.lower() in _TRUTH:
        return text.lower()
    return _short(text) if _DECIMAL.fullmatch(text) else text or None


def class_text(value: ClassLabel, index: Mapping[str, int]) -> str | None:
    """The text by which a class is looked up among declared labels: its name; its number where no name is declared."""
    by_name = any(label_text(name) in index for name in value.names)
    return label_text(value.name if by_name else value.number)


def _number_text(value: Any) -> str:
    if not math.isfinite(value):
        return str(value)
    if value == int(value):
        return str(int(value))
    text = str(value) if not isinstance(value, Decimal) else format(value, "f")
    return _short(text) if _DECIMAL.fullmatch(text) else text


def _short(text: str) -> str:
    """A decimal number without the zeros that say nothing: 1.50 → 1.5, 1.0 → 1, -0.0 → 0."""
    short = text.rstrip("0").rstrip(".")
    return "0" if short == "-0" else short
