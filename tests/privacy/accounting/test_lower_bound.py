"""Every ε against a lower bound on δ that shares no code with it: 80-bit direct convolution of a coarse view.

An observer is told, instead of each release, only the number of the cell that its loss lies in, and of T releases the
sum of these numbers, cut to a window. That is post-processing, so Σ (P − e^ε·Q)₊ over the sums is at most the true δ.
Masses of cells come from mpmath; all arithmetic is sums of products of positive `longdouble`s.
"""

from __future__ import annotations

import math
import random

import mpmath as mp
import numpy as np
import numpy.typing as npt
import pytest

from dpzo.privacy import accounting
from dpzo.privacy.accounting import curves
from dpzo.privacy.accounting.query import Query, flatten
from dpzo.privacy.events import (
    ComposedEvent,
    Event,
    GaussianEvent,
    LaplaceEvent,
    NeighboringRelation,
    PoissonSampledEvent,
)

ZERO, ADD, REPLACE = NeighboringRelation
Floats = npt.NDArray[np.float64]
Long = npt.NDArray[np.longdouble]
CELLS = 400


def event(kind: type, noise: float, sampling_prob: float, count: int) -> Event:
    return ComposedEvent(PoissonSampledEvent(sampling_prob, kind(noise)), count)


def cells(query: Query, relation: NeighboringRelation, reach: float, *, swap: bool) -> tuple[Long, Long]:
    """Masses of both laws in about CELLS cells of equal width of loss, lowest first.

    Where exactly the cells end decides how much is seen, not whether the bound holds: floats will do.
    """
    q, noise, other = query.sampling_prob, query.noise, -1.0 if relation is REPLACE else 0.0
    x = np.linspace(-reach - 1.0, reach + 1.0, 200_001)

    def ratio(moved: float) -> Floats:
        exponent = (np.abs(x) - np.abs(x - moved)) / noise
        if query.mechanism == "gaussian":
            exponent = (2.0 * x - moved) * moved / (2.0 * noise**2)
        return np.logaddexp(math.log1p(-q), math.log(q) + exponent)

    loss = np.maximum.accumulate(ratio(1.0) - (ratio(other) if other else 0.0))
    wanted = np.linspace(loss[0], loss[-1], CELLS + 1)[1:-1]
    edges = sorted({float(x[i]) for i in np.searchsorted(loss, wanted)})
    numbers = np.floor((loss[np.searchsorted(x, edges)] - loss[0]) / (wanted[1] - wanted[0]) + 1e-6)
    first, second = (mixture(edges, query, moved) for moved in (1, int(other)))
    place = np.concatenate([[0], numbers]).astype(int)
    found = []
    for one in (first, second):
        masses = np.zeros(place[-1] + 1, np.longdouble)
        np.add.at(masses, place, one)
        found.append(masses)
    return (found[1][::-1], found[0][::-1]) if swap else (found[0], found[1])


def mixture(edges: list[float], query: Query, moved: int) -> Long:
    """Masses of (1 − q)·noise + q·(noise + moved) between the edges and beyond."""
    q, noise = mp.mpf(query.sampling_prob), mp.mpf(query.noise)

    def below(x: mp.mpf) -> mp.mpf:
        if query.mechanism == "gaussian":
            return mp.ncdf(x / noise)
        return mp.exp(-abs(x) / noise) / 2 if x < 0 else 1 - mp.exp(-abs(x) / noise) / 2

    parts = []
    for by in (0, moved):
        under = [mp.mpf(0), *(below(mp.mpf(x) - by) for x in edges), mp.mpf(1)]
        over = [mp.mpf(1), *(below(by - mp.mpf(x)) for x in edges), mp.mpf(0)]
        # The smaller tails keep their digits.
        parts.append(
            [b - a if a < 0.5 else c - d for a, b, c, d in zip(under, under[1:], over, over[1:], strict=False)]
        )
    return np.array([np.longdouble(mp.nstr((1 - q) * a + q * b, 22)) for a, b in zip(*parts, strict=True)])


def halved(masses: Long, low: int) -> tuple[Long, int]:
    """Cells in twos."""
    pad = np.concatenate([np.zeros(low % 2, np.longdouble), masses])
    pad = np.concatenate([pad, np.zeros(len(pad) % 2, np.longdouble)])
    return pad.reshape(-1, 2).sum(axis=1), low // 2


