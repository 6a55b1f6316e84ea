"""A noise distribution as an integer table with geometric tails: the one object that is sampled and accounted.

The distribution is given by integers that sum to 2^127, so 127 random bits choose a cell, one more a sign, and no float
is involved. The accountant reads the same integers divided by 2^128 (`shape`): there is no second description of the
noise that could differ from the first.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from dpzo.errors import DpzoError
from dpzo.noise.shape import NOT_UNIMODAL, Shape
from dpzo.privacy.mechanisms import LARGEST_BOUND
from dpzo.privacy.randomness import WORD_BITS, Words

SIDE_BITS = 127
RATIO_BITS = 64
FORMAT = 1


@dataclass(frozen=True)
class LatticeNoise:
    """A symmetric unimodal distribution on ℤ, in lattice units; one clip norm is `bound` units.

    Cells: cell c ≥ 0 and its mirror image −c hold `block` (odd) lattice units each, centred at ±c·block, all equally
    likely; a clip norm is `bound`/`block` cells. `weights` w_0 … w_M: P(cell 0) = 2·w_0/2^128, P(cell ±c) = w_c/2^128
    each. Each of the last `period` weights covers its cell and all repetitions of it outward: cell c + k·period has
    probability w_c·(1 − r)·r^k/2^128 on either side, r = `ratio`/2^64 (0: the distribution ends at M).
    Guarantee: Σw = 2^127 exactly; the masses do not increase away from 0 (checked in integers).
    Errors: DpzoError when a weight is negative, the sum or a width is wrong, or the distribution is not unimodal.
    """

    weights: tuple[int, ...]
    ratio: int
    period: int
    block: int
    bound: int
    origin: str = "free form"

    def __post_init__(self) -> None:
        if self.block < 1 or self.block % 2 == 0 or self.bound < self.block or self.bound % self.block:
            raise DpzoError("noise table: a cell must be an odd number of units, and the clip norm whole cells")
        if self.bound > LARGEST_BOUND:
            raise DpzoError(
                f"noise table: a clip norm is {self.bound} lattice units, at most {LARGEST_BOUND} are exact: "
                "use fewer cells or a smaller block"
            )
        if not 1 <= self.period < len(self.weights) or self.cells_per_bound % self.period:
            raise DpzoError("noise table: the period of the tail must divide the cells of one clip norm")
        if min(self.weights) < 0 or not 0 <= self.ratio < 2**RATIO_BITS:
            raise DpzoError("noise table: a weight is negative, or the tail ratio is outside [0, 1)")
        if sum(self.weights) != 2**SIDE_BITS:
            raise DpzoError(f"noise table: the weights must sum to 2^{SIDE_BITS}")
        if not self._unimodal():
            raise DpzoError(NOT_UNIMODAL)

    def _unimodal(self) -> bool:
        # All masses × 2^192, as integers: 2·w_0, w_c, and w_c·(1 − r) in the last period.
        full, rest = 2**RATIO_BITS, 2**RATIO_BITS - self.ratio
        inner = len(self.weights) - self.period
        masses = [w * full for w in self.weights[:inner]] + [w * rest for w in self.weights[inner:]]
        masses[0] *= 2
        again = self.weights[inner] * rest * self.ratio <= self.weights[-1] * rest * full
        return again and all(near >= far for near, far in pairwise(masses))

    @property
    def cells_per_bound(self) -> int:
        """Cells in one clip norm."""
        return self.bound // self.block

    @cached_property
    def _cumulative(self) -> list[int]:
        return list(accumulate(self.weights))

    def draw(self, size: int, words: Words) -> list[int]:
        """`size` independent exact draws in lattice units, from uniform 64-bit words."""
        return [self._one(words) for _ in range(size)]

    def _one(self, words: Words) -> int:
        high, low = next(words), next(words)
        cell = bisect_right(self._cumulative, high << (WORD_BITS - 1) | low >> 1)
        if cell >= len(self.weights) - self.period:
            while next(words) < self.ratio:
                cell += self.period
        draw = (cell if low & 1 else -cell) * self.block
        return draw if self.block == 1 else draw + _below(self.block, words) - self.block // 2

    def draw_cells(self, words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Many cells at once: words (n, 2) → signed cells (n,), the same that `draw` chooses from the same two words.

        Draws in the last period are left at their first occurrence. For tests and audits.
        """
        cumulative = self._cumulative
        heads = np.array([c >> (WORD_BITS - 1) for c in cumulative[:-1]], dtype=np.uint64)
        cells = np.searchsorted(heads, words[:, 0], side="right").astype(np.int64)
        # If the first word equals a boundary's, the second word decides, in Python integers.
        for i in np.flatnonzero(np.isin(words[:, 0], heads)):
            high, low = int(words[i, 0]), int(words[i, 1])
            cells[i] = bisect_right(cumulative, high << (WORD_BITS - 1) | low >> 1)
        return np.where(words[:, 1] & np.uint64(1), cells, -cells)

    @cached_property
    def shape(self) -> Shape:
        """The distribution over cells in floats, each mass correctly rounded, as the accountant reads it."""
        inner, rest = len(self.weights) - self.period, 2**RATIO_BITS - self.ratio
        masses = [w / 2 ** (SIDE_BITS + 1) for w in self.weights[:inner]]
        masses += [w * rest / 2 ** (SIDE_BITS + 1 + RATIO_BITS) for w in self.weights[inner:]]
        masses[0] *= 2.0
        return Shape(np.array(masses), self.ratio / 2**RATIO_BITS, self.cells_per_bound, self.period)

    @cached_property
    def variance(self) -> float:
        """Variance in clip_norm²: over cells, and within a block (block² − 1)/12, one rounding from the exact value."""
        r = Fraction(self.ratio, 2**RATIO_BITS)
        inner, step = len(self.weights) - self.period, self.period
        total = Fraction(sum(c * c * w for c, w in enumerate(self.weights[:inner])))
        # E (c + kP)² for k geometric: c² + 2cP·r/(1−r) + P²·r(1+r)/(1−r)².
        mean, square = r / (1 - r), r * (1 + r) / (1 - r) ** 2
        for c, w in enumerate(self.weights[inner:], start=inner):
            total += w * (c * c + 2 * c * step * mean + step * step * square)
        over_cells = total / 2**SIDE_BITS * self.block**2
        return float((over_cells + Fraction(self.block**2 - 1, 12)) / self.bound**2)

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation ÷ clip_norm."""
        return math.sqrt(self.variance)

    @property
    def distance(self) -> float:
        """Bound on the total variation from the tabulated distribution, if each weight is 2^128 × its mass to ±1.

        Formula: (M+1)/2^127 for the rounding, plus the whole last period if a tail starts there.
        """
        rounding = Fraction(len(self.weights), 2**SIDE_BITS)
        tail = sum(self.weights[-self.period :]) if self.ratio else 0
        return float(rounding + Fraction(tail, 2**SIDE_BITS))

    def mass(self, cell: int) -> Fraction:
        """P(cell), exact."""
        cell, inner = abs(cell), len(self.weights) - self.period
        if cell < inner:
            return Fraction(self.weights[cell] * (2 if cell == 0 else 1), 2 ** (SIDE_BITS + 1))
        times, place = divmod(cell - inner, self.period)
        r = Fraction(self.ratio, 2**RATIO_BITS)
        return Fraction(self.weights[inner + place], 2 ** (SIDE_BITS + 1)) * (1 - r) * r**times

    def to_dict(self) -> dict[str, Any]:
        """The table as plain data; weights and ratio in hexadecimal."""
        return {
            "format": FORMAT,
            "origin": self.origin,
            "bound": self.bound,
            "block": self.block,
            "period": self.period,
            "ratio": f"{self.ratio:x}",
            "weights": [f"{w:x}" for w in self.weights],
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> LatticeNoise:
        """The inverse of `to_dict`, with all checks. Errors: DpzoError when the fields are not such a table."""
        try:
            if fields["format"] != FORMAT:
                raise DpzoError(f"noise table: format {fields['format']} is not {FORMAT}")
            return cls(
                weights=tuple(int(w, 16) for w in fields["weights"]),
                ratio=int(fields["ratio"], 16),
                period=int(fields["period"]),
                block=int(fields["block"]),
                bound=int(fields["bound"]),
                origin=str(fields["origin"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DpzoError(f"noise table: unreadable ({type(error).__name__}): write it anew with to_dict") from error

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the numbers that define the distribution (not of `origin`)."""
        fields = {key: value for key, value in self.to_dict().items() if key != "origin"}
        return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _below(bound: int, words: Words) -> int:
    """A uniform integer in [0, bound), by rejection."""
    limit = 2**WORD_BITS - 2**WORD_BITS % bound
    while (word := next(words)) >= limit:
        pass
    return word % bound
