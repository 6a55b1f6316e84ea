"""Privacy units by their ids: one person is one unit, however files spell the id; what cannot be decided is refused."""

from __future__ import annotations

import math
import re
import unicodedata
from decimal import Decimal
from typing import Any

import numpy as np

from dpzo.data.tasks.values import plain

_WHOLE = re.compile(r"([+-]?)([0-9]+)(\.0*)?")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+)")
_ROUNDED = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][+-][0-9]+|[+-]?([0-9]+\.[0-9]*|\.[0-9]+)[eE][0-9]+")
_MISSING = frozenset(
    {
        *("nan", "-nan", "none", "null", "nil", "nat", "na", "n/a", "<na>", "#na", "#n/a", "#n/a n/a"),
        *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
    }
)
"""Texts that programs write for a missing value, in lower case."""

_LARGEST = {np.float16: 2**11, np.float32: 2**24, float: 2**53}
"""From here on a float of that width stands for several whole numbers."""

TEXT_OR_WHOLE = "write it as a text or a whole number"


class UnitIds:
    """Ids → unit numbers 0, 1, 2, … by first appearance, over all files of a run.

    Two spellings of one id are one unit. Every rule errs towards one unit: two people taken for one share one bound,
    which keeps the guarantee; one person taken for two would have twice the influence.

    - Whole numbers are compared as numbers: 17, 17.0, Decimal("17.00"), the texts "17" and "17.0".
    - Texts are compared case and all, after Unicode's compatibility composition (NFKC), without control and format
      characters (a zero-width space), with white space at the ends removed and within made single.
    - Refused: missing values and texts that programs write for them; true and false; numbers that are not whole; floats
      so large that they stand for several whole numbers; numbers in exponent form; dates, lists, objects; and one
      number in two spellings ("017" and 17), which may be one person or two.

    Ids are private, so no error shows one.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._odd: dict[str, str] = {}  # a whole number → its spelling, where that is another, such as 017

    def number(self, value: object) -> int:
        """The unit of this id. Errors: ValueError whose text says what is wrong with the value, without showing it."""
        name = self._name(plain(value))
        return self._numbers.setdefault(name, len(self._numbers))

    def _name(self, value: Any) -> str:
        if value is None:
            raise ValueError("is empty; every record needs a unit")
        if isinstance(value, bool):
            raise ValueError(f"holds true or false, which names no unit; {TEXT_OR_WHOLE}")
        if isinstance(value, int):
            return self._whole(str(value), str(value))
        if isinstance(value, float | np.floating | Decimal):
            return self._float(value)
        if isinstance(value, str):
            return self._text(value)
        raise ValueError(f"holds a list, an object or a date, not a unit; {TEXT_OR_WHOLE}")

    def _float(self, value: Any) -> str:
        if not math.isfinite(value) or value != int(value):
            raise ValueError(f"holds a number that is not whole; {TEXT_OR_WHOLE}")
        largest = None if isinstance(value, Decimal) else _LARGEST.get(type(value), 2**53)
        if largest is not None and abs(value) >= largest:
            raise ValueError("holds a rounded number that several ids may share; write ids as texts or whole numbers")
        return self._whole(str(int(value)), str(int(value)))

    def _text(self, text: str) -> str:
        name = _folded(text)
        if not name:
            raise ValueError("is empty; every record needs a unit")
        lower = name.lower()
        if lower in _MISSING:
            raise ValueError("holds a text that programs write for a missing value; fill it or drop the row")
        if lower in ("true", "false"):
            raise ValueError(f"holds true or false, which names no unit; {TEXT_OR_WHOLE}")
        whole = _WHOLE.fullmatch(name)
        if whole is not None:
            sign, digits, point = whole.groups()
            number = digits.lstrip("0") or "0"
            if point is not None and (len(number) > 16 or int(number) >= 2**53):
                raise ValueError("holds a rounded number that several ids may share; write ids as whole numbers")
            number = f"-{number}" if sign == "-" and number != "0" else number
            return self._whole(number, number if name.removesuffix(point or "") in (number, "-0") else name)
        if _DECIMAL.fullmatch(name):
            raise ValueError("holds a number that is not whole; put a letter before it if it is a name")
        if _ROUNDED.fullmatch(name):
            raise ValueError("holds a number in exponent form, which programs round; write it in full")
        return self._whole(*_exponent(name)) if re.fullmatch(r"[0-9]+[eE][0-9]+", name) else name

    def _whole(self, number: str, spelling: str) -> str:
        """`spelling`, unless the same whole number has another one."""
        other = self._odd.get(number, number if number in self._numbers else spelling)
        if other != spelling:
            raise ValueError(
                "holds one number in two spellings (with and without leading zeros, a sign or an exponent), which may "
                "be one unit or two; write all ids one way"
            )
        if spelling != number:
            self._odd[number] = spelling
        return spelling


def _exponent(name: str) -> tuple[str, str]:
    """(whole number, spelling) of a text such as 1e5, which may be a number or a hexadecimal text."""
    mantissa, _, power = name.lower().partition("e")
    mantissa = mantissa.lstrip("0")
    if not mantissa:
        return "0", name
    # As a text: 1e999999999 must not be multiplied out.
    return (mantissa + "0" * int(power) if len(power) < 4 else f"{mantissa}e{power}"), name


def _folded(text: str) -> str:
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()
    kept = []
    for character in unicodedata.normalize("NFKC", text):
        if character.isspace():
            kept.append(" ")
        elif unicodedata.category(character) not in ("Cc", "Cf"):
            digit = unicodedata.decimal(character, None)
            kept.append(character if digit is None else str(digit))
    return " ".join(unicodedata.normalize("NFKC", "".join(kept)).split())
