"""The largest sizes that a config or a journal's header may state, because a reader allocates memory for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

MOST_STEPS = 5_000_000
"""Steps of a run; the ε of so many takes a minute to compute, and their journal is a gigabyte."""
MOST_DIRECTIONS = 1 << 16
"""Directions a step."""
LONGEST_TEXT = 20_000
"""Characters of a text in a config: a prompt template, or how hyper-parameters were chosen."""
LONGEST_NAME = 4096
"""Characters of a name: of a model's folder, a column, a parameter."""
MOST_ENTRIES = 20_000
"""Entries of a list in a config, such as labels, and values in a user's own task."""
# A reader of a config, such as a verifier, uses these sizes before it can know whether they fit.
Units = Annotated[int, Field(ge=1, le=2**53)]
Tokens = Annotated[int, Field(ge=1, le=1 << 20)]
Rank = Annotated[int, Field(ge=1, le=1 << 13)]
Rows = Annotated[int, Field(ge=1, le=1 << 16)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]


def weight(value: object, depth: int = 0) -> int:
    """Entries in a tree of plain values; more than a config may hold where a text is too long or nesting too deep."""
    too_much = MOST_ENTRIES + 1
    if isinstance(value, str):
        return too_much if len(value) > LONGEST_TEXT else 1
    if isinstance(value, Mapping | list | tuple):
        if depth > 20 or len(value) > MOST_ENTRIES:
            return too_much
        inner = [*value, *value.values()] if isinstance(value, Mapping) else value
        return 1 + sum(weight(each, depth + 1) for each in inner)
    return 1
