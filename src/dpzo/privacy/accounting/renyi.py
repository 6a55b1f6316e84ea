"""Rényi curves of the mechanisms: for each order α, a proved bound on D_α between neighbouring outputs of one release.

Sources: Mironov 2017 (Laplace, Gaussian); Mironov, Talwar and Zhang 2019 (Poisson sampling; the exchange of the two
directions for any symmetric noise); Wang, Balle and Kasiviswanathan 2019 (convexity in the order).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from scipy.special import gammaln, logsumexp

from dpzo.privacy.accounting import pld
from dpzo.privacy.accounting.query import Query, shift
from dpzo.privacy.accounting.tilted import Array, Atoms
from dpzo.privacy.events import NeighboringRelation
from dpzo.privacy.mechanisms import tables

_FRACTIONS = np.concatenate([[1.01, 1.02, 1.05], np.arange(11, 110) / 10.0])
_FRACTIONS = _FRACTIONS[np.round(_FRACTIONS) != _FRACTIONS]
_INTEGERS = np.concatenate(
    [np.arange(2, 128), np.arange(128, 512, 8), [512, 600, 800, 1024, 2048, 4096, 8192, 16384, 65536]]
).astype(np.float64)


def curve(query: Query, relation: NeighboringRelation) -> tuple[Array, Array]:
    """Orders α and bounds on D_α of one release (multiply by `count` for the composition).

    Formula: Gaussian α s²/(2σ²), with s the shift; Laplace, t = s/b,
    ln(α/(2α−1)·e^{(α−1)t} + (α−1)/(2α−1)·e^{−αt})/(α−1), for L1 rows of any dimension: (α−1)·D_α is a log-sum-exp of
    affine functions of t, so convex, and zero at t = 0, so splitting the shift over coordinates only lowers the sum.
    Poisson sampling at integer α: ln Σ_j C(α,j)(1−q)^{α−j} q^j e^{(j−1)D_j}/(α−1), where D_j is the curve above.
    A table: ln Σ m·e^{(α−1)l} over its losses, the larger direction.
    Guarantee: an upper bound for both directions of the relation. Bounds of +inf are possible and harmless.
    Shapes: two vectors of equal length.
    """
    if query.table is not None:
        found: tuple[Array, Array] = tables().renyi_curve(query, relation)
        return found
    return _curve(query.mechanism, query.noise, query.sampling_prob, relation)


@lru_cache(maxsize=64)
def _curve(mechanism: str, noise: float, sampling_prob: float, relation: NeighboringRelation) -> tuple[Array, Array]:
    scale = noise / shift(relation)
    if sampling_prob == 1.0:
        orders = np.sort(np.concatenate([_FRACTIONS, _INTEGERS]))
        return orders, (_gaussian if mechanism == "gaussian" else _laplace)(orders, scale)
    if relation is NeighboringRelation.REPLACE_ONE:
        if mechanism != "gaussian":
            return of_atoms(pld.replaced_laplace(noise, sampling_prob))
        return _gaussian_replace(noise, sampling_prob)
    integers = np.array([_sampled(int(order), mechanism, noise, sampling_prob) for order in _INTEGERS])
    # At smaller sampling probabilities the cancellation in the integrand would affect the result.
    if mechanism == "gaussian" and noise >= 0.1 and sampling_prob >= 1e-5:
        fractions = np.array([_gaussian_fraction(order, noise, sampling_prob) for order in _FRACTIONS])
    else:
        # κ(α) = (α−1)·D_α is convex with κ(1) = 0, so its chords lie above it.
        kappa = np.interp(_FRACTIONS, np.r_[1.0, _INTEGERS], np.r_[0.0, (_INTEGERS - 1.0) * integers])
        fractions = kappa / (_FRACTIONS - 1.0)
    return np.concatenate([_FRACTIONS, _INTEGERS]), np.concatenate([fractions, integers])


def of_atoms(directions: Iterable[Atoms]) -> tuple[Array, Array]:
    """Orders and bounds on D_α, the larger of the directions of one release: ln Σ m·e^{(α−1)l} ÷ (α−1)."""
    orders = np.sort(np.concatenate([_FRACTIONS, np.arange(2, 65), np.geomspace(72, 65536, 40)]))
    found = []
    for one in directions:
        if len(one.losses) == 0:
            return orders, np.full(len(orders), np.inf)
        log_masses = np.log(one.masses)
        moments = [float(logsumexp(log_masses + (order - 1.0) * one.losses)) for order in orders.tolist()]
        finite = (np.maximum(moments, 0.0) + 1e-14) / (orders - 1.0)
        found.append(finite if one.infinite == 0.0 else np.full(len(orders), np.inf))
    return orders, np.maximum.reduce(found)


def _gaussian(orders: Array, noise: float) -> Array:
    return orders / (2.0 * noise * noise)


def _laplace(orders: Array, scale: float) -> Array:
    gap = 1.0 / scale
    rising = np.log(orders / (2 * orders - 1)) + (orders - 1) * gap
    falling = np.log((orders - 1) / (2 * orders - 1), where=orders > 1, out=np.full_like(orders, -np.inf))
    kappa = np.logaddexp(rising, falling - orders * gap)
    # Rounding can leave κ a few 1e-16 below its true value when the scale is large; the bound stays a bound.
    return np.asarray((np.maximum(kappa, 0.0) + 4e-16) / (orders - 1))


def _sampled(order: int, mechanism: str, noise: float, sampling_prob: float) -> float:
    j = np.arange(order + 1, dtype=np.float64)
    kappa = np.zeros(order + 1)
    if mechanism == "gaussian":
        kappa[2:] = j[2:] * (j[2:] - 1) / (2.0 * noise * noise)
    else:
        kappa[2:] = (j[2:] - 1) * _laplace(j[2:], noise)
    return amplified(kappa, sampling_prob)


def amplified(kappa: Array, sampling_prob: float) -> float:
    """Bound on D_α of a release on a Poisson sample, integer α, from κ_j = (j−1)·D_j, j = 0 … α, without sampling.

    Formula: as in `curve`. Guarantee: holds for any noise distribution that a reflection maps to its shifted copy.
    """
    order = len(kappa) - 1
    j = np.arange(order + 1, dtype=np.float64)
    log_binomial = gammaln(order + 1) - gammaln(j + 1) - gammaln(order - j + 1)
    # Terms 0 and 1 and the binomial theorem's own sum are split off: Σ_j C(α,j)(1−q)^{α−j}q^j = 1, so the moment is
    # 1 + Σ_{j≥2} (…)(e^{κ_j} − 1), which keeps its precision when it is close to 1.
    log_weight = log_binomial + (order - j) * np.log1p(-sampling_prob) + j * np.log(sampling_prob)
    with np.errstate(over="ignore"):
        log_excess = np.where(kappa > 1.0, kappa + np.log1p(-np.exp(-np.maximum(kappa, 1.0))), 0.0)
        small = kappa <= 1.0
        log_excess[small] = np.log(np.expm1(kappa[small]), where=kappa[small] > 0, out=np.full(small.sum(), -np.inf))
    total = logsumexp(log_weight[2:] + log_excess[2:])
    return float(np.logaddexp(0.0, total) / (order - 1))


def _grid(low: float, high: float, noise: float) -> tuple[Array, float]:
    # The integrands are analytic in a strip of half-width πσ² (where the mixture vanishes) and Gaussian of width σ:
    # the trapezoidal rule with this step is accurate to the last digits.
    step = min(noise / 8.0, noise * noise / 3.0)
    count = int(np.ceil((high - low) / step)) + 1
    return np.asarray(low + step * np.arange(count), dtype=np.float64), step


def _gaussian_fraction(order: float, noise: float, sampling_prob: float) -> float:
    x, step = _grid(-12.0 * noise, order + 12.0 * noise, noise)
    log_base = -0.5 * (x / noise) ** 2 - np.log(noise * np.sqrt(2 * np.pi))
    ratio = np.logaddexp(np.log1p(-sampling_prob), np.log(sampling_prob) + (2 * x - 1) / (2 * noise * noise))
    # E[(ratio)^α] − 1 without the linear part (E[ratio] = 1): all terms are non-negative, so no digits cancel.
    excess = np.expm1(np.clip(order * ratio, None, 600.0)) - order * np.expm1(np.clip(ratio, None, 600.0))
    large = order * ratio > 30.0
    body = float(np.sum(np.where(large, 0.0, np.exp(log_base) * excess)) * step)
    log_moment = np.log1p(max(body, 0.0))
    if large.any():
        log_moment = np.logaddexp(log_moment, logsumexp((log_base + order * ratio)[large]) + np.log(step))
    return float(log_moment / (order - 1.0))


def _gaussian_replace(noise: float, sampling_prob: float) -> tuple[Array, Array]:
    orders = np.concatenate([[1.02, 1.05], np.arange(11, 60) / 10.0, np.arange(6, 32), np.geomspace(32, 512, 17)])
    if noise < 0.3:
        # One release leaks at most what it leaks without sampling: joint quasi-convexity of the divergence.
        return orders, _gaussian(orders, noise / 2.0)
    bounds = np.empty_like(orders)
    for i, order in enumerate(orders):
        x, step = _grid(-12.0 * noise, 2.0 * order + 12.0 * noise, noise)
        log_base = -0.5 * (x / noise) ** 2 - np.log(noise * np.sqrt(2 * np.pi))
        halves = [
            np.logaddexp(np.log1p(-sampling_prob), np.log(sampling_prob) + (sign * 2 * x - 1) / (2 * noise * noise))
            for sign in (1.0, -1.0)
        ]
        log_moment = logsumexp(log_base + order * halves[0] + (1.0 - order) * halves[1]) + np.log(step)
        bounds[i] = (max(float(log_moment), 0.0) + 1e-13) / (order - 1.0)
    return orders, bounds
