"""Privacy-loss distribution of any symmetric unimodal lattice noise: exact atoms, composed on the safe side.

**Largest shift is worst.** Let p be symmetric and non-increasing in |x| on ℤ, P_s its distribution shifted by s ≥ 0,
and H_α(P‖Q) = max_A P(A) − α·Q(A). For α ≥ 1 the best set A_s = {x : p(x−s) > α·p(x)} holds no x ≤ s/2, because there
|x−s| ≥ |x|. So for shift s+1 the set A_s + 1 gives P_{s+1}(A_s+1) = P_s(A_s), and P_0(A_s+1) = Σ_{x∈A_s} p(x+1)
≤ P_0(A_s), all its x being positive: H_α(P_{s+1}‖P_0) ≥ H_α(P_s‖P_0). For α < 1 use
H_α(P‖Q) = 1 − α + α·H_{1/α}(Q‖P), and the reflection x → s−x, which swaps P_s and P_0. Hence a row anywhere on the
lattice within the bound is dominated by the bound itself. Without unimodality this fails (a comb of spikes protects
only shifts by its own period), and `Shape` rejects such a distribution.

**Poisson sampling.** H_α((1−q)P_0 + qP_s ‖ P_0) = q·H_β(P_s‖P_0), β = (α−1+q)/q, and
H_α(P_0 ‖ (1−q)P_0 + qP_s) = αq·β'·H_{1/β'}(P_0‖P_s), β' = (1−α(1−q))/(αq), wherever β and β' are positive, and constant
in s elsewhere: both again increase with s. The other sampled units shift both distributions equally and mix over the
same weights, so by joint convexity the pair still dominates. Dominating pairs compose (Zhu, Dong and Wang 2022,
theorem 10). The first line is the direction "remove", the second "add"; `zero_out` has the same two.

Composition, with a pessimistic grid and rounding bounds, is in `tilted`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from dpzo.errors import DpzoError
from dpzo.noise.shape import Shape
from dpzo.privacy.accounting.composition import TOLERANCE, Certificate, padding, solve
from dpzo.privacy.accounting.curves import LARGEST_SHARE, SMALLEST_DELTA, evaluate
from dpzo.privacy.accounting.query import check_delta
from dpzo.privacy.accounting.tilted import UNIT, Atoms
from dpzo.privacy.events import NeighboringRelation


def atoms(shape: Shape, sampling_prob: float = 1.0) -> Iterator[Atoms]:
    """Exact privacy losses of one release: "remove", then "add" if it differs (sampling_prob < 1).

    Formula: ρ(x) = p(x−D)/p(x), g = ln(1 − q + qρ); remove: g with mass (1−q)p(x) + q·p(x−D); add: −g with mass p(x).
    The two tails, where ρ is constant, are one atom each, so the list is finite and nothing is cut off.
    """
    shift, last = shape.shift, len(shape.masses) - 1
    p = shape.extended(shift)
    x = np.arange(-last, last + shift + 1)
    fade = shape.ratio ** (shift // shape.period)
    here = np.concatenate([[shape.beyond], p[np.abs(x)], [shape.beyond * fade]])
    moved = np.concatenate([[shape.beyond * fade], p[np.abs(x - shift)], [shape.beyond]])
    both = (here > 0.0) & (moved > 0.0)
    ratio = np.divide(moved, here, out=np.ones_like(here), where=both)
    # In a tail the two masses may be subnormal; their ratio is known.
    if shape.beyond > 0.0 and shape.ratio > 0.0:
        log_fade = shift // shape.period * math.log(shape.ratio)
        log_ratio = np.log(ratio)
        log_ratio[0], log_ratio[-1] = log_fade, -log_fade
    else:
        log_ratio = np.log(ratio)
    q = sampling_prob
    if q == 1.0:
        yield Atoms(log_ratio[both], moved[both], float(moved[~both].sum()))
        return
    loss = np.where(
        log_ratio < 30.0,
        np.log1p(q * np.expm1(np.minimum(log_ratio, 30.0))),
        np.logaddexp(math.log1p(-q), math.log(q) + log_ratio),
    )
    gone = (here > 0.0) & (moved == 0.0)
    loss[gone] = math.log1p(-q)
    known = here > 0.0
    mixed = (1.0 - q) * here + q * moved
    yield Atoms(loss[known], mixed[known], float(mixed[~known].sum()))
    yield Atoms(-loss[known], here[known], 0.0)


def largest_loss(one: Atoms, count: int) -> float:
    """Pure ε of one direction: count × the largest loss, rounded up; ∞ if P's support exceeds Q's."""
    if one.infinite > 0.0 or len(one.losses) == 0:
        return math.inf
    return count * (float(one.losses.max()) + padding(one)) * (1.0 + 2.0 * UNIT)


def pure_epsilon(shape: Shape, sampling_prob: float = 1.0, count: int = 1) -> float:
    """Exact pure ε of `count` releases: count × the largest loss of either direction; ∞ for a cut-off distribution."""
    return max(largest_loss(one, count) for one in atoms(shape, sampling_prob))


def epsilon(
    shape: Shape,
    delta: float,
    sampling_prob: float = 1.0,
    count: int = 1,
    relation: NeighboringRelation = NeighboringRelation.ZERO_OUT,
    tolerance: float = TOLERANCE,
) -> float:
    """Smallest ε ≥ 0 proved for `count` releases at δ: the larger of the two directions, rounded up.

    Errors: DpzoError when δ is below SMALLEST_DELTA (and not 0), when rounding would make up over 1 % of it, or for
    sampled releases under replace_one.
    """
    shape = _moved(shape, sampling_prob, relation)
    if delta == 0.0:
        return pure_epsilon(shape, sampling_prob, count)
    _check(delta)
    found = [solve(one, delta, count, tolerance) for one in atoms(shape, sampling_prob)]
    for answer in found:
        if answer.reserve > LARGEST_SHARE * answer.delta:
            raise DpzoError(
                f"`delta` {delta:g}: rounding is {answer.reserve / delta:.1%} of it, so no epsilon is certified: "
                "raise `delta`"
            )
    return max(answer.epsilon for answer in found)


def delta(
    shape: Shape,
    epsilon: float,
    sampling_prob: float = 1.0,
    count: int = 1,
    relation: NeighboringRelation = NeighboringRelation.ZERO_OUT,
    tolerance: float = TOLERANCE,
) -> float:
    """Smallest δ proved for `count` releases at ε ≥ 0: the larger of the two directions, rounded up."""
    found = certificates(shape, epsilon, sampling_prob, count, relation, tolerance)
    return max(answer.delta for answer in found)


def certificates(
    shape: Shape,
    epsilon: float,
    sampling_prob: float = 1.0,
    count: int = 1,
    relation: NeighboringRelation = NeighboringRelation.ZERO_OUT,
    tolerance: float = TOLERANCE,
) -> list[Certificate]:
    """δ at ε of each direction, with the part of it that is rounding."""
    if not 0.0 <= epsilon < math.inf:
        raise DpzoError(f"`epsilon` is {epsilon}, must be at least 0 and finite")
    shape = _moved(shape, sampling_prob, relation)
    found = [evaluate(one, epsilon, count, tolerance) for one in atoms(shape, sampling_prob)]
    for answer in found:
        least = max(answer.reserve, SMALLEST_DELTA)
        if answer.cells and (answer.delta < SMALLEST_DELTA or answer.reserve > LARGEST_SHARE * answer.delta):
            raise DpzoError(f"`epsilon` {epsilon:g}: its delta is below {least:.1g}, the least that is certified")
    return found


def _moved(shape: Shape, sampling_prob: float, relation: NeighboringRelation) -> Shape:
    if not 0.0 < sampling_prob <= 1.0:
        raise DpzoError(f"sampling probability is {sampling_prob}, must be in (0, 1]: lower `expected_batch_size`")
    if relation is not NeighboringRelation.REPLACE_ONE:
        return shape
    if sampling_prob < 1.0:
        raise DpzoError("not proved for sampled lattice noise under replace_one: use zero_out, or a full batch")
    return shape.moving(2)


def _check(delta: float) -> None:
    check_delta(delta)
    if delta < SMALLEST_DELTA:
        raise DpzoError(f"`delta` {delta:g} is below {SMALLEST_DELTA:g}, the least that the arithmetic certifies")
