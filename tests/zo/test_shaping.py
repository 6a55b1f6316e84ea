"""Shrinkage and signs: the row that reaches the rule, its error to the true one, and names put together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpzo.errors import DpzoError
from dpzo.zo import (
    UPDATES,
    Adam,
    DirectionScheme,
    ExponentialAverage,
    Momentum,
    Sgd,
    Shrinkage,
    SignRelease,
    State,
    StepDirections,
    TailAverage,
    TrainableParameters,
    Update,
    build_update,
    update_facts,
)
from dpzo.zo.schedules import Constant

SIZES = (5,)
AT = DirectionScheme("gaussian", 1, 4, SIZES).at(0)


class Seen:
    """An update that keeps the rows it is given and writes 7 at the end."""

    def __init__(self) -> None:
        self.rows: list[NDArray[np.float64]] = []

    def init(self, parameters: TrainableParameters) -> State:
        return {"calls": torch.zeros((), dtype=torch.int64)}

    def apply(
        self,
        parameters: TrainableParameters,
        state: State,
        directions: StepDirections,
        values: NDArray[np.float64],
        step: int,
    ) -> None:
        self.rows.append(values)
        state["calls"] = state["calls"] + 1  # a new tensor: a wrapper must take it over

    def finish(self, parameters: TrainableParameters, state: Mapping[str, Tensor]) -> None:
        assert int(state["calls"]) == len(self.rows)
        parameters.flat(0).fill_(7.0)


def make() -> TrainableParameters:
    return TrainableParameters(nn.ParameterList([torch.zeros(5)]), ["0"])


def rows(update: Update, seen: Seen, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What reaches the inner update of each row of `values` (T, K)."""
    parameters = make()
    state = update.init(parameters)
    for step, row in enumerate(values):
        update.apply(parameters, state, AT, row, step)
    update.finish(parameters, state)
    assert torch.equal(parameters.flat(0), torch.full((5,), 7.0))
    return np.stack(seen.rows)


def factors(values: NDArray[np.float64], noise_std: float, **options: Any) -> NDArray[np.float64]:
    seen = Seen()
    shrunk = rows(Shrinkage(seen, noise_std, **options), seen, values)
    quotient = shrunk / values
    assert np.allclose(quotient, quotient[:, :1], rtol=1e-12)  # a row keeps its shape
    return np.asarray(quotient[:, 0])


def gaussians(seed: int, steps: int, k: int) -> NDArray[np.float64]:
    return np.random.Generator(np.random.PCG64(seed)).standard_normal((steps, k))


# --- shrinkage


@pytest.mark.parametrize("k", [1, 16])
def test_noise_alone_is_shrunk_to_the_floor(k: int) -> None:
    """The default floor lies above what noise makes of e: nearly all factors are the floor itself."""
    late = np.concatenate([factors(3.0 * gaussians(seed, 1000, k), 3.0)[300:] for seed in range(4)])
    assert np.isclose(late, 0.1).mean() > (0.7 if k == 1 else 0.999)
    assert late.max() < 0.3


def test_the_floor_lies_where_the_documentation_says_noise_puts_the_energy() -> None:
    """std of e/K under noise alone is √(2(1 − β)/((1 + β)K)); Shrinkage's default floor is that for K = 1."""
    k, estimates = 2, []
    for seed in range(40):
        values = gaussians(100 + seed, 800, k)
        update = Shrinkage(Seen(), 1.0)
        state = update.init(make())
        for row in values:
            update.factor(state, row)
        estimates.append(float(state["shrinkage.energy"] / state["shrinkage.weight"]) / k)
    assert np.std(estimates) == pytest.approx(math.sqrt(2 * 0.01 / (1.99 * k)), rel=0.35)
    assert math.sqrt(2 * 0.01 / 1.99) == pytest.approx(Shrinkage.floor, rel=0.01)


def test_a_strong_signal_passes_whole() -> None:
    values = 500.0 + gaussians(1, 50, 8)
    assert (factors(values, 1.0) > 0.99999).all()
    assert (factors(values, 1.0) <= 1.0).all()


