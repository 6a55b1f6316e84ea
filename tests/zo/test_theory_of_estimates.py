"""What the theory promises of the estimates themselves: unbiased, Gaussian tails, and a private error that d spares.

Losses are quadratics, ½(θ − c_i)ᵀA(θ − c_i), for which a central difference is exact: d_i = z·A(θ − c_i).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from dpzo.experiments.recipes import theory
from dpzo.privacy import FullBatch, Gaussian, NeighboringRelation, PrivacyPlan, PrivateChannel
from dpzo.zo import KINDS, SCHEDULES, DirectionScheme, Sgd, TrainableParameters, central_difference

Array = NDArray[np.float64]
SIZES = (4, 2)
DIMENSION = sum(SIZES)
PER_STEP, STEPS = 4, 1500


class Weights(torch.nn.Module):
    """θ in two parameters, so that a direction runs over a border."""

    def __init__(self, theta: Array, sizes: tuple[int, ...]) -> None:
        super().__init__()
        parts = np.split(theta, np.cumsum(sizes)[:-1])
        self.parts = torch.nn.ParameterList(torch.from_numpy(part).float() for part in parts)

    def theta(self) -> Array:
        return np.concatenate([part.detach().double().numpy() for part in self.parts])


@dataclass(frozen=True)
class Quadratics:
    """The loss of each unit in float64, at the weights the module has now."""

    module: Weights
    curvature: Array
    centres: Array

    def losses(self, units: NDArray[np.int64]) -> Array:
        away = self.module.theta() - self.centres[units]
        return np.asarray(0.5 * (away**2 @ self.curvature))


@dataclass(frozen=True)
class Draws:
    """Slopes d (N, U) of U units whose gradients (U, d) are orthogonal, along N directions z (N, d)."""

    slopes: Array
    directions: Array
    gradients: Array


def draw(kind: str) -> Draws:
    public = np.random.default_rng(31)
    curvature = np.array([4.0, 2.0, 1.0, 0.5, 0.25, 1.5])
    theta = np.array([1.0, -0.5, 0.25, 2.0, -1.0, 0.75])
    basis = np.linalg.qr(public.standard_normal((DIMENSION, DIMENSION)))[0]
    gradients = basis * np.array([1.0, 3.0, 0.2, 1.5, 2.0, 0.7])[:, None]
    module = Weights(theta, SIZES)
    objective = Quadratics(module, curvature, theta - gradients / curvature)
    parameters = TrainableParameters(module, [name for name, _ in module.named_parameters()])
    scheme = DirectionScheme(kind, 77, PER_STEP, parameters.sizes)
    slopes, directions = np.empty((STEPS, PER_STEP, DIMENSION)), np.empty((STEPS, PER_STEP, DIMENSION))
    buffers = [torch.empty(size) for size in SIZES]
    for step in range(STEPS):
        at = scheme.at(step)
        slopes[step] = central_difference(objective, parameters, np.arange(DIMENSION), at, 0.125).T
        for k in range(PER_STEP):
            for index, buffer in enumerate(buffers):
                at.fill(k, index, buffer)
            directions[step, k] = torch.cat(buffers).double().numpy()
    return Draws(slopes.reshape(-1, DIMENSION), directions.reshape(-1, DIMENSION), gradients)


@pytest.fixture(scope="module")
def drawn() -> dict[str, Draws]:
    """Every kind's draws, made once."""
    return {kind: draw(kind) for kind in KINDS}


def require_unbiased(slopes: Array, directions: Array, gradients: Array) -> None:
    """Refuse unless the mean of d_i·z is ∇f_i: each element, and their common scale, within 4.5 standard errors.

    Directions of one step may depend on each other: a step is one observation. The scale's error is below 0.8 %, so a
    bias of 5 % is more than 6 standard errors away.
    """
    estimates = np.einsum("skc,skd->scd", grouped(slopes), grouped(directions)) / PER_STEP
    scales = ((estimates * gradients).sum(axis=2) / (gradients**2).sum(axis=1)).mean(axis=1)
    error = scales.std() / math.sqrt(STEPS)
    assert error < 0.008
    assert abs(scales.mean() - 1) < 4.5 * error + 1e-4
    errors = estimates.std(axis=0) / math.sqrt(STEPS)
    assert (np.abs(estimates.mean(axis=0) - gradients) < 4.5 * errors + 1e-4).all()


