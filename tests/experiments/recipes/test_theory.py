"""DPZero's theorems: worked figures, inequalities between the pieces, and an ε that the exact accountant confirms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpzo.errors import DpzoError
from dpzo.experiments.recipes import theory
from dpzo.privacy import FullBatch, NeighboringRelation
from dpzo.privacy.accounting import calibrate

PROBLEM: dict[str, Any] = {
    "num_examples": 10_000,
    "dimension": 100_000,
    "lipschitz": 3.0,
    "smoothness": 2.0,
    "epsilon": 2.0,
    "delta": 1e-6,
}


# --- the pieces


def test_published_noise_of_the_mean_and_in_our_convention() -> None:
    """C = 1, T = n = 1000, ε = 2, δ = 1e-5: σ = 0.31249 on the mean, 312.49 on the sum."""
    assert theory.mean_noise_std(1.0, 1000, 1000, 2.0, 1e-5) == pytest.approx(0.3124879, rel=1e-6)
    assert theory.noise_multiplier(1000, 2.0, 1e-5) == pytest.approx(312.4879, rel=1e-6)
    assert theory.mean_noise_std(7.0, 1000, 50, 2.0, 1e-5) == pytest.approx(7 * 0.3124879 * 20, rel=1e-6)
    # one query of sensitivity 2C/n: the general statement of the composition
    assert theory.composition_noise(2 / 1000, 1000, 2.0, 1e-5) == theory.mean_noise_std(1.0, 1000, 1000, 2.0, 1e-5)


@pytest.mark.parametrize(
    ("spectrum", "expected"),
    [
        (np.ones(37), 37.0),
        ([5.0], 5.0 / 5.0),
        ([2.0, -1.0, 0.0, -2.0], 2.5),
        (1 / np.arange(1, 2001), math.log(2000) + 0.5772157 + 1 / 4000),
    ],
)
def test_effective_rank(spectrum: Any, expected: float) -> None:
    assert theory.effective_rank(spectrum) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("spectrum", [[], [0.0, 0.0], [1.0, math.nan], [[1.0, 2.0]], [math.inf]])
def test_no_spectrum_no_rank(spectrum: Any) -> None:
    with pytest.raises(DpzoError, match="eigenvalues"):
        theory.effective_rank(spectrum)


@given(
    lipschitz=st.floats(1e-3, 1e3),
    events=st.floats(1, 1e14),
    failure=st.floats(1e-12, 0.5),
    smoothness=st.floats(1e-3, 1e3),
    dimension=st.integers(1, 10**9),
)
def test_clip_and_smoothing_fit_together(
    lipschitz: float, events: float, failure: float, smoothness: float, dimension: int
) -> None:
    """At the theorem's C and largest λ, the tail bound over all events is `failure`, and beyond λ it is worse."""
    clip = theory.clip_without_loss(lipschitz, events, failure)
    largest = theory.smoothing_bound(clip, smoothness, dimension)
    curved = {"smoothness": smoothness, "dimension": dimension}
    assert events * theory.tail_bound(clip, lipschitz, smoothing=largest, **curved) == pytest.approx(failure, rel=1e-6)
    assert theory.tail_bound(clip, lipschitz, smoothing=1.1 * largest, **curved) > 1.01 * failure / events
    assert clip**2 == pytest.approx(16 * lipschitz**2 * math.log(theory.TAIL * events / failure))


def test_tail_bound_holds_and_knows_its_limits() -> None:
    for share in (0.5, 1.0, 2.0, 4.0, 8.0):
        assert theory.tail_bound(share, 1.0) >= theory.gaussian_tail(share, 1.0)
        assert theory.gaussian_tail(share, 1.0) == pytest.approx(2 * stats.norm.sf(share))
        assert theory.gaussian_tail(3 * share, 3.0) == theory.gaussian_tail(share, 1.0)
    assert theory.tail_bound(1e-3, 1.0) == 1.0
    assert theory.tail_bound(5.0, 1.0, smoothness=2.0, smoothing=0.1, dimension=60) == 1.0  # ℓλd/2 = 6 exceeds C
    assert theory.tail_bound(16.0, 1.0, smoothness=2.0, smoothing=0.1, dimension=60) == theory.tail_bound(10.0, 1.0)


# --- the theorems


