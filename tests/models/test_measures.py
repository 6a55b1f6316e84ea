"""Scores that no gradient reaches: what they are, their bounds, and that a step can use them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpzo.errors import DpzoError
from dpzo.models.measures import answer_measure, check_measure, class_measure


def said(tokens: list[list[int]], vocabulary: int = 6) -> torch.Tensor:
    """Logits whose argmax in column j is `tokens[:, j]`, and one column that scores nothing."""
    chosen = torch.nn.functional.one_hot(torch.tensor(tokens), vocabulary).float()
    return torch.cat((chosen, torch.zeros(len(tokens), 1, vocabulary)), dim=1)


answers = st.lists(st.lists(st.integers(0, 5), min_size=5, max_size=5), min_size=1, max_size=4)


@given(truth=answers, data=st.data())
@settings(max_examples=80, deadline=None)
def test_accuracy_and_f1_are_what_counting_gives(truth: list[list[int]], data: st.DataObject) -> None:
    guess = data.draw(
        st.lists(st.lists(st.integers(0, 5), min_size=5, max_size=5), min_size=len(truth), max_size=len(truth))
    )
    lengths = data.draw(st.lists(st.integers(0, 5), min_size=len(truth), max_size=len(truth)))
    inputs = torch.tensor([[0, 0, *row] for row in truth])
    accuracy = answer_measure("accuracy", said(guess), inputs, torch.tensor(lengths))
    f1 = answer_measure("f1", said(guess), inputs, torch.tensor(lengths))
    for place, length in enumerate(lengths):
        own, tried = truth[place][5 - length :], guess[place][5 - length :]
        if length == 0:
            assert float(accuracy[place]) == float(f1[place]) == 0.0
            continue
        right = sum(a == b for a, b in zip(own, tried, strict=True))
        common = sum((Counter(own) & Counter(tried)).values())
        assert float(accuracy[place]) == pytest.approx(1 - right / length)
        assert float(f1[place]) == pytest.approx(1 - common / length)
        assert f1[place] <= accuracy[place] + 1e-6


def test_classes_are_right_or_wrong_and_garbage_is_nan() -> None:
    scores = torch.tensor([[1.0, 2.0], [1.0, 1.0], [float("nan"), 1.0], [float("inf"), 0.0]])
    found = class_measure("accuracy", scores, torch.tensor([1, 1, 1, 0]))
    assert found[:2].tolist() == [0.0, 1.0]  # of equals the first counts
    assert found[2:].isnan().all()
    logits = said([[1, 2], [1, 2]])
    logits[1, 1, 0] = float("nan")
    found = answer_measure("f1", logits, torch.tensor([[1, 2], [1, 2]]), torch.tensor([1, 2]))
    assert float(found[0]) == 0.0
    assert found[1].isnan()


def test_what_is_not_defined_is_refused() -> None:
    assert check_measure("f1", "completion") == "f1"
    with pytest.raises(DpzoError, match="--objective f1: is for completion"):
        check_measure("f1", "classes")
    with pytest.raises(DpzoError, match="--objective bleu: unknown; choose one of loss, accuracy, f1"):
        check_measure("bleu", "completion")


def test_a_score_is_a_step_function_with_slopes_across_its_steps() -> None:
    """Beside a decision boundary the two-point slope of an accuracy is ± 1/(2φ); far from it 0."""
    targets = torch.tensor([0])

    def at(x: float) -> float:
        return float(class_measure("accuracy", torch.tensor([[x, 0.0]]), targets)[0])

    smoothing = 0.1
    slopes = [(at(x + smoothing) - at(x - smoothing)) / (2 * smoothing) for x in (-1.0, 0.05, 1.0)]
    assert np.allclose(slopes, [0.0, -5.0, 0.0])
