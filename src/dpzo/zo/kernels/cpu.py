"""The CPU kernels: counters to elements in numba, a cache-sized chunk at a time, fused with what is done to them.

Three habits carry the speed and the bits. Words live in uint64 lanes (numba promotes uint32 products to uint64 anyway,
and one AVX2 instruction multiplies four such lanes). Each chunk is made into a small buffer by one loop and used by the
next, so every loop is simple enough to vectorise. No fast-math flag is set, so LLVM never fuses or reorders.
The kernels release the interpreter lock and use no thread pool of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dpzo.zo.kernels import spec
from dpzo.zo.kernels.spec import Stream

F = TypeVar("F", bound=Callable[..., Any])
Floats = NDArray[np.float32]
Words = NDArray[np.uint32]


def _jit(function: F) -> F:
    """Compile lazily, keep the machine code beside the source, and do without where no folder is writable."""
    try:
        return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:
        return cast(F, numba.njit(nogil=True, error_model="numpy")(function))


_WORD = np.uint64(0xFFFFFFFF)
_M0, _M1 = np.uint64(spec.MULTIPLIER_0), np.uint64(spec.MULTIPLIER_1)
_W0, _W1 = np.uint64(spec.WEYL_0), np.uint64(spec.WEYL_1)
_S32, _S12 = np.uint64(32), np.uint64(12)
_PURPOSE, _K = np.uint64(0xFF000000), np.uint64(0xFFFFFF)

# A chunk is 128 blocks of normals or 32 blocks of signs: at most 4096 elements, 16 KiB, which stay in the first cache.
_MAX_BLOCKS, _MAX_ELEMENTS = 128, 4096

_SQRT_HALF_BITS = np.int32(spec.SQRT_HALF_BITS)
_LN2 = np.float32(spec.LN2)
_HALF, _ONE, _MINUS_TWO = np.float32(0.5), np.float32(1), np.float32(-2)
_65536, _2P24, _2M24 = np.float32(65536), np.float32(2.0**24), np.float32(2.0**-24)
_L0, _L1, _L2, _L3, _L4, _L5, _L6 = (np.float32(c) for c in spec.LOG)
_S0, _S1, _S2, _S3 = (np.float32(c) for c in spec.SIN)
_C0, _C1, _C2, _C3, _C4 = (np.float32(c) for c in spec.COS)


@_jit
def _philox_chunk(
    key0: np.uint64,
    key1: np.uint64,
    parameter: np.uint64,
    c2: np.uint64,
    c3: np.uint64,
    block: np.uint64,
    count: int,
    x0: Words,
    x1: Words,
    x2: Words,
    x3: Words,
) -> None:
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


@_jit
def _spread_signs(words: Words, blocks: int, place: int, z: Floats) -> None:
    """Bit i of word j → the sign of element 128·j + 32·place + i, written as the bits of ±1."""
    bits = z.view(np.uint32)
    for j in range(blocks):
        word = words[j]
        at = 128 * j + 32 * place
        target = bits[at : at + 32]
        for i in range(32):
            sign = np.uint32(word << np.uint32(31 - i)) & np.uint32(0x80000000)
            target[i] = np.uint32(sign | np.uint32(0x3F800000))


@_jit
def _parity(bits: np.uint64) -> np.uint64:
    """Of the lowest 32 bits."""
    bits = bits ^ (bits >> np.uint64(16))
    bits = bits ^ (bits >> np.uint64(8))
    bits = bits ^ (bits >> np.uint64(4))
    bits = bits ^ (bits >> np.uint64(2))
    return (bits ^ (bits >> np.uint64(1))) & np.uint64(1)


@_jit
def _flip_walsh(words: Words, blocks: int, place: int, block: np.uint64, k: np.uint64, origin: np.uint64) -> None:
    """Flip bit i of word j where k & J has an odd number of ones, J = origin + 128·(block + j) + 32·place + i.

    Words that begin at a multiple of 32 are one pattern or its complement: two neighbours are made and shifted.
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


@_jit
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