@pytest.mark.parametrize("ratio", [0.1, 1.0, 4.0])
def test_the_factor_settles_at_the_wiener_factor(ratio: float) -> None:
    """ratio = ‖signal‖²/(K·σ²): f → ratio/(ratio + 1)."""
    k, noise_std = 32, 2.0
    direction = gaussians(5, 1, k)[0]
    signal = direction / np.linalg.norm(direction) * math.sqrt(ratio * k) * noise_std
    found = factors(signal + noise_std * gaussians(6, 2000, k), noise_std, floor=1e-3)[500:]
    assert found.mean() == pytest.approx(ratio / (1 + ratio), abs=0.02)
    assert found.std() < 0.05


@pytest.mark.parametrize(("ratio", "share"), [(0.0, 0.02), (0.05, 0.1), (0.25, 0.3), (1.0, 0.6)])
def test_the_error_to_the_true_row_falls_where_noise_leads(ratio: float, share: float) -> None:
    """E‖f·s − signal‖² against E‖s − signal‖² = K·σ²: the Wiener share ratio/(1 + ratio), and what estimating costs."""
    k, noise_std, steps = 16, 0.7, 600
    shrunk = plain = 0.0
    for seed in range(5):
        wandering = np.cumsum(gaussians(seed, steps, k), axis=0)
        signal = wandering / np.linalg.norm(wandering, axis=1, keepdims=True) * math.sqrt(ratio * k) * noise_std
        values = signal + noise_std * gaussians(50 + seed, steps, k)
        factor = factors(values, noise_std)[:, None]
        shrunk += float(((factor * values - signal) ** 2).sum())
        plain += float(((values - signal) ** 2).sum())
    assert plain == pytest.approx(5 * steps * k * noise_std**2, rel=0.05)
    assert shrunk / plain < share


def test_the_first_factor_is_that_of_james_and_stein() -> None:
    values = np.array([[3.0, -4.0, 12.0, 1.0]])
    noise_std = 2.0
    expected = 1 - 4 / ((values / noise_std) ** 2).sum()
    assert factors(values, noise_std)[0] == pytest.approx(expected, rel=1e-12)
    for floor in (0.1, 0.25, 1.0):
        update = Shrinkage(Seen(), 1000.0, floor=floor)
        assert update.factor(update.init(make()), values[0]) == floor


def test_shrinkage_to_the_operation_and_by_an_independent_sum() -> None:
    values, noise_std, decay = 2.0 * gaussians(9, 30, 4), 1.3, 0.9
    excess = ((values / noise_std) ** 2).sum(axis=1) - 4
    expected = []
    for t in range(30):
        weights = decay ** np.arange(t, -1, -1)
        energy = max(0.0, float(weights @ excess[: t + 1] / weights.sum()))
        expected.append(max(0.1, energy / (energy + 4)))
    assert np.allclose(factors(values, noise_std, decay=decay), expected, rtol=1e-12)

    update = Shrinkage(Seen(), noise_std)
    one, other = update.init(make()), update.init(make())
    for row in values:
        assert update.factor(one, row) == update.factor(other, row[[2, 0, 3, 1]])  # no order in the sum


def test_extreme_rows_are_still_rows() -> None:
    update = Shrinkage(Seen(), 1e-300)
    state = update.init(make())
    assert update.factor(state, np.array([1e300, -1e300])) == 1.0
    assert update.factor(state, np.array([0.0, 0.0])) == 1.0
    quiet = Shrinkage(Seen(), 1e300)
    assert quiet.factor(quiet.init(make()), np.array([1e-300, 0.0])) == 0.1
    at_par = Shrinkage(Seen(), 1.0)
    assert at_par.factor(at_par.init(make()), np.array([1.0, 1.0])) == 0.1
    for bad in ([math.nan, 1.0], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="values"):
            update.apply(make(), state, AT, np.array(bad), 0)


def test_the_state_is_two_float64_numbers_beside_the_inner_one() -> None:
    seen = Seen()
    state = Shrinkage(seen, 1.0).init(make())
    assert {name: value.dtype for name, value in state.items()} == {
        "inner.calls": torch.int64,
        "shrinkage.energy": torch.float64,
        "shrinkage.weight": torch.float64,
    }
    assert state["shrinkage.energy"].data_ptr() != state["shrinkage.weight"].data_ptr()


# --- signs


