"""Stochastic rounding: two kernels with one set of bits, no bias, neighbours only, and 16-bit training that replays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpzo.zo import DirectionScheme, Sgd, TailAverage, TrainableParameters, shifted
from dpzo.zo.directions import Backend
from dpzo.zo.kernels import spec
from dpzo.zo.schedules import Constant

DTYPES = (torch.bfloat16, torch.float16)
EDGES = [0.0, -0.0, 1.0, -1.0, 65504.0, 65519.0, 7e4, 3.3e38, -3.4e38, math.inf, -math.inf, math.nan, -math.nan]
EDGES += [2.0**-14, 2.0**-14 * (1 - 2.0**-20), 2.0**-24, 3.3e-8, -1e-7, 5e-41, 2.0**-133, -1e-42]


def rounded(wide: Tensor, dtype: torch.dtype, *, backend: Backend = "numba", step: int = 3, start: int = 0) -> Tensor:
    scheme = DirectionScheme("rademacher", 11, 1, (7, 1 << 20))
    out = torch.empty(wide.shape, dtype=dtype)
    scheme.at(step, backend).round_into(1, wide, out, start)
    return out


def code(values: Tensor) -> list[int]:
    return [int(v) for v in values.view(torch.int16)]


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    values=st.lists(st.one_of(st.floats(width=32), st.sampled_from(EDGES)), min_size=1, max_size=70),
    start=st.integers(0, 70),
    step=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_the_kernels_agree_bit_for_bit(dtype: torch.dtype, values: list[float], start: int, step: int) -> None:
    wide = torch.tensor(values, dtype=torch.float32)
    one = rounded(wide, dtype, backend="numba", step=step, start=start)
    assert code(one) == code(rounded(wide, dtype, backend="reference", step=step, start=start))


@pytest.mark.parametrize("dtype", DTYPES)
def test_edges_stay_what_they_are(dtype: torch.dtype) -> None:
    wide = torch.tensor(EDGES)
    out = rounded(wide, dtype)
    largest = torch.finfo(dtype).max
    finite = wide.isfinite()
    assert torch.equal(out.isfinite(), finite)
    assert float(out[finite].abs().max()) <= largest
    assert code(out[:4]) == code(wide[:4].to(dtype))
    assert (out[wide.isinf()].isinf() & (out[wide.isinf()].sign() == wide[wide.isinf()].sign())).all()
    assert out[wide.isnan()].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_number_goes_to_one_of_its_two_neighbours_and_a_representable_one_stays(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(1)
    exponent = torch.randint(-26, 10, (20_000,), generator=draw).float()
    wide = torch.randn(20_000, generator=draw) * torch.exp2(exponent)
    out = rounded(wide, dtype).double()
    nearest = wide.to(dtype)
    assert torch.equal(rounded(nearest.float(), dtype), nearest)
    towards = torch.where(nearest.double() < wide.double(), torch.inf, -torch.inf).to(dtype)
    step = {torch.bfloat16: 1, torch.float16: 1}[dtype]
    bits = nearest.view(torch.int16)
    grows = (towards.float() > 0) == (nearest.float() >= 0)
    other = torch.where(grows, bits + step, bits - step).to(torch.int16).view(dtype).double()
    exact = nearest.double() == wide.double()
    ok = (out == nearest.double()) | (~exact & (out == other))
    ok |= (nearest.double() == 0) & (out.abs() <= torch.finfo(dtype).smallest_normal)  # beside zero the sign may turn
    assert ok.all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [1.0 + 2.0**-10 * 0.3, -3.0 - 2.0**-9 * 0.7, 1.7e-7, -0.01234567])
def test_rounding_is_unbiased(dtype: torch.dtype, value: float) -> None:
    """2²⁰ draws: the share rounded up is the fraction, to four standard errors; a bias of 0.003 of a gap is refused."""
    count = 1 << 20
    wide = torch.full((count,), value)
    exact = float(wide[0])
    out = rounded(wide, dtype).double()
    low, high = float(out.min()), float(out.max())
    assert low < exact < high
    share = (exact - low) / (high - low)
    found = float((out == high).double().mean())
    error = math.sqrt(share * (1 - share) / count)
    assert abs(found - share) < 4 * error + 2.0**-15
    assert 4 * error + 2.0**-15 < 0.003


def test_bits_are_addressed_and_shared_with_no_direction() -> None:
    wide = torch.full((4096,), 1.0 + 2.0**-8)  # half a gap
    whole = rounded(wide, torch.bfloat16)
    assert code(rounded(wide[1001:3000], torch.bfloat16, start=1001)) == code(whole[1001:3000])
    assert code(rounded(wide, torch.bfloat16, step=4)) != code(whole)
    assert len(set(spec.PURPOSES.values())) == len(spec.PURPOSES)
    up = (whole.float() > 1).double() - 0.5
    neighbours = float((up[1:] * up[:-1]).mean()) * 4
    assert abs(neighbours) < 5 / math.sqrt(4096)


class Layered(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(40, 50, dtype=dtype), nn.Linear(50, 3, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(torch.tanh(self.first(x)))
        return result


def build(dtype: torch.dtype) -> TrainableParameters:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = Layered(torch.float32).to(dtype)
    return TrainableParameters(module, [name for name, _ in module.named_parameters()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_a_shift_is_the_fp32_sum_to_nearest(dtype: torch.dtype, backend: Backend) -> None:
    parameters = build(dtype)
    before = parameters.state()
    directions = DirectionScheme("gaussian", 5, 2, parameters.sizes).at(1, backend)
    expected = []
    for index, theta in enumerate(parameters):
        wide = theta.detach().float().flatten()
        directions.add(1, index, wide.clone(), 1e-2, wide)
        expected.append(wide.to(dtype).view(theta.shape))
    with shifted(parameters, directions, 1, 1e-2, "all"):
        for theta, wanted in zip(parameters, expected, strict=True):
            assert theta.dtype == dtype
            assert torch.equal(theta.detach().view(torch.int16), wanted.view(torch.int16))
        whole = parameters.module(torch.ones(2, 40, dtype=dtype))
    with shifted(parameters, directions, 1, 1e-2, "layer"):
        assert torch.equal(parameters.module(torch.ones(2, 40, dtype=dtype)), whole)
    after = parameters.state()
    assert all(torch.equal(before[name], after[name]) for name in before)


def train(parameters: TrainableParameters, backend: Backend, master: bool, average: bool = False) -> dict[str, Tensor]:
    scheme = DirectionScheme("rademacher", 9, 3, parameters.sizes)
    sgd = Sgd(Constant(1e-4, 6), 10.0, master=master)
    update = TailAverage(sgd, 6, 0.5) if average else sgd
    state = update.init(parameters)
    for step in range(6):
        values = np.array([3.0, -1.0, 2.0]) * (step + 1)
        update.apply(parameters, state, scheme.at(step, backend), values, step)
    update.finish(parameters, state)
    return parameters.state()


@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sixteen_bit_training_repeats_its_bits(dtype: torch.dtype, master: bool, average: bool) -> None:
    one = train(build(dtype), "numba", master, average)
    other = train(build(dtype), "reference", master, average)
    start = build(dtype).state()
    assert all(torch.equal(one[name].view(torch.int16), other[name].view(torch.int16)) for name in one)
    assert any(not torch.equal(one[name], start[name]) for name in one)
    assert all(value.dtype == dtype for value in one.values())


def test_small_steps_arrive_on_average_and_a_master_holds_them_exactly() -> None:
    """Steps of 1/20 of a gap: rounded to nearest none would arrive; stochastically the sum does, to five errors."""
    count = 1 << 14
    module = nn.Linear(count, 1, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        module.weight.fill_(1.0)
    parameters = TrainableParameters(module, ["weight"])
    scheme = DirectionScheme("rademacher", 2, 1, parameters.sizes)
    move = 2.0**-7 / 20
    sgd = Sgd(Constant(move, 40), 1.0)
    signs = torch.zeros(count)
    for step in range(40):
        z = torch.empty(count)
        scheme.at(step).fill(0, 0, z)
        signs -= z
        sgd.apply(parameters, {}, scheme.at(step), np.array([1.0]), step)
    moved = module.weight.detach().double().flatten() - 1.0
    error = moved - move * signs.double()
    assert abs(float(error.mean())) < 5 * float(error.std()) / math.sqrt(count)
    assert float(np.corrcoef(moved, signs)[0, 1]) > 0.2

    with torch.no_grad():
        module.weight.fill_(1.0)
    held = Sgd(Constant(move, 40), 1.0, master=True)
    state = held.init(parameters)
    for step in range(40):
        held.apply(parameters, state, scheme.at(step), np.array([1.0]), step)
    torch.testing.assert_close(state["master.weight"].flatten() - 1.0, move * signs, rtol=0, atol=1e-5)
    assert torch.equal(module.weight.detach(), state["master.weight"].to(torch.bfloat16))
