"""The Triton kernels against the oracle, bit for bit. `test_cuda.py` runs this file in a process of its own.

There Triton interprets the kernels on the CPU (TRITON_INTERPRET=1), or compiles them where a CUDA device is.
"""

from __future__ import annotations

import math
import os
import random
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dpzo.zo.directions import DirectionScheme
from dpzo.zo.kernels import choose, cuda, cuda_elements, cuda_words, mask, reference, rounding, spec
from dpzo.zo.kernels.spec import Stream

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
SIZES = (3, 4500) if INTERPRETED else (1, 127, 5000, (1 << 20) + 3)
STARTS = (0, 131, 4099)
LAWS = {"signs": spec.SIGNS, "normals": spec.NORMALS, "walsh": spec.WALSH}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOW = Stream(spec.SIGNS, key0=0, key1=0, parameter=0, c2=0, c3=1 << 24)
HIGH = Stream(
    spec.SIGNS,
    key0=0x89ABCDEF,
    key1=0xFFFFFFFF,
    parameter=spec.MAX_PARAMETERS - 1,
    c2=spec.MAX_STEPS - 1,
    c3=(spec.MAX_DIRECTIONS - 1) | spec.PURPOSES["basis/orthogonal"] << 24,
    origin=(1 << 38) - 77,
)


def on(tensor: Tensor) -> Tensor:
    return tensor.to(DEVICE)


