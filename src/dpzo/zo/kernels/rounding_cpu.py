"""Stochastic rounding in numba, one chunk of words at a time, with the bits of `rounding`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpzo.zo.kernels.blocks_cpu import jit, philox
from dpzo.zo.kernels.rounding import BF16_LARGEST, FP16_LARGEST, FP16_SMALLEST_NORMAL, INFINITE
from dpzo.zo.kernels.spec import Stream
from dpzo.zo.kernels.team import FIRST, LENGTH, bounds, memory, pointer, region, split

_BLOCKS = 128
_LEAST = 1 << 13  # minimum elements for a further thread to be worthwhile
_PER_BLOCK = 8  # elements of 16 bits in a block of 128
_INFINITE, _BF16, _FP16 = np.uint32(INFINITE), np.uint32(BF16_LARGEST), np.uint32(FP16_LARGEST)
_NORMAL = np.uint32(FP16_SMALLEST_NORMAL)
_2P40 = np.float32(2.0**40)


@jit
def _to_bf16(bits: np.uint32, random: np.uint32) -> np.uint16:
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    if size >= _INFINITE:
        return np.uint16(0x7FC0) if size > _INFINITE else np.uint16(bits >> np.uint32(16))
    moved = np.uint32(size + random)
    if moved >= _INFINITE:
        moved = _BF16
    return np.uint16(np.uint32(moved | np.uint32(bits & np.uint32(0x80000000))) >> np.uint32(16))


@jit
def _to_fp16(value: np.float32, bits: np.uint32, random: np.uint32) -> np.uint16:
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    sign = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000))
    if size >= _INFINITE:
        return np.uint16(0x7E00) if size > _INFINITE else np.uint16(sign | np.uint32(0x7C00))
    if size < _NORMAL:
        fixed = np.uint32(np.float32(abs(value) * _2P40))
        return np.uint16(sign | np.uint32(np.uint32(fixed + random) >> np.uint32(16)))
    moved = np.uint32(np.uint32(size + np.uint32(random >> np.uint32(3))) & np.uint32(0xFFFFE000))
    if moved > _FP16:
        moved = _FP16
    # The exponent is rebased from 127 to 15; the thirteen cleared bits are dropped.
    return np.uint16(sign | np.uint32(np.uint32(moved - np.uint32(112 << 23)) >> np.uint32(13)))


@jit
def _round(
    key0: np.uint64,
    key1: np.uint64,
    parameter: np.uint64,
    c2: np.uint64,
    c3: np.uint64,
    start: int,
    is_bf16: bool,
    wide: NDArray[np.float32],
    out: NDArray[np.uint16],
) -> None:
    words = np.empty((4, _BLOCKS), np.uint32)
    bits = wide.view(np.uint32)
    at, count = 0, wide.size
    block = start // _PER_BLOCK
    skip = start - block * _PER_BLOCK
    while at < count:
        blocks = min(_BLOCKS, (skip + count - at + _PER_BLOCK - 1) // _PER_BLOCK)
        philox(key0, key1, parameter, c2, c3, np.uint64(block), blocks, words)
        take = min(blocks * _PER_BLOCK - skip, count - at)
        for i in range(take):
            place = skip + i
            word = words[(place // 2) % 4, place // _PER_BLOCK]
            random = np.uint32(word >> np.uint32(16)) if place % 2 else np.uint32(word & np.uint32(0xFFFF))
            if is_bf16:
                out[at + i] = _to_bf16(bits[at + i], random)
            else:
                out[at + i] = _to_fp16(wide[at + i], bits[at + i], random)
        block, skip, at = block + blocks, 0, at + take


@region
def _round_region(data: Any) -> None:
    job = memory(data, (LENGTH,), np.int64)
    begin, end = bounds(job)
    wide = memory(pointer(job[FIRST + 7] + 4 * begin), (end - begin,), np.float32)
    out = memory(pointer(job[FIRST + 8] + 2 * begin), (end - begin,), np.uint16)
    key0, key1, parameter = np.uint64(job[FIRST]), np.uint64(job[FIRST + 1]), np.uint64(job[FIRST + 2])
    c2, c3, start = np.uint64(job[FIRST + 3]), np.uint64(job[FIRST + 4]), job[FIRST + 5] + begin
    _round(key0, key1, parameter, c2, c3, start, job[FIRST + 6] != 0, wide, out)


def round_into(stream: Stream, wide: Tensor, out: Tensor, start: int) -> None:
    """out_j ← wide_j rounded by the bits of element start + j; see `rounding`."""
    words = [stream.key0, stream.key1, stream.parameter, stream.c2, stream.c3]
    job = [*words, start, int(out.dtype == torch.bfloat16), wide.data_ptr(), out.data_ptr()]
    split(_round_region, job, wide.numel(), _LEAST)
