"""ε of T releases from the atoms of one: each direction separately, everything rounded to the safe side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dpzo.privacy.accounting.direct import Losses, convolved
from dpzo.privacy.accounting.tilted import LEAST_CELLS, UNIT, Atoms, Composed, Rough

RESOLVED_SHARE = 1e-4
TOLERANCE = 1e-4
"""Relative rise of δ by the grid, about."""
FAST = 3e-4
"""The same for Gaussian and Laplace noise, at most: about 1e-5 of ε. Much less where CHEAP cells give more."""
CHEAP = 2**17
SEEN = 1000.0
"""An ε of fewer cells than that is within the grid's resolution, and direct convolution is used too."""
SUMMING = 1e-12
"""Bound on the relative error of a pairwise sum of at most 2^20 products: (20 + 128)·4u < 1e-13."""


@dataclass(frozen=True)
class Certificate:
    """An upper bound on δ at ε. `reserve`: its rounding part; `grid`: step of the losses; `cells`: FFT length.

    `coarse`: the grid is wider than the tolerance asks for, so δ or ε may be far too large.
    """

    epsilon: float
    delta: float
    reserve: float
    grid: float
    cells: int
    coarse: bool = False

    @property
    def resolved(self) -> bool:
        """Whether the rounding is so small a share of δ that no other way of composing would give a smaller bound."""
        return not self.coarse and self.reserve <= RESOLVED_SHARE * self.delta and self.epsilon < math.inf


def solve(one: Atoms, delta: float, count: int, tolerance: float = TOLERANCE, cheap: int = LEAST_CELLS) -> Certificate:
    """Smallest ε ≥ 0 proved for one direction at δ > 0; ∞ if none is proved."""
    lost = lost_mass(one, count)
    if lost >= delta or len(one.losses) == 0:
        return Certificate(0.0 if lost < delta else math.inf, delta, 0.0, 0.0, 0)
    pad = count * padding(one)
    top = count * float(one.losses.max()) * (1.0 + 2.0 * UNIT) + pad
    if count == 1:
        return Certificate(max(0.0, min(_single_epsilon(one, delta) + pad, top)), delta, 0.0, 0.0, 0)
    rough = Rough(one)
    tilt = rough.tilt_for_delta(delta - lost, count)
    for least, whole in ((math.inf, False), (0.0, False), (0.0, True)):
        curve = Composed(one, count, tilt, rough, tolerance, least, whole, cheap)
        found = curve.epsilon(delta - lost)
        # Below the window more losses would count; ∞: the mass cut off above it is too large.
        if curve.low <= found < math.inf:
            break
    reserve, found = curve.reserve(min(found, top)), found + pad
    # Rounding can only raise the result; directly below the largest loss of all it no longer matters.
    pinned = not 0.0 < found < top * (1.0 - 1e-6)
    return Certificate(
        max(0.0, min(found, top)),
        delta,
        0.0 if pinned else reserve,
        curve.step,
        curve.cells,
        curve.coarse or found < SEEN * curve.step,
    )


def least_epsilon(one: Atoms, delta: float, count: int) -> float:
    """`solve`; if δ is lost in the rounding of its Fourier transform, the smaller of it and direct convolution."""
    found = solve(one, delta, count, FAST, CHEAP)
    if found.resolved or found.epsilon in (0.0, math.inf):
        return found.epsilon
    return min(found.epsilon, directly(one, delta, count).epsilon(delta))


def directly(one: Atoms, delta: float, count: int) -> Losses:
    """The sum of `count` releases by direct convolution; `delta`: approximately the δ to evaluate it at."""
    return convolved(one.losses + padding(one), one.masses, one.infinite * (1.0 + SUMMING), count, delta)


def lost_mass(one: Atoms, count: int) -> float:
    """Probability that any of the releases has infinite loss, rounded up."""
    infinite = min(1.0, one.infinite * (1.0 + SUMMING)) if len(one.losses) else 1.0
    return 1.0 if infinite == 1.0 else min(1.0, -math.expm1(count * math.log1p(-infinite)) * (1.0 + SUMMING))


def padding(one: Atoms) -> float:
    """Bound on the rounding of one loss, by which all are raised: ratio 4u; logarithm, grid and sum some u·|l|."""
    return 16.0 * UNIT * (2.0 + (float(np.abs(one.losses).max()) if len(one.losses) else 0.0))


def single_delta(one: Atoms, epsilon: float) -> float:
    """Σ_{l>ε} m(1 − e^{ε−l}): terms of one sign, rounded up."""
    above = one.losses > epsilon
    return float(np.sum(one.masses[above] * -np.expm1(epsilon - one.losses[above]))) * (1.0 + SUMMING)


def _single_epsilon(one: Atoms, delta: float) -> float:
    """Least ε ≥ 0 of one release with δ(ε) ≤ delta: no grid and no transform, bisection to the last bit."""
    target = delta - lost_mass(one, 1)
    low, high = 0.0, max(0.0, float(one.losses.max()))
    if single_delta(one, low) <= target:
        return low
    for _ in range(200):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        low, high = (low, middle) if single_delta(one, middle) <= target else (middle, high)
    return high
