"""Plain values out of files that anyone may have written: YAML without surprises, and trees that may lack a part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dpzo.errors import DpzoError

PLAIN = "of plain values (texts, numbers, lists, names with values; dates in quotes, no aliases)"
"""What `parse_yaml` takes, for an error message."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML text: None, bool, int, float, str, and lists and dicts of them.

    ValueError for everything else, whatever the library makes of it: a month 99, a tag that does not fit, nesting
    without end; and for an alias, by which ten lines can stand for more than memory holds.
    """
    import yaml

    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST or isinstance(event, yaml.AliasEvent):
                raise ValueError
        value = yaml.safe_load(text)
        _require_plain(value)
    except Exception:
        raise ValueError(f"not YAML {PLAIN}") from None
    return value


_DEEPEST = 50
"""Levels of nesting; the library takes a time that grows with their square."""


def _require_plain(value: Any) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _require_plain(name)
            _require_plain(inner)
    elif isinstance(value, list):
        for inner in value:
            _require_plain(inner)
    elif not isinstance(value, str | int | float | None):
        raise ValueError


@contextmanager
def refusing(message: str) -> Iterator[None]:
    """Turn what reading a tree of plain values trips over (no such key, another type) into DpzoError(message)."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError):
        raise DpzoError(message) from None
