"""A second upper bound on ε and δ, by Rényi curves: a run whose ε exceeds it does not start."""

from __future__ import annotations

import math

import numpy as np

from dpzo.privacy.accounting.closed_form import laplace_pure_epsilon
from dpzo.privacy.accounting.query import Query, check_delta, flatten
from dpzo.privacy.accounting.renyi import curve
from dpzo.privacy.events import Event, NeighboringRelation

DISAGREEMENT = 0.01
"""Relative, above which two upper bounds contradict each other."""
ROUNDING = 1e-9
"""Relative, by which Rényi bounds are raised: far above the rounding of their sums and quadratures."""


class AccountantDisagreement(RuntimeError):
    """Two accountants contradict each other: a bug in one of them, never a user error."""


def check_epsilon(event: Event, delta: float, relation: NeighboringRelation, epsilon: float) -> None:
    """Raise AccountantDisagreement if `epsilon`, claimed for `event`, is more than 1 % above its Rényi bound."""
    if delta > 0.0:
        agree(epsilon, rdp_epsilon(event, delta, relation))


def agree(claimed: float, bound: float) -> None:
    """Raise AccountantDisagreement if an ε is more than 1 % above its Rényi bound.

    Both are upper bounds. With coarse grids (losses of many orders of magnitude) the first may slightly exceed the
    second; if it exceeds it by more, one of them is wrong.
    """
    if claimed > bound * (1.0 + DISAGREEMENT) + 1e-6:
        raise AccountantDisagreement(f"epsilon {claimed!r} lies above the Rényi bound {bound!r}")


def rdp_epsilon(event: Event, delta: float, relation: NeighboringRelation) -> float:
    """Upper bound on ε(δ) by Rényi composition and the improved conversion; δ in (0, 1).

    Formula: min over α of T·D_α + ln(1 − 1/α) − ln(δα)/(α−1), and 0 where 1 − e^{−T·D_α} ≤ δ² (total variation);
    for Laplace also the pure ε, which holds at every δ.
    Source: Canonne, Kamath and Steinke 2020, proposition 12; Balle et al. 2020, theorem 21; Bretagnolle and Huber 1979.
    """
    check_delta(delta)
    return rdp_epsilon_of(flatten(event), delta, relation)


def rdp_epsilon_of(query: Query, delta: float, relation: NeighboringRelation) -> float:
    """`rdp_epsilon` of a flattened event."""
    best = math.inf
    if query.mechanism == "laplace":
        best = laplace_pure_epsilon(query.noise, query.sampling_prob, query.count, relation)
    if delta == 0.0:
        return best
    orders, bounds = curve(query, relation)
    total = query.count * bounds * (1.0 + ROUNDING)
    if bool(np.any(-np.expm1(-total) <= delta * delta)):
        return 0.0
    converted = total + np.log1p(-1.0 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1.0)
    return max(0.0, min(best, float(np.min(converted)) * (1.0 + ROUNDING)))


def rdp_delta_of(query: Query, epsilon: float, relation: NeighboringRelation) -> float:
    """Upper bound on δ(ε) of a flattened event: the conversion of `rdp_epsilon`, solved for δ.

    Formula: min over α of e^{(α−1)(T·D_α − ε)}/α·(1 − 1/α)^{α−1}; 0 when ε is at least the pure ε.
    """
    if query.mechanism == "laplace" and epsilon >= laplace_pure_epsilon(
        query.noise, query.sampling_prob, query.count, relation
    ):
        return 0.0
    orders, bounds = curve(query, relation)
    total = query.count * bounds * (1.0 + ROUNDING)
    logs = (orders - 1.0) * (total - epsilon + np.log1p(-1.0 / orders)) - np.log(orders)
    variation = float(np.sqrt(-np.expm1(-np.min(total))))
    return float(min(1.0, variation * (1.0 + ROUNDING), math.exp(min(0.0, float(np.min(logs)) + ROUNDING))))
