"""The CUDA kernels: compute elements in Triton and use them in one pass over memory, with the bits of `reference`.

The compiled `cuda_elements` are not assumed to be correct: `serves` compares a device with `reference` before the
first use. Only the payload of a NaN may differ.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, Final

import torch
import triton.language as tl
from torch import Tensor

from dpzo.zo.kernels import reference, rounding, spec
from dpzo.zo.kernels.cuda_elements import (
    EXACT,
    HERE,
    counter,
    halves,
    head,
    int32,
    jit,
    narrow,
    normals,
    on,
    product,
    programs,
    single,
    span,
    stochastic,
    widen,
    words_of,
)
from dpzo.zo.kernels.spec import Stream

_ALIGN: Final = 128
"""Every pass begins at a multiple of this: where a block of any law begins."""

_NORMAL_BLOCKS: Final = 512
_SIGN_BLOCKS: Final = 32
"""Philox blocks a program makes: 2048 normals or 4096 signs. Bits do not depend on them."""

_NORMALS, _WALSH = tl.constexpr(spec.NORMALS), tl.constexpr(spec.WALSH)


@jit
def _fill(
    out: tl.tensor, first: tl.tensor, skip: tl.tensor, count: tl.tensor, key0: tl.tensor, key1: tl.tensor,
    parameter: tl.tensor, c2: tl.tensor, c3: tl.tensor, origin: tl.tensor, factor: tl.tensor, LAW: tl.constexpr,
    BLOCKS: tl.constexpr, PER: tl.constexpr,
) -> None:  # fmt: skip
    block, at, asked = span(tl.program_id(0), first, skip, count, BLOCKS, PER)
    words = words_of(block, key0, key1, parameter, c2, counter(c3, LAW))
    tl.store(out + at, product(words, block, c3, origin, factor, 1.0, LAW), mask=asked)


@jit
def _add(
    base: tl.tensor, out: tl.tensor, first: tl.tensor, skip: tl.tensor, count: tl.tensor, key0: tl.tensor,
    key1: tl.tensor, parameter: tl.tensor, c2: tl.tensor, c3: tl.tensor, origin: tl.tensor, factor: tl.tensor,
    scale: tl.tensor, LAW: tl.constexpr, BLOCKS: tl.constexpr, PER: tl.constexpr,
) -> None:  # fmt: skip
    block, at, asked = span(tl.program_id(0), first, skip, count, BLOCKS, PER)
    words = words_of(block, key0, key1, parameter, c2, counter(c3, LAW))
    moved = product(words, block, c3, origin, factor, scale, LAW)
    theta = widen(tl.load(base + at, mask=asked, other=0.0))
    tl.store(out + at, narrow(theta + moved, out.dtype.element_ty), mask=asked)


@jit
def _add_rows(
    base: tl.tensor, rows: tl.tensor, out: tl.tensor, width: tl.tensor, key0: tl.tensor, key1: tl.tensor,
    parameter: tl.tensor, c2: tl.tensor, c3: tl.tensor, origin: tl.tensor, factor: tl.tensor, scale: tl.tensor,
    LAW: tl.constexpr, BLOCKS: tl.constexpr, PER: tl.constexpr,
) -> None:  # fmt: skip
    """A row may begin anywhere in a block, so its position in the stream is computed here."""
    place = tl.program_id(0).to(tl.int64)
    start = tl.load(rows + place) * width
    block, at, asked = span(tl.program_id(1), start // PER, start % PER, width, BLOCKS, PER)
    words = words_of(block, key0, key1, parameter, c2, counter(c3, LAW))
    moved = product(words, block, c3, origin, factor, scale, LAW)
    theta = widen(tl.load(base + start + at, mask=asked, other=0.0))
    tl.store(out + place * width + at, narrow(theta + moved, out.dtype.element_ty), mask=asked)


@jit
def _sum(
    total: tl.tensor, block: tl.tensor, key0: tl.tensor, key1: tl.tensor, parameter: tl.tensor, c2: tl.tensor,
    origin: tl.tensor, thirds: tl.tensor, factors: tl.tensor, coefficients: tl.tensor, streams: tl.tensor,
    LAW: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """total + Σ_k fl(coefficient_k·z_k), sequentially; the tables hold c3, factor and coefficient of each stream."""
    words = words_of(block, key0, key1, parameter, c2, counter(tl.load(thirds), LAW))
    k = tl.zeros_like(streams)
    while k < streams:
        c3 = tl.load(thirds + k)
        if LAW != _WALSH:  # all k of a WALSH step share their words
            words = words_of(block, key0, key1, parameter, c2, c3)
        total += product(words, block, c3, origin, tl.load(factors + k), tl.load(coefficients + k), LAW)
        k += 1
    return total


@jit
def _accumulate(
    acc: tl.tensor, first: tl.tensor, skip: tl.tensor, count: tl.tensor, key0: tl.tensor, key1: tl.tensor,
    parameter: tl.tensor, c2: tl.tensor, origin: tl.tensor, thirds: tl.tensor, factors: tl.tensor,
    coefficients: tl.tensor, streams: tl.tensor, STEP: tl.constexpr, LAW: tl.constexpr, BLOCKS: tl.constexpr,
    PER: tl.constexpr,
) -> None:  # fmt: skip
    """With STEP the sum starts at 0 and `acc`, a weight, is added last."""
    block, at, asked = span(tl.program_id(0), first, skip, count, BLOCKS, PER)
    held = tl.load(acc + at, mask=asked, other=0.0)
    begin = tl.zeros_like(held) if STEP else held
    total = _sum(begin, block, key0, key1, parameter, c2, origin, thirds, factors, coefficients, streams, LAW)
    tl.store(acc + at, held + total if STEP else total, mask=asked)


@jit
def _step_rounded(
    theta: tl.tensor, bits: tl.tensor, first: tl.tensor, skip: tl.tensor, count: tl.tensor, key0: tl.tensor,
    key1: tl.tensor, parameter: tl.tensor, c2: tl.tensor, origin: tl.tensor, thirds: tl.tensor, factors: tl.tensor,
    coefficients: tl.tensor, streams: tl.tensor, round2: tl.tensor, round3: tl.tensor, LAW: tl.constexpr,
    BLOCKS: tl.constexpr, PER: tl.constexpr,
) -> None:  # fmt: skip
    """`bits` is theta's memory as int16. A pass begins at a block of both streams, eight elements in the second."""
    block, at, asked = span(tl.program_id(0), first, skip, count, BLOCKS, PER)
    held = widen(tl.load(theta + at, mask=asked, other=0.0))
    zero = tl.zeros_like(held)
    total = _sum(zero, block, key0, key1, parameter, c2, origin, thirds, factors, coefficients, streams, LAW)
    eighths: tl.constexpr = BLOCKS * PER // 8
    start = first.to(tl.int64) * PER // 8 + tl.program_id(0).to(tl.int64) * eighths
    x0, x1, x2, x3 = words_of(start + tl.arange(0, eighths), key0, key1, parameter, round2, round3)
    rounded = stochastic(held + total, halves(x0, x1, x2, x3), theta.dtype.element_ty == tl.bfloat16)
    tl.store(bits + at, rounded, mask=asked)


