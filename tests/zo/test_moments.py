"""Heavy ball and Adam: the bits against NumPy, operation by operation, and the mathematics against float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpzo.errors import DpzoError
from dpzo.zo import Adam, DirectionScheme, Momentum, Sgd, State, TrainableParameters, Update, public_normal, updates
from dpzo.zo.directions import Backend
from dpzo.zo.schedules import Constant, Cosine

SIZES = (7, 130, 1)
STEPS, BATCH = 12, 12.8
K = 3

Rule = Callable[..., Update]
RULES: list[Rule] = [Momentum, Adam]


def make(dtype: torch.dtype = torch.float32) -> TrainableParameters:
    module = nn.ParameterList([public_normal(2, i, size, 0.5).to(dtype) for i, size in enumerate(SIZES)])
    return TrainableParameters(module, [str(i) for i in range(len(SIZES))])


def flat(tensors: Any) -> NDArray[np.float32]:
    return np.concatenate([t.detach().float().flatten().numpy() for t in tensors])


def values_at(step: int) -> NDArray[np.float64]:
    return np.random.Generator(np.random.PCG64([7, step])).standard_normal(K) * 9.0


def z_at(step: int, kind: str) -> NDArray[np.float32]:
    """(K, d)."""
    at = DirectionScheme(kind, 8, K, SIZES).at(step)
    rows = []
    for k in range(K):
        parts = [torch.empty(size) for size in SIZES]
        for index, part in enumerate(parts):
            at.fill(k, index, part)
        rows.append(torch.cat(parts).numpy())
    return np.stack(rows)


def run(
    update: Update,
    *,
    kind: str = "gaussian",
    skip: tuple[int, ...] = (),
    pause: int | None = None,
    dtype: torch.dtype = torch.float32,
    backend: Backend = "numba",
) -> tuple[dict[str, Tensor], State]:
    """θ and the state after all steps but `skip`; `pause` goes on from copies of both in fresh objects."""
    parameters = make(dtype)
    state = update.init(parameters)
    scheme = DirectionScheme(kind, 8, K, SIZES)
    for step in range(STEPS):
        if step == pause:
            weights, saved = parameters.state(), {key: value.clone() for key, value in state.items()}
            parameters = make(dtype)
            parameters.load(weights)
            state = saved
        if step not in skip:
            update.apply(parameters, state, scheme.at(step, backend), values_at(step), step)
    update.finish(parameters, state)
    return parameters.state(), state


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    def bits(tensor: Tensor) -> bytes:
        return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()

    return one.keys() == other.keys() and all(bits(one[name]) == bits(other[name]) for name in one)


# --- to the bit


def single_sum(coefficients: NDArray[np.float64], z: NDArray[np.float32]) -> NDArray[np.float32]:
    total = np.zeros(z.shape[1], np.float32)
    for c, direction in zip(coefficients.astype(np.float32), z, strict=True):
        total = total + c * direction
    return total


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sphere"])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9])
def test_heavy_ball_equals_numpy_bit_for_bit(kind: str, decay: float) -> None:
    rate = Cosine(0.05, STEPS)
    weights, velocity = flat(make()), np.zeros(sum(SIZES), np.float32)
    for step in range(STEPS):
        inside = (1.0 - decay) * (-(rate(step) * values_at(step)) / (K * BATCH))
        velocity = np.float32(decay) * velocity + single_sum(inside, z_at(step, kind))
        weights = weights + velocity
    trained, state = run(Momentum(rate, BATCH, decay), kind=kind)
    assert np.array_equal(flat(trained.values()), weights)
    assert np.array_equal(flat(state[f"momentum.{i}"] for i in range(3)), velocity)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sphere"])
def test_adam_equals_numpy_bit_for_bit(kind: str) -> None:
    rate, beta1, beta2, epsilon = Cosine(0.05, STEPS), 0.8, 0.97, 1e-3
    weights = flat(make())
    first, second = np.zeros((2, sum(SIZES)), np.float32)
    gathered1 = gathered2 = 0.0
    for step in range(STEPS):
        g = single_sum(values_at(step) / (K * BATCH), z_at(step, kind))
        first = np.float32(beta1) * first + np.float32(1.0 - beta1) * g
        second = np.float32(beta2) * second + np.float32(1.0 - beta2) * (g * g)
        gathered1 = beta1 * gathered1 + (1.0 - beta1)
        gathered2 = beta2 * gathered2 + (1.0 - beta2)
        below = np.sqrt(second) * np.float32(1.0 / math.sqrt(gathered2)) + np.float32(epsilon)
        weights = weights + np.float32(-rate(step) / gathered1) * (first / below)
    trained, state = run(Adam(rate, BATCH, beta1, beta2, epsilon), kind=kind)
    assert np.array_equal(flat(trained.values()), weights)
    assert np.array_equal(flat(state[f"adam.first.{i}"] for i in range(3)), first)
    assert np.array_equal(flat(state[f"adam.second.{i}"] for i in range(3)), second)
    assert state["adam.weights"].tolist() == [gathered1, gathered2]


@pytest.mark.parametrize("rule", RULES)
def test_bits_do_not_depend_on_blocks_or_backends(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    update = rule(Constant(0.1, STEPS), BATCH)
    whole = run(update)
    assert all(map(same, run(update, backend="reference"), whole))
    for block in (37, 1):
        monkeypatch.setattr(updates, "block_elements", lambda device, block=block: block)
        assert all(map(same, run(update), whole))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("master", [False, True])
def test_a_pause_changes_nothing_and_all_that_is_remembered_is_tensors(
    rule: Rule, dtype: torch.dtype, master: bool
) -> None:
    update = rule(Constant(0.01, STEPS), BATCH, master=master)
    whole = run(update, dtype=dtype)
    assert all(map(same, run(update, pause=5, dtype=dtype), whole))
    assert all(map(same, run(update, dtype=dtype, backend="reference"), whole))
    assert all(value.dtype == dtype for value in whole[0].values())
    kept = {name: value.dtype for name, value in whole[1].items()}
    assert ("master.1" in kept) == (master and dtype != torch.float32)
    assert {dtype for name, dtype in kept.items() if name != "adam.weights"} == {torch.float32}
    assert not same(whole[0], make(dtype).state())


@pytest.mark.parametrize("rule", RULES)
def test_a_burnt_step_is_as_if_it_had_not_been(rule: Rule) -> None:
    """Neither decay nor move: the same steps, addressed by their own numbers, are all that counts."""
    update = rule(Constant(0.1, STEPS), BATCH)
    parameters = make()
    state = update.init(parameters)
    scheme = DirectionScheme("gaussian", 8, K, SIZES)
    for step in (s for s in range(STEPS) if s not in (0, 4, 11)):
        update.apply(parameters, state, scheme.at(step), values_at(step), step)
    assert all(map(same, run(update, skip=(0, 4, 11)), (parameters.state(), state)))


# --- the mathematics


def test_without_decay_heavy_ball_is_sgd() -> None:
    rate = Cosine(0.05, STEPS)
    for dtype, master in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)):
        plain, _ = run(Sgd(rate, BATCH, master), dtype=dtype)
        assert same(run(Momentum(rate, BATCH, 0.0, master), dtype=dtype)[0], plain)


def displacement(update: Update, steps: int, last: int, dtype: torch.dtype = torch.float32) -> NDArray[np.float64]:
    """How far the releases of steps 0 … last move θ within `steps` steps; later ones are zero."""
    parameters = make(dtype)
    before, state = flat(parameters).astype(np.float64), update.init(parameters)
    scheme = DirectionScheme("gaussian", 8, K, SIZES)
    for step in range(steps):
        values = values_at(step) if step <= last else np.zeros(K)
        update.apply(parameters, state, scheme.at(step), values, step)
    return flat(parameters) - before


def test_every_release_weighs_in_heavy_ball_what_it_weighs_in_sgd() -> None:
    rate = Constant(0.1, 300)
    for last in (0, 9):
        plain = displacement(Sgd(rate, BATCH), 300, last)
        moved = displacement(Momentum(rate, BATCH, 0.9), 300, last)
        assert np.allclose(moved, plain, atol=1e-5)
    early = displacement(Momentum(rate, BATCH, 0.9), 1, 0)
    assert np.allclose(early, 0.1 * displacement(Sgd(rate, BATCH), 1, 0), atol=1e-6)


def test_heavy_ball_and_adam_against_float64() -> None:
    """Powers and closed sums instead of recursions: v_t = (1 − β) Σ β^(t − r) u_r; m̂, v̂ from their definitions."""
    rate, beta1, beta2, epsilon = Cosine(0.05, STEPS), 0.9, 0.999, 1e-8
    g = np.stack([values_at(t) @ z_at(t, "gaussian").astype(np.float64) / (K * BATCH) for t in range(STEPS)])
    start = flat(make()).astype(np.float64)
    heavy, adam = start.copy(), start.copy()
    for t in range(STEPS):
        past = np.arange(t, -1, -1)[:, None]
        rates = np.array([rate(r) for r in range(t + 1)])[:, None]
        heavy -= ((1 - beta1) * beta1**past * rates * g[: t + 1]).sum(axis=0)
        first = (beta1**past * g[: t + 1]).sum(axis=0) * (1 - beta1) / (1 - beta1 ** (t + 1))
        second = (beta2**past * g[: t + 1] ** 2).sum(axis=0) * (1 - beta2) / (1 - beta2 ** (t + 1))
        adam -= rate(t) * first / (np.sqrt(second) + epsilon)
    assert np.allclose(flat(run(Momentum(rate, BATCH, beta1))[0].values()), heavy, rtol=0, atol=2e-6)
    assert np.allclose(flat(run(Adam(rate, BATCH))[0].values()), adam, rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_first_step_of_adam_has_the_size_of_its_rate(size: float) -> None:
    """Bias correction: m̂ = g and v̂ = g² whatever the decays, so |δ| = η, whatever the slopes."""
    parameters = make()
    before = flat(parameters)
    update = Adam(Constant(0.25, 5), BATCH, 0.9, 0.999, 1e-20)
    scheme = DirectionScheme("rademacher", 8, 1, SIZES)
    update.apply(parameters, update.init(parameters), scheme.at(0), np.array([size]), 0)
    assert np.allclose(np.abs(flat(parameters) - before), 0.25, atol=1e-6)


def test_adam_leaves_coordinates_alone_that_nothing_touches() -> None:
    parameters = make()
    update = Adam(Constant(0.1, 5), BATCH)
    before, state = flat(parameters), update.init(parameters)
    for step in range(5):
        update.apply(parameters, state, DirectionScheme("gaussian", 8, K, SIZES).at(step), np.zeros(K), step)
    assert np.array_equal(flat(parameters), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", RULES)
def test_sixteen_bits_follow_single_precision(rule: Rule, dtype: torch.dtype) -> None:
    """Rounding at random arrives on average; a master is the fp32 run from the same rounded start."""
    rate = Constant(0.002, STEPS)
    wide = flat(run(rule(rate, BATCH))[0].values()) - flat(make())
    rounded = flat(run(rule(rate, BATCH), dtype=dtype)[0].values()) - flat(make(dtype))
    unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    assert np.abs(rounded - wide).max() < 4 * math.sqrt(STEPS) * unit
    assert abs((rounded - wide).mean()) < 4 * math.sqrt(STEPS) * unit / math.sqrt(sum(SIZES))
    held, state = run(rule(rate, BATCH, master=True), dtype=dtype)
    masters = flat(state[f"master.{i}"] for i in range(3))
    assert np.allclose(masters - flat(make(dtype)), wide, rtol=0, atol=1e-6)
    assert all(torch.equal(held[str(i)], state[f"master.{i}"].to(dtype)) for i in range(3))


def test_both_descend_a_quadratic_under_noise() -> None:
    """½‖θ‖² from released slopes of K directions with noise: both end near 0, heavy ball no worse than Sgd."""
    ends = {}
    for name, update in (
        ("sgd", Sgd(Constant(0.5, 300), 1.0)),
        ("momentum", Momentum(Constant(0.5, 300), 1.0)),
        ("adam", Adam(Constant(0.05, 300), 1.0)),
    ):
        parameters = TrainableParameters(nn.ParameterList([torch.full((20,), 3.0)]), ["0"])
        state = update.init(parameters)
        noise = np.random.Generator(np.random.PCG64(1))
        for step in range(300):
            at = DirectionScheme("rademacher", 1, 16, (20,)).at(step)
            z = np.empty((16, 20), np.float32)
            for k in range(16):
                at.fill(k, 0, torch.from_numpy(z[k]))
            values = z @ flat(parameters).astype(np.float64) + 0.3 * noise.standard_normal(16)
            update.apply(parameters, state, at, values, step)
        ends[name] = float(np.linalg.norm(flat(parameters)))
    assert max(ends.values()) < 1.0  # from 13.4
    assert ends["momentum"] < 1.2 * ends["sgd"]


@pytest.mark.parametrize("bad", [[float("nan")] * K, [float("inf")] * K, [[1.0] * K]])
@pytest.mark.parametrize("rule", RULES)
def test_a_release_that_is_not_finite_numbers_is_refused(rule: Rule, bad: list[Any]) -> None:
    parameters, update = make(), rule(Constant(0.1, 5), 4.0)
    state = update.init(parameters)
    kept = {name: value.clone() for name, value in state.items()}
    with pytest.raises(ValueError, match="values"):
        update.apply(parameters, state, DirectionScheme("gaussian", 8, K, SIZES).at(1), np.array(bad), 1)
    assert same(state, kept)
    assert same(parameters.state(), make().state())


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: Momentum(Constant(1.0, 5), 0.0), "expected_batch_size"),
        (lambda: Momentum(Constant(1.0, 5), 1.0, 1.0), "training.momentum"),
        (lambda: Momentum(Constant(1.0, 5), 1.0, -0.1), "training.momentum"),
        (lambda: Momentum(Constant(1.0, 5), 1.0, math.nan), "training.momentum"),
        (lambda: Adam(Constant(1.0, 5), math.inf), "expected_batch_size"),
        (lambda: Adam(Constant(1.0, 5), 1.0, 1.0), "training.momentum"),
        (lambda: Adam(Constant(1.0, 5), 1.0, 0.9, 1.5), "second"),
        (lambda: Adam(Constant(1.0, 5), 1.0, 0.9, 0.99, 0.0), "stabiliser"),
        (lambda: Adam(Constant(1.0, 5), 1.0, 0.9, 0.99, 1e-60), "stabiliser"),
        (lambda: Adam(Constant(1.0, 5), 1.0, 0.9, 0.99, math.inf), "stabiliser"),
        (lambda: Adam(Constant(1.0, 5), 1.0, 0.9, 0.99, 1e60), "stabiliser"),
    ],
)
def test_what_is_no_rule_is_refused_by_name(build: Callable[[], Update], word: str) -> None:
    with pytest.raises(DpzoError, match=word):
        build()
