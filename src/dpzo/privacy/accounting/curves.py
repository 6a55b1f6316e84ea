"""δ at an ε, and whole curves of it, for audits, tables and figures; no plan's ε needs it."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from dpzo.errors import DpzoError
from dpzo.privacy.accounting import closed_form, pld
from dpzo.privacy.accounting.composition import (
    CHEAP,
    FAST,
    RESOLVED_SHARE,
    SEEN,
    TOLERANCE,
    Certificate,
    directly,
    lost_mass,
    padding,
    single_delta,
)
from dpzo.privacy.accounting.headline import EXACT, PLD, accountant_of
from dpzo.privacy.accounting.query import Query, flatten
from dpzo.privacy.accounting.second_opinion import rdp_delta_of
from dpzo.privacy.accounting.tilted import LEAST_CELLS, Array, Atoms, Composed, Rough, golden_section
from dpzo.privacy.events import Event, NeighboringRelation
from dpzo.privacy.mechanisms import tables

SMALLEST_DELTA = 1e-100
"""No δ below is answered: untilting would meet the end of the range of floats."""
LARGEST_SHARE = 0.01
"""Share of δ that rounding and cut tails should not exceed."""
RUNG = 2.0**0.25
"""Between the tilts of a ladder."""
CURVE_SUMS, CURVE_TOLERANCE = 8, 1e-3
"""Sums behind a whole curve δ(ε), and how much their grid may raise δ."""
CURVE_LEAST = 1e-9
"""δ of a whole curve below which its values are not near."""
SURE = 1e-6
"""A δ is at least this share of its Rényi bound where it is wanted to the last digits; below it is merely bounded."""


def delta(event: Event, epsilon: float, relation: NeighboringRelation) -> float:
    """Smallest δ this project can prove for `event` at ε under `relation`; the same accountants as `epsilon`."""
    query = flatten(event)
    if not 0.0 <= epsilon < math.inf:
        raise DpzoError(f"`epsilon` is {epsilon}, must be at least 0 and finite")
    accountant = accountant_of(query, relation, pure=False)
    if accountant == EXACT:
        return closed_form.gaussian_delta(epsilon, closed_form.gaussian_mu(query, relation))
    if query.table is not None:
        return float(tables().delta(query, epsilon, relation))
    bound = rdp_delta_of(query, epsilon, relation)
    return 0.0 if bound == 0.0 else min(_pld_delta(query, epsilon, relation, SURE * bound), bound)


def delta_curve(event: Event, epsilons: Array, relation: NeighboringRelation) -> Array:
    """Upper bounds on δ at many ascending ε ≥ 0, in the time of a few: `delta`, but looser where δ is tiny."""
    query = flatten(event)
    if accountant_of(query, relation, pure=False) == PLD:
        return _pld_curve(query, epsilons, relation)
    return np.array([delta(event, float(one), relation) for one in epsilons])


def _pld_delta(query: Query, epsilon: float, relation: NeighboringRelation, least: float) -> float:
    """Upper bound on δ of the composition at ε; 1 if the atoms are too coarse; not tight below `least`."""
    pair = pld.atoms(query, relation, pld.reach_for(max(least, pld.SMALLEST_DELTA) / query.count))
    return max((least_delta(one, epsilon, query.count) for one in pair), default=1.0)


def _pld_curve(query: Query, epsilons: Array, relation: NeighboringRelation) -> Array:
    """δ at ascending ε, upper bounds; 1 where the atoms are too coarse."""
    pair = pld.atoms(query, relation, pld.reach_for(CURVE_LEAST / query.count))
    bounds = [curve_of(one, epsilons, query.count) for one in pair]
    return np.max(bounds, axis=0) if bounds else np.ones(len(epsilons))


def evaluate(
    one: Atoms, epsilon: float, count: int, tolerance: float = TOLERANCE, cheap: int = LEAST_CELLS
) -> Certificate:
    """Smallest δ proved for one direction at ε ≥ 0."""
    lost = lost_mass(one, count)
    pad = count * padding(one)
    if len(one.losses) == 0 or epsilon - pad >= count * float(one.losses.max()):
        return Certificate(epsilon, lost, 0.0, 0.0, 0)
    if count == 1:
        return Certificate(epsilon, min(1.0, lost + single_delta(one, epsilon - pad)), 0.0, 0.0, 0)
    rough = Rough(one)
    tilt = tilt_for_epsilon(rough, epsilon, count)
    for whole in (False, True):
        curve = Composed(one, count, tilt, rough, tolerance, epsilon - pad, whole, cheap)
        found, reserve = curve.delta(epsilon - pad), curve.reserve(epsilon - pad)
        if reserve <= LARGEST_SHARE * (lost + found) or found < SMALLEST_DELTA:
            break
    return Certificate(
        epsilon, min(1.0, lost + found), reserve, curve.step, curve.cells, curve.coarse or epsilon < SEEN * curve.step
    )


def least_delta(one: Atoms, epsilon: float, count: int) -> float:
    """`evaluate`; if δ is lost in the rounding of its Fourier transform, the smaller of it and direct convolution.

    Sums are cached for a fixed sequence of tilts, so that a whole curve δ(ε) costs only a few of them.
    """
    at, lost = epsilon - count * padding(one), lost_mass(one, count)
    if count > 1 and lost < 1.0 and at < count * float(one.losses.max()):
        tilt = tilt_for_epsilon(_rough(one), epsilon, count)
        curve = _curve(one, count, round(math.log(tilt) / math.log(RUNG)))
        spent = lost + curve.delta(at)
        if not curve.coarse and at >= max(curve.low, SEEN * curve.step) and curve.reserve(at) <= RESOLVED_SHARE * spent:
            return min(1.0, spent)
    found = evaluate(one, epsilon, count, FAST, CHEAP)
    if found.resolved or found.cells == 0:
        return found.delta
    # The cut depends on the requested δ, which is the result itself: iterating from above finds its magnitude.
    best, here = found.delta, 0.0
    while here <= 0.5 * best and best > SMALLEST_DELTA:
        best = min(best, here or best)
        here = directly(one, max(1e-3 * best, SMALLEST_DELTA), count).delta(epsilon)
    return min(best, here)


def curve_of(one: Atoms, epsilons: Array, count: int) -> Array:
    """Upper bounds on δ at ascending ε ≥ 0, from a few sums in total: close where δ matters, looser at tiny δ.

    δ(ε) does not increase, so a bound at one ε holds at all larger ones.
    """
    lost, pad = lost_mass(one, count), count * padding(one)
    bounds = np.ones(len(epsilons))
    if len(one.losses) == 0 or lost == 1.0:
        return bounds
    at = epsilons - pad
    if count == 1:
        return np.minimum(bounds, [lost + single_delta(one, float(place)) for place in at])
    rough, top = _rough(one), count * float(one.losses.max())
    for part in np.array_split(np.arange(len(epsilons)), CURVE_SUMS):
        inside = part[at[part] < top]
        if len(inside):
            tilt = tilt_for_epsilon(rough, float(epsilons[inside[len(inside) // 2]]), count)
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


def tilt_for_epsilon(rough: Rough, epsilon: float, count: int) -> float:
    """λ that minimises the Rényi bound on ln δ: T·ln K − λε + λ ln λ − (λ+1) ln(λ+1)."""

    def bound(tilt: float) -> float:
        room = tilt * math.log(tilt) - (tilt + 1.0) * math.log1p(tilt)
        return count * rough.cumulant(tilt) - tilt * epsilon + room

    return golden_section(bound)
