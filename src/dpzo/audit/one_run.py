"""Lower bounds on ε from one run with many canaries, each included independently by a coin toss.

An auditor guesses for some canaries whether they were in, abstains for the others, and counts. Under (ε, δ) few guesses
can be right, however they are made, so many right ones refute small ε. The guessing thresholds are chosen on half of
the canaries and counted on the other half: there is only one test, so no correction is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from dpzo.privacy.accounting import closed_form

Scores = npt.NDArray[np.float64]
Members = npt.NDArray[np.bool_]

_MOST = 64.0
"""Bounds are searched below it: more than any count of canaries could show."""


@dataclass(frozen=True)
class Guesses:
    """`right` of `made` guesses about `canaries` canaries."""

    canaries: int
    made: int
    right: int


def guessed(scores: Scores, members: Members, low: float, high: float) -> Guesses:
    """Guess "in" from `high` on, "out" up to `low`, abstain between."""
    says_in, says_out = scores >= high, scores <= low
    right = int((says_in & members).sum() + (says_out & ~members & ~says_in).sum())
    return Guesses(len(scores), int((says_in | says_out).sum()), right)


def binomial_epsilon(found: Guesses, delta: float, miss: float) -> float:
    """Largest ε refuted at δ: under it so many right guesses have probability below `miss`. 0 where none is.

    Formula: P[W ≥ v] ≤ β + 2mδ·max_i (P[v > B ≥ v − i]/i), with B ~ Binomial(r, e^ε/(1 + e^ε)) and β = P[B ≥ v].
    Source: Steinke, Nasr, Jagielski 2023, theorem 5.2.
    """
    right = np.arange(1, found.right + 1)

    def refuted(epsilon: float) -> bool:
        chance = 1.0 / (1.0 + math.exp(-epsilon))
        tail = float(stats.binom.sf(found.right - 1, found.made, chance))
        if delta > 0 and found.right > 0:
            nearly = stats.binom.sf(found.right - right - 1, found.made, chance) - tail
            tail += 2.0 * found.canaries * delta * float(np.max(nearly / right))
        return tail < miss

    return _largest(refuted)


def gaussian_epsilon(found: Guesses, delta: float, miss: float) -> float:
    """The same for mechanisms whose trade-off curve is a Gaussian's: tighter, but valid only under that assumption.

    Formula: with f̄⁻¹(x) = Φ(Φ⁻¹(x) − μ) and μ the Gaussian that spends (ε, δ), from r = τ·v/m and h = τ·(c − v)/m at
    i = v downwards: h ← max(h, f̄⁻¹(r)), r ← r + i/(c − i)·(h_new − h_old); refuted if r + h > c/m at the end, for c
    guesses, v of them right, m canaries and τ = `miss`. Source: Mahloujifar, Melis, Chaudhuri 2024, algorithm 3.
    """
    if found.made == 0:
        return 0.0

    def refuted(epsilon: float) -> bool:
        mean = _gaussian_mean(epsilon, delta)
        most, canaries = found.made, found.canaries
        right, wrong = miss * found.right / canaries, miss * (most - found.right) / canaries
        for i in range(found.right - 1, -1, -1):
            raised = max(wrong, float(special.ndtr(special.ndtri(right) - mean)))
            if raised == wrong:
                break
            right, wrong = min(right + i / (most - i) * (raised - wrong), 1.0), raised
        return right + wrong > most / canaries

    return _largest(refuted)


def one_run_epsilons(
    scores: Scores, members: Members, delta: float, miss: float, mixed: npt.NDArray[np.int64]
) -> tuple[float, float, Guesses]:
    """(`binomial_epsilon`, `gaussian_epsilon`, what was counted); each bound fails with probability at most `miss`.

    `mixed`: a public order of the canaries; the first half of it chooses the thresholds, the second is counted.
    """
    half = len(mixed) // 2
    choosing, counting = mixed[:half], mixed[half:]
    best, chosen = (-1.0, -math.inf), (-math.inf, math.inf)
    ranked = np.sort(scores[choosing])
    for share in np.linspace(0.02, 0.5, 25):
        count = max(1, int(share * half))
        low, high = float(ranked[count - 1]), float(ranked[-count])
        tried = guessed(scores[choosing], members[choosing], low, high)
        worth = (binomial_epsilon(tried, delta, miss), (tried.right - tried.made / 2) / math.sqrt(max(1, tried.made)))
        if worth > best:
            best, chosen = worth, (low, high)
    found = guessed(scores[counting], members[counting], *chosen)
    return binomial_epsilon(found, delta, miss), gaussian_epsilon(found, delta, miss), found


def _largest(refuted: Callable[[float], bool]) -> float:
    """The largest refuted ε, from below; refuting a larger one is harder."""
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while high < _MOST and refuted(high):
        low, high = high, 2.0 * high
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _gaussian_mean(epsilon: float, delta: float) -> float:
    """μ of the Gaussian test that is (ε, δ)-DP and no better."""
    if delta == 0.0:
        return 0.0
    low, high = 0.0, 1.0
    while closed_form.gaussian_epsilon(delta, high) <= epsilon:
        low, high = high, 2.0 * high
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if closed_form.gaussian_epsilon(delta, middle) <= epsilon else (low, middle)
    return low
