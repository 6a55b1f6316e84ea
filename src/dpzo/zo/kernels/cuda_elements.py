"""From counters to elements in Triton: the building blocks of the kernels in `cuda` and `cuda_words`.

Signs are bits, so ±fl(factor·scale) is one number whose sign bit a word flips. Normals use `reference`'s operations
in the same order. Launch options preserve the bits: no multiply and add is fused, no subnormal is flushed, the root is
`sqrt_rn`; everything else is integer arithmetic or an fp32 operation that IEEE 754 defines.

Every program computes whole blocks and writes only the requested elements. Indices are 64 bits wide.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, TypeVar, cast

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from dpzo.zo.kernels import rounding, spec
from dpzo.zo.kernels.spec import Stream

F = TypeVar("F", bound=Callable[..., Any])

EXACT: Final[dict[str, Any]] = {"enable_fp_fusion": False, "enable_reflect_ftz": False, "num_warps": 4}
"""Launch options. Without the first two a multiply and an add become one rounding, or the root flushes subnormals."""

_WORDS: Final = ("first", "key0", "key1", "parameter", "c2", "c3", "origin", "streams", "threshold", "round2", "round3")


def jit(function: F) -> F:
    """`triton.jit` that preserves the type; a counter's words are excluded from specialisation."""
    own = function.__code__.co_varnames[: function.__code__.co_argcount]
    return cast(F, triton.jit(do_not_specialize=[word for word in _WORDS if word in own])(function))


_M0, _M1 = tl.constexpr(spec.MULTIPLIER_0), tl.constexpr(spec.MULTIPLIER_1)
_W0, _W1 = tl.constexpr(spec.WEYL_0), tl.constexpr(spec.WEYL_1)
_L0, _L1, _L2, _L3, _L4, _L5, _L6 = (tl.constexpr(c) for c in spec.LOG)
_S0, _S1, _S2, _S3 = (tl.constexpr(c) for c in spec.SIN)
_C0, _C1, _C2, _C3, _C4 = (tl.constexpr(c) for c in spec.COS)
_LN2, _SQRT_HALF_BITS = tl.constexpr(spec.LN2), tl.constexpr(spec.SQRT_HALF_BITS)
_2M24, _2P24 = tl.constexpr(2.0**-24), tl.constexpr(2.0**spec.FIXED_POINT_BITS)
_NORMALS, _WALSH = tl.constexpr(spec.NORMALS), tl.constexpr(spec.WALSH)
_INFINITE, _BF16_LARGEST = tl.constexpr(rounding.INFINITE), tl.constexpr(rounding.BF16_LARGEST)
_FP16_LARGEST, _FP16_SMALLEST_NORMAL = tl.constexpr(rounding.FP16_LARGEST), tl.constexpr(rounding.FP16_SMALLEST_NORMAL)
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
HERE: Final = "cpu" if triton.knobs.runtime.interpret else "cuda"
"""Where tensors live that no caller brought: Triton's interpreter runs on the CPU."""


@jit
def words_of(
    block: tl.tensor, key0: tl.tensor, key1: tl.tensor, parameter: tl.tensor, c2: tl.tensor, c3: tl.tensor
) -> tl.tensor:
    """Philox4x32-10 of int64 block numbers: four vectors of uint32. The other words come as int32 of the same bits."""
    x0 = block.to(tl.uint32)
    x1 = (block >> 32).to(tl.uint32) | (parameter.to(tl.uint32, bitcast=True) << 12)
    x2 = tl.zeros_like(x0) + c2.to(tl.uint32, bitcast=True)
    x3 = tl.zeros_like(x0) + c3.to(tl.uint32, bitcast=True)
    k0, k1 = key0.to(tl.uint32, bitcast=True), key1.to(tl.uint32, bitcast=True)
    for _ in tl.static_range(10):
        p0, p1 = x0.to(tl.uint64) * _M0, x2.to(tl.uint64) * _M1
        x0, x2 = (p1 >> 32).to(tl.uint32) ^ x1 ^ k0, (p0 >> 32).to(tl.uint32) ^ x3 ^ k1
        x1, x3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0, k1 = k0 + _W0, k1 + _W1
    return x0, x1, x2, x3


@jit
def row(x0: tl.tensor, x1: tl.tensor, x2: tl.tensor, x3: tl.tensor) -> tl.tensor:
    """(B,) four times → (B, 4), in this order along each row."""
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), (x0.shape[0], 4))


