"""The test oracle: each kernel in eager torch operations, one rounding each, on any device. Deliberately simple."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dpzo.zo.kernels import spec
from dpzo.zo.kernels.spec import Stream

_WORD = 0xFFFFFFFF
_CHUNK_BLOCKS = 1 << 16


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 of four int64 tensors that hold 32-bit words; int64 products wrap, and the mask keeps their bits.

    Source: Salmon et al. 2011, section 3.3.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(spec.ROUNDS):
        product0, product1 = c0 * spec.MULTIPLIER_0, c2 * spec.MULTIPLIER_1
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _WORD) ^ c1 ^ k0,
            product1 & _WORD,
            ((product0 >> 32) & _WORD) ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0, k1 = (k0 + spec.WEYL_0) & _WORD, (k1 + spec.WEYL_1) & _WORD
    return c0, c1, c2, c3


def _words(stream: Stream, block: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    constant = torch.zeros_like(block)
    c3 = stream.c3 & 0xFF000000 if stream.law == spec.WALSH else stream.c3
    counter = (
        block & _WORD,
        (block >> 32) | (stream.parameter << 12),
        constant + stream.c2,
        constant + c3,
    )
    return philox(counter, (stream.key0, stream.key1))


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Horner's rule, highest power first; every coefficient is an fp32 number."""
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x
        total = total + coefficient
    return total


def _as_int32(word: Tensor) -> Tensor:
    """A 32-bit word in int64 → the int32 of the same bits."""
    return torch.where(word >= 1 << 31, word - (1 << 32), word).to(torch.int32)