@jit
def _square_sum(
    total: tl.tensor, first: tl.tensor, skip: tl.tensor, count: tl.tensor, key0: tl.tensor, key1: tl.tensor,
    parameter: tl.tensor, c2: tl.tensor, c3: tl.tensor, BLOCKS: tl.constexpr,
) -> None:  # fmt: skip
    block, _, asked = span(tl.program_id(0), first, skip, count, BLOCKS, 4)
    x0, x1, x2, x3 = words_of(block, key0, key1, parameter, c2, c3)
    g = normals(x0, x1, x2, x3)
    units = tl.where(asked, ((g * g) * 16777216.0).to(tl.int32), 0)  # 2²⁴
    tl.atomic_add(total, tl.sum(units.to(tl.int64), axis=0))


def _shape(law: int) -> dict[str, int]:
    blocks = _NORMAL_BLOCKS if law == spec.NORMALS else _SIGN_BLOCKS
    return {"LAW": law, "BLOCKS": blocks, "PER": spec.ELEMENTS_PER_BLOCK[law]}


def _span(law: int, start: int, count: int) -> tuple[tuple[int], tuple[int, int, int]]:
    """(programs, (first block, elements of the pass before `start`, elements asked for))."""
    shape, skip = _shape(law), start % _ALIGN
    return programs(skip, count, shape["BLOCKS"] * shape["PER"]), ((start - skip) // shape["PER"], skip, count)


def _words(stream: Stream) -> tuple[int, ...]:
    """k & J depends on the origin modulo 2²⁴ only."""
    return *head(stream), int32(stream.c3), stream.origin & 0x7FFFFFFF


@lru_cache(maxsize=8)
def _tables(
    thirds: tuple[int, ...], factors: tuple[float, ...], coefficients: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The tables of `_sum`, cached while one step uses them for one parameter after another."""
    words = torch.tensor([int32(word) for word in thirds], dtype=torch.int32)
    weights = [torch.tensor([single(x) for x in row], dtype=torch.float32) for row in (factors, coefficients)]
    return words.to(device), weights[0].to(device), weights[1].to(device)


def _terms(
    streams: Sequence[Stream], factors: Sequence[float], coefficients: Sequence[float], device: torch.device
) -> tuple[Any, ...]:
    """The arguments of `_sum` from key0 to `streams`; the streams differ in c3 alone."""
    tables = _tables(tuple(stream.c3 for stream in streams), tuple(factors), tuple(coefficients), device)
    return *head(streams[0]), streams[0].origin & 0x7FFFFFFF, *tables, len(streams)


def fill(stream: Stream, factor: float, out: Tensor, start: int) -> None:
    """out_j ← z_j; see `Kernels.fill`."""
    count, where = _span(stream.law, start, out.numel())
    if out.numel():
        with on(out):
            _fill[count](out, *where, *_words(stream), single(factor), **_shape(stream.law), **EXACT)  # type: ignore[index]


def add(stream: Stream, factor: float, base: Tensor, scale: float, out: Tensor, start: int) -> None:
    """out_j ← rn(fl(base_j + fl(scale·z_j))); see `Kernels.add`."""
    count, where = _span(stream.law, start, out.numel())
    scales = (single(factor), single(scale))
    if out.numel():
        with on(out):
            _add[count](base, out, *where, *_words(stream), *scales, **_shape(stream.law), **EXACT)  # type: ignore[index]


def add_rows(stream: Stream, factor: float, base: Tensor, scale: float, rows: Tensor, out: Tensor) -> None:
    """out_i ← row rows_i of a shifted matrix; see `Kernels.add_rows`."""
    shape, width = _shape(stream.law), base.shape[1]
    scales = (single(factor), single(scale))
    if out.numel():
        count = (len(rows), *programs(shape["PER"] - 1, width, shape["BLOCKS"] * shape["PER"]))
        with on(out):
            _add_rows[count](base, rows, out, width, *_words(stream), *scales, **shape, **EXACT)  # type: ignore[index]


def accumulate(
    streams: Sequence[Stream], factors: Sequence[float], coefficients: Sequence[float], acc: Tensor, start: int
) -> None:
    """acc_j ← fl(acc_j + fl(coefficient_k·z_kj)), sequential in k; see `Kernels.accumulate`."""
    _over_streams(streams, factors, coefficients, acc, start, step=False)


def step(
    streams: Sequence[Stream], factors: Sequence[float], coefficients: Sequence[float], theta: Tensor, start: int
) -> None:
    """theta_j ← fl(theta_j + g_j); see `Kernels.step`."""
    _over_streams(streams, factors, coefficients, theta, start, step=True)


def _over_streams(
    streams: Sequence[Stream],
    factors: Sequence[float],
    coefficients: Sequence[float],
    acc: Tensor,
    start: int,
    step: bool,
) -> None:
    if not streams or not acc.numel():
        return
    shape = _shape(streams[0].law)
    count, where = _span(streams[0].law, start, acc.numel())
    terms = _terms(streams, factors, coefficients, acc.device)
    with on(acc):
        _accumulate[count](acc, *where, *terms, step, **shape, **EXACT)  # type: ignore[index]


def step_rounded(
    streams: Sequence[Stream],
    factors: Sequence[float],
    coefficients: Sequence[float],
    theta: Tensor,
    start: int,
    bits: Stream,
) -> None:
    """A bf16 or fp16 theta_j ← fl(theta_j + g_j) in fp32, rounded by the stream `bits`: `step`, then `rounding`.

    One pass over memory. `bits` shares key and parameter with the streams.
    """
    if not theta.numel():
        return
    shape = _shape(streams[0].law)
    count, where = _span(streams[0].law, start, theta.numel())
    terms = _terms(streams, factors, coefficients, theta.device)
    with on(theta):
        _step_rounded[count](  # type: ignore[index]
            theta, theta.view(torch.int16), *where, *terms, int32(bits.c2), int32(bits.c3), **shape, **EXACT
        )


def square_sum(stream: Stream, start: int, count: int, device: torch.device | None = None) -> int:
    """Σ_j ⌊fl(element_j²)·2²⁴⌋ on `device`, by default the current one; see `Kernels.square_sum`."""
    if stream.law != spec.NORMALS:
        return count << spec.FIXED_POINT_BITS
    total = torch.zeros(1, dtype=torch.int64, device=HERE if device is None else device)
    grid, where = _span(stream.law, start, count)
    if count:
        with on(total):
            _square_sum[grid](total, *where, *head(stream), int32(stream.c3), _NORMAL_BLOCKS, **EXACT)  # type: ignore[index]
    return int(total)


@cache
def serves(device: torch.device) -> bool:
    """Whether these kernels run on `device` with the bits of `reference`, tested once on 2¹³ elements of each law.

    A missing rounding shows in one normal of 600. On a mismatch, a warning gives the reason and `reference` is used.
    """
    try:
        for law in (spec.SIGNS, spec.NORMALS, spec.WALSH):
            stream = Stream(law, 0x89ABCDEF, 0x01234567, 3, 7, 5 | 2 << 24, origin=61)
            bits = Stream(spec.SIGNS, stream.key0, stream.key1, 3, 7, spec.PURPOSES["rounding"] << 24)
            base = torch.linspace(-1.0, 1.0, 1 << 13, dtype=torch.float32, device=device)
            wanted, half = torch.empty_like(base), torch.empty_like(base, dtype=torch.bfloat16)
            reference.add(stream, 1.25, base, 0.3, wanted, 61)
            rounding.round_into(bits, _stepped(stream, base.bfloat16().float()), half, 61)
            ours, own = torch.empty_like(base), base.bfloat16()
            add(stream, 1.25, base, 0.3, ours, 61)
            step_rounded([stream], [1.25], [0.3], own, 61, bits)
            if not (torch.equal(ours, wanted) and torch.equal(own.view(torch.int16), half.view(torch.int16))):
                raise RuntimeError("its bits differ from the reference's")
    except Exception as error:  # whatever a compiler or driver raises: slower kernels with the same bits exist
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        warnings.warn(f"Triton does not serve {device} ({reason}); plain kernels do, slower", stacklevel=2)
        return False
    return True


def _stepped(stream: Stream, theta: Tensor) -> Tensor:
    """theta after a step of one direction by `reference`, for `serves`."""
    reference.step([stream], [1.25], [0.3], theta, 61)
    return theta
