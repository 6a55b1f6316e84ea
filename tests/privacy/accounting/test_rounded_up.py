"""Closed forms against mpmath in 120 digits: never below, and one float above at most."""

from __future__ import annotations

import math
import random

import mpmath as mp
import pytest

from dpzo.privacy.accounting import closed_form, rounded_up
from dpzo.privacy.events import NeighboringRelation

ZERO, ADD, REPLACE = NeighboringRelation
ONE_FLOAT = mp.mpf(2) ** -51


def test_pi_has_its_digits() -> None:
    with mp.workdps(120):
        assert abs(mp.mpf(str(rounded_up.PI)) - mp.pi) < mp.mpf(10) ** -98


def _exact_loss(scale: float, q: float, count: int, relation: NeighboringRelation) -> mp.mpf:
    gap = 1 / mp.mpf(scale)
    loss = mp.log1p(mp.mpf(q) * mp.expm1(gap))
    if relation is REPLACE:
        loss -= mp.log1p(mp.mpf(q) * mp.expm1(-gap)) if q < 1.0 else -gap
    return count * loss


@pytest.mark.parametrize("relation", [ZERO, REPLACE])
def test_laplace_pure_epsilon_is_rounded_up(relation: NeighboringRelation) -> None:
    draw = random.Random(1)
    with mp.workdps(120):
        for _ in range(300):
            scale, q = 10 ** draw.uniform(-3.0, 8.0), draw.choice([1.0, 10 ** draw.uniform(-9.0, 0.0)])
            count = int(10 ** draw.uniform(0.0, 6.0))
            found = closed_form.laplace_pure_epsilon(scale, q, count, relation)
            exact = _exact_loss(scale, q, count, relation)
            assert exact <= found <= exact * (1 + ONE_FLOAT)


@pytest.mark.parametrize(("scale", "q"), [(1e300, 0.3), (1e25, 1e-30), (2.0, 1e-60), (1e-4, 1e-300), (0.02, 0.5)])
def test_extreme_laplace_noise_is_rounded_up(scale: float, q: float) -> None:
    with mp.workdps(700):
        for relation in (ZERO, REPLACE):
            found, exact = closed_form.laplace_pure_epsilon(scale, q, 3, relation), _exact_loss(scale, q, 3, relation)
            assert exact <= found <= exact * (1 + ONE_FLOAT)


def test_rational_results_are_exact() -> None:
    assert closed_form.laplace_pure_epsilon(2.0, 1.0, 3) == 1.5
    assert closed_form.laplace_pure_epsilon(2.0, 1.0, 3, REPLACE) == 3.0
    assert closed_form.laplace_pure_epsilon(5e-324, 1.0, 3) == math.inf


def test_the_gaussian_curve_is_rounded_up_and_so_is_its_inverse() -> None:
    draw = random.Random(2)
    with mp.workdps(120):
        for _ in range(200):
            mu, z = 10 ** draw.uniform(-6.0, 3.0), draw.uniform(-10.0, 37.0)
            epsilon = max(0.0, mu * (z + mu / 2))
            near, far = (sign * mp.mpf(mu) / 2 - mp.mpf(epsilon) / mu for sign in (1, -1))
            exact = mp.ncdf(near) - mp.exp(mp.mpf(epsilon)) * mp.ncdf(far)
            found = closed_form.gaussian_delta(epsilon, mu)
            assert exact <= found <= exact * (1 + ONE_FLOAT) + mp.mpf(5e-324)
    for mu in (1e-3, 1.0, 40.0):
        for delta in (1e-200, 1e-15, 1e-5):
            epsilon = closed_form.gaussian_epsilon(delta, mu)
            assert closed_form.gaussian_delta(epsilon, mu) <= delta
            assert closed_form.gaussian_delta(epsilon * (1 - 1e-9), mu) > delta
    assert closed_form.gaussian_delta(1e9, 1.0) > 0.0
    assert closed_form.gaussian_delta(0.0, 1e6) == 1.0
