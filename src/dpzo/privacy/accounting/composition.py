"""ε and δ of T releases from the atoms of one: each direction on its own, everything rounded to the safe side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dpzo.noise.shape import Array
from dpzo.privacy.accounting.direct import Losses, convolved
from dpzo.privacy.accounting.tilted import LEAST_CELLS, UNIT, Atoms, Composed, Rough

SMALLEST_DELTA = 1e-100
"""No δ below is answered: untilting would meet the end of the range of floats."""
LARGEST_SHARE = 0.01
"""Share of δ that rounding and cut tails should not exceed."""
RESOLVED_SHARE = 1e-4
TOLERANCE = 1e-4
"""Relative rise of δ by the grid, about."""
FAST = 3e-4
"""The same for Gaussian and Laplace noise, at most: about 1e-5 of ε. Much less where CHEAP cells give more."""
CHEAP = 2**17
SEEN = 1000.0
"""An ε of fewer cells than that is not told apart from the grid, and direct convolution is asked too."""
RUNG = 2.0**0.25
"""Between the tilts of a ladder."""
CURVE_SUMS, CURVE_TOLERANCE = 8, 1e-3
"""Sums behind a whole curve δ(ε), and how much their grid may raise δ."""
SUMMING = 1e-12
"""Bound on the relative error of a pairwise sum of at most 2^20 products: (20 + 128)·4u < 1e-13."""


@dataclass(frozen=True)
class Certificate:
    """δ, not below the true one, at ε. `reserve`: its part that is rounding; `grid`: of the losses; `cells`: FFT.

    `coarse`: the grid is wider than the tolerance asks for, so δ or ε may be far too large.
    """

    epsilon: float
    delta: float
    reserve: float
    grid: float
    cells: int
    coarse: bool = False

    @property
    def precise(self) -> bool:
        """Whether rounding and cut tails are a small share of δ."""
        return self.reserve <= LARGEST_SHARE * self.delta

    @property
    def resolved(self) -> bool:
        """Whether they are so small a share that no other way of composing would find less."""
        return not self.coarse and self.reserve <= RESOLVED_SHARE * self.delta and self.epsilon < math.inf


def largest_loss(one: Atoms, count: int) -> float:
    """Pure ε of one direction: count × the largest loss, rounded up; ∞ where the first law reaches further."""
    if one.infinite > 0.0 or len(one.losses) == 0:
        return math.inf
    return count * (float(one.losses.max()) + _padding(one)) * (1.0 + 2.0 * UNIT)


def solve(one: Atoms, delta: float, count: int, tolerance: float = TOLERANCE, cheap: int = LEAST_CELLS) -> Certificate:
    """Smallest ε ≥ 0 proved for one direction at δ > 0; ∞ where none is."""
    lost = _lost(one, count)
    if lost >= delta or len(one.losses) == 0:
        return Certificate(0.0 if lost < delta else math.inf, delta, 0.0, 0.0, 0)
    pad = count * _padding(one)
    top = count * float(one.losses.max()) * (1.0 + 2.0 * UNIT) + pad
    if count == 1:
        return Certificate(max(0.0, min(_single_epsilon(one, delta) + pad, top)), delta, 0.0, 0.0, 0)
    rough = Rough(one)
    tilt = rough.tilt_for_delta(delta - lost, count)
    for least, whole in ((math.inf, False), (0.0, False), (0.0, True)):
        curve = Composed(one, count, tilt, rough, tolerance, least, whole, cheap)
        found = curve.epsilon(delta - lost)
        # Below the window more losses would count; ∞: what was cut above it is too much.
        if curve.low <= found < math.inf:
            break
    reserve, found = curve.reserve(min(found, top)), found + pad
    # Rounding only ever raises the answer; right below the largest loss of all it no longer matters.
    pinned = not 0.0 < found < top * (1.0 - 1e-6)
    return Certificate(
        max(0.0, min(found, top)),
        delta,
        0.0 if pinned else reserve,
        curve.step,
        curve.cells,
        curve.coarse or found < SEEN * curve.step,
    )


def evaluate(
    one: Atoms, epsilon: float, count: int, tolerance: float = TOLERANCE, cheap: int = LEAST_CELLS
) -> Certificate:
    """Smallest δ proved for one direction at ε ≥ 0."""
    lost = _lost(one, count)
    pad = count * _padding(one)
    if len(one.losses) == 0 or epsilon - pad >= count * float(one.losses.max()):
        return Certificate(epsilon, lost, 0.0, 0.0, 0)
    if count == 1:
        return Certificate(epsilon, min(1.0, lost + _single_delta(one, epsilon - pad)), 0.0, 0.0, 0)
    rough = Rough(one)
    tilt = rough.tilt_for_epsilon(epsilon, count)
    for whole in (False, True):
        curve = Composed(one, count, tilt, rough, tolerance, epsilon - pad, whole, cheap)
        found, reserve = curve.delta(epsilon - pad), curve.reserve(epsilon - pad)
        if reserve <= LARGEST_SHARE * (lost + found) or found < SMALLEST_DELTA:
            break
    return Certificate(
        epsilon, min(1.0, lost + found), reserve, curve.step, curve.cells, curve.coarse or epsilon < SEEN * curve.step
    )


def least_epsilon(one: Atoms, delta: float, count: int) -> float:
    """`solve`, and where its Fourier transform loses δ in rounding, the smaller of it and direct convolution."""
    found = solve(one, delta, count, FAST, CHEAP)
    if found.resolved or found.epsilon in (0.0, math.inf):
        return found.epsilon
    return min(found.epsilon, _directly(one, delta, count).epsilon(delta))


def least_delta(one: Atoms, epsilon: float, count: int) -> float:
    """`evaluate`, and where its Fourier transform loses δ in rounding, the smaller of it and direct convolution.

    Sums are kept for a ladder of tilts, so that a whole curve δ(ε) costs a few of them.
    """
    at, lost = epsilon - count * _padding(one), _lost(one, count)
    if count > 1 and lost < 1.0 and at < count * float(one.losses.max()):
        tilt = _rough(one).tilt_for_epsilon(epsilon, count)
        curve = _curve(one, count, round(math.log(tilt) / math.log(RUNG)))
        spent = lost + curve.delta(at)
        if not curve.coarse and at >= max(curve.low, SEEN * curve.step) and curve.reserve(at) <= RESOLVED_SHARE * spent:
            return min(1.0, spent)
    found = evaluate(one, epsilon, count, FAST, CHEAP)
    if found.resolved or found.cells == 0:
        return found.delta
    # What is cut follows the δ that is asked for, which is the answer: rounds from above find its size.
    best, here = found.delta, 0.0
    while here <= 0.5 * best and best > SMALLEST_DELTA:
        best = min(best, here or best)
        here = _directly(one, max(1e-3 * best, SMALLEST_DELTA), count).delta(epsilon)
    return min(best, here)


def delta_curve(one: Atoms, epsilons: Array, count: int) -> Array:
    """Upper bounds on δ at ascending ε ≥ 0, from a few sums in all: near where δ matters, looser at tiny δ.

    δ(ε) does not rise, so a bound at an earlier ε holds at all later ones.
    """
    lost, pad = _lost(one, count), count * _padding(one)
    bounds = np.ones(len(epsilons))
    if len(one.losses) == 0 or lost == 1.0:
        return bounds
    at = epsilons - pad
    if count == 1:
        return np.minimum(bounds, [lost + _single_delta(one, float(place)) for place in at])
    rough, top = _rough(one), count * float(one.losses.max())
    for part in np.array_split(np.arange(len(epsilons)), CURVE_SUMS):
        inside = part[at[part] < top]
        if len(inside):
            tilt = rough.tilt_for_epsilon(float(epsilons[inside[len(inside) // 2]]), count)
            curve = Composed(one, count, tilt, rough, CURVE_TOLERANCE, float(at[inside[0]]))
            bounds[inside] = [min(1.0, lost + curve.delta(float(place))) for place in at[inside]]
        bounds[part[at[part] >= top]] = lost
    return np.minimum.accumulate(bounds)


@lru_cache(maxsize=16)
def _rough(one: Atoms) -> Rough:
    return Rough(one)


@lru_cache(maxsize=8)
def _curve(one: Atoms, count: int, rung: int) -> Composed:
    return Composed(one, count, RUNG**rung, _rough(one), FAST, math.inf, cheap=CHEAP)


def _directly(one: Atoms, delta: float, count: int) -> Losses:
    return convolved(one.losses + _padding(one), one.masses, one.infinite * (1.0 + SUMMING), count, delta)


def _lost(one: Atoms, count: int) -> float:
    """Probability that any of the releases has infinite loss, rounded up."""
    infinite = min(1.0, one.infinite * (1.0 + SUMMING)) if len(one.losses) else 1.0
    return 1.0 if infinite == 1.0 else min(1.0, -math.expm1(count * math.log1p(-infinite)) * (1.0 + SUMMING))


def _padding(one: Atoms) -> float:
    """Bound on the rounding of one loss, by which all are raised: ratio 4u; logarithm, grid and sum some u·|l|."""
    return 16.0 * UNIT * (2.0 + (float(np.abs(one.losses).max()) if len(one.losses) else 0.0))


def _single_delta(one: Atoms, epsilon: float) -> float:
    """Σ_{l>ε} m(1 − e^{ε−l}): terms of one sign, rounded up."""
    above = one.losses > epsilon
    return float(np.sum(one.masses[above] * -np.expm1(epsilon - one.losses[above]))) * (1.0 + SUMMING)


def _single_epsilon(one: Atoms, delta: float) -> float:
    """Least ε ≥ 0 of one release with δ(ε) ≤ delta: no grid and no transform, bisection to the last bit."""
    target = delta - _lost(one, 1)
    low, high = 0.0, max(0.0, float(one.losses.max()))
    if _single_delta(one, low) <= target:
        return low
    for _ in range(200):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        low, high = (low, middle) if _single_delta(one, middle) <= target else (middle, high)
    return high