def cut(pair: list[Long], low: int, least: float) -> tuple[list[Long], int]:
    """Cells of hardly any mass join their neighbours, at either end."""
    total = pair[0] + pair[1]
    up = int(np.searchsorted(np.cumsum(total), least))
    down = len(total) - int(np.searchsorted(np.cumsum(total[::-1]), least))
    up, down = min(up, len(total) - 2), max(down, min(up, len(total) - 2) + 2)
    joined = []
    for one in pair:
        kept = one[up:down].copy()
        kept[0] += one[:up].sum()
        kept[-1] += one[down:].sum()
        joined.append(kept)
    return joined, low + up


def lower_delta(first: Long, second: Long, count: int, epsilon: float, least: float) -> float:
    """Σ (P − e^ε·Q)₊ over sums of `count` numbers of cells."""
    single, at = [first, second], 0
    total, low = single, 0
    for bit in bin(count)[3:]:
        total, low = [np.convolve(one, one) for one in total], 2 * low
        if bit == "1":
            total, low = [np.convolve(one, more) for one, more in zip(total, single, strict=True)], low + at
        total, low = cut(total, low, least)
        while len(total[0]) > 3 * CELLS:
            total, lows = [list(x) for x in zip(*(halved(one, low) for one in total), strict=True)]
            single, ats = [list(x) for x in zip(*(halved(one, at) for one in single), strict=True)]
            low, at = lows[0], ats[0]
    gained = total[0] - np.exp(np.longdouble(epsilon)) * total[1]
    return float(gained[gained > 0].sum()) * (1.0 - 1e-9)


def lowest(made: Event, relation: NeighboringRelation, epsilon: float, delta: float) -> float:
    """The larger direction's bound."""
    query = flatten(made)
    tail = math.sqrt(2.0 * math.log(1e4 * query.count / delta)) if query.mechanism == "gaussian" else 1.0
    reach = tail * query.noise if query.mechanism == "gaussian" else tail
    found = []
    for swap in (False, True):
        first, second = cells(query, relation, reach, swap=swap)
        found.append(lower_delta(first, second, query.count, epsilon, 1e-5 * delta))
    return max(found)


@pytest.mark.slow
def test_the_reported_plan_is_covered_and_the_bound_has_power() -> None:
    """ε = 0.106368 was claimed at δ = 3e-13; an observer of sums of cells sees more than that."""
    made = event(GaussianEvent, 0.6530310114846732, 3.432645536499535e-6, 541)
    assert lowest(made, ZERO, 0.106368, 3e-13) > 3.1e-13
    for delta in (3e-13, 2.6e-13, 1e-12):
        found = accounting.epsilon(made, delta, ZERO)
        assert 0.98 * delta < lowest(made, ZERO, found, delta) <= delta


def _random_plans(count: int) -> list[tuple[type, float, float, int, float, NeighboringRelation]]:
    draw = random.Random(18)
    return [
        (
            draw.choice([GaussianEvent, GaussianEvent, LaplaceEvent]),
            10 ** draw.uniform(-0.4, 1.2),
            10 ** draw.uniform(-6.0, -0.1),
            int(10 ** draw.uniform(0.0, 3.3)),
            10 ** draw.uniform(-15.0, -4.0),
            draw.choice([ZERO, REPLACE]),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("plan", _random_plans(8), ids=str)
def test_no_random_plan_is_seen_above_its_delta(
    plan: tuple[type, float, float, int, float, NeighboringRelation],
) -> None:
    kind, noise, sampling_prob, count, delta, relation = plan
    made = event(kind, noise, sampling_prob, count)
    found = accounting.epsilon(made, delta, relation)
    assert lowest(made, relation, found, delta) <= delta
    assert found == 0.0 or delta * (1 - 1e-3) < curves.delta(made, found, relation) < delta * (1 + 1e-3)


@pytest.mark.parametrize(
    ("kind", "noise", "sampling_prob", "count"),
    [
        (GaussianEvent, 60.0, 0.016, 1000),
        (GaussianEvent, 0.65, 3.4e-6, 541),
    ],
)
def test_epsilon_has_no_jump_as_delta_falls(kind: type, noise: float, sampling_prob: float, count: int) -> None:
    """A decade of δ at a time, through every change of method: ε rises, and by no more than its neighbours rise."""
    made = event(kind, noise, sampling_prob, count)
    deltas = [10.0**-k for k in range(5, 17)]
    found = np.array([accounting.epsilon(made, delta, ZERO) for delta in deltas])
    rises = np.diff(found)
    assert (rises >= -1e-4 * found[1:]).all()
    usual = np.maximum(np.maximum(rises[:-2], rises[2:]), 1e-3 * found[2:-1])
    assert (rises[1:-1] <= 2.5 * usual).all()
