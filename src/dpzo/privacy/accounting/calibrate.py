"""From ε to noise: the least noise whose ε, by the headline accountant, is within budget."""

from __future__ import annotations

import math
from collections.abc import Callable

from dpzo.errors import DpzoError
from dpzo.privacy.accounting import closed_form, headline
from dpzo.privacy.accounting.query import check_delta, flatten, shift
from dpzo.privacy.events import Event, NeighboringRelation

LEAST_NOISE, MOST_NOISE = 1e-3, 1e12
SLACK = 1e-3
"""Promised: epsilon·(1 − SLACK) ≤ ε(noise) ≤ epsilon."""


def noise(make_event: Callable[[float], Event], epsilon: float, delta: float, relation: NeighboringRelation) -> float:
    """Least noise x with ε(make_event(x)) in [epsilon·(1 − 1e-3), epsilon]; more noise must mean less ε.

    Guarantee: the returned x was itself evaluated by `accounting.epsilon`, and its ε does not exceed the budget.
    The search starts from the central-limit estimate and runs a bracketed secant on ln ε against ln x.
    Errors: DpzoError when a number is out of range, the combination is not supported, or every noise is within budget.
    """
    _check_epsilon(epsilon)
    check_delta(delta)

    def spent(x: float) -> float:
        return headline.bound(make_event(x), delta, relation)

    query = flatten(make_event(1.0))
    accountant = headline.accountant_of(query, relation, pure=delta == 0.0)
    # Without noise the release shows whether the unit was ever sampled, and nothing else can hide it.
    ever_sampled = -math.expm1(query.count * math.log1p(-query.sampling_prob)) if query.sampling_prob < 1.0 else 1.0
    if ever_sampled <= delta:
        raise DpzoError(
            f"`delta` {delta:g} is at least the chance {ever_sampled:.2g} that a unit is sampled at all, "
            "so every noise meets every `epsilon` and it promises nothing: lower `delta`"
        )
    slack = SLACK if accountant not in (headline.EXACT, headline.PURE) else 1e-9
    start = _estimate(make_event, epsilon, delta, relation)
    low, spent_low, high, spent_high = _bracket(spent, start, epsilon, delta)
    narrow = 0
    while spent_high < epsilon * (1.0 - slack) and high / low > 1.0 + 4e-16:
        x = _next(low, spent_low, high, spent_high, epsilon * (1.0 - 0.3 * slack), bisect=narrow >= 1)
        here = spent(x)
        before = math.log(high / low)
        if here <= epsilon:
            high, spent_high = x, here
        else:
            low, spent_low = x, here
        narrow = narrow + 1 if math.log(high / low) > 0.5 * before else 0
    return high


def _check_epsilon(epsilon: float) -> None:
    if not 0.0 < epsilon < math.inf:
        raise DpzoError(f"`epsilon` is {epsilon}, must be positive and finite: a usual choice is between 0.5 and 8")


def _estimate(
    make_event: Callable[[float], Event], epsilon: float, delta: float, relation: NeighboringRelation
) -> float:
    """Central-limit noise: q·s·√(T(e^{1/x²} − 1)) = μ, where μ is that of the Gaussian mechanism at (ε, δ)."""
    query = flatten(make_event(1.0))
    if delta == 0.0:
        if query.mechanism == "laplace":
            return laplace_pure_scale(epsilon, query.sampling_prob, query.count, relation)
        return 1.0
    low, high = 1e-12, 1e6
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if closed_form.rough_gaussian_delta(epsilon, middle) <= delta else (low, middle)
    per_release = low / (query.sampling_prob * shift(relation) * math.sqrt(query.count))
    return min(max(1.0 / math.sqrt(math.log1p(per_release * per_release)), LEAST_NOISE), MOST_NOISE)


def _bracket(
    spent: Callable[[float], float], start: float, epsilon: float, delta: float
) -> tuple[float, float, float, float]:
    """Two noise levels and their ε: the smaller exceeds the budget, the larger is within it."""
    x, here, factor = start, spent(start), 1.05
    while True:
        over = here > epsilon
        further = x * factor if over else x / factor
        if further > MOST_NOISE:
            raise DpzoError(f"`epsilon` {epsilon:g} cannot be met by any noise up to {MOST_NOISE:g}: raise `epsilon`")
        if further < LEAST_NOISE:
            raise DpzoError(
                f"`epsilon` {epsilon:g} with `delta` {delta:g} is met almost without noise, so it promises nothing: "
                "lower `delta` or `epsilon`"
            )
        there = spent(further)
        if over != (there > epsilon):
            return (x, here, further, there) if over else (further, there, x, here)
        x, here, factor = further, there, factor * factor


def _next(low: float, spent_low: float, high: float, spent_high: float, target: float, *, bisect: bool) -> float:
    if bisect or not math.isfinite(spent_low) or spent_high <= 0.0:
        return math.sqrt(low * high)
    share = math.log(spent_low / target) / math.log(spent_low / spent_high)
    # A step to an end of the bracket would stall the search.
    share = min(max(share, 1e-3), 1.0 - 1e-3)
    return math.exp(math.log(low) + share * math.log(high / low))


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
    while closed_form.laplace_pure_epsilon(scale, sampling_prob, count, relation) > epsilon:
        scale, bump = scale * (1.0 + bump), 2.0 * bump
    return scale