def grouped(values: Array) -> Array:
    return values.reshape(STEPS, PER_STEP, DIMENSION)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_estimate_is_the_gradient_on_average(drawn: dict[str, Draws], kind: str) -> None:
    made = drawn[kind]
    assert np.allclose(made.slopes, made.directions @ made.gradients.T, atol=3e-5)  # exact but for θ's rounding
    require_unbiased(made.slopes, made.directions, made.gradients)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("fault", ["small", "large", "long directions", "one element", "shared sign", "other step"])
def test_a_bias_of_five_per_cent_is_seen(drawn: dict[str, Draws], kind: str, fault: str) -> None:
    made = drawn[kind]
    slopes, directions = made.slopes.copy(), made.directions.copy()
    if fault == "small":
        slopes *= 0.95
    elif fault == "large":
        slopes *= 1.05
    elif fault == "long directions":  # E[zzᵀ] = 1.05·I
        slopes, directions = slopes * math.sqrt(1.05), directions * math.sqrt(1.05)
    elif fault == "one element":  # not moved in the update
        directions[:, 3] = 0.0
    elif fault == "shared sign":
        directions = np.abs(directions)
    else:
        directions = np.roll(directions, PER_STEP, axis=0)
    with pytest.raises(AssertionError):
        require_unbiased(slopes, directions, made.gradients)


# --- tails


def standardised(made: Draws) -> Array:
    return np.asarray(made.slopes / np.linalg.norm(made.gradients, axis=1))


def test_gaussian_slopes_have_the_tail_of_the_gradient_norm(drawn: dict[str, Draws]) -> None:
    """Orthogonal gradients give independent slopes: 36 000 draws of N(0, ‖∇f_i‖²). A scale 5 % off is rejected."""
    z = standardised(drawn["gaussian"]).ravel()
    assert stats.kstest(z, "norm").pvalue > 1e-3
    for scale in (0.95, 1.05):
        assert stats.kstest(scale * z, "norm").pvalue < 1e-3
    for clip in (0.5, 1.0, 2.0, 3.0):
        expected = theory.gaussian_tail(clip, 1.0)
        error = math.sqrt(expected * (1 - expected) / z.size)
        assert abs(np.mean(np.abs(z) > clip) - expected) < 4 * error


def on_the_sphere(dimension: int) -> Any:
    """The law of u·ĝ for u uniform on the sphere of radius √d: √d·(2·Beta((d − 1)/2, (d − 1)/2) − 1)."""
    half, width = (dimension - 1) / 2, math.sqrt(dimension)
    return stats.beta(half, half, loc=-width, scale=2 * width)