def weights(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    draw = torch.Generator().manual_seed(count)
    return on(torch.randn(count, generator=draw) * torch.logspace(-4, 1, count)).to(dtype)


def same(ours: Tensor, oracle: Tensor) -> bool:
    """Also the sign of a zero."""
    kind = torch.int32 if ours.dtype == torch.float32 else torch.int16
    return ours.dtype == oracle.dtype and torch.equal(ours.view(kind), oracle.view(kind))


@pytest.fixture(params=LAWS)
def law(request: pytest.FixtureRequest) -> int:
    return LAWS[request.param]


@pytest.mark.parametrize("stream", [LOW, HIGH], ids=["low", "high"])
@pytest.mark.parametrize("start", STARTS)
def test_fill(law: int, stream: Stream, start: int) -> None:
    for count in SIZES:
        ours, oracle = on(torch.empty(count)), on(torch.empty(count))
        factor = {3: 1e-44, 4500: -0.8203125}.get(count, 1.0)
        cuda.fill(replace(stream, law=law), factor, ours, start)
        reference.fill(replace(stream, law=law), factor, oracle, start)
        assert same(ours, oracle)


@pytest.mark.parametrize("start", [(1 << 31) - 5, (1 << 34) + 1, (1 << 37) + 6001])
def test_blocks_beyond_32_bits(law: int, start: int) -> None:
    stream = replace(HIGH, law=law)
    ours, oracle = on(torch.empty(300)), on(torch.empty(300))
    cuda.fill(stream, 1.0, ours, start)
    reference.fill(stream, 1.0, oracle, start)
    assert same(ours, oracle)
    assert cuda.square_sum(stream, start, 300, DEVICE) == reference.square_sum(stream, start, 300)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", STARTS)
def test_add(law: int, dtype: torch.dtype, start: int) -> None:
    stream = replace(HIGH, law=law)
    for count, scale in zip(SIZES, (1e-3, -0.1, 3e-2, 1e-3), strict=False):
        base = weights(count, dtype)
        ours, oracle = torch.empty_like(base), torch.empty_like(base)
        cuda.add(stream, 0.77, base, scale, ours, start)
        reference.add(stream, 0.77, base, scale, oracle, start)
        assert same(ours, oracle)
        cuda.add(stream, 0.77, base, scale, base, start)
        assert same(base, oracle)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy interprets
def test_add_at_the_edges(law: int, dtype: torch.dtype) -> None:
    """Subnormals are not flushed, ties go to even, what is too large is infinite; a NaN is a NaN."""
    tiny, large = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    edges = [0.0, -0.0, tiny, -tiny / 4, large, -large, math.inf, -math.inf, 1.0, -1.0, math.nan]
    base = on(torch.tensor(edges * 20, dtype=torch.float64).to(dtype))
    signed_zero = () if INTERPRETED else (-0.0,)  # the interpreter of Triton 3.6 loses a scalar's sign
    for scale in (*signed_zero, tiny / 2, 2.0**-9, 2.0**-12, large / 100, 1e39):
        ours, oracle = torch.empty_like(base), torch.empty_like(base)
        cuda.add(replace(LOW, law=law), 1.0, base, scale, ours, 5)
        reference.add(replace(LOW, law=law), 1.0, base, scale, oracle, 5)
        assert torch.equal(ours.isnan(), oracle.isnan())
        assert same(ours.nan_to_num(9.0, 7.0, -7.0), oracle.nan_to_num(9.0, 7.0, -7.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 130, 700])
def test_add_rows(law: int, dtype: torch.dtype, width: int) -> None:
    rows = on(torch.tensor([7, 0, 7, 30]))
    base = weights(31 * width, dtype).view(31, width)
    ours, whole = base.new_empty(4, width), torch.empty_like(base)
    cuda.add_rows(replace(HIGH, law=law), 1.0, base, 1e-2, rows, ours)
    reference.add(replace(HIGH, law=law), 1.0, base.view(-1), 1e-2, whole.view(-1), 0)
    assert same(ours, whole[rows])


def terms(law: int, number: int) -> tuple[list[Stream], list[float], list[float]]:
    streams = [replace(HIGH, law=law, c3=k | 4 << 24, c2=11) for k in range(number)]
    return streams, [1.0 + k / 7 for k in range(number)], [(-1) ** k * 0.3 / (k + 1) for k in range(number)]


@pytest.mark.parametrize(("number", "start"), [(1, 131), (4, 0)])
def test_sums_over_directions(law: int, number: int, start: int) -> None:
    for count in (2100, *SIZES[2:]):
        for ours_of, oracle_of in ((cuda.accumulate, reference.accumulate), (cuda.step, reference.step)):
            ours = weights(count)
            oracle = ours.clone()
            ours_of(*terms(law, number), ours, start)
            oracle_of(*terms(law, number), oracle, start)
            assert same(ours, oracle)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize(("number", "start"), [(1, 131), (2, 4100)])
def test_a_rounded_step(law: int, dtype: torch.dtype, number: int, start: int) -> None:
    streams, factors, coefficients = terms(law, number)
    bits = replace(streams[0], law=spec.SIGNS, c3=spec.PURPOSES["rounding"] << 24)
    for count in (2100, *SIZES[2:]):
        ours = weights(count, dtype)
        wide, oracle = ours.float(), torch.empty_like(ours)
        cuda.step_rounded(streams, factors, coefficients, ours, start, bits)
        reference.step(streams, factors, coefficients, wide, start)
        rounding.round_into(bits, wide, oracle, start)
        assert same(ours, oracle)


def test_a_step_of_no_direction_and_of_no_element(law: int) -> None:
    acc = weights(9)
    before = acc.clone()
    cuda.accumulate([], [], [], acc, 0)
    cuda.step([], [], [], acc, 0)
    assert same(acc, before)
    none = on(torch.empty(0))
    stream = replace(LOW, law=law)
    cuda.fill(stream, 1.0, none, 4)
    cuda.add(stream, 1.0, none, 1.0, none, 4)
    cuda.step([stream], [1.0], [1.0], none, 4)
    cuda.step_rounded([stream], [1.0], [1.0], none.half(), 4, stream)
    cuda_words.round_into(stream, none, none.half(), 4)
    cuda_words.keep(stream, 5, none, 4)
    assert cuda.square_sum(stream, 3, 0, DEVICE) == 0


@pytest.mark.parametrize("start", STARTS)
def test_square_sum(law: int, start: int) -> None:
    for count in SIZES:
        ours = cuda.square_sum(replace(HIGH, law=law), start, count, DEVICE)
        assert ours == reference.square_sum(replace(HIGH, law=law), start, count)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("start", STARTS)
def test_round_into(dtype: torch.dtype, start: int) -> None:
    draw = random.Random(start)
    edges = [0.0, -0.0, 65504.0, 65519.9, -7e4, 3.3e38, math.inf, -math.inf, math.nan, -math.nan, 2.0**-14, 1e-42]
    edges += [draw.uniform(-1, 1) * 2.0 ** draw.randint(-45, 20) for _ in range(5000)]
    wide = on(torch.tensor(edges))
    ours, oracle = torch.empty_like(wide, dtype=dtype), torch.empty_like(wide, dtype=dtype)
    cuda_words.round_into(HIGH, wide, ours, start)
    rounding.round_into(HIGH, wide, oracle, start)
    assert same(ours, oracle)


@pytest.mark.parametrize("threshold", [0, 1 << 30, 0xC0000001, 1 << 32])
@pytest.mark.parametrize("start", STARTS)
def test_keep(threshold: int, start: int) -> None:
    ours = weights(3001)
    oracle = ours.clone()
    cuda_words.keep(HIGH, threshold, ours, start)
    mask.keep(HIGH, threshold, oracle, start)
    assert same(ours, oracle)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sphere", "orthogonal"])
def test_directions_by_name(kind: str) -> None:
    """The whole path: a scheme asked for Triton gives what it gives without."""
    scheme = DirectionScheme(kind, 2**64 - 5, 4, (77, 2000))
    results = []
    for at in (scheme.at(9, "triton"), scheme.at(9, "reference")):
        z, mixed, half = on(torch.empty(1990)), on(torch.empty(1990)), on(torch.empty(2000).bfloat16())
        at.fill(2, 1, z, 7)
        at.combine(1, [0.3, -1.0, 2.0, 1e-3], mixed, 7)
        at.shift(3, 1, weights(2000, torch.bfloat16), 1e-2, half)
        rounded = torch.empty_like(z, dtype=torch.float16)
        at.round_into(1, z, rounded, 7)
        theta, wide = weights(2000, torch.bfloat16), weights(2000)
        at.step_into(1, [0.3, -1.0, 2.0, 1e-3], theta)
        at.step_into(1, [0.3, -1.0, 2.0, 1e-3], wide)
        choose.keep(at.backend, LOW, 1 << 30, z, 7)
        results.append((z, mixed, half, rounded, theta, wide))
    assert all(same(ours, oracle) for ours, oracle in zip(*results, strict=True))


def test_a_device_is_tried_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.serves.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cuda.serves(DEVICE)
    cuda.serves.cache_clear()
    monkeypatch.setattr(cuda, "single", lambda number: number * (1 + 2.0**-20))
    cuda._tables.cache_clear()
    with pytest.warns(UserWarning, match="bits differ"):
        assert not cuda.serves(DEVICE)
    cuda.serves.cache_clear()
    cuda._tables.cache_clear()
    assert cuda_elements.single(1e39) == math.inf
