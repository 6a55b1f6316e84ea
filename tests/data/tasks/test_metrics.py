"""Scores against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpzo.data.tasks.metrics import METRICS, accuracy, f1, macro_f1


def test_values_worked_out_by_hand() -> None:
    predictions = np.array([0, 1, 1, 2, 2, 2])
    targets = np.array([0, 1, 2, 2, 2, 0])
    assert accuracy(predictions, targets) == pytest.approx(4 / 6)
    # label 0: TP 1, predicted 1, true 2 → 2/3; label 1: TP 1, predicted 2, true 1 → 2/3; label 2: 2 of 3 and 3 → 2/3.
    assert macro_f1(predictions, targets, 3) == pytest.approx(2 / 3)
    # A declared label that nobody uses counts as 0.
    assert macro_f1(predictions, targets, 4) == pytest.approx(3 / 4 * 2 / 3)
    # TP 2, FP 1, FN 1 → 4 / 6.
    assert f1(np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 0])) == pytest.approx(4 / 6)
    assert f1(np.array([0, 0]), np.array([0, 0])) == 0.0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_scores_lie_between_0_and_1_and_only_a_perfect_answer_has_accuracy_1(pairs: list[tuple[int, int]]) -> None:
    predictions, targets = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    for name in ("accuracy", "macro_f1"):
        assert 0.0 <= METRICS[name](predictions, targets, 4) <= 1.0
    assert (accuracy(predictions, targets) == 1.0) == np.array_equal(predictions, targets)


@pytest.mark.parametrize("name", ["accuracy", "f1", "macro_f1"])
def test_no_or_unequal_answers_are_refused(name: str) -> None:
    empty = np.array([], np.int64)
    with pytest.raises(ValueError, match="one length"):
        METRICS[name](empty, empty, 2)
    with pytest.raises(ValueError, match="one length"):
        METRICS[name](np.array([1]), np.array([1, 0]), 2)


def test_f1_of_two_is_refused_for_three() -> None:
    with pytest.raises(ValueError, match="macro_f1"):
        METRICS["f1"](np.array([1]), np.array([1]), 3)
