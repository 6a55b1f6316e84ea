"""From counts to lower bounds on ε: exact binomial bounds on two error rates, and the ε that they refute.

A test says "the unit is present" if a score reaches a threshold. (ε, δ) requires TPR ≤ e^ε·FPR + δ and, for the
complement, TNR ≤ e^ε·FNR + δ; so an upper bound on FPR and a lower one on TPR refute every ε below some value. The
threshold is chosen on draws that are not counted: there is only one test, so no correction is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Scores = npt.NDArray[np.float64]
CANDIDATES = 60  # thresholds per tail, at geometric ranks


@dataclass(frozen=True)
class Rates:
    """Upper bounds on both error rates of tests, arrays or numbers: `false_positive` FPR⁺, `false_negative` FNR⁺.

    Each fails with at most half of the allowed probability, so both hold except with all of it.
    """

    false_positive: npt.NDArray[np.float64]
    false_negative: npt.NDArray[np.float64]


def upper(hits: npt.ArrayLike, draws: int, miss: float) -> npt.NDArray[np.float64]:
    """Clopper–Pearson: the largest rate under which `hits` or fewer of `draws` have probability at least `miss`.

    >>> float(upper(0, 100, 0.05).round(6)), float(upper(100, 100, 0.05))
    (0.029513, 1.0)
    """
    found = np.asarray(hits, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        bound = stats.beta.isf(miss, found + 1.0, np.maximum(draws - found, 1e-9))
    return np.asarray(np.where(found >= draws, 1.0, bound), dtype=np.float64)


def rates(absent: Scores, present: Scores, thresholds: Scores, miss: float) -> Rates:
    """Bounds on the errors of "score ≥ threshold", for each threshold; both hold except with probability `miss`."""
    low, high = np.sort(absent), np.sort(present)
    positives = len(low) - np.searchsorted(low, thresholds, side="left")
    negatives = np.searchsorted(high, thresholds, side="left")
    return Rates(upper(positives, len(low), miss / 2.0), upper(negatives, len(high), miss / 2.0))


def candidates(absent: Scores, present: Scores) -> Scores:
    """Thresholds worth trying: values of both samples, at ranks that are geometric in both tails. Ascending."""
    chosen = []
    for scores in (np.sort(absent), np.sort(present)):
        ranks = np.unique(np.geomspace(1, len(scores), CANDIDATES).astype(np.int64)) - 1
        chosen.append(scores[np.concatenate([ranks, len(scores) - 1 - ranks])])
    values = np.unique(np.concatenate(chosen))
    # "≥ value" and "> value": an atom of the score belongs to either side.
    return np.unique(np.concatenate([values, np.nextafter(values, np.inf)]))


def clopper_pearson_epsilon(found: Rates, delta: float) -> npt.NDArray[np.float64]:
    """Largest ε that the rates refute at δ, over both directions; 0 if they refute none.

    Formula: max of ln((1 − FNR⁺ − δ)/FPR⁺), ln((1 − FPR⁺ − δ)/FNR⁺) and 0. No assumption on the mechanism.
    """
    best = np.zeros(np.broadcast(found.false_positive, found.false_negative).shape)
    for one, other in (
        (found.false_positive, found.false_negative),
        (found.false_negative, found.false_positive),
    ):
        with np.errstate(divide="ignore", invalid="ignore"):
            epsilon = np.log((1.0 - other - delta) / one)
        best = np.maximum(best, np.where(np.isfinite(epsilon), epsilon, 0.0))
    return best
