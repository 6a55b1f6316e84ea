"""Central and forward differences: what each costs, where each is exact, and how both take hostile input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from dpzo.zo import ESTIMATORS, DirectionScheme, TrainableParameters, forward_difference
from dpzo.zo.initial import public_normal

SIZES = (5, 12, 3)
DIMENSION = sum(SIZES)


def make() -> TrainableParameters:
    module = nn.ParameterList([public_normal(2, i, size, 0.5) for i, size in enumerate(SIZES)])
    return TrainableParameters(module, [str(i) for i in range(len(SIZES))])


def flat(parameters: TrainableParameters) -> NDArray[np.float64]:
    return np.concatenate([p.detach().flatten().numpy() for p in parameters]).astype(np.float64)


class Quadratic:
    """ℓ_i(θ) = a_i·θ + ½ θᵀH_iθ + cubic/6·Σ_j θ_j³ with dense symmetric H_i, in float64; counts its calls."""

    def __init__(self, parameters: TrainableParameters, cubic: float = 0.0) -> None:
        d = parameters.dimension
        self.parameters, self.cubic, self.calls = parameters, cubic, 0
        self.linear = public_normal(3, "a", 4 * d, 1.0).double().numpy().reshape(4, d)
        square = public_normal(3, "h", 4 * d * d, 1.0).double().numpy().reshape(4, d, d)
        self.hessian = (square + square.transpose(0, 2, 1)) / 2 + 2 * np.eye(d)

    def losses(self, units: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        self.calls += 1
        t = flat(self.parameters)
        bent = 0.5 * np.einsum("j,ijk,k->i", t, self.hessian[units], t)
        return self.linear[units] @ t + bent + self.cubic / 6 * (t**3).sum()

    def gradient(self, units: NDArray[np.int64]) -> NDArray[np.float64]:
        t = flat(self.parameters)
        return self.linear[units] + self.hessian[units] @ t + self.cubic / 2 * t**2


def directions(scheme: DirectionScheme, step: int = 0) -> NDArray[np.float64]:
    rows, at = [], scheme.at(step)
    for k in range(scheme.num_directions):
        parts = [torch.empty(size) for size in scheme.sizes]
        for index, part in enumerate(parts):
            at.fill(k, index, part)
        rows.append(torch.cat(parts).double().numpy())
    return np.array(rows)


def test_the_registry_names_both() -> None:
    assert list(ESTIMATORS) == ["central", "forward"]


@pytest.mark.parametrize(("name", "calls"), [("central", 10), ("forward", 6)])
def test_evaluations_a_step(name: str, calls: int) -> None:
    parameters = make()
    objective = Quadratic(parameters)
    at = DirectionScheme("gaussian", 1, 5, SIZES).at(0)
    rows = ESTIMATORS[name](objective, parameters, np.array([2, 0, 2]), at, 1e-2)
    assert rows.shape == (3, 5)
    assert rows.dtype == np.float64
    assert np.array_equal(rows[0], rows[2])
    assert objective.calls == calls


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sphere", "orthogonal"])
@pytest.mark.parametrize("smoothing", [2.0**-2, 2.0**-5])
def test_on_a_quadratic_central_is_exact_and_forward_is_off_by_half_the_curvature(kind: str, smoothing: float) -> None:
    parameters, units = make(), np.array([3, 1])
    objective = Quadratic(parameters)
    scheme = DirectionScheme(kind, 4, 6, SIZES)
    z = directions(scheme)
    exact = objective.gradient(units) @ z.T
    curvature = np.einsum("kj,ijl,kl->ik", z, objective.hessian[units], z)
    # what is left is the rounding of θ ± φz to fp32, about 2^-25/φ a coordinate
    slack = {"rtol": 0.0, "atol": 3e-6 / smoothing}
    found = {
        name: estimate(objective, parameters, units, scheme.at(0), smoothing) for name, estimate in ESTIMATORS.items()
    }
    assert np.allclose(found["central"], exact, **slack)
    assert np.allclose(found["forward"] - exact, smoothing / 2 * curvature, **slack)
    assert np.abs(smoothing / 2 * curvature).max() > 100 * slack["atol"]


def test_the_curvature_offset_is_the_same_in_all_slopes_of_signs_when_the_hessian_is_diagonal() -> None:
    """zᵀHz = tr H for z of ±1: the row carries φ·tr(H)/2 in each entry, whatever K."""
    parameters, units = make(), np.array([0])
    objective = Quadratic(parameters)
    objective.hessian = np.stack([np.diag(np.arange(1.0, DIMENSION + 1))] * 4)
    scheme = DirectionScheme("rademacher", 4, 7, SIZES)
    rows = forward_difference(objective, parameters, units, scheme.at(0), 2.0**-4)
    offset = rows[0] - objective.gradient(units)[0] @ directions(scheme).T
    assert np.allclose(offset, 2.0**-5 * DIMENSION * (DIMENSION + 1) / 2, atol=1e-4)


def test_central_is_off_by_the_square_of_phi_and_forward_by_phi() -> None:
    parameters, units = make(), np.array([1])
    objective = Quadratic(parameters, cubic=3.0)
    scheme = DirectionScheme("gaussian", 4, 8, SIZES)
    exact = objective.gradient(units) @ directions(scheme).T

    def error(name: str, smoothing: float) -> float:
        rows = ESTIMATORS[name](objective, parameters, units, scheme.at(0), smoothing)
        return float(np.abs(rows - exact).max())

    assert error("central", 0.25) / error("central", 0.125) == pytest.approx(4, rel=0.02)
    assert error("forward", 2.0**-6) / error("forward", 2.0**-7) == pytest.approx(2, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ESTIMATORS))
@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sphere"])
def test_unclipped_estimates_of_both_average_to_the_gradient(name: str, kind: str) -> None:
    """Directions are symmetric, so the forward slope's curvature term averages out of E[d·z]."""
    parameters, units = make(), np.array([2])
    objective = Quadratic(parameters)
    scheme = DirectionScheme(kind, 6, 6000, SIZES)
    rows = ESTIMATORS[name](objective, parameters, units, scheme.at(0), 2.0**-4)
    estimates = rows.T * directions(scheme)
    error = np.abs(estimates.mean(axis=0) - objective.gradient(units)[0])
    assert (error < 4.5 * estimates.std(axis=0) / math.sqrt(6000)).all()
    assert np.linalg.norm(error) < 0.15 * np.linalg.norm(objective.gradient(units)[0])