def test_dpzero_by_hand() -> None:
    found = theory.dpzero(**PROBLEM, effective_rank=98.0, failure=1e-3)
    logarithm = math.log(math.e + 2e6)
    assert found.steps == math.ceil(10_000 * 100 * 2 / (4 * math.sqrt(98 * logarithm))) == 13_260
    assert found.learning_rate == 1 / 800
    assert found.clip_norm == pytest.approx(12 * math.sqrt(math.log(5.0132565 * 10_000 * 13_260 * 1e3)), rel=1e-6)
    assert found.slope_clip == found.clip_norm
    assert found.smoothing == pytest.approx(2 * (math.sqrt(2) - 1) * (found.clip_norm / math.sqrt(2)) / 200_000)
    assert found.noise_std == theory.mean_noise_std(found.clip_norm, 13_260, 10_000, 2.0, 1e-6)
    assert found.noise_std * 10_000 / found.clip_norm == pytest.approx(found.noise_multiplier)


def test_dpgd_by_hand() -> None:
    logarithm = math.log(math.e + 2e6)
    first = theory.dpgd_0th(**PROBLEM)
    assert first.steps == math.ceil(20_000 / math.sqrt(1e5 * logarithm)) == 17
    assert first.learning_rate == 1 / 800_000
    second = theory.dpgd_0th(**PROBLEM, effective_rank=98.0)
    assert second.steps == math.ceil(10_000 * 100 * 2 / (1e5 * math.sqrt(98 * logarithm))) == 1
    assert second.learning_rate == 1 / 800
    for found in (first, second):
        assert found.clip_norm == 300_000.0
        assert found.slope_clip == pytest.approx(3 * math.sqrt(1e5))
        assert found.clip_norm == pytest.approx(found.slope_clip * math.sqrt(found.dimension))
        assert found.smoothing == math.inf


def test_the_bound_is_half_the_published_one() -> None:
    """Theorems 1 and 2 read 16(ℓ·gap + L²)·d√(r·log)/(nε): our own derivation gives 8, up to the rounding of T."""
    problem = {**PROBLEM, "num_examples": 10**9, "dimension": 1000}
    gap, logarithm = 5.0, math.log(math.e + 2e6)
    scale = (2.0 * gap + 9.0) * 1000 / (1e9 * 2.0)
    first = theory.dpgd_0th(**problem).gradient_bound(gap)
    assert first == pytest.approx(8 * scale * math.sqrt(1000 * logarithm), rel=1e-3)
    second = theory.dpgd_0th(**problem, effective_rank=10_000**0.5).gradient_bound(gap)
    assert second <= 8 * scale * math.sqrt(100 * logarithm) * 1.001
    third = theory.dpzero(**problem, effective_rank=100.0)
    lipschitz_with_log = third.clip_norm / 4
    limit = 32 * (2.0 * gap + lipschitz_with_log**2) * math.sqrt(100 * logarithm) / 2e9
    assert third.gradient_bound(gap) <= limit * 1.001


def test_what_is_flat_in_d_and_what_grows() -> None:
    """Squared gradient at r fixed: DPZero's bound moves with log d alone, DPGD-0th's with d, and with d·√d at r = d."""
    problem = {**PROBLEM, "num_examples": 10**12}

    def bounds(dimension: int) -> list[float]:
        at = {**problem, "dimension": dimension}
        low = {"effective_rank": 10.0}
        kinds = (theory.dpzero(**at, **low), theory.dpgd_0th(**at, **low), theory.dpgd_0th(**at))
        return [kind.gradient_bound(1.0) for kind in kinds]

    small, large = bounds(10**3), bounds(10**5)
    flat, grows, grows_more = (after / before for before, after in zip(small, large, strict=True))
    assert 1.0 < flat < 1.25
    assert grows == pytest.approx(100.0, rel=0.01)
    assert grows_more == pytest.approx(1000.0, rel=0.01)


@pytest.mark.parametrize("spectrum", ["identity", "1/i"])
def test_the_bound_holds_on_quadratics(spectrum: str) -> None:
    """F = ½xᵀAx, unclipped slopes, λ → 0: the mean squared gradient over the steps and 40 runs lies below the bound."""
    dimension, number = 60, 5_000
    curvature = np.ones(dimension) if spectrum == "identity" else 1 / np.arange(1, dimension + 1)
    rank = theory.effective_rank(curvature)
    start = np.full(dimension, 0.3)
    lipschitz = float(np.linalg.norm(curvature * start))
    given_by = theory.dpzero(
        num_examples=number,
        dimension=dimension,
        lipschitz=lipschitz,
        smoothness=1.0,
        effective_rank=rank,
        epsilon=4.0,
        delta=1e-6,
    )
    draw = np.random.default_rng(7)
    x = np.tile(start, (40, 1))
    squares = []
    for _ in range(given_by.steps):
        gradient = x * curvature
        squares.append((gradient**2).sum(axis=1).mean())
        u = draw.standard_normal(x.shape)
        u *= math.sqrt(dimension) / np.linalg.norm(u, axis=1, keepdims=True)
        slope = (u * gradient).sum(axis=1) + given_by.noise_std * draw.standard_normal(len(x))
        x -= given_by.learning_rate * slope[:, None] * u
    bound = given_by.gradient_bound(0.5 * float((curvature * start**2).sum()))
    assert np.mean(squares) < bound
    assert np.mean(squares) > bound / 20  # an inequality that says something


