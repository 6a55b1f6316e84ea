"""Defaults: what is chosen stays, and the rate is the one at which noise moves an element as far as documented."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpzo.config.defaults import DEFAULTS, Part, default_learning_rate
from dpzo.config.reading import parse_config, with_values
from dpzo.config.resolve import ResolvedConfig, resolve
from dpzo.config.schema import RunConfig
from dpzo.config.solve import solve_plan
from dpzo.data.tasks import own_completion
from dpzo.privacy import PrivacyPlan
from dpzo.zo import DirectionScheme, Sgd, TrainableParameters
from dpzo.zo.schedules import SCHEDULES

LEAST: dict[str, Any] = {"model": {"name": "m"}, "privacy": {"delta": 1e-5}}
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
PARTS: tuple[Part, ...] = ("head", "lora", "full")
CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "privacy": st.fixed_dictionaries(
            {"delta": st.just(1e-5)},
            optional={
                "steps": st.integers(1, 9999),
                "num_directions": st.integers(1, 999),
                "expected_batch_size": POSITIVE,
                "clip_norm": POSITIVE,
                "mechanism": st.sampled_from(["gaussian", "laplace"]),
            },
        ),
        "training": st.fixed_dictionaries(
            {},
            optional={
                "smoothing": POSITIVE,
                "learning_rate": POSITIVE,
                "average": st.floats(0, 1),
                "microbatch_size": st.integers(1, 999),
            },
        ),
    },
)


def resolved(config: RunConfig, part: Part, num_examples: int) -> ResolvedConfig:
    """The config of a model whose defaults are those of `part`."""
    task = own_completion(max_length=64)
    config = with_values(config, model={"trainable": part})
    return resolve(config, task, "encoder" if part == "head" else "causal", num_examples, learning_rate=0.5)


@settings(deadline=None, max_examples=80)
@given(chosen=CHOICES, part=st.sampled_from(PARTS), num_examples=st.integers(1, 10**7))
def test_defaults_fill_what_is_open_and_keep_what_was_chosen(
    chosen: dict[str, Any], part: Part, num_examples: int
) -> None:
    config = parse_config({**LEAST, **chosen})
    filled = resolved(config, part, num_examples)
    for group, values in chosen.items():
        for name, value in values.items():
            assert getattr(getattr(filled, group), name) == value
    assert filled.data.max_length == 64
    assert resolved(filled, part, num_examples) == filled
    assert list(filled.model_dump()["training"]) == list(config.model_dump()["training"])


def test_an_average_of_zero_is_a_choice() -> None:
    config = parse_config({**LEAST, "training": {"average": 0.0}})
    assert DEFAULTS["head"].average > 0
    assert resolved(config, "head", 1000).training.average == 0.0


@pytest.mark.parametrize("part", PARTS)
def test_a_default_batch_leaves_sampling_something_to_hide(part: Part) -> None:
    config = parse_config(LEAST)
    assert resolved(config, part, 1).privacy.expected_batch_size == 1
    for num_examples in (4, 40, 400, 4_000_000):
        batch = resolved(config, part, num_examples).privacy.expected_batch_size
        assert 1 <= batch <= num_examples / 4


@pytest.mark.parametrize("part", PARTS)
def test_a_default_clip_follows_the_norm_of_a_row(part: Part) -> None:
    def clip(mechanism: str, num_directions: int) -> float:
        privacy = {"delta": 1e-5, "mechanism": mechanism, "num_directions": num_directions}
        filled = resolved(parse_config({**LEAST, "privacy": privacy}), part, 1000)
        return filled.privacy.clip_norm

    assert clip("gaussian", 64) == pytest.approx(8 * clip("gaussian", 1))
    assert clip("laplace", 64) == pytest.approx(64 * clip("laplace", 1))


def plan_of(part: Part, noise_multiplier: float, **chosen: Any) -> PrivacyPlan:
    """The plan that the defaults of `part` make at a noise."""
    filled = resolved(parse_config({**LEAST, "privacy": {"delta": 1e-5, **chosen}}), part, 4000).privacy
    return solve_plan(
        num_examples=4000,
        expected_batch_size=filled.expected_batch_size,
        steps=filled.steps,
        delta=1e-5,
        noise_multiplier=noise_multiplier,
        clip_norm=filled.clip_norm,
        num_directions=filled.num_directions,
        mechanism=filled.mechanism,
    )


@pytest.mark.parametrize(
    ("part", "noise", "steps", "directions", "batch"),
    [
        ("head", 30.0, 60, 16, 256),  # privacy noise alone counts
        ("head", 0.3, 150, 4, 64),  # the chance of few directions does
        ("head", 2.0, 100, 64, 100),  # both
        ("lora", 3.0, 60, 16, 64),
        ("full", 3.0, 60, 16, 64),
    ],
)
def test_noise_moves_an_element_by_the_drift(part: Part, noise: float, steps: int, directions: int, batch: int) -> None:
    """Units whose slopes cancel on average, Gaussian noise, the library's own update: nothing but a random walk."""
    plan = plan_of(part, noise, steps=steps, num_directions=directions, expected_batch_size=batch)
    size = 900
    rate = default_learning_rate(part, size, plan)
    slope = plan.clip_norm / math.sqrt(directions)
    assert rate * slope < DEFAULTS[part].longest  # the walk decides here
    module = torch.nn.Linear(size, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    parameters = TrainableParameters(module, ["weight"])
    scheme = DirectionScheme("rademacher", 1, directions, parameters.sizes)
    update = Sgd(SCHEDULES["constant"](rate, steps, 0), plan.expected_batch_size)
    draw = np.random.default_rng(2)
    for step in range(steps):
        z = np.empty((directions, size), dtype=np.float32)
        for k in range(directions):
            scheme.at(step).fill(k, 0, torch.from_numpy(z[k]))
        gradients = draw.normal(size=(draw.poisson(batch), size))
        gradients *= slope / np.linalg.norm(gradients, axis=1, keepdims=True)
        released = (gradients @ z.T).sum(axis=0) + plan.noise_scale * draw.normal(size=directions)
        update.apply(parameters, {}, scheme.at(step), released, step)
    moved = float(module.weight.detach().square().mean().sqrt())
    assert moved == pytest.approx(DEFAULTS[part].drift, rel=0.1)


@pytest.mark.parametrize("part", PARTS)
def test_without_noise_and_with_many_directions_a_step_is_as_long_as_allowed(part: Part) -> None:
    plan = plan_of(part, 1e-3, steps=2, num_directions=4096, expected_batch_size=1000)
    step = default_learning_rate(part, 900, plan) * plan.clip_norm / math.sqrt(4096)
    assert step == pytest.approx(DEFAULTS[part].longest)


@settings(deadline=None, max_examples=60)
@given(
    part=st.sampled_from(PARTS),
    mechanism=st.sampled_from(["gaussian", "laplace"]),
    noise=st.floats(0.1, 1e3),
    steps=st.integers(1, 10_000),
    directions=st.integers(1, 512),
    batch=st.floats(1, 4000),
    dimension=st.integers(1, 10**11),
)
def test_a_rate_answers_to_what_it_is_made_from(
    part: Part, mechanism: str, noise: float, steps: int, directions: int, batch: float, dimension: int
) -> None:
    chosen = {"mechanism": mechanism, "steps": steps, "num_directions": directions, "expected_batch_size": batch}
    plan = plan_of(part, noise, **chosen)
    rate = default_learning_rate(part, dimension, plan)
    assert 0 < rate < math.inf
    louder = plan_of(part, 2 * noise, **chosen)
    assert default_learning_rate(part, dimension, louder) <= rate
    assert default_learning_rate(part, dimension, replace(plan, steps=4 * steps)) <= rate
    twice = replace(plan, clip_norm=2 * plan.clip_norm)
    assert default_learning_rate(part, dimension, twice) == pytest.approx(rate / 2)  # what is released doubles
    if DEFAULTS[part].reference_dimension is not None and dimension > 10**6:
        assert default_learning_rate(part, 4 * dimension, plan) == pytest.approx(rate / 2, rel=1e-3)


@pytest.mark.parametrize("part", PARTS)
def test_adam_steps_have_one_size(part: Part) -> None:
    quiet, loud = (default_learning_rate(part, 100, plan_of(part, noise, steps=400), "adam") for noise in (0.5, 50.0))
    assert quiet == loud == pytest.approx(DEFAULTS[part].drift / 20)


@pytest.mark.parametrize("part", PARTS)
def test_an_unclipped_slope_is_no_smaller_than_a_clipped_one(part: Part) -> None:
    assert DEFAULTS[part].unclipped >= DEFAULTS[part].slope


@pytest.mark.parametrize("part", PARTS)
def test_a_coarse_base_is_probed_further_away(part: Part) -> None:
    def smoothing(**model: str) -> float | None:
        return resolved(parse_config({**LEAST, "model": {"name": "m", **model}}), part, 1000).training.smoothing

    assert smoothing() == DEFAULTS[part].smoothing <= DEFAULTS[part].coarse_smoothing
    assert smoothing(dtype="bfloat16") == smoothing(quantization="int4") == DEFAULTS[part].coarse_smoothing
