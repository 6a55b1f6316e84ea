"""Closed forms in decimal arithmetic: the float returned is never below the exact value, and at most 1 ulp above it.

`decimal` rounds every operation correctly, exp and ln too (General Decimal Arithmetic specification), so an error is
counted in units of 10^−DIGITS. Results that are rational are computed as fractions and exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from fractions import Fraction

DIGITS = 90
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798")
SLACK = Decimal(10) ** -45
"""Relative: far above what a few thousand operations of 90 digits lose, cancellation of 33 digits included."""
TINY = Decimal(10) ** -20
"""Below it ln(1 ± y), e^y − 1 are replaced by bounds that are as near as y, and no digits are lost to the 1."""
FARTHEST = 39
"""P(Z > 39) is below the least float."""
SERIES_UNTIL = 12
TERMS = 40
"""Of the asymptotic series, whose terms fall until n = x²/2 ≥ 72; the sums of 40 and 41 enclose the tail to 1e-27."""


@contextmanager
def _digits() -> Iterator[None]:
    with localcontext(Context(prec=DIGITS, Emax=MAX_EMAX, Emin=MIN_EMIN)):
        yield


def up(exact: Decimal | Fraction) -> float:
    """The least float that is not below `exact`."""
    try:
        near = float(exact)
    except OverflowError:
        return math.inf
    return near if math.isinf(near) or Fraction(near) >= Fraction(exact) else math.nextafter(near, math.inf)


def laplace_loss(scale: float, sampling_prob: float, count: int, *, replaced: bool) -> float:
    """count·ln(1 + q(e^{1/b} − 1)); with `replaced` also − count·ln(1 − q(1 − e^{−1/b}))."""
    if sampling_prob == 1.0:
        return up(Fraction(count * (2 if replaced else 1)) / Fraction(scale))
    with _digits():
        gap, q, one = 1 / Decimal(scale), Decimal(sampling_prob), Decimal(1)
        fall = (-gap).exp()
        if gap < 50:
            rise = q * (gap * (one + gap) if gap < TINY else gap.exp() - one)
            loss = rise if rise < TINY else (one + rise).ln()
        else:  # the exponential itself may not fit
            loss = gap + (q + (one - q) * fall).ln()
        if replaced:
            drop = q * (gap if gap < TINY else one - fall)
            loss += drop * (one + 2 * drop) if drop < TINY else -(one - drop).ln()
        return up(count * loss * (one + SLACK))


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Φ(μ/2 − ε/μ) − e^ε·Φ(−μ/2 − ε/μ)."""
    if epsilon / mu - mu / 2.0 > FARTHEST + 1:
        return math.ulp(0.0)
    if mu / 2.0 - epsilon / mu > FARTHEST + 1:
        return 1.0
    with _digits():
        level, shift, one = Decimal(epsilon), Decimal(mu), Decimal(1)
        near = level / shift - shift / 2
        first = _tail(near, upper=True) if near >= 0 else one - _tail(-near, upper=False)
        second = level.exp() * _tail(level / shift + shift / 2, upper=False)
        return min(1.0, up(first - second + SLACK * first))


def _tail(x: Decimal, *, upper: bool) -> Decimal:
    """P(Z > x), x ≥ 0: accurate to `SLACK`, or beyond SERIES_UNTIL a bound from the requested side.

    Formula: 1/2 − φ(x)·Σ x^{2n+1}/(2n+1)!!, or φ(x)/x·Σ (−1)^n (2n−1)!!/x^{2n}, whose error is below its next term.
    """
    density = (-x * x / 2).exp() / (2 * PI).sqrt()
    if x < SERIES_UNTIL:
        term, total, n = x, x, 1
        while term > total * Decimal(10) ** (2 - DIGITS):
            n += 2
            term *= x * x / n
            total += term
        return Decimal("0.5") - density * total
    term = total = Decimal(1)
    for n in range(1, TERMS + (1 if upper else 0)):
        term *= -(2 * n - 1) / (x * x)
        total += term
    return density / x * total
