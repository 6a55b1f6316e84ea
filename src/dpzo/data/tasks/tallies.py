"""Metrics as sums over records, so that a bootstrap resamples rows of numbers and scores nothing anew.

Every metric here is a function of the sum of a row of numbers a record: accuracy of (right, 1), F1 of (true positives,
predicted, true), BLEU of its n-gram counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from dpzo.data.tasks.answers import drop_f1, squad_f1
from dpzo.data.tasks.texts import bleu_of, bleu_rows, rouge_l

Labels = NDArray[np.int64]
Rows = NDArray[np.float64]
RESAMPLES = 1000


@dataclass(frozen=True, repr=False)
class Tally:
    """`rows` (n, m), one a record; `finish` turns their sum, (m,), into the score. Private where the records are."""

    rows: Rows
    finish: Callable[[Rows], float]
    proportion: bool = True  # 0 and 1 are the borders: no record right, or every one

    def value(self) -> float:
        """The score on all records."""
        return self.finish(self.rows.sum(axis=0))


def tally_labels(metric: str, predictions: Labels, targets: Labels, num_labels: int) -> Tally:
    """Accuracy, F1 of label 1, or macro F1 of predicted labels; both (n,). KeyError for another metric."""
    right = (predictions == targets).astype(np.float64)
    if metric == "accuracy":
        return _mean(right)
    if metric == "f1":
        return Tally(_counts(predictions, targets, (1,)), _f1)
    if metric == "macro_f1":
        return Tally(_counts(predictions, targets, range(num_labels)), _macro)
    raise KeyError(metric)


def tally_answers(metric: str, answers: Sequence[str], golds: Sequence[Sequence[str]]) -> Tally:
    """Token F1 of SQuAD or DROP, ROUGE-L or BLEU of n generated texts; n lists of golds. KeyError for another metric.

    In [0, 1], BLEU too. Errors: DpzoError when the package behind BLEU or ROUGE is not installed.
    """
    if metric == "bleu":
        return Tally(bleu_rows(answers, golds), bleu_of)
    if metric == "rouge_l":
        return _mean(rouge_l(answers, golds))
    score = {"squad_f1": squad_f1, "drop_f1": drop_f1}[metric]
    return _mean(np.array([score(answer, gold) for answer, gold in zip(answers, golds, strict=True)]))


def tally_losses(losses: Rows) -> Tally:
    """The mean of n losses."""
    return replace(_mean(losses), proportion=False)


def bootstrap(tally: Tally, *, units: NDArray[np.int64] | None = None, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of a score over 1000 resamples, drawn with a public seed.

    `units` (n,): who owns a record; all records of a unit are drawn together, for they are not independent. Without
    it records are drawn. The interval says how much the test set's luck moves the score, not how much training's does.
    """
    rows = tally.rows
    if units is not None:
        summed = np.zeros((int(units.max()) + 1, rows.shape[1]))
        np.add.at(summed, units, rows)
        rows = summed
    generator = np.random.default_rng(seed)
    count = len(rows)
    scores = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = np.bincount(generator.integers(count, size=count), minlength=count)
        scores[i] = tally.finish(drawn @ rows)
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def interval(tally: Tally, *, units: NDArray[np.int64] | None = None, seed: int = 0) -> tuple[float, float]:
    """`bootstrap`; where it has no width because no record errs, or each does, the exact interval of a proportion.

    Resamples of 300 right answers are all right, which says nothing of the next record. There Clopper–Pearson applies
    to the units (records without them): it holds at any size for independent units of which each is right or wrong.
    """
    low, high = bootstrap(tally, units=units, seed=seed)
    if low < high or not tally.proportion or low not in (0.0, 1.0):
        return low, high
    count = len(tally.rows) if units is None else len(np.unique(units))
    found = binomtest(count if low == 1.0 else 0, count).proportion_ci(confidence_level=0.95, method="exact")
    return float(found.low), float(found.high)


def _mean(values: Rows) -> Tally:
    return Tally(np.stack([values, np.ones(len(values))], axis=1), lambda total: float(total[0] / total[1]))


def _counts(predictions: Labels, targets: Labels, labels: Sequence[int]) -> Rows:
    columns = []
    for label in labels:
        predicted, true = predictions == label, targets == label
        columns += [predicted & true, predicted, true]
    return np.stack(columns, axis=1).astype(np.float64)


def _f1(total: Rows) -> float:
    marked = total[1] + total[2]
    return float(2 * total[0] / marked) if marked else 0.0


def _macro(total: Rows) -> float:
    return float(np.mean([_f1(part) for part in total.reshape(-1, 3)]))
