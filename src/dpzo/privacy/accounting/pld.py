"""Privacy-loss distributions by dp-accounting (connect-the-dots, pessimistic), with a grid chosen by a bound."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from dpzo.privacy.accounting.query import Query
from dpzo.privacy.events import NeighboringRelation

COARSEST_GRID = 1e-4
"""Never coarser, unless one release's losses alone would need more than MOST_CELLS cells."""
STEP_SHARE = 0.02
"""Grid ÷ standard deviation of one release's privacy loss."""
MOST_CELLS = 150_000
RELATIVE_RESERVE = 1e-6
"""Share of δ kept back for the rounding of one release's masses (measured deficits, times T, stay below 5e-7)."""


def grid(query: Query, relation: NeighboringRelation) -> float:
    """Grid h of the privacy losses.

    Formula: h = min(1e-4, 0.02·s), s the standard deviation of one release's loss, at least (range of losses)/150 000.
    Guarantee: connect-the-dots splits a loss between two neighbouring grid points so that P and Q masses are kept; that
    raises the mean of one release by at most h²/8 and its variance by at most h²/4. With h = 0.02 s, T releases gain at
    most 0.01 % of their variance, so the composed ε, about mean + z·std, moves by about 0.005 %, whatever T is.
    Any h is safe; a coarser one only overstates ε.
    """
    deviation, extent = _loss_scale(query.mechanism, query.noise, query.sampling_prob, relation)
    wanted = min(COARSEST_GRID, STEP_SHARE * deviation)
    # Two significant digits: the grid is printed on the card.
    wanted = max(wanted, extent / MOST_CELLS)
    digits = 1 - math.floor(math.log10(wanted))
    return round(wanted, digits)


def rounding_reserve(query: Query) -> float:
    """Part of δ that the Fourier composition in double precision cannot resolve: T·2⁻⁵².

    Against a composition tilted to keep its relative precision, the error was at most a quarter of this up to
    T = 10⁶. A δ below twice the reserve is not answered by PLD at all.
    """
    return query.count * 2.0**-52


def resolves(query: Query, delta: float) -> bool:
    """Whether δ stands clear of rounding and of the 1e-15 of tail mass that the composition gives up."""
    return delta >= max(2.0 * rounding_reserve(query), 1e-14)


def epsilon(query: Query, delta: float, relation: NeighboringRelation) -> float:
    """Smallest ε of the composition at δ > 0, an upper bound: solved at δ less the rounding reserves."""
    target = delta * (1.0 - RELATIVE_RESERVE) - rounding_reserve(query)
    return float(_distribution(query, relation).get_epsilon_for_delta(target))


def delta(query: Query, epsilon: float, relation: NeighboringRelation) -> float:
    """δ of the composition at ε, an upper bound: the rounding reserves are added."""
    found = float(_distribution(query, relation).get_delta_for_epsilon(epsilon))
    return min(1.0, max(0.0, found) * (1.0 + RELATIVE_RESERVE) + rounding_reserve(query))


def version() -> str:
    """Version of dp-accounting, read from its metadata without importing it."""
    from importlib.metadata import version as installed

    return installed("dp-accounting")


@lru_cache(maxsize=2)
def _distribution(query: Query, relation: NeighboringRelation) -> Any:
    from dp_accounting import NeighboringRelation as Theirs
    from dp_accounting.pld import privacy_loss_distribution as losses

    step = grid(query, relation)
    replaced = relation is NeighboringRelation.REPLACE_ONE
    if query.mechanism == "gaussian":
        one = losses.from_gaussian_mechanism(
            query.noise,
            value_discretization_interval=step,
            sampling_prob=query.sampling_prob,
            neighboring_relation=Theirs.REPLACE_ONE if replaced else Theirs.ADD_OR_REMOVE_ONE,
        )
    else:
        # Without sampling, replacing moves a location family by 2, so it is add/remove at half the scale.
        one = losses.from_laplace_mechanism(
            query.noise / 2.0 if replaced else query.noise,
            value_discretization_interval=step,
            sampling_prob=query.sampling_prob,
        )
    return one.self_compose(query.count) if query.count > 1 else one


@lru_cache(maxsize=64)
def _loss_scale(
    mechanism: str, noise: float, sampling_prob: float, relation: NeighboringRelation
) -> tuple[float, float]:
    """Standard deviation (the smaller of the two directions) and range of one release's privacy loss."""
    replaced = relation is NeighboringRelation.REPLACE_ONE
    if mechanism == "laplace" and replaced:
        noise /= 2.0
    reach = (9.7 if mechanism == "gaussian" else 45.0) * noise
    kinks = np.array([0.0, 1.0])
    x = np.unique(np.concatenate([np.linspace(-reach - 1.0, 1.0 + reach, 8001), kinks]))
    if mechanism == "gaussian":
        log_zero, log_one = -0.5 * (x / noise) ** 2, -0.5 * ((x - 1.0) / noise) ** 2
        log_minus = -0.5 * ((x + 1.0) / noise) ** 2
    else:
        log_zero, log_one = -np.abs(x) / noise, -np.abs(x - 1.0) / noise
        log_minus = log_zero
    stay = np.log1p(-sampling_prob) if sampling_prob < 1.0 else -np.inf
    mixed = np.logaddexp(stay + log_zero, np.log(sampling_prob) + log_one)
    other = np.logaddexp(stay + log_zero, np.log(sampling_prob) + log_minus)
    base = other if replaced and mechanism == "gaussian" else log_zero
    loss = mixed - base
    cells = np.gradient(x)
    deviations = []
    for log_density in (mixed, base):
        weight = np.exp(log_density - log_density.max()) * cells
        weight /= weight.sum()
        mean = float(weight @ loss)
        deviations.append(math.sqrt(max(float(weight @ (loss - mean) ** 2), 1e-300)))
    return min(deviations), float(loss.max() - loss.min())
