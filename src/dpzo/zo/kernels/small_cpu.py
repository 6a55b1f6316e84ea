"""Many small parameters in one call: for a bias or a norm's gain, the call costs more than its elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpzo.zo.kernels.blocks_cpu import Address, jit
from dpzo.zo.kernels.cpu import add_elements, add_half_elements, sum_elements
from dpzo.zo.kernels.spec import Stream
from dpzo.zo.kernels.team import FIRST, LENGTH, bits, memory, number, pointer, region, split

_LAW, _ROWS, _TABLE, _FACTOR, _SCALE = range(FIRST, FIRST + 5)
_TERMS, _C3, _FACTORS, _COEFFICIENTS, _KIND = range(FIRST + 5, FIRST + 10)
_WIDTH = 9
"""A row of the table: origin, key0, key1, parameter, c2, c3, elements, address of the base, address of the result."""
_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


@jit
def _address(row: NDArray[np.int64]) -> Address:
    origin, key0, key1 = np.uint64(row[0]), np.uint64(row[1]), np.uint64(row[2])
    return origin, key0, key1, np.uint64(row[3]), np.uint64(row[4]), np.uint64(row[5])


@region
def _add_each(data: Any) -> None:
    job = memory(data, (LENGTH,), np.int64)
    table = memory(pointer(job[_TABLE]), (job[_ROWS], _WIDTH), np.int64)
    law, factor, scale, kind = job[_LAW], number(job[_FACTOR]), number(job[_SCALE]), job[_KIND]
    for i in range(job[_ROWS]):
        row = table[i]
        if kind == 0:
            base = memory(pointer(row[7]), (row[6],), np.float32)
            out = memory(pointer(row[8]), (row[6],), np.float32)
            add_elements(law, _address(row), 0, factor, base, scale, out)
        else:
            halves = memory(pointer(row[7]), (row[6],), np.uint16)
            rounded = memory(pointer(row[8]), (row[6],), np.uint16)
            add_half_elements(law, _address(row), 0, factor, halves, scale, rounded, kind == 2)


@region
def _step_each(data: Any) -> None:
    job = memory(data, (LENGTH,), np.int64)
    table = memory(pointer(job[_TABLE]), (job[_ROWS], _WIDTH), np.int64)
    c3 = memory(pointer(job[_C3]), (job[_TERMS],), np.uint64)
    factors = memory(pointer(job[_FACTORS]), (job[_TERMS],), np.float32)
    coefficients = memory(pointer(job[_COEFFICIENTS]), (job[_TERMS],), np.float32)
    for i in range(job[_ROWS]):
        row = table[i]
        theta = memory(pointer(row[8]), (row[6],), np.float32)
        sum_elements(job[_LAW], _address(row), c3, 0, factors, coefficients, theta, True)


def _table(streams: Sequence[Stream], bases: Sequence[Tensor], outs: Sequence[Tensor]) -> NDArray[np.int64]:
    rows = [
        (s.origin, s.key0, s.key1, s.parameter, s.c2, s.c3, out.numel(), base.data_ptr(), out.data_ptr())
        for s, base, out in zip(streams, bases, outs, strict=True)
    ]
    return np.array(rows, dtype=np.int64)


def add_each(
    streams: Sequence[Stream], factor: float, bases: Sequence[Tensor], scale: float, outs: Sequence[Tensor]
) -> None:
    """`Kernels.add` of every base from its first element, all of one law and dtype; no base may be its own result."""
    table = _table(streams, bases, outs)
    job = [streams[0].law, len(table), table.ctypes.data, bits(factor), bits(scale)]
    split(_add_each, [*job, 0, 0, 0, 0, _KINDS[outs[0].dtype]], 1, 2)


def step_each(
    streams: Sequence[Stream],
    thirds: Sequence[int],
    factors: Sequence[float],
    coefficients: Sequence[float],
    thetas: Sequence[Tensor],
) -> None:
    """`Kernels.step` of every fp32 theta from its first element; one stream per theta, one third word per k."""
    table, c3 = _table(streams, thetas, thetas), np.array(thirds, dtype=np.uint64)
    factors32, coefficients32 = np.array(factors, dtype=np.float32), np.array(coefficients, dtype=np.float32)
    kept = [c3.ctypes.data, factors32.ctypes.data, coefficients32.ctypes.data]
    split(_step_each, [streams[0].law, len(table), table.ctypes.data, 0, 0, len(c3), *kept], 1, 2)
