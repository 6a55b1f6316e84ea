"""A symmetric unimodal lattice distribution in floats: the input of accountants and the variable of a search."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dpzo.errors import DpzoError

Array = npt.NDArray[np.float64]

NOT_UNIMODAL = (
    "the noise is not unimodal (its masses must not increase away from 0): a shift below the clip norm could then leak "
    "more than the clip norm itself, so no epsilon is proved for a real-valued query"
)


@dataclass(frozen=True, eq=False)
class Shape:
    """Masses p(0), …, p(M) of one side of a symmetric distribution on the cells ℤ, and the mass beyond them.

    p(−x) = p(x); beyond M the last `period` masses repeat, each time times `ratio`: p(x + period) = ratio·p(x). A ratio
    of 0 cuts the distribution off. One clip norm is `shift` cells, so a cell is clip_norm/shift wide.
    Guarantee: p(0) + 2·Σp(x) = 1 up to rounding, and p does not increase away from 0.
    Errors: DpzoError when the masses increase, are not finite, or the period does not divide the shift.
    """

    masses: Array
    ratio: float
    shift: int
    period: int = 1

    def __post_init__(self) -> None:
        if self.shift < 1 or not 1 <= self.period < len(self.masses) or self.shift % self.period:
            raise DpzoError("one clip norm must be a whole number of cells and of periods of the tail, at least 1")
        if not (np.isfinite(self.masses).all() and self.masses[0] > 0.0 and self.masses[-1] >= 0.0):
            raise DpzoError("the masses of a noise must be finite and not negative")
        if not 0.0 <= self.ratio < 1.0:
            raise DpzoError("the tail ratio of a noise must lie in [0, 1)")
        wraps = self.ratio * self.masses[-self.period] <= self.masses[-1]
        if not wraps or bool(np.any(np.diff(self.masses) > 0.0)):
            raise DpzoError(NOT_UNIMODAL)

    @classmethod
    def normalised(cls, weights: Array, ratio: float, shift: int, period: int = 1) -> Shape:
        """The distribution whose masses are proportional to `weights` (M+1,)."""
        beyond = float(weights[-period:].sum()) * ratio / (1.0 - ratio)
        total = float(weights[0] + 2.0 * weights[1:].sum()) + 2.0 * beyond
        return cls(weights / total, ratio, shift, period)

    @cached_property
    def beyond(self) -> float:
        """P(X > M), one side: Σ over the last period of p·ratio/(1 − ratio)."""
        return float(self.masses[-self.period :].sum()) * self.ratio / (1.0 - self.ratio)

    def extended(self, cells: int) -> Array:
        """p(0), …, p(M + cells): the tail written out."""
        steps = np.arange(cells)
        start = len(self.masses) - self.period
        # numpy's 0.0 ** k is 0 for every k ≥ 1, as a distribution that is cut off requires.
        tail = self.masses[start + steps % self.period] * self.ratio ** (1 + steps // self.period)
        return np.concatenate([self.masses, tail])

    def moving(self, clip_norms: int) -> Shape:
        """The same distribution when one unit moves the sum by `clip_norms` clip norms (2 under replace_one)."""
        return replace(self, shift=clip_norms * self.shift)

    @cached_property
    def variance(self) -> float:
        """E X² of the cell index × cell width, in clip_norm²; the tail summed in closed form."""
        return self._moment(2)

    @cached_property
    def mean_absolute(self) -> float:
        """E|X| in clip norms."""
        return self._moment(1)

    def usefulness(self, gamma: float) -> float:
        """P(|X| ≤ gamma), gamma in clip norms; a cell counts when its centre does."""
        cells = math.floor(gamma * self.shift + 1e-9)
        if cells < 0:
            return 0.0
        inside = self.extended(max(0, cells + 1 - len(self.masses)))[: cells + 1]
        return min(1.0, float(2.0 * inside.sum() - inside[0]))

    def _moment(self, power: int) -> float:
        x = np.arange(len(self.masses), dtype=np.float64)
        body = float((x**power) @ self.masses)
        # Σ_{k≥1} (x + kP)^j r^k for j = 1, 2 from Σ r^k, Σ k r^k, Σ k² r^k.
        r, last = self.ratio, slice(-self.period, None)
        zeroth, first, second = r / (1 - r), r / (1 - r) ** 2, r * (1 + r) / (1 - r) ** 3
        y, step = x[last], float(self.period)
        if power == 1:
            tail = float((y * zeroth + step * first) @ self.masses[last])
        else:
            tail = float((y * y * zeroth + 2 * y * step * first + step * step * second) @ self.masses[last])
        return 2.0 * (body + tail) / float(self.shift) ** power
