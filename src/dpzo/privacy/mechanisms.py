"""Clip to an integer lattice and add exact noise: the mechanisms and their lattice.

Gaussian and Laplace: noise scale = 2^bits lattice units, so a draw is ⌊2^bits·X⌋ with X of scale 1 sampled exactly. The
clipped sum is an integer s, and s + ⌊Y⌋ = ⌊s + Y⌋: the release is a function of the continuous mechanism's output, so
that mechanism's privacy-loss distribution applies. A noise table (see `tables`) is a distribution on the lattice
itself. The bound on a row is checked in integers after rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from dpzo.errors import DpzoError
from dpzo.privacy.events import GaussianEvent, LaplaceEvent, LatticeEvent
from dpzo.privacy.randomness import Words, gaussian_floor, laplace_floor

# The bound on a row is at least this many lattice units per √K (L2) or per K (L1): rounding costs under 0.1 % of C.
RESOLUTION = 1000
# Noise below this share of the clip norm protects nothing and only overflows accountants.
SMALLEST_SCALE = 1e-4
LARGEST_BOUND = 2**30
"""Lattice units of the bound on a row, whatever the noise: squares and sums over a row's entries fit in 63 bits."""
TABLES = "dpzo.noise.tabled"
"""The only module outside this package that supplies a mechanism. A constant, so none can be added at run time."""


@dataclass(frozen=True)
class Lattice:
    """The integer lattice of a mechanism.

    Args:
        unit: Slope per integer step.
        bits: The noise scale is 2^bits units.
        bound: Every integer row has norm ≤ `bound` units.
        order: 2 for the L2 norm, 1 for L1."""

    unit: float
    bits: int
    bound: int
    order: int


@dataclass(frozen=True)
class Gaussian:
    """N(0, (scale·clip_norm)²) on each of the K sums of rows clipped in L2. (ε, δ); ε does not depend on K."""

    scale: float
    name: ClassVar[Literal["gaussian"]] = "gaussian"
    order: ClassVar[int] = 2

    @property
    def noise_multiplier(self) -> float:
        return self.scale

    def event(self, num_directions: int) -> GaussianEvent:
        return GaussianEvent(self.scale)

    def draw(self, bits: int, size: int, words: Words) -> list[int]:
        return gaussian_floor(bits, size, words)


@dataclass(frozen=True)
class Laplace:
    """Laplace(scale·clip_norm) on each of the K sums of rows clipped in L1. Pure ε, or (ε, δ)."""

    scale: float
    name: ClassVar[Literal["laplace"]] = "laplace"
    order: ClassVar[int] = 1

    @property
    def noise_multiplier(self) -> float:
        return math.sqrt(2) * self.scale

    def event(self, num_directions: int) -> LaplaceEvent:
        return LaplaceEvent(self.scale, num_directions)

    def draw(self, bits: int, size: int, words: Words) -> list[int]:
        return laplace_floor(bits, size, words)


class TableMechanism(Protocol):
    """The mechanism `lattice`: its noise is an integer table. `Tabled` of the module TABLES is the only such class."""

    name: ClassVar[Literal["lattice"]]
    order: ClassVar[int]

    @property
    def noise(self) -> Any: ...

    @property
    def scale(self) -> float: ...

    @property
    def noise_multiplier(self) -> float: ...

    def event(self, num_directions: int) -> LatticeEvent: ...

    def draw(self, bits: int, size: int, words: Words) -> list[int]: ...


def tables() -> ModuleType:
    """The module TABLES, imported when a plan, an event or a journal first names a table.

    It defines `Tabled` (the mechanism), `tabled`, `accountant`, `epsilon`, `delta` and `renyi_curve`.
    """
    return import_module(TABLES)


Mechanism = Gaussian | Laplace | TableMechanism
"""The noise for the sum of clipped rows; a closed set. All have the same members:

- `name`; `order` (2: rows are clipped in L2; 1: in L1); `scale`, the scale parameter of the noise ÷ clip_norm;
  `noise_multiplier`, its standard deviation ÷ clip_norm;
- `event(num_directions)`: the privacy event of one release, for the accountant;
- `draw(bits, size, words)`: `size` exact draws of ⌊2^bits·X⌋, X of scale 1 (of a table: in its own lattice units).
"""

