"""Privacy-loss distribution of any symmetric unimodal lattice noise: exact atoms, composed on the safe side.

**Largest shift is worst.** Let p be symmetric and non-increasing in |x| on ℤ, P_s its law shifted by s ≥ 0, and
H_α(P‖Q) = max_A P(A) − α·Q(A). For α ≥ 1 the best set A_s = {x : p(x−s) > α·p(x)} holds no x ≤ s/2, because there
|x−s| ≥ |x|. So for shift s+1 the set A_s + 1 gives P_{s+1}(A_s+1) = P_s(A_s), and P_0(A_s+1) = Σ_{x∈A_s} p(x+1)
≤ P_0(A_s), all its x being positive: H_α(P_{s+1}‖P_0) ≥ H_α(P_s‖P_0). For α < 1 use
H_α(P‖Q) = 1 − α + α·H_{1/α}(Q‖P), and the reflection x → s−x, which swaps P_s and P_0. Hence a row anywhere on the
lattice within the bound is dominated by the bound itself. Without unimodality this fails (a comb of spikes hides only
shifts by its own period), and `Shape` refuses it.

**Poisson sampling.** H_α((1−q)P_0 + qP_s ‖ P_0) = q·H_β(P_s‖P_0), β = (α−1+q)/q, and
H_α(P_0 ‖ (1−q)P_0 + qP_s) = αq·β'·H_{1/β'}(P_0‖P_s), β' = (1−α(1−q))/(αq), wherever β and β' are positive, and constant
in s elsewhere: both again grow with s. The other sampled units move both laws alike and mix over the same weights, so
joint convexity leaves the pair as it is. Dominating pairs compose (Zhu, Dong and Wang 2022, theorem 10). The law of the
first line is "remove", of the second "add"; `zero_out` has the same two.

Composition, with its pessimistic grid and its bookkeeping of rounding, is `tilted`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dpzo.errors import DpzoError
from dpzo.privacy.accounting.query import check_delta
from dpzo.privacy.accounting.tilted import FARTHEST, UNIT, Atoms, Composed, Rough
from dpzo.privacy.events import NeighboringRelation
from dpzo.privacy.noise.shape import Shape

SMALLEST_DELTA = 1e-100
"""No δ below is answered: untilting would meet the end of the range of floats."""
LARGEST_SHARE = 0.01
"""Share of δ that rounding and cut tails may make up; beyond it the answer is refused."""
TOLERANCE = 1e-4
"""Relative rise of δ by the grid, about."""


@dataclass(frozen=True)
class Certificate:
    """δ, not below the true one, at ε. `reserve`: its part that is rounding; `grid`: of the losses; `cells`: FFT."""

    epsilon: float
    delta: float
    reserve: float
    grid: float
    cells: int


def atoms(shape: Shape, sampling_prob: float = 1.0) -> Iterator[Atoms]:
    """Exact privacy losses of one release: "remove", then "add" where it differs (sampling_prob < 1).

    Formula: ρ(x) = p(x−D)/p(x), g = ln(1 − q + qρ); remove: g with mass (1−q)p(x) + q·p(x−D); add: −g with mass p(x).
    The two tails, where ρ is constant, are one atom each, so the list is finite and nothing is cut.
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


def pure_epsilon(shape: Shape, sampling_prob: float = 1.0, count: int = 1) -> float:
    """Exact pure ε of `count` releases: count × the largest loss of either direction; ∞ where the law is cut off."""
    both = list(atoms(shape, sampling_prob))
    return max(math.inf if one.infinite > 0.0 else count * (float(one.losses.max()) + _padding(one)) for one in both)


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
    found = [_solve(one, delta, count, tolerance) for one in atoms(shape, sampling_prob)]
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
    """δ at ε of each direction, with what of it is rounding."""
    if not 0.0 <= epsilon < math.inf:
        raise DpzoError(f"--epsilon is {epsilon}, must be at least 0 and finite")
    shape = _moved(shape, sampling_prob, relation)
    return [_evaluate(one, epsilon, count, tolerance) for one in atoms(shape, sampling_prob)]


def _moved(shape: Shape, sampling_prob: float, relation: NeighboringRelation) -> Shape:
    if not 0.0 < sampling_prob <= 1.0:
        raise DpzoError(f"sampling probability is {sampling_prob}, must be in (0, 1]: lower --expected-batch-size")
    if relation is not NeighboringRelation.REPLACE_ONE:
        return shape
    if sampling_prob < 1.0:
        raise DpzoError(
            "not proved for sampled lattice noise under replace_one: use zero_out, or --sampling full_batch"
        )
    return shape.moving(2)


