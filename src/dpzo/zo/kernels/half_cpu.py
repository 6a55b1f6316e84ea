"""16-bit numbers to fp32 and back to nearest even, by their bits, as numba has no 16-bit float type."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpzo.zo.kernels.blocks_cpu import Floats, jit

_SIGN16, _REST16 = np.uint32(0x8000), np.uint32(0x7FFF)
_SIGN32, _REST32 = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
_INFINITE = np.uint32(0x7F800000)
_2P112 = np.float32(2.0**112)
_HALF_TO_INFINITY = np.uint32((127 + 16) << 23)
_HALF_NORMAL = np.uint32((127 - 14) << 23)
_MAGIC = np.float32(0.5)  # added to a subnormal, it shifts out the bits that fp16 cannot hold, rounding them
_MAGIC_BITS = np.uint32(126 << 23)


@jit
def widen(source: NDArray[np.uint16], at: int, count: int, is_bf16: bool, out: Floats, first: int) -> None:
    """out[first + i] ← source[at + i], exactly."""
    bits = out.view(np.uint32)
    a, f = np.uint64(at), np.uint64(first)
    if is_bf16:
        for i in range(np.uint64(count)):
            bits[f + i] = np.uint32(np.uint32(source[a + i]) << np.uint32(16))
        return
    for i in range(np.uint64(count)):
        h = np.uint32(source[a + i])
        rest = np.uint32(h & _REST16)
        number = np.uint32(np.uint32(rest << np.uint32(13))).view(np.float32) * _2P112  # rebases the exponent; exact
        own = np.uint32(np.float32(number).view(np.uint32))
        if rest >= np.uint32(0x7C00):
            own = np.uint32(_INFINITE | np.uint32(rest << np.uint32(13)))
        bits[f + i] = np.uint32(own | np.uint32(np.uint32(h & _SIGN16) << np.uint32(16)))


@jit
def narrow(source: Floats, first: int, count: int, is_bf16: bool, out: NDArray[np.uint16], at: int) -> None:
    """out[at + i] ← source[first + i], to nearest, ties to even; too large is ±inf, NaN is quiet."""
    bits = source.view(np.uint32)
    a, f = np.uint64(at), np.uint64(first)
    if is_bf16:
        for i in range(np.uint64(count)):
            b = bits[f + i]
            rounded = np.uint32(b + np.uint32(0x7FFF) + np.uint32(np.uint32(b >> np.uint32(16)) & np.uint32(1)))
            is_nan = np.uint32(b & _REST32) > _INFINITE
            out[a + i] = np.uint16(0x7FC0) if is_nan else np.uint16(np.uint32(rounded >> np.uint32(16)))
        return
    for i in range(np.uint64(count)):
        b = bits[f + i]
        sign, rest = np.uint32(np.uint32(b & _SIGN32) >> np.uint32(16)), np.uint32(b & _REST32)
        odd = np.uint32(np.uint32(rest >> np.uint32(13)) & np.uint32(1))
        normal = np.uint32(np.uint32(rest - np.uint32(112 << 23) + np.uint32(0xFFF) + odd) >> np.uint32(13))
        pushed = np.float32(rest.view(np.float32) + _MAGIC)
        code = np.uint32(pushed.view(np.uint32) - _MAGIC_BITS) if rest < _HALF_NORMAL else normal
        if rest >= _HALF_TO_INFINITY:
            code = np.uint32(0x7E00) if rest > _INFINITE else np.uint32(0x7C00)
        out[a + i] = np.uint16(sign | code)
