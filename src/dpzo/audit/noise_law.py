"""The exact distribution of a plan's noise on the lattice, and the map of its draws to exact standard normals.

A draw N of the noise falls into one cell of the lattice, whose probability is known. A uniform number chosen within
that cell turns the draw into an exactly uniform one (the randomised probability integral transform), and its normal
quantile is an exact standard normal. So every test of the noise is a test of independent standard normals, whose
finite-sample distributions are known: no probability stated by an audit depends on a limit theorem.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import special

from dpzo.noise.tabled import Tabled
from dpzo.privacy import Gaussian, Laplace, Lattice, Mechanism

Numbers = npt.NDArray[np.float64]
SMALLEST = 1e-300  # smaller probabilities are raised to it: a z of 37
MOST_CELLS = 2_000_000  # of a table with a slowly decreasing tail; the mass beyond is negligible for tests
NO_TAIL = 1e-30
EXPONENTS = np.geomspace(1e-7, 1.0, 300)  # for Chernoff's bound, in units of the largest valid exponent


class NoiseLaw:
    """The distribution of one draw of `mechanism` on `grid`, an integer in lattice units."""

    def __init__(self, mechanism: Mechanism, grid: Lattice) -> None:
        self.mechanism = mechanism
        self.scale = float(2**grid.bits)

    @cached_property
    def largest_mass(self) -> float:
        """The probability of the likeliest integer, which bounds that of any coincidence."""
        return float(self._outside(np.zeros(1))[1][0])

    def normals(self, draws: Numbers, uniforms: Numbers) -> Numbers:
        """Exact standard normals, one for each draw (integers as floats), by `uniforms` in [0, 1) of the same shape."""
        low, mass, negative = self._outside(draws)
        beyond = np.clip(low + uniforms * mass, SMALLEST, 1.0 - 1e-16)
        found = -special.ndtri(beyond)
        return np.asarray(np.where(negative, -found, found))

    def masses(self, draws: Numbers) -> Numbers:
        """The probability of each of these integers."""
        return self._outside(draws)[1]

    def _outside(self, draws: Numbers) -> tuple[Numbers, Numbers, npt.NDArray[np.bool_]]:
        """P(further out), P(the cell itself), and whether the cell is below 0: never 1 − something small."""
        if isinstance(self.mechanism, Tabled):
            return self._of_table(draws)
        negative = draws < 0
        cell = np.where(negative, -draws - 1.0, draws)  # ⌊−y⌋ = −⌊y⌋ − 1
        near, far = self._beyond(cell / self.scale), self._beyond((cell + 1.0) / self.scale)
        return far, near - far, negative

    def _beyond(self, x: Numbers) -> Numbers:
        if isinstance(self.mechanism, Gaussian):
            return np.asarray(special.ndtr(-x))
        assert isinstance(self.mechanism, Laplace)
        return np.asarray(0.5 * np.exp(-x))

    @cached_property
    def _cells(self) -> tuple[Numbers, Numbers]:
        """Of cells 0, 1, …: their mass, and the mass beyond them on one side."""
        assert isinstance(self.mechanism, Tabled)
        shape = self.mechanism.noise.shape
        inner = len(shape.masses) - shape.period
        times = 1
        if shape.ratio > 0.0:
            times = max(1, min(MOST_CELLS // shape.period, math.ceil(math.log(NO_TAIL) / math.log(shape.ratio))))
        tail = np.outer(shape.ratio ** np.arange(times), shape.masses[inner:]).ravel()
        masses = np.concatenate([shape.masses[:inner], tail, [0.0]])
        beyond = np.concatenate([np.cumsum(masses[::-1])[::-1][1:], [0.0]])
        return masses, beyond

    @cached_property
    def moments(self) -> list[tuple[float, float]]:
        """Of a table: exponents t per lattice unit, each with a bound on ln E e^{tN}."""
        assert isinstance(self.mechanism, Tabled)
        noise, (masses, _) = self.mechanism.noise, self._cells
        cells, found = np.arange(len(masses)), []
        for growth in EXPONENTS:
            if noise.shape.ratio * math.exp(growth * noise.shape.period) < 1.0 and growth * len(masses) < 600.0:
                moment = masses[0] + (masses[1:] * 2.0 * np.cosh(growth * cells[1:])).sum()
                # Within a block a draw is at most half a cell further out than its cell's centre.
                found.append((growth / noise.block, math.log(float(moment)) + growth / 2.0))
        return found

    def _of_table(self, draws: Numbers) -> tuple[Numbers, Numbers, npt.NDArray[np.bool_]]:
        assert isinstance(self.mechanism, Tabled)
        masses, beyond = self._cells
        block, size = self.mechanism.noise.block, np.abs(draws)
        cell = np.rint(size / block)
        within = size - cell * block + block // 2  # 0 … block − 1
        at = np.minimum(cell, len(masses) - 1).astype(np.int64)
        mass = masses[at] / block
        return np.asarray(beyond[at] + mass * (block - 1.0 - within)), mass, draws < 0


def sum_beyond(law: NoiseLaw, excess: Numbers, weights: Numbers, repeats: int) -> Numbers:
    """An upper bound on P(Σ of `repeats` independent ⟨weights, noise⟩ ≥ excess), excess in lattice units.

    Gaussian: the tail of the sum itself; ⌊X⌋ lies within one unit of X, which `excess` is lowered by. Laplace, and a
    table by its own masses: Chernoff's bound, minimised over a grid of exponents, any of which is valid.
    """
    count = repeats * np.abs(weights).sum()
    lowered = np.asarray(excess - count, dtype=np.float64)
    if isinstance(law.mechanism, Gaussian):
        spread = law.scale * math.sqrt(repeats * float((weights**2).sum()))
        return np.asarray(special.ndtr(-lowered / spread))
    steepest = 0.999 / max(SMALLEST, float(np.abs(weights).max()))
    best = np.zeros(np.shape(lowered))
    if isinstance(law.mechanism, Laplace):
        growth = EXPONENTS * steepest
        log_moments = -repeats * np.log1p(-(np.outer(growth, weights) ** 2)).sum(axis=1)
        best = np.minimum(best, (log_moments - growth * float(lowered) / law.scale).min())
    else:
        for per_unit, log_moment in law.moments:
            best = np.minimum(best, repeats * log_moment - per_unit * lowered)
    return np.asarray(np.exp(best))
