"""Secret randomness: operating-system entropy, Poisson membership, exact noise. No seed, no floating point.

All functions read 64-bit words and decide by comparing integers. The words come from `os.urandom`, or, for a step that
may have to be repeated, from SHAKE-256 under a 32-byte key that came from `os.urandom` and is used for that step alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import count
from typing import NoReturn, Protocol

import numpy as np
import numpy.typing as npt

WORD_BITS = 64
Words = Iterator[int]


class Randomness(Protocol):
    """A source of secret 64-bit words. Only the implementation `SecretRandom` carries a guarantee."""

    def words(self) -> Words:
        """A fresh stream of independent uniform integers in [0, 2⁶⁴)."""
        ...

    def word_array(self, size: int) -> npt.NDArray[np.uint64]:
        """`size` independent uniform words at once."""
        ...


KEY_BYTES = 32
"""Length of the key of one step."""


class SecretRandom:
    """Operating-system entropy, or, with a step's key, the words of that step: the same each time, in the same order.

    Draw number i under a key (its first batch of words, its second, …) is SHAKE-256(label ‖ key ‖ i), so no two draws
    share a word. Guarantee: without the key, the words are indistinguishable from uniform ones, if SHAKE-256 is a
    pseudorandom function of its key. Cannot be pickled or copied, and its repr hides the key.

    Args:
        key: The step's key of `KEY_BYTES` bytes; None: operating-system entropy.

    Raises:
        ValueError: for a key of another length.
    """

    __slots__ = ("_read",)

    def __init__(self, key: bytes | None = None) -> None:
        self._read = os.urandom if key is None else _stream(key)

    def words(self) -> Words:
        """A fresh stream of uniform 64-bit integers; its small buffer lives as long as the caller's iterator."""
        while True:
            yield from self.word_array(64).tolist()

    def word_array(self, size: int) -> npt.NDArray[np.uint64]:
        """`size` uniform 64-bit words, shape (size,)."""
        return np.frombuffer(self._read(8 * size), dtype="<u8")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("SecretRandom is never pickled or copied: secrets do not leave the process")


def _stream(key: bytes) -> Callable[[int], bytes]:
    if len(key) != KEY_BYTES:
        raise ValueError(f"the key of a step has {KEY_BYTES} bytes")
    number = count()
    return lambda size: hashlib.shake_256(b"dpzo step/1" + key + next(number).to_bytes(8, "big")).digest(size)


def poisson_members(num_units: int, sampling_prob: float, randomness: Randomness) -> npt.NDArray[np.int64]:
    """The units of one batch: each of 0..num_units−1 joins independently with probability ⌊q·2⁶⁴⌋/2⁶⁴ ≤ q.

    Rounding the probability down is conservative: amplification only improves as q falls. Shape (batch,), ascending.

    >>> poisson_members(3, 1.0, SecretRandom())
    array([0, 1, 2])
    """
    threshold = int(Fraction(sampling_prob) * 2**WORD_BITS)
    if threshold >= 2**WORD_BITS:
        return np.arange(num_units, dtype=np.int64)
    return np.flatnonzero(randomness.word_array(num_units) < np.uint64(threshold)).astype(np.int64)


def gaussian_floor(bits: int, size: int, words: Words) -> list[int]:
    """`size` independent draws of ⌊2^bits · Z⌋, Z an exact continuous standard normal.

    Algorithm N of C. Karney, "Sampling exactly from the normal distribution" (ACM TOMS 42, 2016): a rejection scheme
    that compares uniform deviates digit by digit, so the distribution is exact and no floating-point number is
    involved.
    """
    return _floors(_normal, bits, size, words)


def laplace_floor(bits: int, size: int, words: Words) -> list[int]:
    """`size` independent draws of ⌊2^bits · L⌋, L an exact continuous Laplace variable of scale 1.

    The exponential is von Neumann's (1951): lengths of descending runs of uniform deviates, again compared digit by
    digit.
    """
    return _floors(_exponential, bits, size, words)


