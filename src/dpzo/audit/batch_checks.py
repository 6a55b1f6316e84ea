"""Tests of the sampling: each unit joins with the plan's probability, independently of other units and earlier batches.

All are exact binomial tests of counts of independent events. Full batches need no statistical test: whether they
hold every unit once is certain.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

from dpzo.audit.observed import Integers, Observed
from dpzo.audit.tally import CheckTally, of_count

TRACKED = 64  # units at either end of the data set whose pairs are tested
LAGS = (*range(1, 17), 32, 64, 128, 256)
MOST_SIZES = 64

Members = npt.NDArray[np.float32]


def check_batches(tally: CheckTally, seen: Observed, miss: float) -> None:
    """Tests of every data set's batches, in the order in which they were drawn."""
    q = seen.plan.sampler.sampling_prob
    if q >= 1.0:
        return
    for units in np.unique(seen.units):
        at = np.flatnonzero(seen.units == units)
        if units > 0:
            batches = [seen.batches[i] for i in at]
            _counts(tally, batches, int(units), q)
            _sizes(tally, seen.sizes[at], int(units), q)
            _together(tally, _members(batches, int(units)), q)
            _repeats(tally, batches, int(units), q, miss)
            _places(tally, batches, seen.steps[at], int(units), q)


def _counts(tally: CheckTally, batches: list[npt.NDArray[np.int64]], units: int, q: float) -> None:
    counts = np.bincount(np.concatenate(batches).astype(np.int64), minlength=units)[:units]
    tally.add("members altogether", of_count(counts.sum(), len(batches) * units, q))
    values, times = np.unique(counts, return_counts=True)
    tally.add("batches with a unit", of_count(values, len(batches), q), int(times.sum()))


def _sizes(tally: CheckTally, sizes: Integers, units: int, q: float) -> None:
    """How often each size occurs, and one above the median twice in a row."""
    law, draws = stats.binom(units, q), len(sizes)
    middle = int(law.median())
    wanted = np.arange(max(0, middle - MOST_SIZES), min(units, middle + MOST_SIZES) + 1)
    counts = np.array([(sizes == size).sum() for size in wanted])
    tally.add("batches of a size", of_count(counts, draws, law.pmf(wanted)))
    for low, high in ((0.5, 1.5), (0.25, 4.0), (1.0, 1.0)):
        for bound in {math.floor(middle * low), math.ceil(middle * high)}:
            tally.add("batches up to a size", of_count((sizes <= bound).sum(), draws, law.cdf(bound)))
    above = sizes > middle
    for lag in LAGS:
        for first in _pairs(draws, lag):
            if len(first) > 3:
                both = (above[first] & above[first + lag]).sum()
                tally.add("large batches after large ones", of_count(both, len(first), law.sf(middle) ** 2))


def _pairs(draws: int, lag: int) -> tuple[Integers, Integers]:
    """Starts of pairs `lag` apart, in two sets of disjoint pairs."""
    at = np.arange(max(0, draws - lag))
    even = (at // lag) % 2 == 0
    return at[even], at[~even]


def _members(batches: list[npt.NDArray[np.int64]], units: int) -> Members:
    """(draws, tracked): which of the first and last units are in each batch."""
    tracked = np.unique(np.concatenate([np.arange(min(units, TRACKED)), np.arange(max(0, units - TRACKED), units)]))
    place = np.full(units, -1)
    place[tracked] = np.arange(len(tracked))
    member = np.zeros((len(batches), len(tracked)), dtype=np.float32)
    for row, batch in enumerate(batches):
        found = place[batch[(batch >= 0) & (batch < units)].astype(np.int64)]
        member[row, found[found >= 0]] = 1.0
    return member


def _together(tally: CheckTally, member: Members, q: float) -> None:
    """Two units in one batch; one in a batch and one in a later batch, itself or another."""
    draws, width = member.shape
    if width > 1:
        found = (member.T @ member)[np.triu_indices(width, 1)]
        _many(tally, "two units together", found, draws, q * q)
    for lag in LAGS:
        for first in _pairs(draws, lag):
            if len(first) > 3:
                found = member[first].T @ member[first + lag]
                own = np.diag(found)
                tally.add("a unit again", of_count(own.sum(), len(first) * width, q * q))
                _many(tally, "a unit after another", found.ravel(), len(first), q * q)


def _many(tally: CheckTally, what: str, found: npt.NDArray[np.float32], trials: int, probability: float) -> None:
    """Of equal counts one is tested, and all are counted."""
    if len(found):
        extremes = np.array([found.min(), found.max()], dtype=np.float64).round()
        tally.add(what, of_count(extremes, trials, probability), len(found))


def _repeats(tally: CheckTally, batches: list[npt.NDArray[np.int64]], units: int, q: float, miss: float) -> None:
    """The same batch twice: P ≤ pairs·(q² + (1 − q)²)^N."""
    chance = len(batches) ** 2 / 2.0 * (q * q + (1.0 - q) ** 2) ** units
    if chance < miss / 1e4:
        distinct = len({batch.tobytes() for batch in batches})
        tally.add("the same batch twice", chance if distinct < len(batches) else 1.0)


def _places(tally: CheckTally, batches: list[npt.NDArray[np.int64]], steps: Integers, units: int, q: float) -> None:
    """Members altogether in each step, in the last, and in every n-th."""
    sizes = np.array([len(batch) for batch in batches])
    groupings = [steps, (steps == steps.max(initial=0)).astype(np.int64), *(steps % n for n in (2, 3, 4, 5, 8, 10))]
    for groups in groupings if steps.max(initial=0) > 0 else ():
        counts = np.bincount(groups)
        members = np.bincount(groups, sizes)[counts > 0]
        tally.add("members altogether in a step", of_count(members, counts[counts > 0] * units, q))
