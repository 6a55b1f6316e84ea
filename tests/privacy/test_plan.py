"""A plan is the only way to an ε: solved both ways, refused with reasons, kept exactly."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpzo.config.solve import solve_plan
from dpzo.errors import DpzoError
from dpzo.privacy import FullBatch, Gaussian, Laplace, NeighboringRelation, PoissonSampling, PrivacyPlan
from dpzo.privacy.plan import relation_named

DP_ZO: dict[str, Any] = {"num_examples": 1000, "expected_batch_size": 16, "steps": 75_000, "delta": 1e-5}


def test_noise_for_an_epsilon_is_the_published_one_and_safe() -> None:
    plan = solve_plan(**DP_ZO, epsilon=1.0)
    assert plan.noise_multiplier == pytest.approx(16.37, rel=2e-3)
    assert 1.0 * (1 - 1e-3) <= plan.epsilon <= 1.0


@pytest.mark.parametrize(("noise_multiplier", "epsilon"), [(30.9, 0.4988), (16.4, 0.9979), (4.8, 3.9949)])
def test_epsilon_for_a_noise_is_the_published_one(noise_multiplier: float, epsilon: float) -> None:
    assert solve_plan(**DP_ZO, noise_multiplier=noise_multiplier).epsilon == pytest.approx(epsilon, rel=2e-3)


def test_directions_and_clip_norm_do_not_enter_a_gaussian_account() -> None:
    one = solve_plan(**DP_ZO, epsilon=1.0)
    many = solve_plan(**DP_ZO, epsilon=1.0, num_directions=512, clip_norm=37.0)
    assert (one.event, one.epsilon) == (many.event, many.epsilon)
    assert many.noise_scale == pytest.approx(37.0 * one.noise_scale)


def test_laplace_gives_pure_epsilon_by_its_closed_form() -> None:
    plan = solve_plan(
        num_examples=1000, expected_batch_size=16, steps=1000, delta=0.0, epsilon=1.0, mechanism="laplace"
    )
    assert plan.mechanism.scale == pytest.approx(16.487, rel=1e-4)
    assert plan.noise_multiplier == pytest.approx(2**0.5 * plan.mechanism.scale)
    assert plan.epsilon <= 1.0


def test_replace_one_needs_twice_the_noise_without_sampling() -> None:
    full = {"num_examples": 100, "expected_batch_size": 100, "steps": 10, "delta": 1e-5}
    zero_out = solve_plan(**full, noise_multiplier=4.0)
    replace = solve_plan(**full, noise_multiplier=8.0, relation=NeighboringRelation.REPLACE_ONE)
    assert isinstance(zero_out.sampler, FullBatch)
    assert zero_out.epsilon == pytest.approx(replace.epsilon, rel=1e-9)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epsilon": 0.0}, "`epsilon`"),
        ({"epsilon": float("nan")}, "`epsilon`"),
        ({"delta": 1.0}, "`delta`"),
        ({"delta": -1e-9}, "`delta`"),
        ({"expected_batch_size": 1001}, "`expected_batch_size`"),
        ({"expected_batch_size": 0}, "`expected_batch_size`"),
        ({"clip_norm": 0.0}, "`clip_norm`"),
        ({"clip_norm": float("inf")}, "`clip_norm`"),
        ({"steps": 0}, "`steps`"),
        ({"steps": True}, "`steps`"),
        ({"num_examples": 0}, "`num_examples`"),
        ({"num_directions": 0}, "`num_directions`"),
        ({"mechanism": "cauchy"}, "`mechanism`"),
        ({"noise_multiplier": 1.0}, "`noise_multiplier`"),
        ({"epsilon": None}, "`noise_multiplier`"),
        ({"epsilon": None, "noise_multiplier": -1.0}, "`noise_multiplier`"),
    ],
)
def test_bad_input_names_the_option(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(DpzoError, match=named) as caught:
        solve_plan(**{**DP_ZO, "epsilon": 1.0, **changes})
    assert "\n" not in str(caught.value)


def test_what_no_accountant_supports_is_refused_with_the_reason() -> None:
    with pytest.raises(DpzoError, match=r"(?i)gaussian"):
        solve_plan(**{**DP_ZO, "delta": 0.0}, epsilon=1.0)


def test_sampled_laplace_noise_is_answered_under_replace_one() -> None:
    plan = solve_plan(**DP_ZO, epsilon=1.0, mechanism="laplace", relation=NeighboringRelation.REPLACE_ONE)
    assert 0.99 <= plan.epsilon <= 1.0
    assert plan.noise_scale > solve_plan(**DP_ZO, epsilon=1.0, mechanism="laplace").noise_scale


@given(
    st.sampled_from([Gaussian(3.0), Laplace(0.1 + 0.2), Gaussian(1 / 3)]),
    st.sampled_from([PoissonSampling(0.1 + 0.2), FullBatch()]),
    st.integers(1, 600),
    st.floats(1e-6, 1e6),
)
@settings(max_examples=50)
def test_a_plan_survives_json_bit_for_bit(mechanism: Any, sampler: Any, directions: int, clip_norm: float) -> None:
    plan = PrivacyPlan(1000, sampler, mechanism, clip_norm, 7, directions, 1e-5)
    assert PrivacyPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_an_unknown_relation_is_refused() -> None:
    with pytest.raises(DpzoError, match="`relation`"):
        relation_named("edit")


def test_the_normaliser_is_the_declared_batch() -> None:
    assert solve_plan(**DP_ZO, epsilon=1.0).expected_batch_size == pytest.approx(16)
