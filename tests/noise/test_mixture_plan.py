"""Plans of mixture noise on vectors: the paper's settings judged, the noise solved for, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dpzo.errors import DpzoError
from dpzo.noise.mixture_plan import MixtureNoise, MixturePlan, mixture_noise, solve_mixture_plan
from dpzo.noise.mixture_vectors import vector_epsilon
from dpzo.noise.published import PUBLISHED, published
from dpzo.privacy import NeighboringRelation

SST2 = {"num_examples": 67350, "expected_batch_size": 2048, "steps": 192, "delta": 1e-10, "route": "l2"}
SMALL: dict[str, Any] = {"num_examples": 1024, "expected_batch_size": 256, "steps": 200, "delta": 1e-5}


def as_published(mechanism: str, **settings: Any) -> MixturePlan:
    multiplier = mixture_noise(mechanism).noise_multiplier
    return solve_mixture_plan(**{**SST2, **settings}, mechanism=mechanism, noise_multiplier=multiplier)


@pytest.mark.parametrize(
    ("mechanism", "reported", "floor", "gaussian"),
    [
        ("lmo-0.3", 0.157, 0.565, 0.345),
        ("lmo-0.3-as-coded", 0.157, 2.71, 0.734),
        ("lmo-0.7", 0.261, 2.05, 1.25),
        ("lmo-3-as-coded", 1.347, 76.6, 27.8),
    ],
)
def test_the_papers_sst2_costs_several_times_what_it_reports(
    mechanism: str, reported: float, floor: float, gaussian: float
) -> None:
    plan = as_published(mechanism)
    spread = plan.spread_epsilon
    assert spread is not None
    assert spread == pytest.approx(floor, rel=5e-3)
    assert plan.gaussian_epsilon() == pytest.approx(gaussian, rel=5e-3)
    assert reported < spread < plan.epsilon
    assert plan.epsilon == vector_epsilon(plan.mechanism.law, "l2", 1e-10, 2048 / 67350, 192).epsilon
    assert plan.facts()["stretch"] == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize(("label", "written", "coded"), [("0.3", 7.124, 3.593), ("2", 0.8313, 0.6848)])
def test_noise_as_published_has_the_deviation_of_the_reference(label: str, written: float, coded: float) -> None:
    assert mixture_noise(f"lmo-{label}").noise_multiplier == pytest.approx(written, rel=5e-4)
    assert mixture_noise(f"lmo-{label}-as-coded").noise_multiplier == pytest.approx(coded, rel=5e-4)


def test_names_go_both_ways() -> None:
    for label in PUBLISHED:
        for as_coded in (False, True):
            noise = mixture_noise(MixtureNoise(label, as_coded, 1.0).name)
            assert (noise.label, noise.as_coded) == (label, as_coded)
            assert noise.stretch == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("route", ["l1", "l2"])
@pytest.mark.parametrize("epsilon", [0.01, 2.0, 60.0])
def test_the_noise_is_the_least_for_epsilon(route: str, epsilon: float) -> None:
    plan = solve_mixture_plan(**SMALL, mechanism="lmo-0.3", route=route, epsilon=epsilon)
    assert 0.999 * epsilon <= plan.epsilon <= epsilon
    assert math.sqrt(plan.mechanism.law.variance) == pytest.approx(plan.noise_multiplier)
    less = solve_mixture_plan(**SMALL, mechanism="lmo-0.3", route=route, noise_multiplier=0.999 * plan.noise_multiplier)
    assert less.epsilon > epsilon
    assert plan.gaussian_epsilon() < 0.8 * epsilon  # a Gaussian of that deviation would have been cheaper


def test_a_full_batch_claims_no_sampling() -> None:
    plan = solve_mixture_plan(
        **{**SMALL, "expected_batch_size": 1024}, mechanism="lmo-2", route="l2", noise_multiplier=50.0
    )
    assert plan.sampler.name == "full_batch"
    assert plan.epsilon == vector_epsilon(plan.mechanism.law, "l2", 1e-5, 1.0, 200).epsilon


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"route": "l2_scalar"}, "do not have the scalar's epsilon"),
        ({"route": "equivalent_gaussian"}, "bounds nothing after composition"),
        ({"mechanism": "laplace"}, "`mechanism` laplace: no published set of LMO noise; use one of lmo-0.15"),
        ({"mechanism": "lmo-0.3-coded"}, "`mechanism` lmo-0.3-coded"),
        ({"delta": 0.0}, "`delta`"),
        ({"steps": 0}, "`steps`"),
        ({"num_examples": True, "expected_batch_size": 1}, "`num_examples`"),
        ({"expected_batch_size": 2000}, "`expected_batch_size`"),
        ({"clip_norm": 0.0}, "`clip_norm`"),
        ({"relation": NeighboringRelation.REPLACE_ONE}, "`relation` replace_one"),
        ({"noise_multiplier": 1.0}, "exactly one"),
        ({"noise_multiplier": math.inf, "epsilon": None}, "`noise_multiplier`"),
        ({"epsilon": -1.0}, "`epsilon` must be"),
        ({"epsilon": 1e-12}, "`epsilon` 1e-12: no stretch of lmo-0.3 reaches it; raise"),
        ({"epsilon": 1e16}, "hardly any noise gives it already; lower"),
    ],
)
def test_refusals_are_one_line(changes: dict[str, Any], said: str) -> None:
    given = {**SMALL, "mechanism": "lmo-0.3", "route": "l2", "epsilon": 2.0, **changes}
    with pytest.raises(DpzoError, match=said) as caught:
        solve_mixture_plan(**given)
    assert "\n" not in str(caught.value)


def test_every_published_set_has_a_plan() -> None:
    for label in PUBLISHED:
        plan = as_published("lmo-" + label.replace(" ", "-"))
        assert plan.mechanism.law.variance == pytest.approx(published(label).mixture.variance)
        assert plan.epsilon > published(label).truth.pure * 0.5
