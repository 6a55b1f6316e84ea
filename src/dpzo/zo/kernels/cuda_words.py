"""Stochastic rounding and the fixed mask in Triton, by words of public streams: the bits of `rounding` and `mask`."""

from __future__ import annotations

from typing import Final

import torch
import triton.language as tl
from torch import Tensor

from dpzo.zo.kernels.cuda_elements import EXACT, halves, head, int32, jit, on, programs, row, span, stochastic, words_of
from dpzo.zo.kernels.spec import Stream

_BLOCKS: Final = 256
"""Philox blocks a program makes: 2048 elements that are rounded, 1024 that are masked."""


@jit
def _round(
    wide: tl.tensor, out: tl.tensor, first: tl.tensor, skip: tl.tensor, count: tl.tensor, key0: tl.tensor,
    key1: tl.tensor, parameter: tl.tensor, c2: tl.tensor, c3: tl.tensor, BF16: tl.constexpr, BLOCKS: tl.constexpr,
) -> None:  # fmt: skip
    """`out` is int16, the bits of the result."""
    block, at, asked = span(tl.program_id(0), first, skip, count, BLOCKS, 8)
    x0, x1, x2, x3 = words_of(block, key0, key1, parameter, c2, c3)
    value = tl.load(wide + at, mask=asked, other=0.0)
    tl.store(out + at, stochastic(value, halves(x0, x1, x2, x3), BF16), mask=asked)


@jit
def _keep(
    out: tl.tensor, first: tl.tensor, skip: tl.tensor, count: tl.tensor, key0: tl.tensor, key1: tl.tensor,
    parameter: tl.tensor, c2: tl.tensor, c3: tl.tensor, threshold: tl.tensor, BLOCKS: tl.constexpr,
) -> None:  # fmt: skip
    block, at, asked = span(tl.program_id(0), first, skip, count, BLOCKS, 4)
    x0, x1, x2, x3 = words_of(block, key0, key1, parameter, c2, c3)
    words = tl.reshape(row(x0, x1, x2, x3), (BLOCKS * 4,))
    tl.store(out + at, 0.0, mask=asked & (words.to(tl.int64) >= threshold))


def round_into(stream: Stream, wide: Tensor, out: Tensor, start: int) -> None:
    """out_j ← wide_j rounded by the bits of element start + j; see `rounding`."""
    first, skip = divmod(start, 8)
    words = (first, skip, out.numel(), *head(stream), int32(stream.c3), out.dtype == torch.bfloat16, _BLOCKS)
    if out.numel():
        with on(out):
            _round[programs(skip, out.numel(), 8 * _BLOCKS)](wide, out.view(torch.int16), *words, **EXACT)  # type: ignore[index]


def keep(stream: Stream, threshold: int, out: Tensor, start: int) -> None:
    """out_j ← out_j where word start + j is below `threshold`, else +0; see `mask`."""
    first, skip = divmod(start, 4)
    words = (first, skip, out.numel(), *head(stream), int32(stream.c3), threshold, _BLOCKS)
    if out.numel():
        with on(out):
            _keep[programs(skip, out.numel(), 4 * _BLOCKS)](out, *words, **EXACT)  # type: ignore[index]
