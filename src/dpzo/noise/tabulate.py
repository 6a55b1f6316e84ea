"""From a distribution on the half-line to cells: floats for a search, 128-bit integers for sampling.

The integers are computed in decimal arithmetic of 60 digits, which is identical on every machine: a table is a
function of its family, parameters and widths, and its fingerprint can be checked on another machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal, localcontext
from typing import Protocol

import numpy as np

from dpzo.errors import DpzoError
from dpzo.noise.shape import Array, Shape
from dpzo.noise.table import RATIO_BITS, SIDE_BITS, LatticeNoise

DIGITS = 60
RESOLUTION = 1000
"""A clip norm is at least this many lattice units."""
CELLS = 64
"""Cells in a clip norm, unless asked otherwise: the width of a cell adds 1/(12·64²) clip_norm² to the variance."""
MOST_CELLS = 2**18
TAIL_NATS = 46.0
"""Tables end where e^−46 < 2^−64 of the density at 0 is left; the geometric tail continues."""


@dataclass(frozen=True)
class Side:
    """One side of a distribution: weights of cells 0 … M in any unit, the last `period` of them repeating × `ratio`."""

    weights: list[Decimal]
    ratio: Decimal
    period: int = 1


class ScalarLaw(Protocol):
    """A parametric scalar noise, in units of clip_norm."""

    @property
    def name(self) -> str:
        """Family and parameters in one line: the table's origin."""
        ...

    @property
    def variance(self) -> float:
        """Closed form, in clip_norm²; of the continuous distribution."""
        ...

    def survival(self, x: float) -> float:
        """P(|X| > x), x ≥ 0 in clip norms; of the continuous distribution."""
        ...

    def shape(self, cells: int = CELLS) -> Shape:
        """The distribution on cells of width clip_norm/cells, in floats."""
        ...

    def side(self, cells: int = CELLS) -> Side:
        """The same in decimals."""
        ...


def table(family: ScalarLaw, cells: int = CELLS, block: int | None = None) -> LatticeNoise:
    """The integer table of `family`, `cells` cells of `block` lattice units in one clip norm.

    `block` is by default the least odd number that makes a clip norm RESOLUTION units.
    Guarantee: every weight is within 1 of 2^128 × its mass (the middle one takes the remainder), the ratio rounded
    up; so `LatticeNoise.distance` bounds the total variation from the distribution on cells.
    """
    if block is None:
        block = math.ceil(RESOLUTION / cells) | 1
    with localcontext(Context(prec=DIGITS)):
        return tabulate(family.side(cells), cells, block, family.name)


def tabulate(side: Side, cells: int, block: int, origin: str) -> LatticeNoise:
    """The integer table of one side; call within a context of DIGITS digits. Errors: those of LatticeNoise."""
    full = Decimal(2**RATIO_BITS)
    ratio = int(min((side.ratio * full).to_integral_value(ROUND_CEILING), full - 1))
    rest = (full - ratio) / full
    inner = len(side.weights) - side.period
    masses = side.weights[:inner] + [w / rest for w in side.weights[inner:]]
    unit = Decimal(2 ** (SIDE_BITS + 1)) / (masses[0] + 2 * sum(masses[1:]))
    weights = [int(mass * unit) for mass in masses]
    weights[0] = 2**SIDE_BITS - sum(weights[1:])
    return LatticeNoise(tuple(weights), ratio, side.period, block, cells * block, origin)


def cell_count(reach: float, cells: int) -> int:
    """M for a distribution of relevant mass up to `reach` clip norms. Errors: DpzoError beyond MOST_CELLS."""
    if cells < 1:
        raise DpzoError("a clip norm must hold at least 1 cell")
    if not reach * cells < MOST_CELLS:
        raise DpzoError(
            f"the noise reaches {reach:.3g} clip norms, more than a table of {MOST_CELLS} cells holds: "
            "at that scale Gaussian noise is as good, use `mechanism` gaussian"
        )
    return max(2, math.ceil(reach * cells))


def point_shape(log_weights: Array, cells: int) -> Shape:
    """Shape from ln f at the centres of the cells 0 … M + 1; the last ratio is that of the tail."""
    weights = np.exp(log_weights - log_weights[0])
    ratio = float(np.exp(log_weights[-1] - log_weights[-2]))
    return Shape.normalised(weights[:-1], ratio, cells)


def point_side(log_weights: list[Decimal]) -> Side:
    """The same in decimals."""
    weights = [value.exp() for value in log_weights]
    return Side(weights[:-1], (log_weights[-1] - log_weights[-2]).exp())


def positive(option: str, value: float, low: float = 0.0, high: float = math.inf) -> None:
    """Refuse a parameter that is not a finite number in (low, high)."""
    if not low < value < high:
        bound = f"above {low:g}" if high == math.inf else f"above {low:g} and below {high:g}"
        raise DpzoError(f"{option} is {value}, must be {bound}" + (" and finite" if high == math.inf else ""))
