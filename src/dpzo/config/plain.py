"""Read plain values from untrusted files: a safe subset of YAML, and trees that may lack a part."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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


def require_regular(path: Path, most: int | None = None) -> None:
    """DpzoError unless `path` is, or links to, a regular file of at most `most` bytes.

    Opening a pipe waits for a writer that may never come, and a device has no end.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise DpzoError(f"{path}: {getattr(error, 'strerror', None) or 'no such file'}") from None
    if not stat.S_ISREG(found.st_mode):
        raise DpzoError(f"{path}: is not a regular file but a folder, a pipe, a device or a socket; give a file")
    if most is not None and found.st_size > most:
        raise DpzoError(f"{path}: holds {found.st_size} bytes; at most {most} are read")


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes; DpzoError for any other."""
    require_regular(path, most)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DpzoError(f"{path}: holds more than {most} bytes")
    return content


def printable(text: str) -> str:
    """`text` with every character that is not for printing escaped as Python escapes it.

    Line ends, terminal escapes, and characters that turn text round are among them.

    >>> printable("model/a\\nb\\x1b[31m.bin")
    'model/a\\\\nb\\\\x1b[31m.bin'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


_MARKUP = re.compile(r"[\\`*\[\]~#|!]|(?<![^\W_])_|_(?![^\W_])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def markdown(text: str) -> str:
    """Escape untrusted `text` as one line of Markdown that only displays it.

    Nothing in it starts a tag, a comment, a link, a code span, a heading or a table cell, or moves a terminal's cursor.

    >>> markdown("a | <b>")
    'a \\\\| &lt;b&gt;'
    """
    shown = _MARKUP.sub(r"\\\g<0>", printable(" ".join(text.split())))
    return "".join(_ENTITIES.get(c, c) for c in shown)
