"""Counters to elements in numba: the building blocks of the CPU kernels.

Three rules ensure the speed and the bits. Words are stored in uint64 lanes (numba promotes uint32 products to uint64
anyway, and one AVX2 instruction multiplies four such lanes). Indices are unsigned and inner loops take no slice: numba
checks signed indices, and reference-counts every slice atomically, which cost more than the arithmetic. No fast-math
flag is set, so LLVM never fuses or reorders.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from dpzo.zo.kernels import spec

F = TypeVar("F", bound=Callable[..., Any])
Floats: TypeAlias = NDArray[np.float32]
Words: TypeAlias = NDArray[np.uint32]
Address: TypeAlias = tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]
"""A stream's (origin, key0, key1, parameter, c2, c3)."""


def jit(function: F) -> F:
    """Compile lazily and cache the machine code beside the source; without a cache if no folder is writable."""
    try:
        return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:
        return cast(F, numba.njit(nogil=True, error_model="numpy")(function))


MAX_BLOCKS, MAX_ELEMENTS = 128, 4096
"""A chunk: at most 128 blocks of normals or 32 of signs, 4096 elements, 16 KiB, which stay in the first cache."""

_WORD = np.uint64(0xFFFFFFFF)
_M0, _M1 = np.uint64(spec.MULTIPLIER_0), np.uint64(spec.MULTIPLIER_1)
_W0, _W1 = np.uint64(spec.WEYL_0), np.uint64(spec.WEYL_1)
_S32, _S12 = np.uint64(32), np.uint64(12)
_PURPOSE, _K = np.uint64(0xFF000000), np.uint64(0xFFFFFF)
_1, _2, _3, _4, _31, _32, _128 = (np.uint64(n) for n in (1, 2, 3, 4, 31, 32, 128))
_SIGN = np.uint32(0x80000000)

_SQRT_HALF_BITS = np.int32(spec.SQRT_HALF_BITS)
_LN2 = np.float32(spec.LN2)
_HALF, _ONE, _MINUS_TWO = np.float32(0.5), np.float32(1), np.float32(-2)
_65536, _2M24 = np.float32(65536), np.float32(2.0**-24)
_L0, _L1, _L2, _L3, _L4, _L5, _L6 = (np.float32(c) for c in spec.LOG)
_S0, _S1, _S2, _S3 = (np.float32(c) for c in spec.SIN)
_C0, _C1, _C2, _C3, _C4 = (np.float32(c) for c in spec.COS)


@jit
def philox(
    key0: np.uint64,
    key1: np.uint64,
    parameter: np.uint64,
    c2: np.uint64,
    c3: np.uint64,
    block: np.uint64,
    count: int,
    words: Words,
) -> None:
    """Word i of block `block` + j → words[i, j]."""
    x0, x1, x2, x3 = words[0], words[1], words[2], words[3]
    high = parameter << _S12
    for j in range(count):
        b = block + np.uint64(j)
        p, q, r, s = b & _WORD, (b >> _S32) | high, c2, c3
        k0, k1 = key0, key1
        for _ in range(10):
            m0, m1 = p * _M0, r * _M1
            p, q, r, s = (m1 >> _S32) ^ q ^ k0, m1 & _WORD, (m0 >> _S32) ^ s ^ k1, m0 & _WORD
            k0, k1 = (k0 + _W0) & _WORD, (k1 + _W1) & _WORD
        x0[j] = np.uint32(p)
        x1[j] = np.uint32(q)
        x2[j] = np.uint32(r)
        x3[j] = np.uint32(s)


@jit
def _parity(bits: np.uint64) -> np.uint64:
    """Parity of the lowest 32 bits."""
    bits = bits ^ (bits >> np.uint64(16))
    bits = bits ^ (bits >> np.uint64(8))
    bits = bits ^ (bits >> np.uint64(4))
    bits = bits ^ (bits >> np.uint64(2))
    return (bits ^ (bits >> np.uint64(1))) & np.uint64(1)


@jit
def _flip_walsh(words: Words, blocks: int, place: int, block: np.uint64, k: np.uint64, origin: np.uint64) -> None:
    """Flip bit i of word j where k & J has an odd number of ones, J = origin + 128·(block + j) + 32·place + i.

    Words that begin at a multiple of 32 are one pattern or its complement: two neighbours are computed and shifted.
    """
    pattern = np.uint64(0)
    for i in range(32):
        pattern |= _parity(k & np.uint64(i)) << np.uint64(i)
    high, shift = k >> np.uint64(5), origin & np.uint64(31)
    for j in range(blocks):
        at = (origin >> np.uint64(5)) + ((block + np.uint64(j)) << np.uint64(2)) + np.uint64(place)
        low = pattern ^ (_parity(high & at) * _WORD)
        up = pattern ^ (_parity(high & (at + np.uint64(1))) * _WORD)
        words[j] ^= np.uint32(((low | (up << _S32)) >> shift) & _WORD)


@jit
def _radius(word: np.uint32) -> np.float32:
    high, low = np.int32(word >> np.uint32(16)), np.int32(word & np.uint32(0xFFFF))
    v = np.float32(high) * _65536 + (np.float32(low) + _HALF)
    bits = np.float32(v).view(np.int32)
    exponent = np.int32(np.int32(bits - _SQRT_HALF_BITS) >> np.int32(23))
    f = np.int32(bits - np.int32(exponent << np.int32(23))).view(np.float32) - _ONE
    p = ((((((_L6 * f + _L5) * f + _L4) * f + _L3) * f + _L2) * f + _L1) * f) + _L0
    inner = _HALF - f * p
    log_mantissa = f - (f * f) * inner
    log_u = log_mantissa + np.float32(np.int32(exponent - np.int32(32))) * _LN2
    return np.float32(np.sqrt(np.float32(log_u * _MINUS_TWO)))


