"""A private count: what it is worth, that it is not biased, and that its ε is what its noise gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpzo.run.private_count import PrivateCount, release_count


def test_counts_are_unbiased_and_as_noisy_as_their_epsilon_says() -> None:
    epsilon, num_units, draws = 0.1, 1_000, 4_000
    counts = np.array([release_count(num_units, epsilon).num_examples for _ in range(draws)])
    std = math.sqrt(2) / epsilon
    assert abs(counts.mean() - num_units) < 5 * std / math.sqrt(draws)
    # Laplace: the standard deviation of a squared draw is √20 ÷ 2 times its mean.
    assert counts.var() == pytest.approx(std**2, rel=5 * math.sqrt(5 / draws))


def test_large_counts_are_not_pulled_down_by_the_lattice() -> None:
    assert release_count(1_000_000, 50.0).num_examples == pytest.approx(1_000_000, abs=3)


def test_epsilon_is_pure_and_exact() -> None:
    for epsilon in (0.01, 0.3, 4.0):
        count = release_count(10, epsilon)
        assert count.epsilon == pytest.approx(epsilon, rel=1e-12)
        assert count.plan.delta == 0
        assert PrivateCount.from_dict(count.to_dict()) == count


def test_no_unit_is_a_number_too() -> None:
    assert release_count(0, 1000.0).num_examples == 1
    few = [release_count(1, 0.05).num_examples for _ in range(200)]
    assert min(few) == 1  # half of the noisy counts lie below 1, where no plan could be made
    assert max(few) > 10


def test_the_plan_is_one_release() -> None:
    count = release_count(5, 1.0)
    assert count.plan.steps == 1