@jit
def _parity(bits: tl.tensor) -> tl.tensor:
    bits = bits ^ (bits >> 16)
    bits = bits ^ (bits >> 8)
    bits = bits ^ (bits >> 4)
    bits = bits ^ (bits >> 2)
    return (bits ^ (bits >> 1)) & 1


@jit
def _walsh(words: tl.tensor, block: tl.tensor, c3: tl.tensor, origin: tl.tensor) -> tl.tensor:
    """Flip bit i of word (b, place) where k & J has an odd number of ones, J = origin + 128·block + 32·place + i.

    k has 24 bits, so J is needed modulo 2³¹ only. Words that begin at a multiple of 32 are one pattern or its
    complement: two neighbours are computed and shifted.
    """
    k = c3.to(tl.uint32, bitcast=True) & 0xFFFFFF
    pattern = (k & 1) * 0xAAAAAAAA
    pattern ^= ((k >> 1) & 1) * 0xCCCCCCCC
    pattern ^= ((k >> 2) & 1) * 0xF0F0F0F0
    pattern ^= ((k >> 3) & 1) * 0xFF00FF00
    pattern ^= ((k >> 4) & 1) * 0xFFFF0000
    start = origin.to(tl.uint32, bitcast=True)
    at = (start >> 5) + (block.to(tl.uint32) << 2)[:, None] + tl.arange(0, 4).to(tl.uint32)[None, :]
    low = pattern ^ (_parity((k >> 5) & at) * 0xFFFFFFFF)
    up = pattern ^ (_parity((k >> 5) & (at + 1)) * 0xFFFFFFFF)
    pair = low.to(tl.uint64) | (up.to(tl.uint64) << 32)
    return words ^ (pair >> (start & 31).to(tl.uint64)).to(tl.uint32)


@jit
def _sign_bits(words: tl.tensor) -> tl.tensor:
    """(B, 4) words → (128·B,) uint32: the sign bit of each element, and nothing else."""
    place = tl.arange(0, 32).to(tl.uint32)[None, None, :]
    return tl.reshape((words[:, :, None] << (31 - place)) & 0x80000000, (words.shape[0] * 128,))


@jit
def _radius(word: tl.tensor) -> tl.tensor:
    v = (word >> 16).to(tl.float32) * 65536.0 + ((word & 0xFFFF).to(tl.float32) + 0.5)
    bits = v.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    p = (((((_L6 * f + _L5) * f + _L4) * f + _L3) * f + _L2) * f + _L1) * f + _L0
    inner = 0.5 - f * p
    log_mantissa = f - (f * f) * inner
    log_u = log_mantissa + (exponent - 32).to(tl.float32) * _LN2
    return tl.sqrt_rn(log_u * -2.0)


@jit
def _pair(radius_word: tl.tensor, word: tl.tensor) -> tl.tensor:
    radius = _radius(radius_word)
    a = (((word << 2).to(tl.int32, bitcast=True) >> 8).to(tl.float32) + 0.5) * _2M24
    square = a * a
    sine = a * (((_S3 * square + _S2) * square + _S1) * square + _S0)
    cosine = (((_C4 * square + _C3) * square + _C2) * square + _C1) * square + _C0
    quarter = word >> 30
    odd = (quarter & 1) == 1
    x, y = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    x, y = tl.where((quarter == 1) | (quarter == 2), -x, x), tl.where(quarter >= 2, -y, y)
    return radius * x, radius * y


@jit
def normals(x0: tl.tensor, x1: tl.tensor, x2: tl.tensor, x3: tl.tensor) -> tl.tensor:
    """(B,) words → (4·B,) independent normals."""
    g0, g1 = _pair(x0, x1)
    g2, g3 = _pair(x2, x3)
    return tl.reshape(row(g0, g1, g2, g3), (x0.shape[0] * 4,))


@jit
def counter(c3: tl.tensor, LAW: tl.constexpr) -> tl.tensor:
    """A WALSH stream stores its k in c3, but its counters have k = 0."""
    return (c3 >> 24) << 24 if LAW == _WALSH else c3


