"""The CPU kernels against the oracle where tests of `DirectionScheme` do not reach: threads, halves, rows, one pass."""

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from dpzo.zo.kernels import cpu, reference, rounding, rounding_cpu, small_cpu, team
from dpzo.zo.kernels.half_cpu import narrow, widen
from dpzo.zo.kernels.spec import NORMALS, SIGNS, WALSH, Stream

LAWS = (SIGNS, NORMALS, WALSH)
SIZE = (1 << 18) + 4133  # enough for three threads of every kernel


def stream(law: int, k: int = 5) -> Stream:
    return Stream(law, 0x12345678, 0x9ABCDEF0, 77, 3, k | 7 << 24, origin=987654321)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def numbers(size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Of all magnitudes, subnormal halves among them."""
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(size, generator=draw) * 10 ** (12 * torch.rand(size, generator=draw) - 9)).to(dtype)


@pytest.fixture(params=["openmp", "pool"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Three threads, once torch's own and once a pool's."""
    if request.param == "pool":
        monkeypatch.setattr(team, "_openmp", lambda: None)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("start", [0, 129])
def test_threads_give_the_oracles_bits(law: int, start: int, threads: int) -> None:
    own, theirs = torch.empty(SIZE), torch.empty(SIZE)
    cpu.fill(stream(law), 1.25, own, start)
    reference.fill(stream(law), 1.25, theirs, start)
    assert torch.equal(bits(own), bits(theirs))
    base = numbers(SIZE, torch.float32)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        narrowed = base.to(dtype)
        own, theirs = torch.empty_like(narrowed), torch.empty_like(narrowed)
        cpu.add(stream(law), 1.25, narrowed, 0.01, own, start)
        reference.add(stream(law), 1.25, narrowed, 0.01, theirs, start)
        assert torch.equal(bits(own), bits(theirs)), dtype
    streams = [stream(law, k) for k in (0, 3, 9)]
    for name in ("accumulate", "step"):
        own, theirs = base.clone(), base.clone()
        getattr(cpu, name)(streams, [1.0, 1.5, 0.5], [0.1, -0.2, 0.3], own, start)
        getattr(reference, name)(streams, [1.0, 1.5, 0.5], [0.1, -0.2, 0.3], theirs, start)
        assert torch.equal(bits(own), bits(theirs)), name


def test_the_team_is_torchs_own() -> None:
    """Without it the kernels are right and slow; on Linux there is one to enter."""
    library = team._openmp()
    assert library is not None
    assert library.own_number != 0
    assert library.team_size != 0


@pytest.mark.parametrize("value", [0.1, -0.0, 1e300, -1e300, 1e-46, 2.0**-149, float("inf"), float("nan"), 16777217.0])
def test_numbers_go_into_a_job_as_numpy_rounds_them(value: float) -> None:
    with np.errstate(over="ignore", under="ignore"):
        assert team.bits(value) == int(np.float32(value).view(np.uint32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_threads_round_alike(dtype: torch.dtype, threads: int) -> None:
    wide = numbers(100_003, torch.float32)
    own, theirs = torch.empty(100_003, dtype=dtype), torch.empty(100_003, dtype=dtype)
    rounding_cpu.round_into(stream(SIGNS), wide, own, 3)
    rounding.round_into(stream(SIGNS), wide, theirs, 3)
    assert torch.equal(bits(own), bits(theirs))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_those_of_the_whole(law: int, dtype: torch.dtype) -> None:
    matrix, rows = numbers(50 * 33, dtype).view(50, 33), torch.tensor([49, 0, 7, 7])
    whole = torch.empty(50 * 33, dtype=dtype)
    cpu.add(stream(law), 1.0, matrix.view(-1), 0.5, whole, 0)
    for kernels in (cpu, reference):
        own = torch.empty((4, 33), dtype=dtype)
        kernels.add_rows(stream(law), 1.0, matrix, 0.5, rows, own)
        assert torch.equal(bits(own), bits(whole.view(50, 33)[rows]))


@pytest.mark.parametrize("is_bf16", [True, False])
def test_halves_there_and_back(is_bf16: bool) -> None:
    """Every code goes up exactly; every kind of fp32 number comes down as torch brings it."""
    dtype = torch.bfloat16 if is_bf16 else torch.float16
    codes = np.arange(1 << 16, dtype=np.uint16)
    up = np.empty(1 << 16, np.float32)
    widen(codes, 0, 1 << 16, is_bf16, up, 0)
    expected = torch.from_numpy(codes.view(np.int16)).view(dtype).float()
    found = torch.from_numpy(up)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(bits(found)[~found.isnan()], bits(expected)[~found.isnan()])
    draw = torch.Generator().manual_seed(1)
    any_bits = torch.randint(-(2**31), 2**31, (1_000_000,), generator=draw).to(torch.int32)
    wide = torch.cat((any_bits.view(torch.float32), numbers(1_000_000, torch.float32)))
    down = np.empty(len(wide), np.uint16)
    narrow(wide.numpy(), 0, len(wide), is_bf16, down, 0)
    theirs = wide.to(dtype)
    own = torch.from_numpy(down.view(np.int16)).view(dtype)
    assert torch.equal(own.isnan(), theirs.isnan())
    assert torch.equal(bits(own)[~own.isnan()], bits(theirs)[~own.isnan()])


def test_a_forked_child_has_a_pool_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads do not survive a fork; the pool's object would, and wait for ever."""
    monkeypatch.setattr(team, "_openmp", lambda: None)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        out = torch.empty(1 << 18)
        cpu.fill(stream(SIGNS), 1.0, out, 0)
        assert team._pool is not None
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            again = torch.empty(1 << 18)
            cpu.fill(stream(SIGNS), 1.0, again, 0)
            os.write(write, b"same" if np.array_equal(again.numpy(), out.numpy()) else b"other")
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 5) == b"same"
    finally:
        torch.set_num_threads(before)
        team._pool = None


SMALL = (1, 3, 128, 129, 768, 4096, 5000)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_many_small_parameters_in_one_call_have_the_oracles_bits(law: int, dtype: torch.dtype) -> None:
    streams = [replace(stream(law), parameter=place, origin=1000 * place) for place in range(len(SMALL))]
    bases = [numbers(size, dtype, place) for place, size in enumerate(SMALL)]
    own, theirs = ([torch.empty_like(base) for base in bases] for _ in range(2))
    small_cpu.add_each(streams, 1.25, bases, 0.01, own)
    for each, base, out in zip(streams, bases, theirs, strict=True):
        reference.add(each, 1.25, base, 0.01, out, 0)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(own, theirs, strict=True))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("coefficients", [[0.1], [0.0], [-1e-45], [0.1, -0.2, 0.3]])
def test_many_small_steps_in_one_call_have_the_oracles_bits(law: int, coefficients: list[float]) -> None:
    thirds = [stream(law, k).c3 for k in range(len(coefficients))]
    streams = [replace(stream(law), parameter=place, origin=1000 * place) for place in range(len(SMALL))]
    own = [numbers(size, torch.float32, place) * (-1) ** place for place, size in enumerate(SMALL)]
    own[3][:] = -0.0
    theirs = [theta.clone() for theta in own]
    factors = [1.0] * len(coefficients)
    small_cpu.step_each(streams, thirds, factors, coefficients, own)
    for each, theta in zip(streams, theirs, strict=True):
        reference.step([replace(each, c3=third) for third in thirds], factors, coefficients, theta, 0)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(own, theirs, strict=True))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("start", [0, 129])
@pytest.mark.parametrize("coefficient", [0.1, 0.0, -0.0, 1e-45, 1e38, float("inf")])
def test_one_term_added_at_once_has_the_oracles_bits(law: int, start: int, coefficient: float, threads: int) -> None:
    """Where θ is −0 a sum that was made from +0 shows: 0 + −0 is +0, and −0 + +0 is +0."""
    own = numbers(SIZE, torch.float32)
    own[::3] = -0.0
    theirs = own.clone()
    cpu.step([stream(law)], [1.0], [coefficient], own, start)
    reference.step([stream(law)], [1.0], [coefficient], theirs, start)
    assert torch.equal(bits(own), bits(theirs))