def test_only_signs_reach_the_rule() -> None:
    values = np.array([[3.0, -4e-9, 0.0, 1e12], [-1.0, 2.0, 5.0, -0.0]])
    seen = Seen()
    scale = math.sqrt(2 / math.pi) * 0.5
    assert np.array_equal(
        rows(SignRelease(seen, 0.5), seen, values), scale * np.array([[1, -1, 0, 1], [-1, 1, 1, 0.0]])
    )
    assert scale == pytest.approx(np.abs(0.5 * gaussians(2, 1000, 100)).mean(), rel=0.01)


# --- names


def parts(update: Update) -> list[type]:
    found: list[type] = []
    while True:
        found.append(type(update))
        if not hasattr(update, "inner"):
            return found
        update = update.inner


def build(rule: str, **options: Any) -> Update:
    common: dict[str, Any] = {"schedule": Constant(0.1, 10), "expected_batch_size": 8.0, "steps": 10, "noise_std": 2.0}
    return build_update(rule, **{**common, **options})


def test_names_become_updates_in_the_documented_order() -> None:
    assert list(UPDATES) == ["sgd", "momentum", "adam", "sign"]
    assert build("sgd", master=True) == Sgd(Constant(0.1, 10), 8.0, master=True)
    assert build("momentum", momentum=0.5, master=True) == Momentum(Constant(0.1, 10), 8.0, 0.5, master=True)
    assert build("adam", momentum=0.5) == Adam(Constant(0.1, 10), 8.0, 0.5)
    assert build("sign") == SignRelease(Sgd(Constant(0.1, 10), 8.0), 2.0)
    assert parts(build("momentum", shrinkage="snr", average=0.5)) == [TailAverage, Shrinkage, Momentum]
    assert parts(build("sign", ema=0.9)) == [ExponentialAverage, SignRelease, Sgd]
    whole = build("sgd", shrinkage="snr", ema=0.9)
    assert whole == ExponentialAverage(Shrinkage(Sgd(Constant(0.1, 10), 8.0), 2.0), 0.9)


@pytest.mark.parametrize(
    ("rule", "options", "word"),
    [
        ("sdg", {}, "training.update: 'sdg' is unknown; choose one of sgd, momentum, adam, sign"),
        ("sgd", {"shrinkage": "sage"}, "training.shrinkage: 'sage' is unknown; choose one of none, snr"),
        ("adam", {"shrinkage": "snr"}, "a common factor cancels; use none"),
        ("sign", {"shrinkage": "snr"}, "a sign has no size to shrink; use none"),
        ("sgd", {"ema": 0.9, "average": 0.5}, "training.ema: only one average can be released"),
        ("sgd", {"ema": 1.0}, "training.ema"),
        ("sgd", {"average": 1.5}, "average_fraction"),
        ("momentum", {"momentum": 1.0}, "training.momentum"),
        ("sgd", {"shrinkage": "snr", "noise_std": 0.0}, "training.shrinkage: needs the noise"),
        ("sign", {"noise_std": math.nan}, "training.update sign: needs the noise"),
        ("sign", {"noise_std": math.inf}, "training.update sign: needs the noise"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(rule: str, options: dict[str, Any], word: str) -> None:
    with pytest.raises(DpzoError) as caught:
        build(rule, **options)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"floor": 0.0}, {"floor": 1.1}])
def test_shrinkage_refuses_what_shrinks_nothing_or_all(options: dict[str, float]) -> None:
    with pytest.raises(DpzoError, match=next(iter(options))):
        Shrinkage(Seen(), 1.0, **options)


def test_facts_name_every_number_that_the_weights_depend_on() -> None:
    """Every field of every part but rate, batch, noise and steps, which a header holds under other names."""
    assert update_facts("sgd", momentum=0.3) == {"rule": "sgd"}
    assert update_facts("adam", momentum=0.3, ema=0.99) == {
        "rule": "adam",
        "momentum": 0.3,
        "second": 0.999,
        "stabiliser": 1e-8,
        "ema": 0.99,
    }
    assert update_facts("sign") == {"rule": "sign", "sign_scale": math.sqrt(2 / math.pi)}
    assert update_facts("momentum", shrinkage="snr") == {
        "rule": "momentum",
        "momentum": 0.9,
        "shrinkage": "snr",
        "shrinkage_decay": 0.99,
        "shrinkage_floor": 0.1,
    }
