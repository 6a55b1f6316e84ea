"""Records encoded a block at a time, the whole in a mapped file when it is large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np

from dpzo.data.spool import MAP_ABOVE, ArraySpool
from dpzo.data.tasks.records import Records
from dpzo.models.batching import Encoded

BLOCK = 8192
"""Records encoded at a time: as Python strings, their texts take several times the memory."""


def encode_in_blocks(
    records: Records, encode: Callable[[Records, int], Encoded], block: int = BLOCK, map_above: int = MAP_ABOVE
) -> Encoded:
    """The result of `encode(records, 0)`, with one block of records in Python's memory at a time.

    `encode(part, first)` encodes records `first`, `first + 1`, …; every row must be a function of its own record, and
    every other value a function of declarations. Arrays beyond `map_above` bytes are stored in a mapped file.
    """
    if len(records) <= block:
        return encode(records, 0)
    spools: dict[str, ArraySpool] = {}
    first: Encoded | None = None
    for start in range(0, len(records), block):
        part = encode(records.subset(np.arange(start, min(start + block, len(records)))), start)
        if first is None:
            first = part
            spools = {name: ArraySpool(map_above) for name, value in _parts(part) if isinstance(value, np.ndarray)}
        for name, value in _parts(part):
            if name in spools:
                spools[name].append(value)
            elif value != getattr(first, name):
                raise ValueError("a block was encoded with other declarations than the first")
    assert first is not None
    arrays: dict[str, Any] = {name: spool.finish() for name, spool in spools.items()}
    return replace(first, **arrays)


def _parts(encoded: Encoded) -> list[tuple[str, Any]]:
    return [(field.name, getattr(encoded, field.name)) for field in fields(encoded)]
