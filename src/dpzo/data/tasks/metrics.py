"""Scores of a classifier on a labelled set. They read labels: private data scored with them is not covered by ε."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


def accuracy(predictions: Labels, targets: Labels) -> float:
    """Share of right predictions: (1/n) Σ [prediction = target]; both (n,). ValueError for no or unequal lengths."""
    _check(predictions, targets)
    return float(np.mean(predictions == targets))


def f1(predictions: Labels, targets: Labels, positive: int = 1) -> float:
    """F1 of one label: 2·TP / (2·TP + FP + FN); 0 where the label is neither predicted nor true. Both (n,)."""
    _check(predictions, targets)
    predicted, true = predictions == positive, targets == positive
    marked = int(predicted.sum()) + int(true.sum())
    return 2.0 * int((predicted & true).sum()) / marked if marked else 0.0


def macro_f1(predictions: Labels, targets: Labels, num_labels: int) -> float:
    """Mean of F1 over all declared labels, absent ones counted as 0. Both (n,)."""
    _check(predictions, targets)
    return float(np.mean([f1(predictions, targets, label) for label in range(num_labels)]))


def _f1_of_two(predictions: Labels, targets: Labels, num_labels: int) -> float:
    if num_labels != 2:
        raise ValueError("f1 is for two labels; macro_f1 is for more")
    return f1(predictions, targets)


METRICS: Mapping[str, Callable[[Labels, Labels, int], float]] = {
    "accuracy": lambda predictions, targets, num_labels: accuracy(predictions, targets),
    "f1": _f1_of_two,
    "macro_f1": macro_f1,
}
"""Name of a task's metric → (predictions, targets, number of declared labels) → score in [0, 1]."""


def _check(predictions: Labels, targets: Labels) -> None:
    if predictions.ndim != 1 or predictions.shape != targets.shape or predictions.size == 0:
        raise ValueError("predictions and targets must be two arrays of one length, not empty")
