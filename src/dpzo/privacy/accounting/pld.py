"""Privacy-loss distributions of Gaussian and Laplace releases: an atomic pair that dominates one, composed by tilting.

**From a density to atoms.** P and Q are the two distributions of one release, with ln(P/Q) non-decreasing in y. The
line is cut at points y_k. P's mass between two points is assigned to their losses l_k ≤ l ≤ l_{k+1} so that P's and
Q's mass are preserved: a share (1 − e^{l_k−l})/(1 − e^{l_k−l_{k+1}}) to the upper one. Merging back is
post-processing, so the atoms dominate. Beyond the last points P's mass counts at the largest possible loss (∞ if there
is none), and at the other end at l_0 or l_K.

**Gaussian.** y in standard deviations, points REFINED apart; the shares are integrals of entire functions over short
cells, by NODES Gauss–Legendre nodes, whose error is below 1e-17 of the result (docs/guarantees.md). Every mass is
raised by a bound on its rounding.

**Laplace.** The loss is constant outside the two means, and the shares of the cells between are elementary.
`replace_one` on a Poisson sample has two more kinks; its shares use the same nodes, with cells cut at the kinks.

For why these pairs are the worst case, also for several coordinates, see docs/guarantees.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from dpzo.errors import DpzoError
from dpzo.privacy.accounting.composition import least_epsilon
from dpzo.privacy.accounting.query import Query, shift
from dpzo.privacy.accounting.tilted import UNIT, Array, Atoms
from dpzo.privacy.events import NeighboringRelation

SMALLEST_DELTA = 1e-250
"""No δ below is answered: masses would meet the end of the range of floats."""
REFINED = 0.0015
"""Distance of the points in standard deviations; ε rises by about REFINED²/12 of itself."""
NODES = 6
MOST_POINTS = 1_000_000
LARGEST_STEP = 0.5
"""Loss between two points, above which the nodes are too few: the points lie closer for noise that asks for it."""
LAPLACE_CELLS = 4096
"""Cells between the means at scales of 1 and more; at smaller scales as many to one unit of loss."""

Pair = tuple[Atoms, ...]
"""The directions of one release that must both be accounted."""


def epsilon(query: Query, delta: float, relation: NeighboringRelation) -> float:
    """Upper bound on ε of the composition at δ ≥ SMALLEST_DELTA, from these atoms; ∞ if they are too coarse."""
    if delta < SMALLEST_DELTA:
        raise DpzoError(f"`delta` {delta:g} is below {SMALLEST_DELTA:g}, the least that is answered: raise `delta`")
    pair = atoms(query, relation, reach_for(delta / query.count))
    return max((least_epsilon(one, delta, query.count) for one in pair), default=math.inf)


@lru_cache(maxsize=8)
def atoms(query: Query, relation: NeighboringRelation, reach: float) -> Pair:
    """The directions of one release; none if MOST_POINTS are too few. `reach`: standard deviations of a Gaussian."""
    q, replaced = query.sampling_prob, relation is NeighboringRelation.REPLACE_ONE
    if query.mechanism == "laplace":
        if replaced and q < 1.0:
            return replaced_laplace(query.noise, q)
        return _laplace(query.noise / shift(relation), q)
    moved = (1.0 if q < 1.0 else shift(relation)) / query.noise
    step = REFINED if moved * REFINED <= LARGEST_STEP else LARGEST_STEP / moved
    if (2.0 * reach + 2.0 * moved) / step > MOST_POINTS:
        return ()
    if replaced and q < 1.0:
        points = _points(-moved - reach, moved + reach, step)
        return (_gaussian(points, _Mixed(q, moved), _Mixed(q, -moved), math.inf),)
    points = _points(-reach, moved + reach, step)
    with_unit, without = _Mixed(q, moved), _Mixed(q, 0.0)
    if q == 1.0:
        return (_gaussian(points, with_unit, without, math.inf),)
    # In the other direction the loss is decreasing in y; after reflection it increases again.
    added = _gaussian(-points[::-1], _Mixed(q, 0.0), _Mixed(q, -moved), -math.log1p(-q) * (1.0 + 4.0 * UNIT))
    return (_gaussian(points, with_unit, without, math.inf), added)


def reach_for(delta: float) -> float:
    """Standard deviations beyond which P has less than a 1e-6th of δ: φ(y)/y bounds it."""
    return math.sqrt(2.0 * (14.0 - math.log(min(delta, 0.1)))) + 0.5


def _points(low: float, high: float, step: float) -> Array:
    return np.asarray(low + step * np.arange(math.ceil((high - low) / step) + 1), dtype=np.float64)


class _Mixed:
    """(1 − q)·N(0, 1) + q·N(moved, 1)."""

    def __init__(self, sampling_prob: float, moved: float) -> None:
        self.q, self.moved = sampling_prob, moved

    def density(self, y: Array) -> Array:
        """Density of the mixture, with a separate exponent for each component."""
        there = self.q * np.exp(-0.5 * (y - self.moved) ** 2)
        here = (1.0 - self.q) * np.exp(-0.5 * y**2) if self.q < 1.0 else 0.0
        return np.asarray((here + there) / math.sqrt(2.0 * math.pi))

    def log_ratio(self, y: Array) -> Array:
        """ln of the density ÷ that of N(0, 1)."""
        return _log_mix(self.moved * (y - 0.5 * self.moved), self.q)

    def above(self, y: float) -> float:
        """Bound on the mass above y, for y above both means: φ(t)/t."""
        near = y - max(self.moved, 0.0)
        return math.exp(-0.5 * near * near) / (near * math.sqrt(2.0 * math.pi)) * (1.0 + 1e-12)


def _log_mix(log_ratio: Array, q: float) -> Array:
    """ln(1 − q + q·e^{log_ratio})."""
    if q == 1.0:
        return log_ratio
    small = np.log1p(q * np.expm1(np.minimum(log_ratio, 30.0)))
    return np.where(log_ratio < 30.0, small, np.logaddexp(math.log1p(-q), math.log(q) + log_ratio))


def _gaussian(points: Array, first: _Mixed, second: _Mixed, largest: float) -> Atoms:
    """Atoms of ln(first/second), rising in y, at `points`; `largest` is the loss as y → ∞."""

    def loss(y: Array) -> Array:
        return first.log_ratio(y) - second.log_ratio(y)

    losses, masses = _split(points, loss, first.density)
    # Exponents up to y²/2, each rounded; sums of NODES terms.
    far = float(np.abs(points).max()) + abs(first.moved)
    masses *= 1.0 + UNIT * (128.0 + 4.0 * far * far)
    below = _Mixed(first.q, -first.moved).above(-float(points[0]))
    masses[0] += below
    above = first.above(float(points[-1]))
    if largest == math.inf:
        return Atoms(losses, masses, above)
    return Atoms(np.append(losses, largest), np.append(masses, above), 0.0)


def _split(points: Array, loss: Callable[[Array], Array], density: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Losses at `points`, and the masses that the cells between them assign to their two ends."""
    at, weights = np.polynomial.legendre.leggauss(NODES)
    half = 0.5 * np.diff(points)
    y = (points[:-1] + half)[:, None] + half[:, None] * at
    masses = half[:, None] * weights * density(y)
    losses = loss(points)
    low, high = losses[:-1, None], losses[1:, None]
    with np.errstate(invalid="ignore"):
        share = np.expm1(low - loss(y)) / np.expm1(low - high)
    # A cell of constant loss: both ends have the same loss.
    share = np.clip(np.nan_to_num(share, nan=1.0), 0.0, 1.0)
    found = np.zeros(len(points))
    found[1:] += (masses * share).sum(axis=1)
    found[:-1] += (masses * (1.0 - share)).sum(axis=1)
    return losses, found


