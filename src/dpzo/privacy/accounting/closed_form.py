"""Bounds with a formula: exact Gaussian, exact pure ε of Laplace (both rounded up), Rényi to (ε, δ)."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import log_ndtr

from dpzo.privacy.accounting import rounded_up
from dpzo.privacy.accounting.query import Query, check_delta, flatten, shift
from dpzo.privacy.accounting.renyi import curve
from dpzo.privacy.events import Event, NeighboringRelation

ROUNDING = 1e-9
"""Relative, by which Rényi bounds are raised: far above the rounding of their sums and quadratures."""


def gaussian_delta(epsilon: float, mu: float) -> float:
    """δ(ε) of a Gaussian release whose two neighbouring means lie `mu` standard deviations apart, rounded up.

    Formula: Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ); T releases at shift s compose to μ = s·√T/σ.
    Guarantee: never below the exact value, and one float above it at most. Source: Balle and Wang 2018, theorem 8.
    """
    return rounded_up.gaussian_delta(epsilon, mu)


def rough_gaussian_delta(epsilon: float, mu: float) -> float:
    """The same in floats: about 1e-12 off, either way; for searches."""
    first = float(log_ndtr(mu / 2.0 - epsilon / mu))
    second = epsilon + float(log_ndtr(-mu / 2.0 - epsilon / mu))
    if second >= first:
        return 0.0
    return -math.exp(first) * math.expm1(second - first)


def gaussian_epsilon(delta: float, mu: float) -> float:
    """ε ≥ 0 with `gaussian_delta(ε, mu)` ≤ δ, the smallest to about 1e-12, on the safe side; δ in (0, 1)."""
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, mu * mu / 2.0 + mu * math.sqrt(2.0 * math.log(1.0 / delta))
    while rough_gaussian_delta(high, mu) > delta:
        low, high = high, 2.0 * high
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (low, middle) if rough_gaussian_delta(middle, mu) <= delta else (middle, high)
    raise_by = 1e-16
    while gaussian_delta(high, mu) > delta:
        high, raise_by = math.nextafter(high * (1.0 + raise_by), math.inf), 2.0 * raise_by
    return high


def gaussian_mu(query: Query, relation: NeighboringRelation) -> float:
    """μ of the composition of a full-batch Gaussian: s·√T/σ, rounded up."""
    return shift(relation) * math.sqrt(query.count) / query.noise * (1.0 + 2.0**-51)


def laplace_pure_epsilon(
    scale: float, sampling_prob: float, count: int, relation: NeighboringRelation = NeighboringRelation.ZERO_OUT
) -> float:
    """Exact pure ε of `count` Poisson-sampled Laplace releases, L1 rows of any dimension.

    Formula, per release: add = ln(1 + q(e^{1/b} − 1)), remove = −ln(1 − q(1 − e^{−1/b})); add/remove and zero-out take
    the larger, which is `add`; replace-one takes add + remove. Releases add up.
    Guarantee: tight, and rounded up: never below the exact value. Given the other sampled units, the output densities
    are (1−q)f₀ + q f_u and (1−q)f₀ + q f_v, with f_u/f₀ ≤ e^{1/b} and f_v/f₀ ≥ e^{−1/b}, both reached beyond the rows
    u = −v; a mixture over the other units cannot exceed the largest of its ratios.
    """
    replaced = relation is NeighboringRelation.REPLACE_ONE
    return rounded_up.laplace_loss(scale, sampling_prob, count, replaced=replaced)


def laplace_pure_scale(
    epsilon: float, sampling_prob: float, count: int, relation: NeighboringRelation = NeighboringRelation.ZERO_OUT
) -> float:
    """Laplace scale whose exact pure ε is `epsilon`: inverse of `laplace_pure_epsilon`, rounded to the safe side.

    Formula: b = 1/ln(1 + (e^{ε/T} − 1)/q); under replace-one e^{1/b} = 1 + w, where w is the positive root of
    q w² + (2q − (1−q)m) w − m = 0 and m = e^{ε/T} − 1.
    """
    share = epsilon / count
    if share > 300.0:
        # e^{ε/T} dwarfs the rest: each direction's ln(q e^{1/b}) or −ln(1−q), or 1/b twice without sampling.
        gap = share - math.log(sampling_prob)
        if relation is NeighboringRelation.REPLACE_ONE:
            gap = gap + math.log1p(-sampling_prob) if sampling_prob < 1.0 else share / 2.0
    else:
        grown = math.expm1(share)
        if relation is NeighboringRelation.REPLACE_ONE:
            linear = 2.0 * sampling_prob - (1.0 - sampling_prob) * grown
            root = math.hypot(linear, 2.0 * math.sqrt(sampling_prob * grown))
            rise = 2.0 * grown / (linear + root) if linear > 0.0 else (root - linear) / (2.0 * sampling_prob)
        else:
            rise = grown / sampling_prob
        gap = math.log1p(rise)
    scale = 1.0 / gap
    bump = 1e-15
    while laplace_pure_epsilon(scale, sampling_prob, count, relation) > epsilon:
        scale, bump = scale * (1.0 + bump), 2.0 * bump
    return scale


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