def _radius(word: Tensor) -> Tensor:
    """√(−2·log u) with u = (word + 1/2)·2⁻³², the sum rounded once to fp32."""
    v = (word >> 16).float() * 65536.0 + ((word & 0xFFFF).float() + 0.5)
    bits = v.view(torch.int32)
    exponent = (bits - spec.SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    inner = 0.5 - f * _polynomial(spec.LOG, f)
    log_mantissa = f - (f * f) * inner
    log_u = log_mantissa + (exponent - 32).float() * spec.LN2
    # torch's fp32 sqrt uses a vector library and has a wrong last bit in one element of six. The fp64 root may be an
    # ulp off and still rounds to the right fp32: no fp32 number's root is within 2^-51 of the midpoint of two others.
    return torch.sqrt((log_u * -2.0).double()).float()


def _circle(word: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, sin) of a uniform angle: the two top bits select the quarter, the next 24 the position within ±π/4."""
    shifted = _as_int32((word << 2) & _WORD)
    a = ((shifted >> 8).float() + 0.5) * 2.0**-24
    square = a * a
    sine = a * _polynomial(spec.SIN, square)
    cosine = _polynomial(spec.COS, square)
    quarter = word >> 30
    odd = (quarter & 1) == 1
    x, y = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    return torch.where((quarter == 1) | (quarter == 2), -x, x), torch.where(quarter >= 2, -y, y)


def _box_muller(words: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """(B,) words → (B, 4) independent normals."""
    columns: list[Tensor] = []
    for radius_word, angle_word in ((words[0], words[1]), (words[2], words[3])):
        radius = _radius(radius_word)
        x, y = _circle(angle_word)
        columns += [radius * x, radius * y]
    return torch.stack(columns, dim=1)


def _signs(words: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """(B,) words → (B, 128) of ±1, bit set = −1."""
    shifts = torch.arange(32, device=words[0].device)
    bits = (torch.stack(words, dim=1).unsqueeze(2) >> shifts) & 1
    return (1 - 2 * bits).to(torch.float32).flatten(1)


def _walsh(stream: Stream, first: int, last: int, device: torch.device) -> Tensor:
    """(−1)^popcount(k & J) of blocks first … last − 1, by folding the bits of k & J onto the lowest."""
    index = torch.arange(stream.origin + 128 * first, stream.origin + 128 * last, device=device)
    bits = index & (stream.c3 & 0xFFFFFF)
    for distance in (16, 8, 4, 2, 1):
        bits = bits ^ (bits >> distance)
    return (1 - 2 * (bits & 1)).to(torch.float32)


def uniform_words(stream: Stream, start: int, count: int, device: torch.device) -> Tensor:
    """Words start … start + count − 1 of a stream, four per block, int64."""
    first, last = start // 4, (start + count + 3) // 4
    words = torch.stack(_words(stream, torch.arange(first, last, device=device)), dim=1).flatten()
    return words[start - 4 * first : start - 4 * first + count]


def _chunks(stream: Stream, start: int, count: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """(offset from start, elements) in order, a bounded number of blocks at a time."""
    per_block = spec.ELEMENTS_PER_BLOCK[stream.law]
    position, stop = start, start + count
    while position < stop:
        first = position // per_block
        last = min(-(-stop // per_block), first + _CHUNK_BLOCKS)
        words = _words(stream, torch.arange(first, last, device=device))
        elements = (_box_muller(words) if stream.law == spec.NORMALS else _signs(words)).flatten()
        if stream.law == spec.WALSH:
            elements = elements * _walsh(stream, first, last, device)
        end = min(stop, last * per_block)
        yield position - start, elements[position - first * per_block : end - first * per_block]
        position = end


def fill(stream: Stream, factor: float, out: Tensor, start: int) -> None:
    """out_j ← z_j; see `Kernels.fill`."""
    factor32 = torch.tensor(factor, dtype=torch.float32, device=out.device)
    for at, elements in _chunks(stream, start, out.numel(), out.device):
        out[at : at + elements.numel()] = elements * factor32


def add(stream: Stream, factor: float, base: Tensor, scale: float, out: Tensor, start: int) -> None:
    """out_j ← rn(fl(base_j + fl(scale·z_j))); see `Kernels.add`."""
    factor32 = torch.tensor(factor, dtype=torch.float32, device=out.device)
    scale32 = torch.tensor(scale, dtype=torch.float32, device=out.device)
    for at, elements in _chunks(stream, start, out.numel(), out.device):
        product = (elements * factor32) * scale32
        out[at : at + elements.numel()] = base[at : at + elements.numel()].float() + product


def add_rows(stream: Stream, factor: float, base: Tensor, scale: float, rows: Tensor, out: Tensor) -> None:
    """out_i ← row rows_i of a shifted matrix; see `Kernels.add_rows`."""
    width = base.shape[1]
    for i, row in enumerate(rows.tolist()):
        add(stream, factor, base[row], scale, out[i], row * width)


def accumulate(
    streams: Sequence[Stream], factors: Sequence[float], coefficients: Sequence[float], acc: Tensor, start: int
) -> None:
    """acc_j ← fl(acc_j + fl(coefficient_k·z_kj)), sequential in k; see `Kernels.accumulate`."""
    for stream, factor, coefficient in zip(streams, factors, coefficients, strict=True):
        add(stream, factor, acc, coefficient, acc, start)


def step(
    streams: Sequence[Stream], factors: Sequence[float], coefficients: Sequence[float], theta: Tensor, start: int
) -> None:
    """theta_j ← fl(theta_j + g_j); see `Kernels.step`."""
    size = _CHUNK_BLOCKS * spec.ELEMENTS_PER_BLOCK[spec.NORMALS]
    for at in range(0, theta.numel(), size):
        part = theta[at : at + size]
        total = torch.zeros_like(part)
        accumulate(streams, factors, coefficients, total, start + at)
        part.add_(total)


def square_sum(stream: Stream, start: int, count: int) -> int:
    """Σ_j ⌊fl(element_j²)·2²⁴⌋; see `Kernels.square_sum`."""
    total = 0
    for _, elements in _chunks(stream, start, count, torch.device("cpu")):
        total += int(((elements * elements) * 2.0**spec.FIXED_POINT_BITS).to(torch.int64).sum())
    return total