# The mechanisms that a name and a scale determine.
MECHANISMS: dict[str, type[Gaussian] | type[Laplace]] = {"gaussian": Gaussian, "laplace": Laplace}


def lattice(mechanism: Mechanism, clip_norm: float, num_directions: int) -> Lattice:
    """The coarsest lattice whose unit is noise scale / 2^bits and at most clip_norm / (1000·√K) (L2) or /(1000·K) (L1).

    The bound is ⌊2^bits / scale⌋ computed in rationals, so bound ÷ 2^bits ≤ 1/scale exactly: the actual noise
    multiplier is never below the event's. A table has its own lattice: bound ÷ block cells. No bound exceeds
    LARGEST_BOUND.
    """
    if mechanism.name == "lattice":
        return Lattice(clip_norm / mechanism.noise.bound, 0, mechanism.noise.bound, mechanism.order)
    if not SMALLEST_SCALE <= mechanism.scale < math.inf:
        raise DpzoError(f"`noise_multiplier` must be a positive finite number of at least {SMALLEST_SCALE:g}")
    scale = Fraction(mechanism.scale)
    finest = RESOLUTION**2 * num_directions if mechanism.order == 2 else (RESOLUTION * num_directions) ** 2
    bits = 0
    while (bound := int(2**bits / scale)) ** 2 < finest:
        bits += 1
    if bits > 60 or bound > LARGEST_BOUND:
        raise DpzoError(f"`noise_multiplier` {mechanism.noise_multiplier:g} is outside what the lattice can hold")
    return Lattice(mechanism.scale * clip_norm / 2**bits, bits, bound, mechanism.order)


def clip_rows(rows: npt.NDArray[np.floating], grid: Lattice) -> npt.NDArray[np.int64]:
    """Clip rows of slopes to integer rows with ‖row‖ ≤ grid.bound, for any input.

    Computes row · min(1, C/‖row‖) / unit, rounded toward zero; a row with NaN or ±inf becomes 0. The norm is then
    checked in integers and reduced by single units if floating-point error left it too long, so the bound holds
    exactly. Output row i depends on input row i alone.

    Args:
        rows: Slopes, shape (B, K).
        grid: The lattice.

    Returns:
        Lattice units, int64, shape (B, K).

    >>> clip_rows(np.array([[3.0, 4.0], [0.3, 0.0], [np.nan, 1.0]]), Lattice(unit=0.001, bits=10, bound=1000, order=2))
    array([[600, 800],
           [300,   0],
           [  0,   0]])
    """
    slopes = np.array(rows, dtype=np.float64)
    slopes[~np.isfinite(slopes).all(axis=1)] = 0.0
    # Divide by the largest entry first: no square overflows, no quotient is 0/0.
    largest = np.abs(slopes).max(axis=1, keepdims=True, initial=0.0)
    largest[largest == 0.0] = 1.0
    shape = slopes / largest
    length = np.linalg.norm(shape, ord=grid.order, axis=1, keepdims=True)
    length[length == 0.0] = 1.0
    with np.errstate(over="ignore"):  # an infinite length in units is clipped
        stretch = np.minimum(largest / grid.unit, grid.bound / length)
    integers: npt.NDArray[np.int64] = np.trunc(shape * stretch).astype(np.int64)
    while (too_long := ~within_bound(integers, grid)).any():
        integers[too_long] -= np.sign(integers[too_long])
    return integers


def within_bound(integers: npt.NDArray[np.int64], grid: Lattice) -> npt.NDArray[np.bool_]:
    """Whether each integer row (B, K) satisfies ‖row‖₂² ≤ bound² (or ‖row‖₁ ≤ bound), in integer arithmetic."""
    if grid.order == 2:
        return np.asarray((integers * integers).sum(axis=1) <= grid.bound**2)
    return np.asarray(np.abs(integers).sum(axis=1) <= grid.bound)
