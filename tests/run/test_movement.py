"""A learning rate that ruins the model by noise alone, or moves nothing, is refused before any ε is spent."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from dpzo.config.solve import solve_plan
from dpzo.errors import DpzoError
from dpzo.models.objectives import TokenObjective
from dpzo.privacy import PrivacyPlan
from dpzo.run.movement import RUINED, check_rate, noise_walk
from dpzo.zo import DirectionScheme, TrainableParameters

START = 0.5


@pytest.fixture(scope="module")
def plan() -> PrivacyPlan:
    return solve_plan(
        num_examples=200, expected_batch_size=20, steps=100, delta=1e-5, noise_multiplier=2.0, clip_norm=3.0,
        num_directions=4,
    )  # fmt: skip


def judged(plan: PrivacyPlan, rate: float, update: str = "sgd", lost: float | None = None) -> str | None:
    """`check_rate` of a module whose loss is how far its weights are from where they began; `lost` in place of it."""
    module = nn.Linear(8, 2, bias=False)
    nn.init.constant_(module.weight, START)
    parameters = TrainableParameters(module, ["weight"])

    def losses(records: NDArray[np.int64]) -> NDArray[np.float64]:
        away = float((module(torch.eye(8)).T - START).abs().mean().detach())
        return np.full(len(records), away if lost is None or away == 0 else lost)

    synthetic = cast("TokenObjective", SimpleNamespace(encoded=range(3), losses=losses))
    scheme = DirectionScheme("rademacher", 1, 4, parameters.sizes)
    before = module.weight.detach().clone()
    note = check_rate(rate, update, plan, parameters, scheme, synthetic)
    assert torch.equal(module.weight, before)
    return note


def test_the_noise_of_a_run_moves_an_element_by_this_much(plan: PrivacyPlan) -> None:
    """η·√T·σC/(B·√K), by simulation of the releases' noise."""
    draws = np.random.default_rng(0)
    noise = draws.normal(0, 2.0 * 3.0 / 20, (2000, plan.steps, 4))
    signs = draws.choice([-1.0, 1.0], noise.shape)
    walked = 0.1 * (noise * signs).mean(axis=2).sum(axis=1)
    assert noise_walk(plan, 0.1, "sgd") == pytest.approx(walked.std(), rel=0.06)
    assert noise_walk(plan, 0.1, "momentum") == noise_walk(plan, 0.1, "sgd")
    for update in ("adam", "sign"):
        assert noise_walk(plan, 0.1, update) == pytest.approx(0.1 * math.sqrt(plan.steps))


@pytest.mark.parametrize("update", ["sgd", "momentum", "adam", "sign"])
@pytest.mark.parametrize("rate", [1e-3, 0.1])
def test_an_ordinary_rate_is_used_without_a_word(plan: PrivacyPlan, rate: float, update: str) -> None:
    assert judged(plan, rate, update) is None


@pytest.mark.parametrize("rate", [1e-50, 1e-200, 5e-324])
def test_a_rate_that_moves_nothing_is_refused(plan: PrivacyPlan, rate: float) -> None:
    with pytest.raises(DpzoError, match=r"training\.learning_rate .*: moves no weight at all in float32; leave it out"):
        judged(plan, rate)


@pytest.mark.parametrize("rate", [1e-12, 1e-30, 1e-42])
def test_a_rate_below_the_rounding_of_the_weights_is_told(plan: PrivacyPlan, rate: float) -> None:
    note = judged(plan, rate)
    assert note is not None
    assert "below the rounding of the weights" in note


@pytest.mark.parametrize(("rate", "update"), [(1e3, "sgd"), (1e30, "sgd"), (1e300, "sgd"), (2.0, "adam"), (50, "sign")])
def test_a_rate_whose_noise_ruins_the_model_is_refused(plan: PrivacyPlan, rate: float, update: str) -> None:
    with pytest.raises(DpzoError, match=r"the privacy noise alone would move the weights by .*; lower it, or leave it"):
        judged(plan, rate, update)


@pytest.mark.parametrize(
    ("lost", "refused"),
    [(math.nan, True), (math.inf, True), (RUINED + 0.01, True), (RUINED - 0.01, False)],
)
def test_what_the_moved_loss_decides(plan: PrivacyPlan, lost: float, refused: bool) -> None:
    """From a loss of 0 to `lost`: not a number, and an infinity, are ruin."""
    found: Any = None
    try:
        judged(plan, 0.01, lost=lost)
    except DpzoError as error:
        found = error
    assert (found is not None) == refused
