"""Means of iterates: what they are, that zeros and θ_0 have no weight in them, and that burnt steps do not count."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from dpzo.errors import DpzoError
from dpzo.zo import (
    DirectionScheme,
    ExponentialAverage,
    ExponentialMean,
    Sgd,
    State,
    TailAverage,
    TailMean,
    TrainableParameters,
    Update,
    public_normal,
    updates,
)
from dpzo.zo.schedules import Constant

SIZES = (7, 130)
STEPS = 10


def make(dtype: torch.dtype = torch.float32) -> TrainableParameters:
    module = nn.ParameterList([public_normal(2, i, size, 0.5).to(dtype) for i, size in enumerate(SIZES)])
    return TrainableParameters(module, [str(i) for i in range(len(SIZES))])


def theta(parameters: TrainableParameters) -> NDArray[np.float32]:
    return np.concatenate([p.detach().float().flatten().numpy() for p in parameters])


def run(
    update: Update, skip: tuple[int, ...] = (), pause: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[NDArray[np.float32], dict[int, NDArray[np.float32]], State]:
    """What is released, the iterate after each applied step, the state."""
    parameters = make(dtype)
    state, iterates = update.init(parameters), {}
    for step in range(STEPS):
        if step == pause:
            weights, saved = parameters.state(), {key: value.clone() for key, value in state.items()}
            parameters = make(dtype)
            parameters.load(weights)
            state = saved
        if step not in skip:
            at = DirectionScheme("gaussian", 8, 2, SIZES).at(step)
            update.apply(parameters, state, at, np.array([1.0 + step, -2.0]), step)
            iterates[step] = theta(parameters)
    update.finish(parameters, state)
    return theta(parameters), iterates, state


def ema(decay: float) -> ExponentialAverage:
    return ExponentialAverage(Sgd(Constant(0.1, STEPS), 4.0), decay)


@pytest.mark.parametrize("skip", [(), (0, 3, 9)])
@pytest.mark.parametrize("decay", [0.1, 0.9, 0.9999, 1 - 2.0**-53])
def test_the_exponential_mean_is_the_weighted_mean_of_the_iterates(decay: float, skip: tuple[int, ...]) -> None:
    mean, iterates, state = run(ema(decay), skip)
    plain = run(Sgd(Constant(0.1, STEPS), 4.0), skip)[1]
    assert all(np.array_equal(iterates[step], plain[step]) for step in plain)
    weights = decay ** np.arange(len(iterates))[::-1].astype(np.float64)
    expected = weights @ np.stack(list(iterates.values())).astype(np.float64) / weights.sum()
    assert np.allclose(mean, expected, rtol=1e-6, atol=1e-7)
    assert float(state["ema.weight"]) == pytest.approx(-math.expm1(len(iterates) * math.log(decay)), rel=1e-12)
    assert state["ema.sum.1"].dtype == torch.float64


def test_to_the_operation() -> None:
    decay = 0.7
    mean, iterates, _ = run(ema(decay))
    total, weight = np.zeros(sum(SIZES)), 0.0
    for iterate in iterates.values():
        total = decay * total + (1.0 - decay) * iterate.astype(np.float64)
        weight = decay * weight + (1.0 - decay)
    assert np.array_equal(mean, (total / weight).astype(np.float32))


@pytest.mark.parametrize("steps", [1, 2, 50])
@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_weights_that_stand_still_are_their_own_mean(steps: int, decay: float) -> None:
    """No bias towards the zeros that the sums start from, after one step as after fifty."""
    parameters = make()
    before, mean = theta(parameters), ExponentialMean(decay)
    state = mean.init(parameters)
    for step in range(steps):
        mean.add(parameters, state, step)
    mean.finish(parameters, state)
    assert np.allclose(theta(parameters), before, rtol=1e-6)


@pytest.mark.parametrize("mean", [ExponentialMean(0.9), TailMean(STEPS, 0.5)])
def test_with_nothing_counted_the_weights_stay(mean: ExponentialMean | TailMean) -> None:
    parameters = make()
    before = theta(parameters)
    mean.finish(parameters, mean.init(parameters))
    assert np.array_equal(theta(parameters), before)


def test_one_mean_serves_an_update_and_whoever_moves_the_weights() -> None:
    released, iterates, _ = run(TailAverage(Sgd(Constant(0.1, STEPS), 4.0), STEPS, 0.35))
    mean, parameters = TailMean(STEPS, 0.35), make()
    state = mean.init(parameters)
    for step, iterate in iterates.items():
        for p, values in zip(parameters, np.split(iterate, [SIZES[0]]), strict=True):
            p.data.copy_(torch.from_numpy(values))
        mean.add(parameters, state, step)
    mean.finish(parameters, state)
    assert np.array_equal(theta(parameters), released)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_survive_a_pause_and_any_block(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(ema(0.8), dtype=dtype)[0]
    for pause in (1, 6):
        assert np.array_equal(run(ema(0.8), pause=pause, dtype=dtype)[0], whole)
    monkeypatch.setattr(updates, "block_elements", lambda device: 11)
    assert np.array_equal(run(ema(0.8), dtype=dtype)[0], whole)


def test_averaging_takes_noise_out() -> None:
    """Around an optimum that steps cannot leave, the mean is nearer to it than the last iterate."""
    noise = np.random.Generator(np.random.PCG64(3))
    parameters, mean = make(), ExponentialMean(0.95)
    state, at = mean.init(parameters), theta(parameters)
    for step in range(400):
        for p, values in zip(parameters, np.split(at, [SIZES[0]]), strict=True):
            p.data.copy_(torch.from_numpy((values + noise.standard_normal(len(values))).astype(np.float32)))
        mean.add(parameters, state, step)
    alone = np.linalg.norm(theta(parameters) - at)
    mean.finish(parameters, state)
    # the variance of an exponential mean of independent noise is (1 − β)/(1 + β) of one's: a length of 0.16
    assert 0.12 < np.linalg.norm(theta(parameters) - at) / alone < 0.2


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, math.nan])
def test_a_decay_that_averages_nothing_is_refused(decay: float) -> None:
    with pytest.raises(DpzoError, match=r"training\.ema"):
        ExponentialMean(decay)
    with pytest.raises(DpzoError, match=r"training\.ema"):
        ema(decay)
