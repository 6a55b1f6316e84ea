"""Black-box membership inference: determine from a model's answers alone which records were in the training set.

LiRA: many runs on random halves of public records show how sure a model is of a record that it has seen and of one that
it has not; a run's own answers are scored by the likelihood ratio of the two. Each run is attacked by all the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.float64]
Members = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Membership:
    """A receiver operating characteristic: `true_positives[i]` of the members are found at `false_positives[i]`."""

    false_positives: npt.NDArray[np.float64]
    true_positives: npt.NDArray[np.float64]

    @property
    def area(self) -> float:
        """Under the curve; ½ is guessing."""
        return float(np.trapezoid(self.true_positives, self.false_positives))

    def found_at(self, false_positive_rate: float) -> float:
        """The true-positive rate where at most this share of non-members is called members."""
        allowed = self.false_positives <= false_positive_rate
        return float(self.true_positives[allowed].max())


def confidence_scores(logits: Table, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """ln(p/(1 − p)) of each record's own label, (N,) from logits (N, C): near normal over runs, unlike p.

    Formula: z_y − ln Σ_{c ≠ y} e^{z_c}. Source: Carlini et al. 2022, equation 3.
    """
    rows = np.arange(len(labels))
    others = np.array(logits, dtype=np.float64)
    own = others[rows, labels].copy()
    others[rows, labels] = -np.inf
    highest = others.max(axis=1)
    return np.asarray(own - highest - np.log(np.exp(others - highest[:, None]).sum(axis=1)))


def lira(scores: Table, members: Members) -> Membership:
    """The attack over all runs and records; `scores`, `members` (runs, records), higher being surer.

    Record i in run r: ln N(s; μ_in, σ_in²) − ln N(s; μ_out, σ_out²), the means over the other runs with and without i,
    the variances pooled over records, as few runs give no good one each. Records that the other runs do not show both
    with and without are left out. ValueError for fewer than 4 runs.
    Source: Carlini, Chien, Nasr, Song, Terzis, Tramèr 2022, the online attack with a global variance.
    """
    runs = len(scores)
    if runs < 4:
        raise ValueError("at least 4 runs, to know each record with and without")
    ratios, truth = [], []
    for run in range(runs):
        others = np.delete(np.arange(runs), run)
        inside, values = members[others], scores[others]
        with_it, without = inside.sum(axis=0), (~inside).sum(axis=0)
        seen = (with_it > 0) & (without > 0)
        mean_in = np.where(inside, values, 0.0).sum(axis=0) / np.maximum(with_it, 1)
        mean_out = np.where(~inside, values, 0.0).sum(axis=0) / np.maximum(without, 1)
        spread_in = _spread(np.where(inside, values - mean_in, 0.0), with_it)
        spread_out = _spread(np.where(~inside, values - mean_out, 0.0), without)
        own = scores[run]
        ratio = (own - mean_out) ** 2 / (2 * spread_out) - (own - mean_in) ** 2 / (2 * spread_in)
        ratio += 0.5 * np.log(spread_out / spread_in)
        ratios.append(ratio[seen])
        truth.append(members[run][seen])
    return characteristic(np.concatenate(ratios), np.concatenate(truth))


def _spread(deviations: Table, counts: npt.NDArray[np.int64]) -> float:
    """Variance pooled over records, a degree of freedom lost for each mean."""
    free = max(1, int((counts - 1).clip(min=0).sum()))
    return max(float((deviations**2).sum()) / free, 1e-12)


def characteristic(scores: npt.NDArray[np.float64], members: npt.NDArray[np.bool_]) -> Membership:
    """The curve of "score ≥ threshold" over all thresholds, from (0, 0) to (1, 1). Equal scores move together."""
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], members[order]
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
    positives, negatives = np.cumsum(truth)[last], np.cumsum(~truth)[last]
    return Membership(
        np.concatenate([[0.0], negatives / max(1, (~members).sum())]),
        np.concatenate([[0.0], positives / max(1, members.sum())]),
    )
