"""The certificate: direct convolutions against exact curves, dp-accounting and the search's own accountant."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as theirs

from dpzo.errors import DpzoError
from dpzo.noise import families, lattice_pld
from dpzo.noise.search import certified_epsilon
from dpzo.noise.shape import Shape
from dpzo.privacy.accounting import closed_form


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_full_batch_gaussian(count: int) -> None:
    """Fine cells follow the exact curve of the continuous law."""
    exact = closed_form.gaussian_epsilon(1e-6, math.sqrt(count) / 8.0)
    found = certified_epsilon(families.gaussian(8.0).shape(32), 1e-6, 1.0, count)
    assert found == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize(("noise", "q", "count", "delta"), [(1.054, 0.016, 100, 1e-5), (3.0, 0.1, 300, 1e-8)])
def test_dp_accounting_agrees(noise: float, q: float, count: int, delta: float) -> None:
    known = theirs.from_gaussian_mechanism(noise, value_discretization_interval=2e-5, sampling_prob=q)
    known = known.self_compose(count).get_epsilon_for_delta(delta)
    assert certified_epsilon(families.gaussian(noise).shape(64), delta, q, count) == pytest.approx(known, rel=5e-4)


@pytest.mark.parametrize(
    ("family", "q", "count", "delta"),
    [
        (families.Huber(1.5, 0.6), 0.0304, 192, 1e-10),
        (families.laplace(0.28), 0.016, 100, 1e-5),
        (families.Staircase.best(1.0), 0.2, 33, 1e-7),
        (families.Staircase.best(1.0), 1.0, 12, 1e-20),
        (families.TruncatedLaplace.of(0.5, 1e-9), 1.0, 4, 1e-7),
        (families.GeneralisedNormal(20.0, 1.5), 1.0, 20, 1e-40),
        (families.gaussian(30.0), 0.05, 5000, 1e-6),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_two_accountants_that_share_no_code_agree(family: object, q: float, count: int, delta: float) -> None:
    shape = family.shape(16)  # type: ignore[attr-defined]
    own = lattice_pld.epsilon(shape, delta, q, count, tolerance=1e-5)
    assert certified_epsilon(shape, delta, q, count) == pytest.approx(own, rel=3e-4)


@pytest.mark.parametrize("q", [1.0, 0.3])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_it_is_never_below_the_truth(q: float, count: int) -> None:
    """Against δ enumerated over all outcomes of a small law, exactly as floats can."""
    shape = Shape(np.array([0.3, 0.2, 0.1, 0.05]), 0.0, 2)
    line = np.concatenate([np.zeros(2), shape.masses[:0:-1], shape.masses, np.zeros(2)])
    moved = np.roll(line, 2)
    mixed = (1 - q) * line + q * moved

    def spent(first: np.ndarray, second: np.ndarray, epsilon: float) -> float:
        one, two = first, second
        for _ in range(count - 1):
            one, two = np.multiply.outer(one, first), np.multiply.outer(two, second)
        return float(np.maximum(one - math.exp(epsilon) * two, 0.0).sum())

    lost = max(spent(mixed, line, 50.0), spent(line, mixed, 50.0))
    for delta in (lost * 1.01 + 1e-3, lost + 0.05):
        found = certified_epsilon(shape, delta, q, count)
        assert max(spent(mixed, line, found), spent(line, mixed, found)) <= delta
        below = found * (1.0 - 1e-3) - 1e-9
        assert max(spent(mixed, line, below), spent(line, mixed, below)) >= delta * (1.0 - 1e-2)
    assert certified_epsilon(shape, lost * 0.9, q, count) == math.inf or lost == 0.0


def test_pure_noise_stays_within_its_pure_epsilon() -> None:
    shape = families.laplace(10.0).shape(8)
    assert certified_epsilon(shape, 1e-10, 1.0, 10) <= lattice_pld.pure_epsilon(shape, 1.0, 10) * (1 + 1e-12)


@pytest.mark.parametrize("delta", [0.0, 1.0, 1e-120, math.nan])
def test_a_delta_out_of_range_is_refused(delta: float) -> None:
    with pytest.raises(DpzoError, match="`delta`"):
        certified_epsilon(families.laplace(1.0).shape(4), delta)