# A uniform deviate in [0, 1) is the list of its base-2⁶⁴ digits drawn so far; comparisons draw more when needed.
Lazy = list[int]


def _floors(magnitude: Callable[[Words], tuple[int, Lazy]], bits: int, size: int, words: Words) -> list[int]:
    """⌊±2^bits·(n + x)⌋ for magnitudes n + x: only the first `bits` binary digits of x are needed."""
    if not 0 <= bits <= WORD_BITS:
        raise ValueError(f"bits must lie in [0, {WORD_BITS}]")
    draws = []
    for _ in range(size):
        whole, fraction = magnitude(words)
        if not fraction:
            fraction.append(next(words))
        cell = (whole << bits) | (fraction[0] >> (WORD_BITS - bits))
        # ⌊−y⌋ = −⌊y⌋ − 1 for every y that is not an integer, which has probability 1.
        draws.append(cell if next(words) & 1 else -cell - 1)
    return draws


def _less(x: Lazy, y: Lazy, words: Words) -> bool:
    """Whether x < y, drawing further digits of either until they differ."""
    place = 0
    while True:
        if place == len(x):
            x.append(next(words))
        if place == len(y):
            y.append(next(words))
        if x[place] != y[place]:
            return x[place] < y[place]
        place += 1


def _descend(last: Lazy, words: Words) -> Lazy | None:
    """A fresh uniform deviate if it lies below `last`, which happens with probability `last`; otherwise None."""
    drawn: Lazy = []
    return drawn if _less(drawn, last, words) else None


def _normal(words: Words) -> tuple[int, Lazy]:
    """|Z| = k + x for a standard normal Z (Karney 2016, Algorithm N; the sign is drawn by the caller)."""
    while True:
        k = 0
        while _exp_minus_half(words):  # k with probability ∝ exp(−k/2)
            k += 1
        if not all(_exp_minus_half(words) for _ in range(k * (k - 1))):  # accept with exp(−k(k−1)/2)
            continue
        x: Lazy = []
        if all(_exp_minus_tail(k, x, words) for _ in range(k + 1)):  # accept with exp(−x(2k+x)/2)
            return k, x


def _exp_minus_half(words: Words) -> bool:
    """True with probability exp(−1/2): a run 1/2 > u₁ > u₂ > … of even length (Karney 2016, Algorithm H)."""
    last: Lazy = [next(words)]
    if last[0] >> (WORD_BITS - 1):
        return True
    even = False
    while (drawn := _descend(last, words)) is not None:
        last, even = drawn, not even
    return even


def _exp_minus_tail(k: int, x: Lazy, words: Words) -> bool:
    """True with probability exp(−x(2k+x)/(2k+2)) (Karney 2016, Algorithm B).

    A run x > u₁ > u₂ > …, each further member kept with probability (2k+x)/(2k+2), of even length.
    """
    last, even = x, True
    while (drawn := _descend(last, words)) is not None:
        choice = _uniform_below(2 * k + 2, words)
        # 0: stop; 1: continue with probability x; 2 … 2k+1: continue. Together (2k + x)/(2k + 2).
        if choice == 0 or (choice == 1 and not _less([], x, words)):
            break
        last, even = drawn, not even
    return even


def _uniform_below(bound: int, words: Words) -> int:
    """A uniform integer in [0, bound), by rejection."""
    limit = 2**WORD_BITS - 2**WORD_BITS % bound
    while (word := next(words)) >= limit:
        pass
    return word % bound


def _exponential(words: Words) -> tuple[int, Lazy]:
    """An exact Exp(1) deviate n + x: x leads a descending run of odd length; every even run adds 1 to n."""
    n = 0
    while True:
        first: Lazy = []
        last, odd = first, True
        while (drawn := _descend(last, words)) is not None:
            last, odd = drawn, not odd
        if odd:
            return n, first
        n += 1