class Fixed:
    """Given losses at each successive call."""

    def __init__(self, *answers: list[float]) -> None:
        self.answers = list(answers)

    def losses(self, units: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        return np.array(self.answers.pop(0), dtype=np.float32)[units]


def test_forward_shares_the_loss_at_theta_and_a_broken_one_breaks_that_row_alone() -> None:
    parameters = make()
    at = DirectionScheme("rademacher", 1, 2, SIZES).at(0)
    here, first, second = [1.0, np.nan, np.inf, 2.0], [1.5, 1.0, 1.0, np.inf], [0.5, 1.0, 1.0, 3.0]
    rows = forward_difference(Fixed(here, first, second), parameters, np.arange(4), at, 0.5)
    assert rows[0].tolist() == [1.0, -1.0]
    assert not np.isfinite(rows[1:3]).any()
    assert rows[3].tolist() == [np.inf, 2.0]


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_no_units_no_call_bad_shapes_and_bad_smoothing(name: str) -> None:
    parameters = make()
    objective = Quadratic(parameters)
    at = DirectionScheme("rademacher", 1, 3, SIZES).at(0)
    assert ESTIMATORS[name](objective, parameters, np.array([], dtype=np.int64), at, 0.1).shape == (0, 3)
    assert objective.calls == 0
    for smoothing in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="smoothing"):
            ESTIMATORS[name](objective, parameters, np.arange(2), at, smoothing)

    class Mean:
        def losses(self, units: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
            return np.float64(1.0)  # type: ignore[return-value]

    with pytest.raises(ValueError, match="one loss a unit") as caught:
        ESTIMATORS[name](Mean(), parameters, np.arange(37), at, 0.1)
    assert "37" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_weights_stay_as_they_are(name: str) -> None:
    parameters = make()
    before = flat(parameters)
    at = DirectionScheme("orthogonal", 1, 3, SIZES).at(0)
    ESTIMATORS[name](Quadratic(parameters), parameters, np.arange(4), at, 1e-3)
    assert np.array_equal(flat(parameters), before)
