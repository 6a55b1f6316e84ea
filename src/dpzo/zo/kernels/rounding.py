"""Stochastic rounding of fp32 numbers to bf16 or fp16, in plain torch on any device: the oracle of `rounding_cpu`.

An update of a 16-bit weight is mostly smaller than the gap between two neighbouring weights: rounded to nearest it is
lost (3 % of a step of 1e-6 takes effect in bf16); rounded up or down at random in proportion, it is correct on average.

To the bit. Element j of a parameter uses 16 bits r_j: half j mod 2 (the low one first) of word j div 2 of the stream,
four words per block. With m the bits of |w| and the sign kept,

    bf16                    m ← (m + r) with the low 16 bits cleared
    fp16, |w| ≥ 2⁻¹⁴        m ← (m + ⌊r/8⌋) with the low 13 bits cleared
    fp16, |w| < 2⁻¹⁴        n = ⌊|w|·2⁴⁰⌋, value ← ⌊(n + r)/2¹⁶⌋·2⁻²⁴

and a result beyond the finite range becomes the largest finite number. ±inf is unchanged, NaN becomes the quiet NaN
without a sign. All is integer arithmetic, so every device gives the same bits. E[result] = w exactly for bf16 and for
normal fp16; below 2⁻¹⁴ the part under 2⁻⁴⁰ is truncated first.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from dpzo.zo.kernels.reference import uniform_words
from dpzo.zo.kernels.spec import Stream

INFINITE: Final = 0x7F800000
BF16_LARGEST: Final = 0x7F7F0000
FP16_LARGEST: Final = 0x477FE000
FP16_SMALLEST_NORMAL: Final = 0x38800000


def round_into(stream: Stream, wide: Tensor, out: Tensor, start: int) -> None:
    """out_j ← wide_j rounded by the bits of element start + j; wide is flat fp32, out flat bf16 or fp16."""
    first = start // 2
    words = uniform_words(stream, first, (start + wide.numel() + 1) // 2 - first, wide.device)
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=1).flatten()
    random = halves[start - 2 * first : start - 2 * first + wide.numel()]
    bits = wide.view(torch.int32).to(torch.int64)
    sign, size = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    if out.dtype == torch.bfloat16:
        moved = size + random
        code = torch.where(moved < INFINITE, moved, BF16_LARGEST) >> 16
        unbounded, undefined = 0x7F80, 0x7FC0
    else:
        moved = size + (random >> 3)
        # The exponent is rebased from 127 to 15, and the low thirteen bits are dropped.
        normal = (torch.where(moved >> 13 <= FP16_LARGEST >> 13, moved, FP16_LARGEST) - (112 << 23)) >> 13
        # Numbers too large for this branch come from the other one; clamped so that the conversion stays defined.
        fixed = (wide.abs().nan_to_num().clamp(max=2.0**-14) * 2.0**40).to(torch.int64)
        code = torch.where(size < FP16_SMALLEST_NORMAL, (fixed + random) >> 16, normal)
        unbounded, undefined = 0x7C00, 0x7E00
    code = torch.where(size < INFINITE, code, unbounded) | sign
    code = torch.where(size > INFINITE, undefined, code)
    out.view(torch.int16).copy_(torch.where(code >= 1 << 15, code - (1 << 16), code))