def test_sphere_slopes_are_near_the_gaussian_and_bounded(drawn: dict[str, Draws]) -> None:
    """In six dimensions the exact law is told from the Gaussian; in a thousand the two are one for all purposes."""
    z = standardised(drawn["sphere"])
    for column in z.T:
        assert stats.kstest(column, on_the_sphere(DIMENSION).cdf).pvalue > 1e-3
        assert stats.kstest(column, "norm").pvalue < 1e-3
    assert np.abs(z).max() <= math.sqrt(DIMENSION) * (1 + 1e-4)
    grid = np.linspace(-6, 6, 2001)
    gaps = [np.abs(on_the_sphere(d).cdf(grid) - stats.norm.cdf(grid)).max() for d in (6, 60, 1000, 100_000)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[2] < 2e-4


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_kind_exceeds_the_tail_bound(drawn: dict[str, Draws], kind: str) -> None:
    """P(|d_i| > C) is at most the theorem's bound, which starts to say something at C ≈ 3.6·‖∇f_i‖."""
    z = np.abs(standardised(drawn[kind]))
    for clip in np.linspace(0.5, 8.0, 31):
        assert np.mean(z > clip) <= theory.tail_bound(float(clip), 1.0)
    assert theory.tail_bound(3.0, 1.0) == 1.0
    assert theory.tail_bound(4.0, 1.0) < 1.0


def test_curvature_adds_at_most_half_l_lambda_d() -> None:
    """|d_i − u·∇f_i| ≤ ℓλ‖u‖²/2 on ℓ-smooth losses that are no quadratics: softplus of s·θ, ℓ = ‖s‖²/4."""
    public = np.random.default_rng(8)
    slant = public.standard_normal(12)
    theta = public.standard_normal(12)
    smoothness = float(slant @ slant) / 4
    worst = 0.0
    for smoothing in (0.01, 0.3, 3.0):
        for _ in range(2000):
            u = public.standard_normal(12)
            u *= math.sqrt(12) / np.linalg.norm(u)
            ends = [np.logaddexp(0.0, slant @ (theta + sign * smoothing * u)) for sign in (1, -1)]
            gradient = slant / (1 + math.exp(-float(slant @ theta)))
            gap = abs((ends[0] - ends[1]) / (2 * smoothing) - u @ gradient)
            allowed = smoothness * smoothing * 12 / 2
            assert gap <= allowed + 1e-12
            worst = max(worst, gap / allowed)
    assert worst > 0.01


# --- what the dimension costs


def private_error(curvature: Array, seed: int, linear: ModuleType) -> float:
    """Mean ‖∇F‖² of the last 100 of 400 private full-batch steps from ‖∇F(θ₀)‖ = 1, at theorem 3's step size."""
    dimension, number = len(curvature), 50
    public = np.random.default_rng(100 + seed)
    centres = public.standard_normal((number, dimension)) * 0.05
    start = np.full(dimension, 1 / np.linalg.norm(curvature))
    module = Weights(start + centres.mean(axis=0), (dimension,))
    objective = Quadratics(module, curvature, centres)
    parameters = TrainableParameters(module, ["parts.0"])
    plan = PrivacyPlan(number, FullBatch(), Gaussian(6.0), 3.0, 400, 1, 1e-5, NeighboringRelation.REPLACE_ONE)
    channel = PrivateChannel(plan, nonprivate_randomness=lambda step: linear.Noise(step + 10_000 * seed))
    scheme = DirectionScheme("sphere", seed, 1, parameters.sizes)
    rate = 1 / (4 * (theory.effective_rank(curvature) + 2))
    update = Sgd(SCHEDULES["constant"](rate, 400, 0), float(number))
    tail = []
    for step in range(400):
        units = channel.draw_batch(number)
        release = channel.release(central_difference(objective, parameters, units, scheme.at(step), 1e-3))
        update.apply(parameters, {}, scheme.at(step), release.slopes(), step)
        if step >= 300:
            tail.append(float(((curvature * (module.theta() - centres.mean(axis=0))) ** 2).sum()))
    return float(np.mean(tail))


@pytest.mark.slow
def test_private_error_is_flat_in_d_for_a_low_rank_and_grows_for_the_identity(linear: ModuleType) -> None:
    """Same steps, noise and first gradient, d × 16: the rank grows by 1.6 or by 16. Three runs, two standard errors."""
    growth, errors = {}, {}
    for name in ("1/i", "identity"):
        means, spreads = [], []
        for dimension in (64, 1024):
            curvature = np.ones(dimension) if name == "identity" else 1 / np.arange(1.0, dimension + 1)
            runs = [private_error(curvature, seed, linear) for seed in range(3)]
            means.append(np.mean(runs))
            spreads.append(np.std(runs, ddof=1) / math.sqrt(3))
        growth[name] = means[1] / means[0]
        errors[name] = growth[name] * math.hypot(spreads[0] / means[0], spreads[1] / means[1])
    assert growth["1/i"] + 2 * errors["1/i"] < 2.2
    assert growth["identity"] - 2 * errors["identity"] > 5.0
