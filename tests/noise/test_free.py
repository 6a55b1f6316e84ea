"""The free form: its gradients are those of its values, its values those of the accountant, and it only goes down."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpzo.noise import families, lattice_pld
from dpzo.noise.search import free

LAWS = [
    (families.GeneralisedNormal(0.6, 1.4), 8, 0.016, 100, 1.0),
    (families.GeneralisedNormal(20.0, 1.4), 2, 1.0, 20, 1.0),
    (families.gaussian(1.2), 8, 0.1, 50, 3.0),
]


def law_of(family: object, cells: int) -> free.Law:
    masses = family.shape(cells).masses  # type: ignore[attr-defined]
    kept = masses[masses > 1e-13 * masses[0]]
    return free.Law.of(-np.diff(np.log(kept)), cells)


@pytest.mark.parametrize(("family", "cells", "q", "count", "epsilon"), LAWS)
def test_the_guide_is_near_the_accountant(family: object, cells: int, q: float, count: int, epsilon: float) -> None:
    law = law_of(family, cells)
    guide = free.Surrogate(cells, len(law.masses) - 1, epsilon, q, count).evaluate(law)
    known = [c.delta for c in lattice_pld.certificates(law.shape(), epsilon, q, count)]
    assert [math.exp(value) for value, _ in guide] == pytest.approx(known, rel=2e-3)


@pytest.mark.parametrize(("family", "cells", "q", "count", "epsilon"), LAWS)
def test_gradients_are_differences(family: object, cells: int, q: float, count: int, epsilon: float) -> None:
    law = law_of(family, cells)
    last = len(law.masses) - 1
    guide = free.Surrogate(cells, last, epsilon, q, count)
    at = guide.evaluate(law)
    for cell in (0, 3, last // 4, last // 3):
        step = 1e-4 * law.masses[cell]
        near, far = law.masses.copy(), law.masses.copy()
        near[cell] -= step
        far[cell] += step
        ends = [guide.evaluate(free.Law(masses, law.ratio, cells)) for masses in (near, far)]
        for (_, gradient), (low, _), (high, _) in zip(at, *ends, strict=True):
            assert gradient[cell] == pytest.approx((high - low) / (2 * step), rel=0.02, abs=1.0)


@pytest.mark.parametrize("cost", [free.Cost(), free.Cost("absolute"), free.Cost("usefulness", 0.7)])
def test_costs_and_their_gradients_by_falls(cost: free.Cost) -> None:
    law = law_of(families.GeneralisedNormal(0.6, 1.2), 8)
    shape = law.shape()
    known = {
        "variance": shape.variance,
        "absolute": shape.mean_absolute,
        "usefulness": 1.0 - shape.usefulness(0.7),
    }
    value, gradient = cost.of(law)
    assert math.exp(value) == pytest.approx(known[cost.objective], rel=1e-9)
    falls = -np.diff(np.log(law.masses))
    by_falls = law.by_falls(gradient)
    for c in (0, 4, 11):
        moved = falls.copy()
        moved[c] += 1e-6
        assert by_falls[c] == pytest.approx((cost.of(free.Law.of(moved, 8))[0] - value) / 1e-6, rel=1e-3, abs=1e-6)


def test_knots_pull_back_what_they_push() -> None:
    basis = free.Basis.of(np.full(700, 0.01), 4)
    assert len(basis.at) < 100
    rng = np.random.default_rng(0)
    theta, gradient = rng.random(len(basis.at)), rng.random(700)
    assert basis.pull(gradient) @ theta == pytest.approx(float(gradient @ basis.falls(theta)), rel=1e-12)
    stepped = np.where(np.arange(700) % 4 == 0, 0.04, 0.0)
    assert len(free.Basis.of(stepped, 4).at) == 700


def test_it_goes_down_at_the_same_delta() -> None:
    start = law_of(families.GeneralisedNormal(0.95, 1.4), 16).shape()
    q, count, epsilon = 0.016, 100, 1.0
    delta = lattice_pld.delta(start, epsilon, q, count)
    better = free.improve(start, epsilon, delta, q, count, free.Cost())
    assert better.variance < 0.98 * start.variance
    assert lattice_pld.delta(better, epsilon, q, count) == pytest.approx(delta, rel=5e-3)
    assert np.all(np.diff(better.masses) <= 0.0)
