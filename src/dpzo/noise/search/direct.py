"""A second, independent (ε, δ) of a lattice noise: direct convolutions, no Fourier transform, no tilt, no cancellation.

Grid, cuts and rounding: `accounting.direct`. The atoms of one release are built here from the table's masses and not
taken from the search's accountant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from dpzo.errors import DpzoError
from dpzo.noise.shape import Array, Shape
from dpzo.privacy.accounting.direct import convolved

UNIT = 2.0**-53


def certified_epsilon(shape: Shape, delta: float, sampling_prob: float = 1.0, count: int = 1) -> float:
    """ε ≥ 0 proved for `count` releases at δ by direct convolution, the larger of the two directions; ∞ if none is.

    Guarantee: an upper bound, including all rounding. Errors: DpzoError unless 1e-100 ≤ δ < 1.
    """
    if not 1e-100 <= delta < 1.0:
        raise DpzoError(f"`delta` is {delta:g}, must be at least 1e-100 and below 1 to be certified")
    found = []
    for losses, masses, infinite in _releases(shape, sampling_prob):
        if len(losses) == 0:
            return math.inf
        pure = math.inf if infinite > 0.0 else max(0.0, count * float(losses.max()))
        found.append(min(pure, convolved(losses, masses, infinite, count, delta).epsilon(delta)))
    return max(found)


def _releases(shape: Shape, q: float) -> Iterator[tuple[Array, Array, float]]:
    """Losses, masses under the first distribution, infinite mass of one release: "remove", then "add".

    The line is cut one shift beyond the last cell of the table; further out, the ratio of the two distributions is
    constant, so either tail is one atom.
    """
    last, shift = len(shape.masses) - 1, shape.shift
    side = shape.extended(shift)
    at = np.arange(-last, last + shift + 1)
    still, moved = side[np.abs(at)], side[np.abs(at - shift)]
    fade = shape.ratio ** (shift // shape.period)
    if shape.beyond > 0.0:
        still = np.concatenate([still, [shape.beyond, shape.beyond * fade]])
        moved = np.concatenate([moved, [shape.beyond * fade, shape.beyond]])
    mixed = still if q == 0.0 else moved if q == 1.0 else (1.0 - q) * still + q * moved
    for first, second in ((mixed, still), (still, mixed)):
        real = (first > 0.0) & (second > 0.0)
        losses = np.log(first[real]) - np.log(second[real])
        if q == 1.0 and shape.beyond > 0.0 and fade > 0.0:
            known = -math.log(shape.ratio) * (shift // shape.period)
            if real[-1]:
                losses[-1] = known if first is mixed else -known
            if real[-2]:
                losses[-2] = -known if first is mixed else known
        # Raised by a bound on the rounding of ratio and logarithm.
        losses = losses + 16.0 * UNIT * (2.0 + np.abs(losses))
        yield losses, first[real], float(first[(first > 0.0) & (second == 0.0)].sum())
