"""Estimates, updates and schedules: the mathematics, and the bits against a plain NumPy oracle."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from dpzo.errors import DpzoError
from dpzo.zo import TailAverage, updates
from dpzo.zo.directions import DirectionScheme, StepDirections
from dpzo.zo.estimators import central_difference
from dpzo.zo.initial import public_normal
from dpzo.zo.parameters import TrainableParameters
from dpzo.zo.schedules import SCHEDULES, Constant, Cosine, Linear, cos_pi
from dpzo.zo.shift import shifted
from dpzo.zo.updates import Sgd, State

SIZES = (7, 130, 1)


def make(sizes: tuple[int, ...] = SIZES) -> TrainableParameters:
    module = nn.ParameterList([public_normal(2, i, size, 0.5) for i, size in enumerate(sizes)])
    return TrainableParameters(module, [str(i) for i in range(len(sizes))])


def theta(parameters: TrainableParameters) -> NDArray[np.float32]:
    return np.concatenate([p.detach().flatten().numpy() for p in parameters])


def z_of(at: StepDirections, k: int) -> NDArray[np.float32]:
    parts = [torch.empty(size) for size in at.scheme.sizes]
    for index, part in enumerate(parts):
        at.fill(k, index, part)
    return torch.cat(parts).numpy()


class Quadratic:
    """ℓ_i(θ) = a_i·θ + ½ Σ_j h_ij θ_j², in float64, so that only the difference quotient is tested."""

    def __init__(self, parameters: TrainableParameters) -> None:
        d = parameters.dimension
        self.parameters, self.calls = parameters, 0
        self.linear = public_normal(3, "a", 5 * d, 1.0).double().numpy().reshape(5, d)
        self.square = public_normal(3, "h", 5 * d, 1.0).double().numpy().reshape(5, d)

    def losses(self, units: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        self.calls += 1
        t = theta(self.parameters).astype(np.float64)
        return self.linear[units] @ t + 0.5 * self.square[units] @ t**2

    def gradient(self, units: NDArray[np.int64]) -> NDArray[np.float64]:
        return self.linear[units] + self.square[units] * theta(self.parameters).astype(np.float64)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sphere"])
def test_the_slope_of_a_quadratic_is_exact(kind: str) -> None:
    parameters = make()
    objective, units = Quadratic(parameters), np.array([3, 0, 0, 4])
    at = DirectionScheme(kind, 1, 4, SIZES).at(0)
    rows = central_difference(objective, parameters, units, at, 2.0**-6)
    exact = objective.gradient(units) @ np.stack([z_of(at, k) for k in range(4)], axis=1).astype(np.float64)
    assert rows.shape == (4, 4)
    assert rows.dtype == np.float64
    # what is left is the rounding of θ ± φz to fp32, about 2^-25/φ a coordinate
    assert np.allclose(rows, exact, atol=1e-3 * math.sqrt(sum(SIZES)))
    assert np.array_equal(rows[1], rows[2])


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sphere"])
def test_estimates_average_to_the_gradient(kind: str) -> None:
    parameters = make((3, 5))
    objective, units = Quadratic(parameters), np.array([1])
    at = DirectionScheme(kind, 1, 8_000, (3, 5)).at(0)
    rows = central_difference(objective, parameters, units, at, 2.0**-6)
    z = np.stack([z_of(at, k) for k in range(8_000)])
    estimates = rows.T * z
    gradient = objective.gradient(units)[0]
    error = np.abs(estimates.mean(axis=0) - gradient)
    assert (error < 5 * estimates.std(axis=0) / math.sqrt(8_000)).all()
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(gradient)


def test_no_units_no_call_and_hostile_losses_pass_through() -> None:
    parameters = make()
    objective = Quadratic(parameters)
    at = DirectionScheme("rademacher", 1, 3, SIZES).at(0)
    assert central_difference(objective, parameters, np.array([], dtype=np.int64), at, 0.1).shape == (0, 3)
    assert objective.calls == 0

    class Hostile:
        def losses(self, units: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
            return np.array([np.nan, np.inf, 3e38, 1.0], dtype=np.float32)[units]

    rows = central_difference(Hostile(), parameters, np.arange(4), at, 1e-3)
    assert np.isnan(rows[:2]).all()
    assert (rows[2:] == 0).all()

    class Wrong:
        def losses(self, units: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
            return np.zeros((len(units), 2))

    with pytest.raises(ValueError, match="one loss a unit") as caught:
        central_difference(Wrong(), parameters, np.arange(37), at, 1e-3)
    assert "37" not in str(caught.value)


def test_estimating_leaves_weights_and_generators_alone() -> None:
    parameters = make()
    bits, state = theta(parameters), torch.get_rng_state()
    at = DirectionScheme("gaussian", 1, 2, SIZES).at(0)
    central_difference(Quadratic(parameters), parameters, np.arange(5), at, 1e-3)
    assert np.array_equal(theta(parameters), bits)
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["rademacher", "gaussian", "sphere"]),
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9),
    st.integers(0, 1000),
)
def test_sgd_equals_the_numpy_oracle_bit_for_bit(kind: str, values: list[float], step: int) -> None:
    parameters = make()
    at = DirectionScheme(kind, 8, len(values), SIZES).at(step)
    expected = theta(parameters).copy()
    rate, expected_batch_size = 1e-2, 12.8
    gradient = np.zeros_like(expected)
    for k, value in enumerate(values):
        coefficient = np.float32(-(rate * value) / (len(values) * expected_batch_size))
        gradient = gradient + coefficient * z_of(at, k)
    expected = expected + gradient
    Sgd(Constant(rate, 2000), expected_batch_size).apply(parameters, {}, at, np.array(values), step)
    assert np.array_equal(theta(parameters), expected)


def test_update_bits_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for block in (1 << 16, 37, 1):
        monkeypatch.setattr(updates, "block_elements", lambda device, block=block: block)
        parameters = make()
        at = DirectionScheme("gaussian", 8, 3, SIZES).at(1)
        Sgd(Constant(0.1, 5), 4.0).apply(parameters, {}, at, np.array([1.0, -2.0, 0.3]), 1)
        results.append(theta(parameters))
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_sgd_descends_a_quadratic() -> None:
    parameters = make((20,))
    objective = Quadratic(parameters)
    objective.square = np.abs(objective.square) + 0.5
    units = np.arange(5)
    update = Sgd(Constant(0.02, 300), 5.0)
    before = objective.losses(units).mean()
    for step in range(300):
        at = DirectionScheme("rademacher", 1, 4, (20,)).at(step)
        values = central_difference(objective, parameters, units, at, 1e-2).sum(axis=0)
        update.apply(parameters, {}, at, values, step)
    optimum = -objective.linear.mean(axis=0) / objective.square.mean(axis=0)
    assert objective.losses(units).mean() < before
    assert np.allclose(theta(parameters), optimum, atol=0.02)


@pytest.mark.parametrize("bad", [[float("nan")], [float("inf")], [[1.0]]])
def test_a_release_that_is_not_finite_numbers_is_refused(bad: list[Any]) -> None:
    parameters = make()
    at = DirectionScheme("gaussian", 8, 1, SIZES).at(1)
    with pytest.raises(ValueError, match="values"):
        Sgd(Constant(0.1, 5), 4.0).apply(parameters, {}, at, np.array(bad), 1)


def run(update: updates.Update, skip: tuple[int, ...] = (), pause: int | None = None) -> tuple[Any, list[Any], State]:
    """Ten steps; `pause` saves θ and the state and goes on from copies in a new object."""
    parameters = make()
    state, iterates = update.init(parameters), []
    for step in range(10):
        if step == pause:
            weights, saved = parameters.state(), {key: value.clone() for key, value in state.items()}
            parameters = make()
            parameters.load(weights)
            state = saved
        if step not in skip:
            at = DirectionScheme("gaussian", 8, 2, SIZES).at(step)
            update.apply(parameters, state, at, np.array([1.0 + step, -2.0]), step)
        iterates.append(theta(parameters))
    update.finish(parameters, state)
    return theta(parameters), iterates, state


def test_tail_average_is_the_mean_of_the_last_iterates() -> None:
    inner = Sgd(Linear(0.1, 10), 4.0)
    average = TailAverage(inner, steps=10, fraction=0.35)
    assert average.mean.first_step == 6
    last, iterates, _ = run(inner)
    mean, same, state = run(average)
    assert np.array_equal(last, iterates[-1])
    assert all(np.array_equal(a, b) for a, b in zip(iterates, same, strict=True))
    total = np.zeros(sum(SIZES))
    for iterate in iterates[6:]:
        total = total + iterate
    assert np.array_equal(mean, (total / 4).astype(np.float32))
    assert not np.array_equal(mean, last)
    assert state["tail.sum.1"].dtype == torch.float64
    assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_tail_average_resumes_nests_and_skips_burnt_steps() -> None:
    average = TailAverage(Sgd(Constant(0.1, 10), 4.0), steps=10, fraction=0.5)
    for pause in (2, 5, 8):
        assert np.array_equal(run(average, pause=pause)[0], run(average)[0])
    mean, iterates, state = run(average, skip=(7,))
    assert int(state["tail.count"]) == 4
    total = sum(iterates[t].astype(np.float64) for t in (5, 6, 8, 9))
    assert np.array_equal(mean, (total / 4).astype(np.float32))
    kept, iterates, _ = run(average, skip=(5, 6, 7, 8, 9))
    assert np.array_equal(kept, iterates[-1])
    nested = TailAverage(average, steps=10, fraction=0.1)
    assert "inner.tail.count" in run(nested)[2]


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(st.floats(1e-12, 1e3), st.integers(1, 500), st.data())
@settings(max_examples=30, deadline=None)
def test_every_schedule_is_positive_and_peaks_at_its_rate(name: str, rate: float, steps: int, data: Any) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    schedule = SCHEDULES[name](rate, steps, warmup)
    rates = [schedule(step) for step in range(steps)]
    assert all(0 < r <= rate for r in rates)
    assert rates[warmup] == rate
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert len(set(rates[:warmup])) == warmup


def test_schedules_have_their_shapes() -> None:
    assert [Constant(0.5, 4, 1)(t) for t in range(4)] == [0.25, 0.5, 0.5, 0.5]
    assert [Linear(1.0, 5, 1)(t) for t in range(5)] == [0.5, 1.0, 0.75, 0.5, 0.25]
    assert [Linear(1.0, 5, 1)(t) for t in (5, 6)] == [0.0, 0.0]
    cosine = Cosine(1.0, 8)
    assert cosine(4) == 0.5
    assert [cosine(t) for t in range(8)] == pytest.approx([(1 + math.cos(math.pi * t / 8)) / 2 for t in range(8)])


@given(st.fractions(0, 1, max_denominator=10**6))
def test_the_integer_cosine_is_within_a_rounding_of_the_library(p: Fraction) -> None:
    assert float(cos_pi(p)) == pytest.approx(math.cos(math.pi * p), abs=1e-15)
    assert cos_pi(1 - p) == -cos_pi(p) or 2 * p == 1


def test_the_integer_cosine_at_known_points() -> None:
    assert cos_pi(Fraction(0)) == 1
    assert cos_pi(Fraction(1)) == -1
    assert abs(cos_pi(Fraction(1, 3)) - Fraction(1, 2)) < Fraction(1, 2**80)
    assert abs(cos_pi(Fraction(1, 2))) < Fraction(1, 2**80)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((0.0, 5, 0), "learning_rate"),
        ((math.nan, 5, 0), "learning_rate"),
        ((1.0, 0, 0), "steps"),
        ((1.0, 5, 5), "warmup"),
    ],
)
def test_schedules_refuse_what_is_no_schedule(arguments: tuple[float, int, int], word: str) -> None:
    for kind in SCHEDULES.values():
        with pytest.raises(DpzoError, match=word):
            kind(*arguments)


def test_updates_refuse_what_is_no_update() -> None:
    with pytest.raises(DpzoError, match="expected_batch_size"):
        Sgd(Constant(1.0, 5), 0.0)
    for fraction in (0.0, 1.1, math.nan):
        with pytest.raises(DpzoError, match="average_fraction"):
            TailAverage(Sgd(Constant(1.0, 5), 1.0), 5, fraction)


def test_shifting_back_and_forth_never_drifts() -> None:
    parameters = make()
    bits = theta(parameters)
    for step in range(200):
        at = DirectionScheme("gaussian", 1, 1, SIZES).at(step)
        for scale in (1e-3, -1e-3):
            with shifted(parameters, at, 0, scale):
                assert not np.array_equal(theta(parameters), bits)
    assert np.array_equal(theta(parameters), bits)