@jit
def _box_muller(radius_words: Words, angle_words: Words, blocks: int, x: Words, y: Words) -> None:
    """Pair (radius, angle) of block j → the bits of its two normals, x[j] and y[j]."""
    for j in range(np.uint64(blocks)):
        radius = _radius(radius_words[j])
        word = angle_words[j]
        shifted = np.int32(np.uint32(word << np.uint32(2)))
        a = (np.float32(np.int32(shifted >> np.int32(8))) + _HALF) * _2M24
        square = a * a
        sine = a * (((_S3 * square + _S2) * square + _S1) * square + _S0)
        cosine = (((_C4 * square + _C3) * square + _C2) * square + _C1) * square + _C0
        odd = np.uint32(word & np.uint32(0x40000000)) != np.uint32(0)
        first = np.float32(radius * (sine if odd else cosine))
        second = np.float32(radius * (cosine if odd else sine))
        # Applying the quarter's sign to the product gives the same bits. x is negative in quarters 1, 2 and y in 2, 3.
        turned = np.uint32(word ^ np.uint32(word << np.uint32(1)))
        x[j] = np.uint32(first.view(np.uint32) ^ np.uint32(turned & _SIGN))
        y[j] = np.uint32(second.view(np.uint32) ^ np.uint32(word & _SIGN))


@jit
def shape(law: int) -> tuple[int, int]:
    """(elements per block, blocks per chunk)."""
    return (4, 128) if law == 1 else (128, 32)


@jit
def make(law: int, stream: Address, block: np.uint64, blocks: int, words: Words, normals: Words) -> None:
    """The words of `blocks` blocks; for normals also the bits of their elements, `normals[i, j]` being 4·j + i."""
    origin, key0, key1, parameter, c2, c3 = stream
    philox(key0, key1, parameter, c2, c3 & _PURPOSE if law == 2 else c3, block, blocks, words)
    if law == 1:
        _box_muller(words[0], words[1], blocks, normals[0], normals[1])
        _box_muller(words[2], words[3], blocks, normals[2], normals[3])
    elif law == 2:
        for place in range(4):
            _flip_walsh(words[place], blocks, place, block, c3 & _K, origin)


@jit
def put(law: int, words: Words, normals: Words, blocks: int, factor: np.float32, out: Floats) -> None:
    """out_i ← fl(element_i·factor) for whole blocks, from out_0 on."""
    if law == 1:
        elements = normals.view(np.float32)
        for j in range(np.uint64(blocks)):
            for i in range(_4):
                out[_4 * j + i] = elements[i, j] * factor
        return
    unit = np.float32(factor).view(np.uint32)
    bits = out.view(np.uint32)
    for j in range(np.uint64(blocks)):
        for place in range(_4):
            word, at = words[place, j], _128 * j + _32 * place
            for i in range(_32):
                sign = np.uint32(np.uint32(word << np.uint32(_31 - i)) & _SIGN)
                bits[at + i] = np.uint32(sign ^ unit)


@jit
def put_sum(
    law: int,
    words: Words,
    normals: Words,
    blocks: int,
    factor: np.float32,
    scale: np.float32,
    base: Floats,
    out: Floats,
    first: np.uint64,
) -> None:
    """out_i ← fl(base_i + fl(scale·fl(element_i·factor))) for whole blocks, from out_first on.

    A sign never becomes a number: ±1·factor·scale is one number with its sign bit flipped, for rounding is symmetric.
    """
    if law == 1:
        elements = normals.view(np.float32)
        for j in range(np.uint64(blocks)):
            at = first + _4 * j
            out[at] = base[at] + scale * (elements[0, j] * factor)
            out[at + _1] = base[at + _1] + scale * (elements[1, j] * factor)
            out[at + _2] = base[at + _2] + scale * (elements[2, j] * factor)
            out[at + _3] = base[at + _3] + scale * (elements[3, j] * factor)
        return
    step = np.float32(scale * factor).view(np.uint32)
    for j in range(np.uint64(blocks)):
        for place in range(_4):
            word, at = words[place, j], first + _128 * j + _32 * place
            for i in range(_32):
                sign = np.uint32(np.uint32(word << np.uint32(_31 - i)) & _SIGN)
                out[at + i] = base[at + i] + np.uint32(sign ^ step).view(np.float32)


@jit
def put_more(
    law: int,
    words: Words,
    normals: Words,
    blocks: int,
    factor: np.float32,
    scale: np.float32,
    out: Floats,
    first: np.uint64,
) -> None:
    """`put_sum` in place; one array as `base` and `out` would get LLVM's scalar loop."""
    if law == 1:
        elements = normals.view(np.float32)
        for j in range(np.uint64(blocks)):
            at = first + _4 * j
            out[at] = out[at] + scale * (elements[0, j] * factor)
            out[at + _1] = out[at + _1] + scale * (elements[1, j] * factor)
            out[at + _2] = out[at + _2] + scale * (elements[2, j] * factor)
            out[at + _3] = out[at + _3] + scale * (elements[3, j] * factor)
        return
    step = np.float32(scale * factor).view(np.uint32)
    for j in range(np.uint64(blocks)):
        for place in range(_4):
            word, at = words[place, j], first + _128 * j + _32 * place
            for i in range(_32):
                sign = np.uint32(np.uint32(word << np.uint32(_31 - i)) & _SIGN)
                out[at + i] = out[at + i] + np.uint32(sign ^ step).view(np.float32)
