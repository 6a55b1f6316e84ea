"""The CPU kernels: compute elements one cache-sized chunk at a time and use them at once, on torch's threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpzo.zo.kernels.blocks_cpu import (
    MAX_BLOCKS,
    MAX_ELEMENTS,
    Address,
    Floats,
    Words,
    jit,
    make,
    put,
    put_more,
    put_sum,
    shape,
)
from dpzo.zo.kernels.half_cpu import narrow, widen
from dpzo.zo.kernels.spec import NORMALS, Stream
from dpzo.zo.kernels.team import FIRST, LENGTH, Job, bits, bounds, floats, memory, number, pointer, region, split

_2P24 = np.float32(2.0**24)
_ZERO, _ONE = np.float32(0), np.float32(1)
_EDGE = 128
Halves: TypeAlias = NDArray[np.uint16]


@jit
def _buffers() -> tuple[Words, Words]:
    return np.empty((4, MAX_BLOCKS), np.uint32), np.empty((4, MAX_BLOCKS), np.uint32)


@jit
def _fill(law: int, stream: Address, start: int, factor: np.float32, out: Floats) -> None:
    words, normals = _buffers()
    z = np.empty(MAX_ELEMENTS, np.float32)
    per_block, chunk_blocks = shape(law)
    block, skip, at, count = start // per_block, start % per_block, 0, out.size
    while at < count:
        blocks = min(chunk_blocks, (skip + count - at + per_block - 1) // per_block)
        make(law, stream, np.uint64(block), blocks, words, normals)
        put(law, words, normals, blocks, factor, z)
        take = min(blocks * per_block - skip, count - at)
        for i in range(np.uint64(take)):
            out[np.uint64(at) + i] = z[np.uint64(skip) + i]
        block, skip, at = block + blocks, 0, at + take


@jit
def add_elements(
    law: int, stream: Address, start: int, factor: np.float32, base: Floats, scale: np.float32, out: Floats
) -> None:
    """`add` of fp32 arrays by one thread."""
    words, normals = _buffers()
    edge = np.zeros(_EDGE, np.float32)
    per_block, chunk_blocks = shape(law)
    at, count = 0, out.size
    while at < count:
        block = (start + at) // per_block
        skip = (start + at) - block * per_block
        whole = (count - at) // per_block
        if skip == 0 and whole > 0:
            blocks = min(chunk_blocks, whole)
            make(law, stream, np.uint64(block), blocks, words, normals)
            put_sum(law, words, normals, blocks, factor, scale, base, out, np.uint64(at))
            at += blocks * per_block
        else:  # part of one block, through a buffer of a block's size
            take = min(per_block - skip, count - at)
            for i in range(take):
                edge[skip + i] = base[at + i]
            make(law, stream, np.uint64(block), 1, words, normals)
            put_more(law, words, normals, 1, factor, scale, edge, np.uint64(0))
            for i in range(take):
                out[at + i] = edge[skip + i]
            at += take


@jit
def add_half_elements(
    law: int,
    stream: Address,
    start: int,
    factor: np.float32,
    base: Halves,
    scale: np.float32,
    out: Halves,
    is_bf16: bool,
) -> None:
    """`add` of 16-bit arrays by one thread."""
    words, normals = _buffers()
    wide = np.zeros(MAX_ELEMENTS, np.float32)
    per_block, chunk_blocks = shape(law)
    block, skip, at, count = start // per_block, start % per_block, 0, out.size
    while at < count:
        blocks = min(chunk_blocks, (skip + count - at + per_block - 1) // per_block)
        take = min(blocks * per_block - skip, count - at)
        widen(base, at, take, is_bf16, wide, skip)
        make(law, stream, np.uint64(block), blocks, words, normals)
        put_more(law, words, normals, blocks, factor, scale, wide, np.uint64(0))
        narrow(wide, skip, take, is_bf16, out, at)
        block, skip, at = block + blocks, 0, at + take


@jit
def _add_rows(
    law: int,
    stream: Address,
    factor: np.float32,
    base: Floats,
    scale: np.float32,
    rows: NDArray[np.int64],
    out: Floats,
) -> None:
    width = base.shape[1]
    for i in range(rows.size):
        add_elements(law, stream, rows[i] * width, factor, base[rows[i]], scale, out[i])


@jit
def _add_half_rows(
    law: int,
    stream: Address,
    factor: np.float32,
    base: Halves,
    scale: np.float32,
    rows: NDArray[np.int64],
    out: Halves,
    is_bf16: bool,
) -> None:
    width = base.shape[1]
    for i in range(rows.size):
        add_half_elements(law, stream, rows[i] * width, factor, base[rows[i]], scale, out[i], is_bf16)


@jit
def sum_elements(
    law: int,
    stream: Address,
    c3: NDArray[np.uint64],
    start: int,
    factors: Floats,
    coefficients: Floats,
    acc: Floats,
    is_step: bool,
) -> None:
    """acc_j ← acc_j + Σ_k …, or with `is_step` the sum is made from 0 first and then added to acc_j at once."""
    origin, key0, key1, parameter, c2, _ = stream
    words, normals = _buffers()
    total = np.empty(MAX_ELEMENTS, np.float32)
    per_block, chunk_blocks = shape(law)
    block, skip, at, count = start // per_block, start % per_block, 0, acc.size
    # A sum from 0 of one term equals that term and may be added directly, except for −0, since 0 + −0 is +0. A sign
    # times a nonzero number is never −0; a normal times a small number may be, by underflow.
    alone = is_step and c3.size == 1 and law != NORMALS and factors[0] * coefficients[0] != _ZERO
    while at < count:
        blocks = min(chunk_blocks, (skip + count - at + per_block - 1) // per_block)
        take = min(blocks * per_block - skip, count - at)
        if alone and take == blocks * per_block:
            make(law, (origin, key0, key1, parameter, c2, c3[0]), np.uint64(block), blocks, words, normals)
            put_more(law, words, normals, blocks, factors[0], coefficients[0], acc, np.uint64(at))
            block, skip, at = block + blocks, 0, at + take
            continue
        total[: blocks * per_block] = _ZERO
        if not is_step:
            for i in range(np.uint64(take)):
                total[np.uint64(skip) + i] = acc[np.uint64(at) + i]
        for k in range(c3.size):
            make(law, (origin, key0, key1, parameter, c2, c3[k]), np.uint64(block), blocks, words, normals)
            put_more(law, words, normals, blocks, factors[k], coefficients[k], total, np.uint64(0))
        if is_step:
            for i in range(np.uint64(take)):
                acc[np.uint64(at) + i] = acc[np.uint64(at) + i] + total[np.uint64(skip) + i]
        else:
            for i in range(np.uint64(take)):
                acc[np.uint64(at) + i] = total[np.uint64(skip) + i]
        block, skip, at = block + blocks, 0, at + take


@jit
def _square_sum(law: int, stream: Address, start: int, count: int) -> int:
    words, normals = _buffers()
    z = np.empty(MAX_ELEMENTS, np.float32)
    per_block, chunk_blocks = shape(law)
    block, skip, at, total = start // per_block, start % per_block, 0, np.int64(0)
    while at < count:
        blocks = min(chunk_blocks, (skip + count - at + per_block - 1) // per_block)
        make(law, stream, np.uint64(block), blocks, words, normals)
        put(law, words, normals, blocks, _ONE, z)
        take = min(blocks * per_block - skip, count - at)
        for i in range(np.uint64(take)):
            element = z[np.uint64(skip) + i]
            total += np.int64(np.int32(element * element * _2P24))
        block, skip, at = block + blocks, 0, at + take
    return int(total)


# A job's own numbers, from FIRST on: the stream, then what is done with its elements.
_LAW, _STREAM, _START, _FACTOR, _SCALE = FIRST, FIRST + 1, FIRST + 7, FIRST + 8, FIRST + 9
_BASE, _OUT, _FLAG, _TERMS, _C3 = FIRST + 10, FIRST + 11, FIRST + 12, FIRST + 13, FIRST + 14
_FACTORS, _COEFFICIENTS = FIRST + 15, FIRST + 16


@jit
def _address_in(job: Job) -> Address:
    origin, key0, key1 = np.uint64(job[_STREAM]), np.uint64(job[_STREAM + 1]), np.uint64(job[_STREAM + 2])
    parameter, c2, c3 = np.uint64(job[_STREAM + 3]), np.uint64(job[_STREAM + 4]), np.uint64(job[_STREAM + 5])
    return origin, key0, key1, parameter, c2, c3


@region
def _fill_region(data: Any) -> None:
    job = memory(data, (LENGTH,), np.int64)
    begin, end = bounds(job)
    out = memory(pointer(job[_OUT] + 4 * begin), (end - begin,), np.float32)
    _fill(job[_LAW], _address_in(job), job[_START] + begin, number(job[_FACTOR]), out)


@region
def _add_region(data: Any) -> None:
    job = memory(data, (LENGTH,), np.int64)
    begin, end = bounds(job)
    base = memory(pointer(job[_BASE] + 4 * begin), (end - begin,), np.float32)
    out = memory(pointer(job[_OUT] + 4 * begin), (end - begin,), np.float32)
    start, factor, scale = job[_START] + begin, number(job[_FACTOR]), number(job[_SCALE])
    add_elements(job[_LAW], _address_in(job), start, factor, base, scale, out)


@region
def _add_half_region(data: Any) -> None:
    job = memory(data, (LENGTH,), np.int64)
    begin, end = bounds(job)
    base = memory(pointer(job[_BASE] + 2 * begin), (end - begin,), np.uint16)
    out = memory(pointer(job[_OUT] + 2 * begin), (end - begin,), np.uint16)
    start, factor, scale = job[_START] + begin, number(job[_FACTOR]), number(job[_SCALE])
    add_half_elements(job[_LAW], _address_in(job), start, factor, base, scale, out, job[_FLAG] != 0)


@region
def _accumulate_region(data: Any) -> None:
    job = memory(data, (LENGTH,), np.int64)
    begin, end = bounds(job)
    terms = job[_TERMS]
    c3 = memory(pointer(job[_C3]), (terms,), np.uint64)
    factors = memory(pointer(job[_FACTORS]), (terms,), np.float32)
    coefficients = memory(pointer(job[_COEFFICIENTS]), (terms,), np.float32)
    acc = memory(pointer(job[_OUT] + 4 * begin), (end - begin,), np.float32)
    is_step = job[_FLAG] != 0
    sum_elements(job[_LAW], _address_in(job), c3, job[_START] + begin, factors, coefficients, acc, is_step)


def _halves(tensor: Tensor) -> Halves:
    return tensor.detach().view(torch.int16).numpy().view(np.uint16)


def _address(stream: Stream) -> Address:
    """The stream in the form that the kernels take."""
    origin, key0, key1, parameter, c2, c3 = (np.uint64(word) for word in _words(stream))
    return origin, key0, key1, parameter, c2, c3


def _words(stream: Stream) -> list[int]:
    return [stream.origin, stream.key0, stream.key1, stream.parameter, stream.c2, stream.c3]


def _least(law: int, directions: int = 1) -> int:
    """Minimum elements per thread for a further thread to be worthwhile: about 20 µs of work."""
    return max(1 << 12, ((1 << 14) if law == NORMALS else (1 << 16)) // directions)


def fill(stream: Stream, factor: float, out: Tensor, start: int) -> None:
    """out_j ← z_j; see `Kernels.fill`."""
    job = [stream.law, *_words(stream), start, bits(factor), 0, 0, out.data_ptr()]
    split(_fill_region, job, out.numel(), _least(stream.law))


def add(stream: Stream, factor: float, base: Tensor, scale: float, out: Tensor, start: int) -> None:
    """out_j ← rn(fl(base_j + fl(scale·z_j))); see `Kernels.add`."""
    if base.data_ptr() == out.data_ptr() and out.dtype == torch.float32:
        _summed([stream], [factor], [scale], out, start, is_step=False)
        return
    job = [stream.law, *_words(stream), start, bits(factor), bits(scale), base.data_ptr(), out.data_ptr()]
    kernel = _add_region if out.dtype == torch.float32 else _add_half_region
    split(kernel, [*job, int(out.dtype == torch.bfloat16)], out.numel(), _least(stream.law))


def add_rows(stream: Stream, factor: float, base: Tensor, scale: float, rows: Tensor, out: Tensor) -> None:
    """out_i ← row rows_i of a shifted matrix; see `Kernels.add_rows`."""
    law, address, chosen = stream.law, _address(stream), rows.numpy()
    factor32, scale32 = np.float32(factor), np.float32(scale)
    if base.dtype == torch.float32:
        _add_rows(law, address, factor32, floats(base), scale32, chosen, floats(out))
    else:
        is_bf16 = base.dtype == torch.bfloat16
        _add_half_rows(law, address, factor32, _halves(base), scale32, chosen, _halves(out), is_bf16)


def _summed(
    streams: Sequence[Stream],
    factors: Sequence[float],
    coefficients: Sequence[float],
    acc: Tensor,
    start: int,
    is_step: bool,
) -> None:
    law, terms = streams[0].law, len(streams)
    c3 = np.array([stream.c3 for stream in streams], dtype=np.uint64)
    factors32, coefficients32 = np.array(factors, dtype=np.float32), np.array(coefficients, dtype=np.float32)
    kept = [c3.ctypes.data, factors32.ctypes.data, coefficients32.ctypes.data]
    job = [law, *_words(streams[0]), start, 0, 0, 0, acc.data_ptr(), int(is_step), terms, *kept]
    split(_accumulate_region, job, acc.numel(), _least(law, terms))


def accumulate(
    streams: Sequence[Stream], factors: Sequence[float], coefficients: Sequence[float], acc: Tensor, start: int
) -> None:
    """acc_j ← fl(acc_j + fl(coefficient_k·z_kj)), sequential in k; see `Kernels.accumulate`."""
    if streams:
        _summed(streams, factors, coefficients, acc, start, is_step=False)


def step(
    streams: Sequence[Stream], factors: Sequence[float], coefficients: Sequence[float], theta: Tensor, start: int
) -> None:
    """theta_j ← fl(theta_j + g_j), g_j accumulated from 0; see `Kernels.step`."""
    if streams:
        _summed(streams, factors, coefficients, theta, start, is_step=True)


def square_sum(stream: Stream, start: int, count: int) -> int:
    """Σ_j ⌊fl(element_j²)·2²⁴⌋; see `Kernels.square_sum`."""
    return int(_square_sum(stream.law, _address(stream), start, count))
