"""One line of a journal: its canonical spelling, its link in the hash chain, and its validation."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from dpzo.errors import DpzoError

_MOST_DIRECTIONS = 1 << 20
"""Far above a config's limit; a line of so many values still fits in memory."""


def canonical(fields: Mapping[str, Any]) -> bytes:
    """The canonical spelling of a line or a head. ValueError for NaN and infinities."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def chain(previous: str, body: Mapping[str, Any]) -> str:
    """The hash of the hash chain after a line (without its own hash), from the previous hash."""
    return hashlib.sha256(previous.encode() + b"\n" + canonical(body)).hexdigest()


def longest_line(width: int) -> int:
    """Bytes of the longest line of a step: `width` integers of 64 bits."""
    return 160 + 22 * width


def begun_line(line: bytes, step: int) -> bool:
    """Whether the incomplete `line` is a prefix of the line that `append` writes for `step`."""
    text = line.decode("latin-1")
    head, tail = '"hash":"', f'","step":{step}'
    return _begins(text, "{" + head, tail + ',"values":[', r"[-0-9,]*\]?\}?") or _begins(
        text, '{"burnt":true,' + head, tail + "}", ""
    )


def _begins(text: str, before: str, after: str, rest: str) -> bool:
    """Whether `text` is a prefix of `before`, 64 hexadecimal digits, `after` and text that matches `rest`."""
    if len(text) <= len(before):
        return before.startswith(text)
    digits, left = text[len(before) : len(before) + 64], text[len(before) + 64 :]
    if not text.startswith(before) or re.fullmatch("[0-9a-f]*", digits) is None:
        return False
    return after.startswith(left) or (left.startswith(after) and re.fullmatch(rest, left[len(after) :]) is not None)


def parse_line(path: Path, line: bytes, number: int) -> dict[str, Any]:
    """The fields of line `number`; DpzoError unless it is a JSON object."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise DpzoError(f"{path}: line {number} is not JSON; the journal is damaged") from None
    if not isinstance(fields, dict):
        raise DpzoError(f"{path}: line {number} is not a journal line")
    return cast("dict[str, Any]", fields)


def line_width(path: Path, header: Mapping[str, Any]) -> int:
    """K from the header; DpzoError if the header lacks a field that reading needs."""
    plan = header.get("plan")
    if isinstance(plan, dict) and type(header.get("lattice_unit")) is float:
        width, steps = plan.get("num_directions"), plan.get("steps")
        if type(width) is int and type(steps) is int and 0 < width <= _MOST_DIRECTIONS:
            return width
    raise DpzoError(f"{path}: line 1 lacks the plan or the lattice unit; the journal is damaged")


def verify_line(path: Path, line: bytes, step: int, previous: str, width: int) -> str:
    """The chain hash after the line of `step`; DpzoError unless it is byte for byte the line that `append` writes."""
    fields = parse_line(path, line, step + 2)
    fields.pop("hash", None)
    values = fields.get("values")
    # `type … is int`, `is True`: to Python true is 1 and 1.0 is 1.
    shaped = (
        isinstance(values, list) and len(values) == width and all(type(value) is int for value in values)
        if fields.keys() == {"step", "values"}
        else fields.keys() == {"step", "burnt"} and fields["burnt"] is True
    )
    in_turn = shaped and type(fields["step"]) is int and fields["step"] == step
    hashed = chain(previous, fields) if in_turn else None
    if hashed is None or line != canonical({**fields, "hash": hashed}) + b"\n":
        raise DpzoError(f"{path}: line {step + 2} (step {step}) was changed, moved or damaged after it was written")
    return hashed
