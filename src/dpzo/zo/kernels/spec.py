"""Bit-exact specification of every kernel: counter layout, constants, polynomials, and the interface.

Bits. A stream is an endless sequence of 128-bit blocks, `philox4x32_10(counter, key)` with the four 32-bit words

    key      k0 = seed bits 0–31,  k1 = seed bits 32–63
    counter  c0 = block bits 0–31
             c1 = block bits 32–43  |  parameter (20 bits) << 12
             c2 = step (32 bits)
             c3 = k (24 bits)  |  purpose (8 bits) << 24

so two streams share a counter only if seed, step, k, parameter and purpose are all equal. 2⁴⁴ blocks per stream.

Elements. `signs`: 128 per block, element 128·b + j is −1 if bit j of the block is set (word j // 32, bit j % 32), else
+1. `normals`: 4 per block, elements 4·b … 4·b + 3 from two Box–Muller pairs (x0, x1) and (x2, x3). All floating-point
operations are fp32, each rounded once, never fused, in the order of `reference`.
`walsh`: the counters have k = 0, so all k share the signs r; element j is r_j·(−1)^popcount(k & J), J = origin + j.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011 (Philox); the polynomials are
minimax fits computed for this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from torch import Tensor

SCHEME: Final = "philox4x32-10/v1"
"""Names the layout above; a journal's header carries it, and replay under another one is refused."""

MULTIPLIER_0: Final = 0xD2511F53
MULTIPLIER_1: Final = 0xCD9E8D57
WEYL_0: Final = 0x9E3779B9
WEYL_1: Final = 0xBB67AE85
ROUNDS: Final = 10

# log(1 + f) ≈ f − f²·(1/2 − f·P(f)) on [√½ − 1, √2 − 1]; absolute error of the fit 1.1e-8.
LOG: Final = tuple(
    float.fromhex(c)
    for c in (
        "0x1.55571ap-2",
        "-0x1.000492p-2",
        "0x1.98c84ap-3",
        "-0x1.533e9ep-3",
        "0x1.31bebp-3",
        "-0x1.263a12p-3",
        "0x1.680c9p-4",
    )
)
# sin(π/2·a) ≈ a·P(a²) and cos(π/2·a) ≈ P(a²) on [−1/2, 1/2]; errors 2.4e-8 and 0.7e-8.
SIN: Final = tuple(float.fromhex(c) for c in ("0x1.921fb6p+0", "-0x1.4abbbap-1", "0x1.465ec6p-4", "-0x1.2d9bb8p-8"))
COS: Final = tuple(
    float.fromhex(c) for c in ("0x1p+0", "-0x1.3bd3ccp+0", "0x1.03c1dep-2", "-0x1.55c664p-6", "0x1.d9f7bcp-11")
)
LN2: Final = float.fromhex("0x1.62e43p-1")
SQRT_HALF_BITS: Final = 0x3F3504F3
"""Bits of fp32 √½: splitting an argument there keeps its mantissa in [√½, √2)."""

FIXED_POINT_BITS: Final = 24
"""Σz² is summed in units of 2⁻²⁴ as integers: z² < 64 fits int32, and 2³⁸ elements fit int64."""

SIGNS: Final = 0
NORMALS: Final = 1
WALSH: Final = 2
ELEMENTS_PER_BLOCK: Final = (128, 4, 128)

PURPOSES: Final = {
    "rademacher": 1,
    "gaussian": 2,
    "sphere": 3,
    "orthogonal": 4,
    "rounding": 8,
    "mask": 9,
    "init_uniform": 16,
    "init_normal": 17,
    "rows/rademacher": 33,
    "rows/gaussian": 34,
    "columns/rademacher": 49,
    "columns/gaussian": 50,
    "basis/rademacher": 65,
    "basis/gaussian": 66,
    "basis/sphere": 67,
    "basis/orthogonal": 68,
}

MAX_BLOCKS: Final = 1 << 44
MAX_PARAMETERS: Final = 1 << 20
MAX_STEPS: Final = 1 << 32
MAX_DIRECTIONS: Final = 1 << 24


@dataclass(frozen=True)
class Stream:
    """One endless public sequence of elements.

    `law` is SIGNS, NORMALS or WALSH; the other fields are 32-bit words except `parameter` (20 bits), laid out as above.
    A WALSH stream stores its k in `c3`, and the index J of the parameter's first element in `origin`.
    """

    law: int
    key0: int
    key1: int
    parameter: int
    c2: int
    c3: int
    origin: int = 0


class Kernels(Protocol):
    """Elements start … start + len − 1 of a stream, times `factor`: z = fl(factor·element), fp32.

    Tensors are flat and contiguous on one device, and fp32 unless stated otherwise; `out` may not overlap `base`
    unless it is `base`. `scale`, `factor` and coefficients are rounded to fp32 first. Any (start, length) gives the
    elements of a whole pass, and so does any number of threads.
    """

    def fill(self, stream: Stream, factor: float, out: Tensor, start: int) -> None:
        """out_j ← z_j."""

    def add(self, stream: Stream, factor: float, base: Tensor, scale: float, out: Tensor, start: int) -> None:
        """out_j ← fl(base_j + fl(scale·z_j)): two rounded operations.

        `base` and `out` of one dtype, fp32, bf16 or fp16; a 16-bit sum is computed in fp32 and rounded once more, to
        nearest even.
        """

    def add_rows(self, stream: Stream, factor: float, base: Tensor, scale: float, rows: Tensor, out: Tensor) -> None:
        """out_i ← row rows_i of the result of `add` on the whole matrix `base`, (V, W), from element 0 on.

        `rows` int64 (R,), `out` (R, W) of base's dtype.
        """

    def accumulate(
        self,
        streams: Sequence[Stream],
        factors: Sequence[float],
        coefficients: Sequence[float],
        acc: Tensor,
        start: int,
    ) -> None:
        """acc_j ← fl(acc_j + fl(coefficient_k·z_kj)) for k = 0, 1, … in this order; the streams share their law."""

    def step(
        self,
        streams: Sequence[Stream],
        factors: Sequence[float],
        coefficients: Sequence[float],
        theta: Tensor,
        start: int,
    ) -> None:
        """theta_j ← fl(theta_j + g_j), with g_j as `accumulate` computes it from 0: one pass over memory."""

    def square_sum(self, stream: Stream, start: int, count: int) -> int:
        """Σ_j ⌊fl(element_j²)·2²⁴⌋ over `count` elements, an exact integer (no factor)."""