@_jit
def _box_muller(radius_words: Words, angle_words: Words, blocks: int, place: int, z: Floats) -> None:
    """Pair (radius, angle) of block j → elements 4·j + place and 4·j + place + 1."""
    for j in range(blocks):
        radius = _radius(radius_words[j])
        word = angle_words[j]
        shifted = np.int32(np.uint32(word << np.uint32(2)))
        a = (np.float32(np.int32(shifted >> np.int32(8))) + _HALF) * _2M24
        square = a * a
        sine = a * (((_S3 * square + _S2) * square + _S1) * square + _S0)
        cosine = (((_C4 * square + _C3) * square + _C2) * square + _C1) * square + _C0
        quarter = np.int32(word >> np.uint32(30))
        odd = np.int32(quarter & np.int32(1)) == np.int32(1)
        x = sine if odd else cosine
        y = cosine if odd else sine
        z[4 * j + place] = radius * (-x if (quarter == np.int32(1)) | (quarter == np.int32(2)) else x)
        z[4 * j + place + 1] = radius * (-y if quarter >= np.int32(2) else y)


@_jit
def _chunk(
    law: int,
    origin: np.uint64,
    key0: np.uint64,
    key1: np.uint64,
    parameter: np.uint64,
    c2: np.uint64,
    c3: np.uint64,
    block: np.uint64,
    blocks: int,
    words: NDArray[np.uint32],
    z: Floats,
) -> None:
    counter = c3 & _PURPOSE if law == 2 else c3
    _philox_chunk(key0, key1, parameter, c2, counter, block, blocks, words[0], words[1], words[2], words[3])
    if law != 1:
        for place in range(4):
            if law == 2:
                _flip_walsh(words[place], blocks, place, block, c3 & _K, origin)
            _spread_signs(words[place], blocks, place, z)
    else:
        _box_muller(words[0], words[1], blocks, 0, z)
        _box_muller(words[2], words[3], blocks, 2, z)


@_jit
def _shape(law: int) -> tuple[int, int]:
    """(elements a block, blocks a chunk)."""
    return (4, 128) if law == 1 else (128, 32)


