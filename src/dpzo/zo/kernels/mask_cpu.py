"""The mask in numba, one chunk of words at a time, with the bits of `mask`."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dpzo.zo.kernels.blocks_cpu import jit, philox
from dpzo.zo.kernels.spec import Stream

_BLOCKS = 128
_PER_BLOCK = 4


@jit
def _keep(
    key0: np.uint64,
    key1: np.uint64,
    parameter: np.uint64,
    c2: np.uint64,
    c3: np.uint64,
    start: int,
    threshold: np.uint64,
    out: NDArray[np.float32],
) -> None:
    words = np.empty((4, _BLOCKS), np.uint32)
    at, count = 0, out.size
    block = start // _PER_BLOCK
    skip = start - block * _PER_BLOCK
    while at < count:
        blocks = min(_BLOCKS, (skip + count - at + _PER_BLOCK - 1) // _PER_BLOCK)
        philox(key0, key1, parameter, c2, c3, np.uint64(block), blocks, words)
        take = min(blocks * _PER_BLOCK - skip, count - at)
        for i in range(take):
            place = skip + i
            if np.uint64(words[place % _PER_BLOCK, place // _PER_BLOCK]) >= threshold:
                out[at + i] = np.float32(0)
        block, skip, at = block + blocks, 0, at + take


def keep(stream: Stream, threshold: int, out: Tensor, start: int) -> None:
    """out_j ← out_j where word start + j is below `threshold`, else +0; see `mask`."""
    _keep(
        np.uint64(stream.key0),
        np.uint64(stream.key1),
        np.uint64(stream.parameter),
        np.uint64(stream.c2),
        np.uint64(stream.c3),
        start,
        np.uint64(threshold),
        cast(NDArray[np.float32], out.detach().numpy()),
    )