def _check(delta: float) -> None:
    check_delta(delta)
    if delta < SMALLEST_DELTA:
        raise DpzoError(f"--delta {delta:g} is below {SMALLEST_DELTA:g}, the least that the arithmetic certifies")


def _padding(one: Atoms) -> float:
    """Bound on the rounding of one loss, by which every loss is raised: ratio 4u, logarithm and grid u·|l| each."""
    return 8.0 * UNIT * (2.0 + float(np.abs(one.losses).max()))


def _solve(one: Atoms, delta: float, count: int, tolerance: float) -> Certificate:
    """Smallest ε with δ(ε) ≤ delta for one direction."""
    lost = -math.expm1(count * math.log1p(-one.infinite)) if one.infinite < 1.0 else 1.0
    if lost >= delta:
        return Certificate(math.inf, delta, 0.0, 0.0, 0)
    pad = count * _padding(one)
    top = count * float(one.losses.max()) + pad
    if count == 1:
        found = _single_epsilon(one, delta)
        return Certificate(max(0.0, min(found + pad, top)), delta, 0.0, 0.0, 0)
    rough = Rough(one)
    tilt = rough.tilt_for_delta(delta - lost, count)
    for least, whole in ((math.inf, False), (0.0, False), (0.0, True)):
        curve = Composed(one, count, tilt, rough, tolerance, least, whole)
        found = curve.epsilon(delta - lost)
        # Below the window more losses would count; ∞: what was cut above it is too much.
        if curve.low <= found < math.inf:
            break
    reserve, found = curve.reserve(min(found, top)), found + pad
    # Rounding only ever raises the answer; right below the largest loss of all it no longer matters.
    if reserve > LARGEST_SHARE * delta and 0.0 < found < top * (1.0 - 1e-6):
        raise DpzoError(
            f"--delta {delta:g}: rounding is {reserve / delta:.1%} of it, so no epsilon is certified: raise --delta"
        )
    return Certificate(max(0.0, min(found, top)), delta, reserve, curve.step, curve.cells)


def _evaluate(one: Atoms, epsilon: float, count: int, tolerance: float) -> Certificate:
    lost = -math.expm1(count * math.log1p(-one.infinite)) if one.infinite < 1.0 else 1.0
    pad = count * _padding(one)
    if epsilon - pad >= count * float(one.losses.max()):
        return Certificate(epsilon, lost, 0.0, 0.0, 0)
    if count == 1:
        above = one.losses > epsilon - pad
        found = float(-(one.masses[above] @ np.expm1(epsilon - pad - one.losses[above]))) * (1.0 + 1e-12)
        return Certificate(epsilon, min(1.0, lost + found), 0.0, 0.0, 0)
    rough = Rough(one)
    tilt = rough.tilt_for_epsilon(epsilon, count)
    for whole in (False, True):
        curve = Composed(one, count, tilt, rough, tolerance, epsilon - pad, whole)
        found, reserve = curve.delta(epsilon - pad), curve.reserve(epsilon - pad)
        if reserve <= LARGEST_SHARE * (lost + found) or found < SMALLEST_DELTA:
            break
    if lost + found < SMALLEST_DELTA or reserve > LARGEST_SHARE * (lost + found):
        raise DpzoError(
            f"--epsilon {epsilon:g}: its delta is below {max(reserve, SMALLEST_DELTA):.1g}, the least that is certified"
        )
    return Certificate(epsilon, min(1.0, lost + found), reserve, curve.step, curve.cells)


def _single_epsilon(one: Atoms, delta: float) -> float:
    """ε of one release, no grid: between two losses δ(ε) = Σ_{l>ε} m − e^ε·Σ_{l>ε} m·e^{−l}, solved for ε."""
    order = np.argsort(-one.losses)
    losses, masses = one.losses[order], one.masses[order]
    # Relative to the largest loss. Where e^{−l} would overflow it is cut: less is subtracted, the safe side.
    first = np.cumsum(masses)
    second = np.cumsum(masses * np.exp(np.minimum(losses[0] - losses, FARTHEST)))
    target = delta - one.infinite
    # δ just at each loss: all atoms above it count.
    at = np.concatenate([[0.0], first[:-1] - np.exp(losses[1:] - losses[0]) * second[:-1]])
    place = int(np.searchsorted(np.maximum.accumulate(at), target * (1.0 - 1e-12), side="right"))
    room = (first[place - 1] - target * (1.0 - 1e-12)) / second[place - 1]
    return float(losses[0] + math.log(room)) if room > 0.0 else 0.0
