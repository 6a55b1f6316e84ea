"""Closed forms of the families against quadrature, published figures and their own tables."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest

from dpzo.errors import DpzoError
from dpzo.noise import families, lattice_pld
from dpzo.noise.tabulate import MOST_CELLS, ScalarLaw, table

FAMILIES: list[ScalarLaw] = [
    families.laplace(0.7),
    families.gaussian(0.9),
    families.GeneralisedNormal(1.1, 1.4),
    families.GeneralisedNormal(0.5, 4.0),
    families.Huber(0.5, 2.0),
    families.Huber(0.9, 0.3),
    families.Staircase(1.3, 0.37),
    families.Staircase.best(4.0),
    families.TruncatedLaplace(0.8, 3.0),
    families.TruncatedLaplace.of(0.5, 1e-6),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_variance_and_survival_belong_together(family: ScalarLaw) -> None:
    """E X² = ∫ 2x·P(|X| > x) dx, P from the closed form."""
    gamma = getattr(family, "gamma", 0.5)
    steps = sorted([k + edge for k in range(21) for edge in (0.0, gamma)] + [30, 60, 200])
    found = mp.quad(lambda x: 2 * x * mp.mpf(family.survival(float(x))), steps)
    assert family.variance == pytest.approx(float(found), rel=1e-6)
    assert family.survival(0.0) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("cells", [16, 64])
def test_floats_and_integers_are_one_law(family: ScalarLaw, cells: int) -> None:
    noise, shape = table(family, cells), family.shape(cells)
    known = shape.masses > 1e-30
    assert len(noise.weights) == len(shape.masses)
    np.testing.assert_allclose(noise.shape.masses[known], shape.masses[known], rtol=1e-11)
    assert noise.shape.variance == pytest.approx(shape.variance, rel=1e-11)
    assert noise.shape.ratio == pytest.approx(shape.ratio, rel=1e-9)
    block = (noise.block**2 - 1) / 12 / noise.bound**2
    assert noise.variance == pytest.approx(shape.variance + block, rel=1e-11)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_cells_follow_the_continuous_law(family: ScalarLaw) -> None:
    """Survival at the edges of cells and the variance, to the second order of the cell's width."""
    cells = 512
    shape = family.shape(cells)
    beyond = 1.0 - (2.0 * np.cumsum(shape.masses) - shape.masses[0])
    for cell in (cells // 4, cells, 2 * cells):
        if cell < len(beyond):
            expected = family.survival((cell + 0.5) / cells)
            assert float(beyond[cell]) == pytest.approx(expected, rel=6.0 / cells, abs=1e-9)
    assert shape.variance == pytest.approx(family.variance, rel=8.0 / cells)


@pytest.mark.parametrize(
    ("epsilon", "gamma", "variance", "ratio"),
    [  # Geng and Viswanath's closed form; γ equals the numerical minimiser.
        (0.1, None, 199.9167, 0.999583),
        (0.5, 0.4583357, 7.917017, 0.989627),
        (1.0, 0.4167374, 1.918104, 0.959052),
        (2.0, 0.33513, 0.4227328, 0.845466),
        (3.0, 0.2599065, 0.1526736, 0.687031),
        (4.0, 0.1957566, 0.06497878, 0.51983),
        (8.0, 0.05483815, 0.003379828, 0.108154),
        (4.0 / 3.0, None, 1.0442721, 1.0442721 / 1.125),
    ],
)
def test_staircase_golden(epsilon: float, gamma: float | None, variance: float, ratio: float) -> None:
    best = families.Staircase.best(epsilon)
    if gamma is not None:
        assert best.gamma == pytest.approx(gamma, rel=1e-5)
    assert best.variance == pytest.approx(variance, rel=1e-6)
    assert best.variance / (2.0 / epsilon**2) == pytest.approx(ratio, rel=1e-5)
    b = math.exp(-epsilon)
    closed = (2 ** (-2 / 3) * b ** (2 / 3) * (1 + b) ** (2 / 3) + b) / (1 - b) ** 2
    assert best.variance == pytest.approx(closed, rel=1e-9)
    for other in (0.9 * best.gamma, min(1.0, 1.1 * best.gamma)):
        assert families.Staircase(epsilon, other).variance > best.variance


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0])
def test_staircase_tables_are_purely_private_at_their_epsilon(epsilon: float) -> None:
    noise = table(families.Staircase.best(epsilon))
    # Exactly: the masses of cells one clip norm apart, in rationals.
    worst = max(noise.mass(c) / noise.mass(c + noise.cells_per_bound) for c in range(0, 6 * noise.cells_per_bound, 7))
    assert math.log(worst) == pytest.approx(epsilon, rel=1e-14)
    assert lattice_pld.pure_epsilon(noise.shape) == pytest.approx(epsilon, rel=1e-13)


def test_huber_golden() -> None:
    assert families.Huber(1.0, 0.6).variance == pytest.approx(5.661, rel=1e-3)
    assert families.Huber(1.0, 2.0).variance == pytest.approx(1.0803, rel=1e-4)
    assert lattice_pld.pure_epsilon(families.Huber(1.0, 0.6).shape()) == pytest.approx(0.6, rel=1e-12)


def test_laplace_and_gaussian_are_generalised_normals() -> None:
    assert families.laplace(0.7).variance == pytest.approx(2 * 0.49, rel=1e-14)
    assert families.gaussian(0.9).variance == pytest.approx(0.81, rel=1e-14)
    assert lattice_pld.pure_epsilon(families.laplace(0.5).shape()) == pytest.approx(2.0, rel=1e-12)


def test_truncated_laplace_keeps_its_promise() -> None:
    family = families.TruncatedLaplace.of(2.0, 1e-3)
    fine = family.shape(2000)
    assert lattice_pld.delta(fine, 2.0) == pytest.approx(1e-3, rel=2e-3)
    assert family.variance < families.laplace(0.5).variance


def test_a_family_too_wide_for_a_table_is_sent_to_gaussian() -> None:
    for family in (families.laplace(1e4), families.Huber(1e4, 1.0), families.TruncatedLaplace(1.0, 1e6)):
        with pytest.raises(DpzoError, match="`mechanism` gaussian"):
            family.shape()
    with pytest.raises(DpzoError, match="at least 1 cell"):
        families.laplace(1.0).shape(0)
    assert len(families.laplace(80.0).shape().masses) < MOST_CELLS


@pytest.mark.parametrize(
    "make",
    [
        lambda: families.GeneralisedNormal(0.0, 1.0),
        lambda: families.GeneralisedNormal(math.nan, 1.0),
        lambda: families.GeneralisedNormal(1.0, 0.1),
        lambda: families.GeneralisedNormal(1.0, math.inf),
        lambda: families.Huber(-1.0, 1.0),
        lambda: families.Huber(1.0, 0.0),
        lambda: families.Staircase(0.0, 0.5),
        lambda: families.Staircase(1.0, 0.0),
        lambda: families.Staircase(1.0, 1.1),
        lambda: families.Staircase.best(math.nan),
        lambda: families.TruncatedLaplace(1.0, 0.0),
        lambda: families.TruncatedLaplace.of(1.0, 0.7),
    ],
)
def test_parameters_out_of_range_are_refused_in_one_line(make: object) -> None:
    assert callable(make)
    with pytest.raises(DpzoError, match="must") as caught:
        make()
    assert "\n" not in str(caught.value)
