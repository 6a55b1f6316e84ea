"""Bounds with a formula, rounded up: exact Gaussian, exact pure ε of Laplace."""

from __future__ import annotations

import math

from scipy.special import log_ndtr

from dpzo.privacy.accounting import rounded_up
from dpzo.privacy.accounting.query import Query, shift
from dpzo.privacy.events import NeighboringRelation


def gaussian_delta(epsilon: float, mu: float) -> float:
    """δ(ε) of a Gaussian release whose two neighbouring means lie `mu` standard deviations apart, rounded up.

    Formula: Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ); T releases at shift s compose to μ = s·√T/σ.
    Guarantee: never below the exact value, and one float above it at most. Source: Balle and Wang 2018, theorem 8.
    """
    return rounded_up.gaussian_delta(epsilon, mu)


def rough_gaussian_delta(epsilon: float, mu: float) -> float:
    """The same in floats, with an error of about 1e-12 in either direction; for searches."""
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
    the larger, which is `add`; replace-one takes add + remove. The ε of all releases is the sum.
    Guarantee: tight, and rounded up: never below the exact value. Given the other sampled units, the output densities
    are (1−q)f₀ + q f_u and (1−q)f₀ + q f_v, with f_u/f₀ ≤ e^{1/b} and f_v/f₀ ≥ e^{−1/b}, both reached beyond the rows
    u = −v; a mixture over the other units cannot exceed the largest of its ratios.
    """
    replaced = relation is NeighboringRelation.REPLACE_ONE
    return rounded_up.laplace_loss(scale, sampling_prob, count, replaced=replaced)
