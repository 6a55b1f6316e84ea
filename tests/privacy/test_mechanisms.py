"""Sensitivity holds in integers, whatever the rows; the realised noise multiplier is never below the claimed one."""

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dpzo.errors import DpzoError
from dpzo.privacy import Gaussian, Laplace, clip_rows, lattice
from dpzo.privacy.mechanisms import RESOLUTION, Mechanism, within_bound

any_float = st.floats(allow_nan=True, allow_infinity=True, width=64)
mechanisms = st.builds(
    lambda kind, scale: kind(scale), st.sampled_from([Gaussian, Laplace]), st.floats(min_value=1e-3, max_value=1e5)
)
clip_norms = st.floats(min_value=1e-12, max_value=1e12)
rows_of_any_kind = hnp.arrays(np.float64, st.tuples(st.integers(0, 5), st.integers(1, 40)), elements=any_float)


def norm(row: npt.NDArray[np.int64], order: int) -> Fraction:
    """Exact: ‖row‖₁ or ‖row‖₂² in rationals."""
    return sum((Fraction(int(abs(v))) ** (1 if order == 1 else 2) for v in row), Fraction(0))


@given(mechanisms, clip_norms, rows_of_any_kind)
@settings(max_examples=300)
def test_every_row_obeys_the_bound_in_integers(
    mechanism: Mechanism, clip_norm: float, rows: npt.NDArray[np.float64]
) -> None:
    grid = lattice(mechanism, clip_norm, rows.shape[1])
    clipped = clip_rows(rows, grid)
    assert clipped.shape == rows.shape
    assert clipped.dtype == np.int64
    for row in clipped:
        assert norm(row, grid.order) <= grid.bound**grid.order


@given(mechanisms, st.integers(1, 2000))
def test_the_lattice_keeps_the_noise_multiplier_and_is_fine(mechanism: Mechanism, num_directions: int) -> None:
    grid = lattice(mechanism, 3.0, num_directions)
    assert Fraction(2**grid.bits) / grid.bound >= Fraction(mechanism.scale)
    assert grid.bound**2 >= RESOLUTION**2 * (num_directions if grid.order == 2 else num_directions**2)
    assert grid.unit == pytest.approx(mechanism.scale * 3.0 / 2**grid.bits, rel=1e-15)


@given(rows_of_any_kind)
def test_non_finite_rows_count_zero_and_others_keep_their_value(rows: npt.NDArray[np.float64]) -> None:
    grid = lattice(Gaussian(2.0), 1.0, rows.shape[1])
    clipped = clip_rows(rows, grid)
    finite = np.isfinite(rows).all(axis=1)
    assert not clipped[~finite].any()
    alone = [clip_rows(row[None], grid)[0] for row in rows]
    assert all(np.array_equal(a, b) for a, b in zip(alone, clipped, strict=True))


@given(st.permutations(range(6)))
def test_a_row_does_not_depend_on_the_others(order: list[int]) -> None:
    rows = np.random.default_rng(0).normal(size=(6, 17)) * np.logspace(-3, 3, 6)[:, None]
    grid = lattice(Gaussian(1.0), 1.0, 17)
    assert np.array_equal(clip_rows(rows[order], grid), clip_rows(rows, grid)[order])


@pytest.mark.parametrize("kind", [Gaussian, Laplace])
def test_short_rows_pass_and_long_rows_keep_their_direction(kind: type[Gaussian] | type[Laplace]) -> None:
    mechanism = kind(4.0)
    grid = lattice(mechanism, 2.0, 8)
    rows = np.random.default_rng(1).normal(size=(50, 8))
    lengths = np.linalg.norm(rows, ord=grid.order, axis=1)
    for length in (0.5, 1.9):  # inside the ball: equal up to one unit, toward zero
        inside = rows / lengths[:, None] * length
        error = inside / grid.unit - clip_rows(inside, grid)
        assert np.all((np.abs(error) < 1 + 1e-9) & (error * np.sign(inside) >= -1e-9))
    clipped = clip_rows(rows / lengths[:, None] * 100.0, grid) * grid.unit
    assert np.allclose(clipped, rows / lengths[:, None] * 2.0, atol=2 * grid.unit + 2.0 / RESOLUTION)
    assert np.linalg.norm(clipped, ord=grid.order, axis=1).min() > 2.0 * (1 - 4 / RESOLUTION)


def test_huge_tiny_and_zero_rows() -> None:
    grid = lattice(Gaussian(1.0), 1.0, 2)
    rows = np.array([[1e308, 1e308], [5e-324, 0.0], [0.0, -0.0], [-1e308, 1e-308]])
    clipped = clip_rows(rows, grid)
    assert clipped[0].tolist() == [int(grid.bound / 2**0.5)] * 2
    assert clipped[1].tolist() == clipped[2].tolist() == [0, 0]
    assert clipped[3].tolist() == [-grid.bound, 0]
    assert within_bound(clipped, grid).all()


def test_no_rows_at_all() -> None:
    assert clip_rows(np.zeros((0, 3)), lattice(Gaussian(1.0), 1.0, 3)).shape == (0, 3)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [Gaussian, Laplace])
def test_impossible_scales_are_refused(kind: type[Gaussian] | type[Laplace], scale: float) -> None:
    with pytest.raises(DpzoError, match="`noise_multiplier`"):
        lattice(kind(scale), 1.0, 1)


def test_noise_beyond_the_lattice_is_refused() -> None:
    with pytest.raises(DpzoError, match="`noise_multiplier`"):
        lattice(Gaussian(1e30), 1.0, 1)
    with pytest.raises(DpzoError, match="`noise_multiplier`"):
        lattice(Gaussian(1e-30), 1.0, 1)


def test_noise_multiplier_is_the_standard_deviation_over_clip_norm() -> None:
    assert Gaussian(3.0).noise_multiplier == 3.0
    assert Laplace(3.0).noise_multiplier == pytest.approx(3.0 * 2**0.5)