def _laplace(scale: float, q: float) -> Pair:
    """Means 0 and 1: atoms beyond them, and tanh(z/2)-shares of the cells between, z = width ÷ scale.

    Under N = Lap(0): ∫ of a cell that begins at x goes e^{−x/b}·tanh(z/2)/2 to its left end and e^{−z} times that to
    its right end, so a point inside has e^{−x/b}·tanh(z/2).
    """
    cells = int(min(MOST_POINTS, math.ceil(LAPLACE_CELLS * max(1.0, 1.0 / scale))))
    x = np.arange(cells + 1) / cells
    part = math.tanh(0.5 / (cells * scale))
    still = np.exp(-x / scale) * part
    still[0] = 0.5 * (1.0 + part)
    still[-1] = 0.5 * math.exp(-1.0 / scale) * (1.0 + part)
    still *= 1.0 + UNIT * (32.0 + 4.0 / scale)
    log_ratio = (2.0 * x - 1.0) / scale
    if q == 1.0:
        # Under Lap(1) it is its own reflection.
        return (Atoms(log_ratio, still[::-1].copy(), 0.0),)
    mixed = ((1.0 - q) * still + q * still[::-1]) * (1.0 + 4.0 * UNIT)
    loss = _log_mix(log_ratio, q)
    return (Atoms(loss, mixed, 0.0), Atoms(-loss, still, 0.0))


def replaced_laplace(scale: float, q: float) -> Pair:
    """(1−q)·Lap(0) + q·Lap(1) against (1−q)·Lap(0) + q·Lap(−1): constant loss beyond ±1, a kink at 0."""
    cells = int(min(MOST_POINTS // 2, math.ceil(LAPLACE_CELLS * max(1.0, 1.0 / scale))))
    points = np.arange(-cells, cells + 1) / cells

    def loss(x: Array) -> Array:
        still = np.abs(x)
        up, down = ((still - np.abs(x - moved)) / scale for moved in (1.0, -1.0))
        return _log_mix(np.asarray(up), q) - _log_mix(np.asarray(down), q)

    def density(x: Array) -> Array:
        return np.asarray(
            ((1.0 - q) * np.exp(-np.abs(x) / scale) + q * np.exp(-np.abs(x - 1.0) / scale)) / (2.0 * scale)
        )

    losses, masses = _split(points, loss, density)
    masses[0] += 0.5 * ((1.0 - q) * math.exp(-1.0 / scale) + q * math.exp(-2.0 / scale))
    masses[-1] += 0.5 * ((1.0 - q) * math.exp(-1.0 / scale) + q)
    masses *= 1.0 + UNIT * (128.0 + 8.0 / scale)
    return (Atoms(losses, masses, 0.0),)
