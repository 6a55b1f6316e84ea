"""Floating-point noise has the law it is accounted for, and comes from nowhere but the secret source."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from dpzo.experiments.baselines.noise import add_noise, float_normals
from dpzo.privacy import Randomness, SecretRandom

DRAWS = 1_000_000


def rejects(sample: np.ndarray, scale: float) -> bool:
    """χ² of the variance at 10⁻⁷ a side: a million draws tell 3 % of scale apart 30 standard errors away."""
    statistic = float((sample**2).sum()) / scale**2
    tail = min(stats.chi2.cdf(statistic, len(sample)), stats.chi2.sf(statistic, len(sample)))
    return bool(tail < 1e-7)


def test_variance_with_power() -> None:
    sample = float_normals(DRAWS, SecretRandom())
    assert not rejects(sample, 1.0)
    assert rejects(sample, 0.97)
    assert rejects(sample, 1.03)
    assert abs(sample.mean()) < 6 / math.sqrt(DRAWS)


def test_law_by_cells() -> None:
    sample = float_normals(DRAWS, SecretRandom())
    edges = np.linspace(-4, 4, 65)
    expected = np.diff(stats.norm.cdf(np.concatenate(([-np.inf], edges, [np.inf])))) * DRAWS
    counts, _ = np.histogram(sample, np.concatenate(([-np.inf], edges, [np.inf])))
    assert stats.chisquare(counts, expected).pvalue > 1e-7
    first, second = np.split(sample, 2)  # the two halves of each pair share a radius and must not show it
    assert abs(np.corrcoef(first, second)[0, 1]) < 6 / math.sqrt(DRAWS / 2)
    assert abs(np.corrcoef(first**2, second**2)[0, 1]) < 6 / math.sqrt(DRAWS / 2)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 70_001])
def test_sizes(size: int) -> None:
    sample = float_normals(size, SecretRandom())
    assert sample.shape == (size,)
    assert np.isfinite(sample).all()
    assert len(np.unique(sample)) == size


class Extremes:
    """Words of all zeros and all ones: the ends of the uniform deviates."""

    def words(self):
        raise AssertionError("whole arrays only")

    def word_array(self, size: int) -> np.ndarray:
        return np.where(np.arange(size) % 2 == 0, np.uint64(0), np.uint64(2**64 - 1))


def test_the_ends_of_the_deviates_are_finite() -> None:
    source: Randomness = Extremes()
    sample = float_normals(8, source)
    assert np.isfinite(sample).all()
    assert np.abs(sample).max() < 8.6


def test_noise_lands_on_every_element_and_is_fresh() -> None:
    first, second = torch.full((100_000,), 5.0), torch.full((100_000,), 5.0)
    add_noise(first, 2.0, SecretRandom())
    add_noise(second, 2.0, SecretRandom())
    assert (first != second).float().mean() > 0.99
    assert abs(float(first.mean()) - 5.0) < 0.05
    assert abs(float(first.std()) - 2.0) < 0.05


def test_a_torch_generator_would_not_do() -> None:
    """Why none is used: on CPU, seeds that differ above bit 32 give the same noise."""
    seed = 123_456_789
    one, other = (torch.Generator().manual_seed(s) for s in (seed, seed + 2**32))
    assert torch.equal(torch.randn(100, generator=one), torch.randn(100, generator=other))
