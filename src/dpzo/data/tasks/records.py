"""The records of one data set, in memory; nothing here shows them."""

from __future__ import annotations

from collections.abc import Mapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from dpzo.errors import DpzoError

TEXT = "text"
PROMPT = "prompt"
COMPLETION = "completion"


@dataclass(frozen=True, repr=False, eq=False)
class Records:
    """Texts, labels and owners of n records: private, so neither a record nor their number appears in a repr.

    - `fields`: name of a template field → n texts. Classification has `text` or the fields of a pair; completion has
      `prompt` and `completion`.
    - `labels`: (n,) int64, index into the declared labels; None for completion.
    - `units`: (n,) int64, the privacy unit that owns a record, 0..U−1 in order of first appearance. Each record is its
      own unit when none is given.
    - `references`: every answer that counts as right, for scoring; None where the completion is the only one.

    Errors: ValueError when lengths differ or a unit number is skipped (the caller's mistake, not the user's).
    """

    fields: Mapping[str, Sequence[str]]
    labels: NDArray[np.int64] | None = None
    units: NDArray[np.int64] | None = None
    references: Sequence[tuple[str, ...]] | None = None
    _length: int = field(init=False)
    _owner: NDArray[np.int64] = field(init=False)
    _order: NDArray[np.int64] = field(init=False)
    _starts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        # A read-only sequence is not copied: it may be stored in a file because it is too large for memory.
        fields = MappingProxyType(
            {name: tuple(texts) if isinstance(texts, MutableSequence) else texts for name, texts in self.fields.items()}
        )
        lengths = {len(texts) for texts in fields.values()}
        if len(lengths) != 1:
            raise ValueError("Records needs one or more fields, all of one length")
        (length,) = lengths
        labels = None if self.labels is None else _frozen(self.labels)
        if labels is not None and labels.shape != (length,):
            raise ValueError("Records needs one label a record")
        owner = _frozen(np.arange(length) if self.units is None else self.units)
        if owner.shape != (length,):
            raise ValueError("Records needs one unit a record")
        references = None if self.references is None else tuple(self.references)
        if references is not None and len(references) != length:
            raise ValueError("Records needs one tuple of references a record")
        # Stable, so that the records of a unit keep the order of the file: sums over them are then reproducible.
        order = np.argsort(owner, kind="stable").astype(np.int64)
        present, counts = np.unique(owner, return_counts=True)
        if not np.array_equal(present, np.arange(len(present))):
            raise ValueError("Records needs units numbered 0, 1, 2, … without a gap")
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        for name, value in (
            ("fields", fields),
            ("labels", labels),
            ("units", owner),
            ("references", references),
            ("_length", length),
            ("_owner", owner),
            ("_order", _frozen(order)),
            ("_starts", _frozen(starts)),
        ):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return "Records(<private>)"

    def __len__(self) -> int:
        return self._length

    @property
    def num_units(self) -> int:
        """U, the number of privacy units; derived from the data, so public only if it was declared as well."""
        return len(self._starts) - 1

    @property
    def texts(self) -> Sequence[str]:
        """The n texts of a classification data set of single texts."""
        return self._field(TEXT)

    @property
    def prompts(self) -> Sequence[str]:
        """The n prompts of a completion data set."""
        return self._field(PROMPT)

    @property
    def completions(self) -> Sequence[str]:
        """The n completions, each the answer to the prompt at its position."""
        return self._field(COMPLETION)

    @property
    def accepted(self) -> Sequence[tuple[str, ...]]:
        """The answers that count as right for each of the n records, one or more."""
        return [(text,) for text in self.completions] if self.references is None else self.references

    def members(self, unit: int) -> NDArray[np.int64]:
        """Positions of the records that one unit owns, ascending; at least one. IndexError for no such unit."""
        if not 0 <= unit < self.num_units:
            raise IndexError("no such unit")
        return self._order[self._starts[unit] : self._starts[unit + 1]]

    def subset(self, positions: NDArray[np.int64] | Sequence[int]) -> Records:
        """The records at `positions`, in that order; units are numbered anew by first appearance."""
        chosen = np.asarray(positions, dtype=np.int64)
        _, first, inverse = np.unique(self._owner[chosen], return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first, kind="stable")] = np.arange(len(first))
        return Records(
            fields={name: tuple(texts[i] for i in chosen) for name, texts in self.fields.items()},
            labels=None if self.labels is None else self.labels[chosen],
            units=rank[inverse.reshape(-1)],
            references=None if self.references is None else [self.references[i] for i in chosen],
        )

    def _field(self, name: str) -> Sequence[str]:
        if name not in self.fields:
            raise DpzoError(f"these records have no field {name!r}, only {', '.join(map(repr, self.fields))}")
        return self.fields[name]


def _frozen(values: NDArray[np.int64]) -> NDArray[np.int64]:
    copy = np.array(values, dtype=np.int64)
    copy.flags.writeable = False
    return copy
