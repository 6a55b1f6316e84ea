"""A second, independent (ε, δ) of a lattice noise: direct convolutions, no Fourier transform, no tilt, no cancellation.

**Arithmetic.** T-fold sums of a privacy loss by binary powers. Every number is a sum of products of non-negative ones,
so the relative error stays below 3·T·WINDOW·u whatever δ is; it is added, and so is what underflows (below 1e-280).

**Grid.** Each power has its own: WINDOW cells over what matters of it. A loss between two points is split between them
with the same mass and the same Σ m·e^{−l} (the merged atom is post-processing of the pair); what lies above the window
counts as infinite loss, what lies below is raised to its end. All three only raise δ.

The atoms of one release are built here from the table's masses and not taken from the search's accountant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dpzo.errors import DpzoError
from dpzo.privacy.noise.shape import Array, Shape

WINDOW = 4096
UNIT = 2.0**-53
CUT = 1e-6
"""Share of δ that all cuts above the windows may come to, about."""
UNDERFLOW = 1e-280


@dataclass(frozen=True, eq=False)
class Losses:
    """Masses (n,) at losses low + step·i, and the mass of infinite loss."""

    low: float
    step: float
    masses: Array
    infinite: float


def certified_epsilon(shape: Shape, delta: float, sampling_prob: float = 1.0, count: int = 1) -> float:
    """ε ≥ 0 proved for `count` releases at δ by direct convolution, the larger of the two directions; ∞ when none is.

    Guarantee: an upper bound, whatever the rounding. Errors: DpzoError unless 1e-100 ≤ δ < 1.
    """
    if not 1e-100 <= delta < 1.0:
        raise DpzoError(f"--delta is {delta:g}, must be at least 1e-100 and below 1 to be certified")
    found = []
    for losses, masses, infinite in _releases(shape, sampling_prob):
        pure = math.inf if infinite > 0.0 else max(0.0, count * float(losses.max()))
        found.append(min(pure, _epsilon(_power((losses, masses, infinite), count, delta), delta, count)))
    return max(found)


def _releases(shape: Shape, q: float) -> Iterator[tuple[Array, Array, float]]:
    """Losses, masses under the first law, infinite mass of one release: "remove", then "add".

    The line is cut at the last cell that is written out plus one shift; beyond, the quotient of the two laws is
    constant, so either tail is one atom.
    """
    last, shift = len(shape.masses) - 1, shape.shift
    side = shape.extended(shift)
    at = np.arange(-last, last + shift + 1)
    still, moved = side[np.abs(at)], side[np.abs(at - shift)]
    fade = shape.ratio ** (shift // shape.period)
    if shape.beyond > 0.0:
        still = np.concatenate([still, [shape.beyond, shape.beyond * fade]])
        moved = np.concatenate([moved, [shape.beyond * fade, shape.beyond]])
    mixed = still if q == 0.0 else moved if q == 1.0 else (1.0 - q) * still + q * moved
    for first, second in ((mixed, still), (still, mixed)):
        real = (first > 0.0) & (second > 0.0)
        losses = np.log(first[real]) - np.log(second[real])
        if q == 1.0 and shape.beyond > 0.0 and fade > 0.0:
            known = -math.log(shape.ratio) * (shift // shape.period)
            if real[-1]:
                losses[-1] = known if first is mixed else -known
            if real[-2]:
                losses[-2] = -known if first is mixed else known
        # Raised by a bound on the rounding of quotient and logarithm.
        losses = losses + 16.0 * UNIT * (2.0 + np.abs(losses))
        yield losses, first[real], float(first[(first > 0.0) & (second == 0.0)].sum())


def _power(one: tuple[Array, Array, float], count: int, delta: float) -> Losses:
    """The `count`-fold sum, by squaring from the highest bit down."""
    allowed = CUT * delta / count
    single = _gridded(*one, allowed, delta)
    total, done = single, 1
    for bit in bin(count)[3:]:
        total, done = _sum(total, total, allowed * done, delta), 2 * done
        if bit == "1":
            total, done = _sum(total, single, allowed * done, delta), done + 1
    return total


def _sum(a: Losses, b: Losses, allowed: float, delta: float) -> Losses:
    """Losses of two independent parts, on a grid of WINDOW cells again."""
    step = max(a.step, b.step)
    a, b = _regridded(a, step), _regridded(b, step)
    masses = np.convolve(a.masses, b.masses)
    infinite = a.infinite + b.infinite * (1.0 - a.infinite)
    low = a.low + b.low
    ends: Array = np.asarray(low + step * np.arange(len(masses)), dtype=np.float64)
    return _gridded(ends, masses, infinite, allowed, delta)


def _gridded(losses: Array, masses: Array, infinite: float, allowed: float, delta: float) -> Losses:
    """Cut what is rare, and split the rest between the points of a grid of WINDOW cells."""
    order = np.argsort(losses, kind="stable")
    losses, masses = losses[order], masses[order]
    above = np.cumsum(masses[::-1])[::-1]
    keep = int(np.count_nonzero(above > allowed))
    infinite += float(masses[keep:].sum())
    losses, masses = losses[: max(keep, 1)], masses[: max(keep, 1)]
    # Raising a mass of δ·1e-3 from below moves nothing that counts.
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


def _epsilon(total: Losses, delta: float, count: int) -> float:
    """Least ε with δ(ε) ≤ delta, δ(ε) = Σ_{l>ε} m·(1 − e^{ε−l}) + infinite, all rounding added."""
    losses = total.low + total.step * np.arange(len(total.masses))
    raised = 1.0 + 6.0 * UNIT * count * WINDOW
    lost = total.infinite * raised + UNDERFLOW * count

    def spent(epsilon: float) -> float:
        above = losses > epsilon
        return lost - raised * float(total.masses[above] @ np.expm1(epsilon - losses[above]))

    low, high = 0.0, float(losses[-1])
    if lost > delta:
        return math.inf
    if high <= 0.0 or spent(0.0) <= delta:
        return 0.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if spent(middle) <= delta else (middle, high)
    return high
