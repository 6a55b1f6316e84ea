"""LiRA: finds what it should where there is something to find, and nothing where there is not."""

import numpy as np
import pytest
from scipy import stats

from dpzo.audit.membership import characteristic, confidence_scores, lira


def test_confidence_is_the_log_odds_of_the_own_label() -> None:
    logits, labels = np.array([[2.0, -1.0, 0.5], [800.0, -800.0, 0.0]]), np.array([2, 1])
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    found = confidence_scores(logits, labels)
    assert found[0] == pytest.approx(np.log(p[2] / (1 - p[2])))
    assert found[1] == pytest.approx(-1600.0)
    assert logits[1, 1] == -800.0


def test_the_curve_is_that_of_the_thresholds() -> None:
    found = characteristic(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False]))
    assert found.false_positives.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert found.true_positives.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert found.area == pytest.approx(0.875)
    assert found.found_at(0.49) == 0.5
    assert found.found_at(0.5) == 1.0


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_gaussian_answers_are_told_apart_as_well_as_can_be(shift: float) -> None:
    """Records of very different difficulty, members surer by `shift` standard deviations: the best test is known."""
    draw = np.random.Generator(np.random.PCG64(7))
    members = draw.random((64, 400)) < 0.5
    scores = 5 * draw.normal(size=400) + draw.normal(size=(64, 400)) + shift * members
    found = lira(scores, members)
    assert found.area == pytest.approx(stats.norm.cdf(shift / np.sqrt(2)), abs=0.02)
    best = stats.norm.sf(stats.norm.isf(0.01) - shift)
    assert found.found_at(0.01) == pytest.approx(best, abs=0.03)
    assert found.found_at(0.01) >= 0.75 * best


def test_a_record_that_is_always_in_is_left_out() -> None:
    draw = np.random.Generator(np.random.PCG64(7))
    members = draw.random((8, 50)) < 0.5
    members[:, 0] = True
    scores = draw.normal(size=(8, 50))
    assert lira(scores, members).area == pytest.approx(lira(scores[:, 1:], members[:, 1:]).area, abs=0.02)


def test_few_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="4 runs"):
        lira(np.zeros((3, 5)), np.zeros((3, 5), dtype=bool))