# --- the plan


@settings(max_examples=60, deadline=None)
@given(
    epsilon=st.floats(0.01, 64),
    delta=st.floats(1e-12, 1e-3),
    number=st.integers(10, 10**6),
    rank=st.floats(1.0, 400.0),
)
def test_a_plan_keeps_the_theorems_promise(epsilon: float, delta: float, number: int, rank: float) -> None:
    problem = {**PROBLEM, "epsilon": epsilon, "delta": delta, "num_examples": number}
    for found in (theory.dpzero(**problem, effective_rank=rank), theory.dpgd_0th(**problem, effective_rank=rank)):
        plan = found.plan()
        assert plan.relation is NeighboringRelation.REPLACE_ONE
        assert plan.sampler == FullBatch()
        assert plan.steps == found.steps
        assert plan.expected_batch_size == number
        assert plan.clip_norm == found.slope_clip
        assert plan.noise_scale / number == pytest.approx(found.noise_std * found.slope_clip / found.clip_norm)
        assert plan.epsilon <= epsilon


@pytest.mark.parametrize(
    ("epsilon", "delta", "exact"),
    [(0.1, 1e-5, 0.0323), (2.0, 1e-5, 0.7350), (6.0, 1e-5, 2.361), (2.0, 1e-6, 0.7699), (16.0, 1e-8, 7.276)],
)
def test_the_slack_of_the_composition(epsilon: float, delta: float, exact: float) -> None:
    """The exact ε of the theorem's noise depends on (ε, δ) alone; n, d, r and T cancel."""
    for number, rank in ((1000, 2.0), (10**6, 300.0)):
        problem = {**PROBLEM, "epsilon": epsilon, "delta": delta, "num_examples": number}
        plan = theory.dpzero(**problem, effective_rank=rank).plan()
        assert plan.epsilon == pytest.approx(exact, rel=2e-3)
    needed = calibrate.noise(
        lambda scale: (
            type(plan)(
                plan.num_examples, FullBatch(), type(plan.mechanism)(scale), 1.0, plan.steps, 1, delta, plan.relation
            ).event
        ),
        epsilon,
        delta,
        plan.relation,
    )
    assert needed < 0.6 * plan.noise_multiplier


def test_an_epsilon_beyond_the_theorem_is_refused() -> None:
    """ε = 300 at δ = 1e-5: the noise of the composition theorem gives 435."""
    found = theory.dpzero(**{**PROBLEM, "epsilon": 300.0, "delta": 1e-5}, effective_rank=3.0)
    with pytest.raises(DpzoError, match=r"gives 434\.8"):
        found.plan()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_examples": 0}, "--num-examples"),
        ({"num_examples": True}, "--num-examples"),
        ({"dimension": 0}, "dimension"),
        ({"lipschitz": 0.0}, "lipschitz"),
        ({"smoothness": math.inf}, "smoothness"),
        ({"smoothness": math.nan}, "smoothness"),
        ({"effective_rank": 0.5}, "effective_rank"),
        ({"effective_rank": 1e6}, "effective_rank"),
        ({"epsilon": 0.0}, "--epsilon"),
        ({"delta": 0.0}, "--delta"),
        ({"delta": 1.0}, "--delta"),
        ({"failure": 0.0}, "failure"),
        ({"failure": 1.0}, "failure"),
    ],
)
def test_nonsense_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DpzoError, match=message) as refusal:
        theory.dpzero(**{**PROBLEM, "effective_rank": 98.0, **change})
    assert "\n" not in str(refusal.value)


def test_more_nonsense() -> None:
    with pytest.raises(DpzoError, match="smoothness and smoothing"):
        theory.tail_bound(1.0, 1.0, smoothness=-1.0)
    with pytest.raises(DpzoError, match="num_events"):
        theory.clip_without_loss(1.0, 0.0, 0.1)
    with pytest.raises(DpzoError, match="gap"):
        theory.dpgd_0th(**PROBLEM).gradient_bound(-1.0)
    with pytest.raises(DpzoError, match="--steps"):
        theory.noise_multiplier(0, 1.0, 1e-5)
