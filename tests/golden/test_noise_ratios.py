"""Variance of calibrated noises relative to the calibrated Gaussian: the reference table, one family at a time.

Where a noise is pinned by its pure ε (Laplace at T = 10: b = T/ε) the exact figure is held and not the table's, which a
grid rounded up.
"""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from dpzo.noise import families
from dpzo.noise.search.parametric import SearchTask, calibrated
from dpzo.privacy.accounting import calibrate
from dpzo.privacy.events import ComposedEvent, GaussianEvent, NeighboringRelation, PoissonSampledEvent

FEW = Fraction(2048, 67350)


def sigma(task: SearchTask) -> float:
    def event(noise: float) -> ComposedEvent:
        one = GaussianEvent(noise)
        return ComposedEvent(
            one if task.sampling_prob == 1.0 else PoissonSampledEvent(task.sampling_prob, one), task.steps
        )

    return calibrate.noise(event, task.epsilon, task.delta, NeighboringRelation.ZERO_OUT)


@pytest.mark.parametrize(
    ("steps", "epsilon", "ratio"),
    [
        (1, 0.1, 0.0684),
        (1, 0.5, 0.0615),
        (1, 1.0, 0.0582),
        (1, 4.0, 0.0504),
        (3, 4.0, 0.151),
        (10, 4.0, 0.505),
        (30, 0.1, 1.669),
        (30, 1.0, 1.529),
        (30, 4.0, 1.46),
        (100, 0.1, 1.906),
        (100, 1.0, 1.876),
        (100, 4.0, 1.827),
    ],
)
def test_laplace_full_batch(steps: int, epsilon: float, ratio: float) -> None:
    task = SearchTask(epsilon, 1e-10, 1.0, steps)
    found = calibrated(task, "laplace", families.laplace, steps / epsilon, 1e-4)
    assert found.cost / sigma(task) ** 2 == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize(("epsilon", "table"), [(0.1, 0.7), (1.0, 0.584)])
def test_laplace_pinned_by_its_pure_epsilon(epsilon: float, table: float) -> None:
    task = SearchTask(epsilon, 1e-10, 1.0, 10)
    found = calibrated(task, "laplace", families.laplace, 10 / epsilon, 1e-4)
    assert found.cost == pytest.approx(2 * (10 / epsilon) ** 2, rel=1e-3)
    assert 0.97 * table < found.cost / sigma(task) ** 2 < table


@pytest.mark.parametrize(
    ("family", "parameter", "sampling_prob", "steps", "epsilon", "delta", "ratio"),
    [
        ("generalised normal", 1.4, FEW, 192, 3.0, 1e-10, 0.742),
        ("generalised normal", 1.4, Fraction(16, 1000), 100, 1.0, 1e-5, 0.64),
        ("generalised normal", 1.4, Fraction(16, 1000), 1000, 4.0, 1e-5, 0.719),
        ("generalised normal", 1.4, Fraction(1, 10), 100, 4.0, 1e-5, 0.866),
        ("generalised normal", 1.0, Fraction(16, 1000), 100, 4.0, 1e-5, 0.371),
        ("huber", 2.0, Fraction(16, 1000), 1000, 1.0, 1e-5, 0.983),
        ("huber", 2.0, Fraction(1, 8), 200, 4.0, 1e-5, 0.975),
        ("huber", 0.6, FEW, 192, 8.0, 1e-10, 0.513),
    ],
)
def test_sampled(
    family: str, parameter: float, sampling_prob: Fraction, steps: int, epsilon: float, delta: float, ratio: float
) -> None:
    task = SearchTask(epsilon, delta, float(sampling_prob), steps)
    gaussian = sigma(task)
    if family == "huber":
        found = calibrated(task, family, lambda s: families.Huber(s, parameter), gaussian, 1e-4)
    else:
        unit = math.sqrt(families.GeneralisedNormal(1.0, parameter).variance)
        found = calibrated(task, family, lambda s: families.GeneralisedNormal(s, parameter), gaussian / unit, 1e-4)
    assert found.cost / gaussian**2 == pytest.approx(ratio, rel=0.01)