@jit
def product(
    words: tl.tensor,
    block: tl.tensor,
    c3: tl.tensor,
    origin: tl.tensor,
    factor: tl.tensor,
    scale: tl.tensor,
    LAW: tl.constexpr,
) -> tl.tensor:
    """fl(scale·fl(factor·element)) of the blocks' elements, flat. A sign passes through both products unchanged."""
    if LAW == _NORMALS:
        x0, x1, x2, x3 = words
        return (normals(x0, x1, x2, x3) * tl.full((), factor, tl.float32)) * tl.full((), scale, tl.float32)
    else:  # noqa: RET505 - a Triton function returns from both branches of a compile-time choice
        x0, x1, x2, x3 = words
        signs = row(x0, x1, x2, x3)
        if LAW == _WALSH:
            signs = _walsh(signs, block, c3, origin)
        size = tl.full((), factor, tl.float32) * tl.full((), scale, tl.float32)
        return (_sign_bits(signs) ^ size.to(tl.uint32, bitcast=True)).to(tl.float32, bitcast=True)


@jit
def span(
    program: tl.tensor, first: tl.tensor, skip: tl.tensor, count: tl.tensor, BLOCKS: tl.constexpr, PER: tl.constexpr
) -> tl.tensor:
    """A program's block numbers, the positions of their elements in the tensor, and which of these are requested."""
    program = program.to(tl.int64)
    block = first + program * BLOCKS + tl.arange(0, BLOCKS)
    at = program * (BLOCKS * PER) + tl.arange(0, BLOCKS * PER) - skip
    return block, at, (at >= 0) & (at < count)


@jit
def widen(narrow: tl.tensor) -> tl.tensor:
    """fp32 of the same value. Triton's interpreter loses bf16's subnormals, so the bits are shifted there."""
    if _INTERPRETED and narrow.dtype == tl.bfloat16:
        return (narrow.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:  # noqa: RET505
        return narrow.to(tl.float32)


@jit
def narrow(wide: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """fp32 to nearest even in DTYPE. Triton's interpreter truncates to bf16 instead, so integers are used there."""
    if _INTERPRETED and tl.bfloat16 == DTYPE:
        bits = wide.to(tl.uint32, bitcast=True)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        return tl.where(wide == wide, rounded, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:  # noqa: RET505
        return wide.to(DTYPE)


@jit
def stochastic(value: tl.tensor, random: tl.tensor, BF16: tl.constexpr) -> tl.tensor:
    """The 16 bits to which `rounding` rounds fp32 values by uint32 numbers below 2¹⁶, as int16; all within uint32."""
    bits = value.to(tl.uint32, bitcast=True)
    sign, size = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    if BF16:
        moved = size + random
        code = tl.where(moved < _INFINITE, moved, _BF16_LARGEST) >> 16
        code = tl.where(size < _INFINITE, code, 0x7F80) | sign
        code = tl.where(size > _INFINITE, 0x7FC0, code)
    else:
        moved = (size + (random >> 3)) & 0xFFFFE000
        normal = (tl.where(moved <= _FP16_LARGEST, moved, _FP16_LARGEST) - (112 << 23)) >> 13
        small = size < _FP16_SMALLEST_NORMAL
        fixed = (tl.where(small, tl.abs(value), 0.0) * 1099511627776.0).to(tl.uint32)  # 2⁴⁰
        code = tl.where(small, (fixed + random) >> 16, normal)
        code = tl.where(size < _INFINITE, code, 0x7C00) | sign
        code = tl.where(size > _INFINITE, 0x7E00, code)
    return code.to(tl.uint16).to(tl.int16, bitcast=True)


@jit
def halves(x0: tl.tensor, x1: tl.tensor, x2: tl.tensor, x3: tl.tensor) -> tl.tensor:
    """(B,) words → (8·B,) uint32 below 2¹⁶, the low half of each word first."""
    words = row(x0, x1, x2, x3)
    return tl.reshape(tl.join(words & 0xFFFF, words >> 16), (x0.shape[0] * 8,))


def int32(word: int) -> int:
    """The int32 that has a 32-bit word's bits: one type for every value of a counter's word."""
    return word - (1 << 32) if word >= 1 << 31 else word


def head(stream: Stream) -> tuple[int, int, int, int]:
    """The words that all streams of a step share."""
    return int32(stream.key0), int32(stream.key1), stream.parameter, int32(stream.c2)


def single(number: float) -> float:
    """fl32, infinite beyond its range."""
    with np.errstate(over="ignore"):
        return float(np.float32(number))


def programs(skip: int, count: int, each: int) -> tuple[int]:
    """The number of programs for `skip` + `count` elements, `each` per program."""
    return (-(-(skip + count) // each),)


def on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