@_jit
def _fill(
    law: int,
    origin: np.uint64,
    key0: np.uint64,
    key1: np.uint64,
    parameter: np.uint64,
    c2: np.uint64,
    c3: np.uint64,
    start: int,
    factor: np.float32,
    out: Floats,
) -> None:
    words, z = np.empty((4, _MAX_BLOCKS), np.uint32), np.empty(_MAX_ELEMENTS, np.float32)
    per_block, chunk_blocks = _shape(law)
    block, skip, at, count = start // per_block, start % per_block, 0, out.size
    while at < count:
        blocks = min(chunk_blocks, (skip + count - at + per_block - 1) // per_block)
        _chunk(law, origin, key0, key1, parameter, c2, c3, np.uint64(block), blocks, words, z)
        take = min(blocks * per_block - skip, count - at)
        target, source = out[at : at + take], z[skip : skip + take]
        for i in range(take):
            target[i] = source[i] * factor
        block, skip, at = block + blocks, 0, at + take


@_jit
def _add(
    law: int,
    origin: np.uint64,
    key0: np.uint64,
    key1: np.uint64,
    parameter: np.uint64,
    c2: np.uint64,
    c3: np.uint64,
    start: int,
    factor: np.float32,
    base: Floats,
    scale: np.float32,
    out: Floats,
) -> None:
    words, z = np.empty((4, _MAX_BLOCKS), np.uint32), np.empty(_MAX_ELEMENTS, np.float32)
    per_block, chunk_blocks = _shape(law)
    block, skip, at, count = start // per_block, start % per_block, 0, out.size
    while at < count:
        blocks = min(chunk_blocks, (skip + count - at + per_block - 1) // per_block)
        _chunk(law, origin, key0, key1, parameter, c2, c3, np.uint64(block), blocks, words, z)
        take = min(blocks * per_block - skip, count - at)
        theta, target, source = base[at : at + take], out[at : at + take], z[skip : skip + take]
        for i in range(take):
            target[i] = theta[i] + scale * (source[i] * factor)
        block, skip, at = block + blocks, 0, at + take


@_jit
def _accumulate(
    law: int,
    origin: np.uint64,
    key0: np.uint64,
    key1: np.uint64,
    parameter: np.uint64,
    c2: np.uint64,
    c3: NDArray[np.uint64],
    start: int,
    factors: Floats,
    coefficients: Floats,
    acc: Floats,
) -> None:
    words, z = np.empty((4, _MAX_BLOCKS), np.uint32), np.empty(_MAX_ELEMENTS, np.float32)
    per_block, chunk_blocks = _shape(law)
    block, skip, at, count = start // per_block, start % per_block, 0, acc.size
    while at < count:
        blocks = min(chunk_blocks, (skip + count - at + per_block - 1) // per_block)
        take = min(blocks * per_block - skip, count - at)
        target, source = acc[at : at + take], z[skip : skip + take]
        for k in range(c3.size):
            _chunk(law, origin, key0, key1, parameter, c2, c3[k], np.uint64(block), blocks, words, z)
            factor, coefficient = factors[k], coefficients[k]
            for i in range(take):
                target[i] = target[i] + coefficient * (source[i] * factor)
        block, skip, at = block + blocks, 0, at + take


@_jit
def _square_sum(
    law: int,
    origin: np.uint64,
    key0: np.uint64,
    key1: np.uint64,
    parameter: np.uint64,
    c2: np.uint64,
    c3: np.uint64,
    start: int,
    count: int,
) -> int:
    words, z = np.empty((4, _MAX_BLOCKS), np.uint32), np.empty(_MAX_ELEMENTS, np.float32)
    per_block, chunk_blocks = _shape(law)
    block, skip, at, total = start // per_block, start % per_block, 0, np.int64(0)
    while at < count:
        blocks = min(chunk_blocks, (skip + count - at + per_block - 1) // per_block)
        _chunk(law, origin, key0, key1, parameter, c2, c3, np.uint64(block), blocks, words, z)
        take = min(blocks * per_block - skip, count - at)
        source = z[skip : skip + take]
        for i in range(take):
            total += np.int64(np.int32(source[i] * source[i] * _2P24))
        block, skip, at = block + blocks, 0, at + take
    return int(total)


def _flat(tensor: Tensor) -> Floats:
    """The tensor's own memory as a NumPy vector: no copy, no version bump."""
    return cast(Floats, tensor.detach().numpy())


def _head(stream: Stream) -> tuple[int, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]:
    return (
        stream.law,
        np.uint64(stream.origin),
        np.uint64(stream.key0),
        np.uint64(stream.key1),
        np.uint64(stream.parameter),
        np.uint64(stream.c2),
    )


def fill(stream: Stream, factor: float, out: Tensor, start: int) -> None:
    """out_j ← z_j; see `Kernels.fill`."""
    _fill(*_head(stream), np.uint64(stream.c3), start, np.float32(factor), _flat(out))


def add(stream: Stream, factor: float, base: Tensor, scale: float, out: Tensor, start: int) -> None:
    """out_j ← fl(base_j + fl(scale·z_j)); see `Kernels.add`."""
    head = _head(stream)
    _add(*head, np.uint64(stream.c3), start, np.float32(factor), _flat(base), np.float32(scale), _flat(out))


def accumulate(
    streams: Sequence[Stream], factors: Sequence[float], coefficients: Sequence[float], acc: Tensor, start: int
) -> None:
    """acc_j ← fl(acc_j + fl(coefficient_k·z_kj)), sequential in k; see `Kernels.accumulate`."""
    if not streams:
        return
    c3 = np.array([stream.c3 for stream in streams], dtype=np.uint64)
    factors32 = np.array(factors, dtype=np.float32)
    coefficients32 = np.array(coefficients, dtype=np.float32)
    _accumulate(*_head(streams[0]), c3, start, factors32, coefficients32, _flat(acc))


def square_sum(stream: Stream, start: int, count: int) -> int:
    """Σ_j ⌊fl(element_j²)·2²⁴⌋; see `Kernels.square_sum`."""
    return int(_square_sum(*_head(stream), np.uint64(stream.c3), start, count))
