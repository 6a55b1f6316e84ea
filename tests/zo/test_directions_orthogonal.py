"""Orthogonal directions: a Walsh–Hadamard family under one vector of signs, over all parameters jointly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpzo.errors import DpzoError
from dpzo.zo.directions import Backend, DirectionScheme

Floats = NDArray[np.float64]


def matrix(scheme: DirectionScheme, step: int, backend: Backend = "numba") -> Floats:
    """(K, d), the parameters side by side."""
    at, rows = scheme.at(step, backend), np.empty((scheme.num_directions, scheme.dimension))
    for k in range(scheme.num_directions):
        parts = [torch.empty(size) for size in scheme.sizes]
        for index, part in enumerate(parts):
            at.fill(k, index, part)
        rows[k] = torch.cat(parts).numpy()
    return rows


def walsh(count: int, dimension: int) -> Floats:
    """(−1)^popcount(k & J) in Python's own integers."""
    return np.array([[(-1.0) ** (k & j).bit_count() for j in range(dimension)] for k in range(count)])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) >= 70),
    st.integers(1, 64),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["numba", "reference"]),
)
def test_each_direction_is_the_first_one_times_a_walsh_function_of_the_global_index(
    sizes: list[int], count: int, step: int, backend: Backend
) -> None:
    z = matrix(DirectionScheme("orthogonal", 7, count, tuple(sizes)), step, backend)
    assert set(np.unique(z)) <= {-1.0, 1.0}
    assert np.array_equal(z * z[0], walsh(count, sum(sizes)))


def test_high_bits_of_k_and_far_elements() -> None:
    """k up to 2^24 − 1 and J beyond 2^32, at an origin that is no multiple of 32."""
    count, sizes, start = 1 << 24, (77, (1 << 37) + 5), (1 << 36) + 13
    for k in (31, 32, 12_345_678, count - 1):
        found = {}
        for backend in ("numba", "reference"):
            at = DirectionScheme("orthogonal", 7, count, sizes).at(3, backend)  # type: ignore[arg-type]
            first, z = torch.empty(333), torch.empty(333)
            at.fill(0, 1, first, start)
            at.fill(k, 1, z, start)
            found[backend] = z
            signs = [(-1.0) ** (k & (77 + start + j)).bit_count() for j in range(333)]
            assert (z * first).tolist() == signs
        assert torch.equal(found["numba"], found["reference"])


@pytest.mark.parametrize(("sizes", "count"), [((40, 24), 16), ((5, 27, 32), 16), ((64,), 64), ((3, 61), 11)])
def test_any_two_are_orthogonal_when_the_power_of_two_divides_d(sizes: tuple[int, ...], count: int) -> None:
    z = matrix(DirectionScheme("orthogonal", 1, count, sizes), 5)
    assert np.array_equal(z @ z.T, sum(sizes) * np.eye(count))


@settings(max_examples=30, deadline=None)
@given(st.integers(9, 300), st.integers(2, 16))
def test_otherwise_only_the_last_elements_spoil_it(dimension: int, count: int) -> None:
    count = min(count, 1 << (dimension - 1).bit_length())
    z = matrix(DirectionScheme("orthogonal", 1, count, (dimension,)), 5)
    period = 1 << (count - 1).bit_length()
    assert np.abs(z @ z.T - dimension * np.eye(count)).max() <= dimension % period


def test_steps_and_seeds_have_signs_of_their_own() -> None:
    one = matrix(DirectionScheme("orthogonal", 1, 2, (4096,)), 5)
    for other in (DirectionScheme("orthogonal", 2, 2, (4096,)), DirectionScheme("rademacher", 1, 2, (4096,))):
        assert abs((one * matrix(other, 5)).mean()) < 0.06
    assert abs((one * matrix(DirectionScheme("orthogonal", 1, 2, (4096,)), 6)).mean()) < 0.06


def variance(kind: str, dimension: int, count: int, gradient: Floats, steps: int) -> tuple[float, float]:
    """Mean and standard error of ‖ĝ − g‖² with ĝ = (1/K)·Σ_k (z_k·g)·z_k, in units of ‖g‖²."""
    scheme = DirectionScheme(kind, 11, count, (3, dimension - 3))
    errors = np.empty(steps)
    for step in range(steps):
        z = matrix(scheme, step)
        errors[step] = ((z.T @ (z @ gradient) / count - gradient) ** 2).sum()
    errors /= (gradient**2).sum()
    return float(errors.mean()), float(errors.std() / np.sqrt(steps))


def test_the_variance_falls_from_d_minus_one_to_d_minus_k() -> None:
    """d = 32, K = 8: 31/8 against 24/8 of ‖g‖²; the errors are small enough to tell them apart 20 times over."""
    gradient = np.linspace(-1.0, 2.0, 32)
    for kind, expected in (("rademacher", 31 / 8), ("orthogonal", 24 / 8)):
        mean, error = variance(kind, 32, 8, gradient, 4000)
        assert abs(mean - expected) < 4.5 * error
        assert error < (31 - 24) / 8 / 20


def test_the_variance_when_k_does_not_divide_d() -> None:
    """Σ_j g_j²·(n_j − 1), n_j the number of elements in j's class modulo K: here 3 for the first two, 2 else."""
    gradient = np.array([3.0, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    classes = np.arange(10) % 4
    expected = (gradient**2 * (np.bincount(classes)[classes] - 1)).sum() / (gradient**2).sum()
    mean, error = variance("orthogonal", 10, 4, gradient, 6000)
    assert abs(mean - expected) < 4.5 * error
    assert error < 0.03


@pytest.mark.parametrize("dimension", [1, 6, 8])
def test_as_many_as_dimensions_give_the_gradient_itself(dimension: int) -> None:
    count = 1 << (dimension - 1).bit_length()
    gradient = np.linspace(0.5, 2.0, dimension)
    z = matrix(DirectionScheme("orthogonal", 1, count, (dimension,)), 0)
    assert np.allclose(z.T @ (z @ gradient) / count, gradient, rtol=1e-13)
    with pytest.raises(DpzoError, match=f"num_directions: {count + 1} .* at most {count}"):
        DirectionScheme("orthogonal", 1, count + 1, (dimension,))


@pytest.mark.parametrize("count", [4, 16])
def test_what_all_slopes_share_falls_on_one_element_of_each_period(count: int) -> None:
    """Σ_k z_k is K·r_J where K divides J and 0 elsewhere: where forward differences put their curvature offset."""
    z = matrix(DirectionScheme("orthogonal", 2, count, (7, 41)), 1)
    assert np.array_equal(z.sum(axis=0), np.where(np.arange(48) % count == 0, count * z[0], 0))
