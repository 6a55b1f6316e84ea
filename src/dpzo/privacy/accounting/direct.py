"""T-fold sums of a privacy loss by direct convolution: no Fourier transform, no tilt, no cancellation.

**Arithmetic.** Sums by binary powers. Every number is a sum of products of non-negative ones, so the relative error
stays below 6·T·WINDOW·u for every δ; it is added to the result, and so is what underflows (below 1e-280).

**Grid.** Each power has its own: WINDOW cells over its relevant range. A loss between two points is split between them
with the same mass and the same Σ m·e^{−l} (the merged atom is post-processing of the pair); losses above the window
count as infinite, losses below it are raised to its lower end. All three can only raise δ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from dpzo.privacy.accounting.tilted import UNIT, Array

WINDOW = 4096
CUT = 1e-6
"""Share of δ that all cuts above the windows may come to, about."""
UNDERFLOW = 1e-280


@dataclass(frozen=True, eq=False)
class Losses:
    """Masses (n,) at losses low + step·i, and the mass of infinite loss; the sum of `count` releases."""

    low: float
    step: float
    masses: Array
    infinite: float
    count: int = 1

    def delta(self, epsilon: float) -> float:
        """Σ_{l>ε} m·(1 − e^{ε−l}) + infinite, all rounding added."""
        losses = self.low + self.step * np.arange(len(self.masses))
        raised = 1.0 + 6.0 * UNIT * self.count * WINDOW
        above = losses > epsilon
        found = raised * float(self.masses[above] @ -np.expm1(epsilon - losses[above]))
        return self.infinite * raised + UNDERFLOW * self.count + found

    def epsilon(self, delta: float) -> float:
        """Least ε ≥ 0 with δ(ε) ≤ delta; ∞ if there is none."""
        low, high = 0.0, self.low + self.step * (len(self.masses) - 1)
        if self.delta(max(high, 0.0)) > delta:
            return math.inf
        if high <= 0.0 or self.delta(0.0) <= delta:
            return 0.0
        for _ in range(100):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if self.delta(middle) <= delta else (middle, high)
        return high


def convolved(losses: Array, masses: Array, infinite: float, count: int, delta: float) -> Losses:
    """The `count`-fold sum, by squaring from the highest bit down; `delta`: approximately the δ to evaluate it at."""
    allowed = CUT * delta / count
    single = _gridded(losses, masses, infinite, allowed, delta)
    total, done = single, 1
    for bit in bin(count)[3:]:
        total, done = _sum(total, total, allowed * done, delta), 2 * done
        if bit == "1":
            total, done = _sum(total, single, allowed * done, delta), done + 1
    return replace(total, count=count)


def _sum(a: Losses, b: Losses, allowed: float, delta: float) -> Losses:
    """Sum of the losses of two independent parts, again on a grid of WINDOW cells."""
    step = max(a.step, b.step)
    a, b = _regridded(a, step), _regridded(b, step)
    masses = np.convolve(a.masses, b.masses)
    infinite = a.infinite + b.infinite * (1.0 - a.infinite)
    low = a.low + b.low
    ends: Array = np.asarray(low + step * np.arange(len(masses)), dtype=np.float64)
    return _gridded(ends, masses, infinite, allowed, delta)


def _gridded(losses: Array, masses: Array, infinite: float, allowed: float, delta: float) -> Losses:
    """Cut off rare losses, and split the rest between the points of a grid of WINDOW cells."""
    order = np.argsort(losses, kind="stable")
    losses, masses = losses[order], masses[order]
    above = np.cumsum(masses[::-1])[::-1]
    keep = int(np.count_nonzero(above > allowed))
    infinite += float(masses[keep:].sum())
    losses, masses = losses[: max(keep, 1)], masses[: max(keep, 1)]
    # Raising a mass of δ·1e-3 from below has no effect on the result that matters.
    start = min(int(np.searchsorted(np.cumsum(masses), 1e-3 * delta)), len(masses) - 1)
    low, high = float(losses[start]), float(losses[-1])
    step = max((high - low) / (WINDOW - 2), 1e-14 * max(1.0, abs(low), abs(high)))
    return _split(np.maximum(losses, low), masses, infinite, low, step)


def _regridded(a: Losses, step: float) -> Losses:
    if a.step == step:
        return a
    losses: Array = np.asarray(a.low + a.step * np.arange(len(a.masses)), dtype=np.float64)
    return _split(losses, a.masses, a.infinite, a.low, step)


def _split(losses: Array, masses: Array, infinite: float, low: float, step: float) -> Losses:
    place = (losses - low) / step
    below = np.floor(place + 1e-9)  # a loss that is a point but for rounding stays one: it is raised by 1e-9 steps less
    rest = np.maximum(place - below, 0.0)
    # Upper share t with t·e^{−step} + (1 − t) = e^{−rest·step}, rounded up.
    upper = np.minimum(np.expm1(-rest * step) / math.expm1(-step) * (1.0 + 1e-12), 1.0)
    index = below.astype(np.int64)
    size = int(index.max()) + 2
    found = np.bincount(index, masses * (1.0 - upper), size) + np.bincount(index + 1, masses * upper, size)
    # The grid itself is raised by what was rounded down above.
    return Losses(low + 1e-9 * step, step, np.asarray(found, dtype=np.float64), infinite)
