"""T-fold sums of a privacy loss: pessimistic grid, tilted Fourier transform, every error bounded and added.

**Grid.** An atom of mass m and loss l between grid points g ≤ l ≤ g' is split into two atoms with the same mass and the
same Σ m·e^{−l}. Merging them back is post-processing, so the split pair dominates: no order among the losses is needed
(they need not be monotone in x). All losses share a grid aligned with the largest, so a pure-ε bound stays exact.

**Tilt.** The T-fold sum is computed for masses × e^{λl}/K(λ), λ near the saddle point of the requested δ, and then
untilted: a tail of 1e-30 keeps its precision. The Fourier error is bounded (`_rounding`) and added to every cell, the
mass above the window is bounded by Chernoff and added, and mass that wraps around can only add.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.fft
from scipy.optimize import brentq

Array = npt.NDArray[np.float64]
Spectrum = npt.NDArray[np.complex128]

LEAST_CELLS, MOST_CELLS = 2**14, 2**21
FARTHEST = 650.0
"""Largest exponent of e that is used."""
UNIT = 2.0**-53


@dataclass(frozen=True, eq=False)
class Atoms:
    """One release, one direction: losses l (n,), their masses (n,) under P, and the mass of infinite loss."""

    losses: Array
    masses: Array
    infinite: float


class Rough:
    """The atoms, merged with their neighbours by loss down to a few thousand: enough to choose a tilt and a window.

    No bound is derived from it.
    """

    def __init__(self, one: Atoms, most: int = 8192) -> None:
        order = np.argsort(one.losses, kind="stable")
        order = order[one.masses[order] > 0.0]
        starts = np.arange(0, len(order), -(-len(order) // most))
        mass = np.add.reduceat(one.masses[order], starts)
        mean = np.add.reduceat((one.masses * one.losses)[order], starts)
        self.losses, self.log_masses = mean / mass, np.log(mass)

    def cumulant(self, tilt: float) -> float:
        """ln Σ m·e^{tilt·l}."""
        exponents = self.log_masses + tilt * self.losses
        most = float(exponents.max())
        return most + math.log(float(np.exp(exponents - most).sum()))

    def deviation(self, tilt: float) -> float:
        """Standard deviation of the tilted loss."""
        log_weights = self.log_masses + tilt * self.losses
        weights = np.exp(log_weights - log_weights.max())
        weights /= weights.sum()
        mean = float(weights @ self.losses)
        return math.sqrt(max(float(weights @ (self.losses - mean) ** 2), 1e-30))

    def tilt_for_delta(self, delta: float, count: int) -> float:
        """λ that minimises the Rényi conversion ε = [T·ln K + λ ln λ − (λ+1) ln(λ+1) − ln δ]/λ."""

        def bound(tilt: float) -> float:
            room = tilt * math.log(tilt) - (tilt + 1.0) * math.log1p(tilt)
            return (count * self.cumulant(tilt) + room - math.log(delta)) / tilt

        return golden_section(bound)

    def window(self, tilt: float, count: int) -> tuple[float, float]:
        """Range of the tilted sum except for a 1e-14th on either side (Chernoff, the best of several exponents)."""
        deviation = self.deviation(tilt)
        spread, base = deviation * math.sqrt(count), self.cumulant(tilt)
        low, high = -math.inf, math.inf
        pushes = [factor / spread for factor in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)] if spread * tilt > 1e-3 else []
        for push in (*pushes, 0.1 * tilt, 0.5 * tilt, 0.9 * tilt):
            high = min(high, (count * (self.cumulant(tilt + push) - base) + 32.0) / push)
            low = max(low, -(count * (self.cumulant(tilt - push) - base) + 32.0) / push)
        return max(low, count * float(self.losses.min())), min(high, count * float(self.losses.max()))


def golden_section(function: Callable[[float], float], low: float = 1e-4, high: float = 1e6) -> float:
    """Argument of the least value of a unimodal function on [low, high], to 2 %: golden section in the logarithm."""
    golden = 0.5 * (math.sqrt(5.0) - 1.0)
    a, b = math.log(low), math.log(high)
    c, d = b - golden * (b - a), a + golden * (b - a)
    at_c, at_d = function(math.exp(c)), function(math.exp(d))
    while b - a > 0.02:
        if at_c < at_d:
            b, d, at_d = d, c, at_c
            c = b - golden * (b - a)
            at_c = function(math.exp(c))
        else:
            a, c, at_c = c, d, at_d
            d = a + golden * (b - a)
            at_d = function(math.exp(d))
    return math.exp(0.5 * (a + b))


class Composed:
    """The T-fold sum of one direction, tilted by λ, on a window of the grid T·top − k·step.

    The window holds the relevant range of the tilted sum, `least`, and everything above if `whole`. `cheap`: minimum
    number of cells, even if `tolerance` needs fewer.
    """

    def __init__(
        self,
        one: Atoms,
        count: int,
        tilt: float,
        rough: Rough,
        tolerance: float,
        least: float,
        whole: bool = False,
        cheap: int = LEAST_CELLS,
    ) -> None:
        self.top = float(one.losses.max())
        low, high = rough.window(tilt, count)
        low, high = min(low, least), count * self.top if whole else high
        # The split raises ln K(λ) by at most step²·λ(λ+1)/8 and about /12 on average; T of them raise δ by `tolerance`.
        step = math.sqrt(12.0 * tolerance / (count * tilt * (tilt + 1.0)))
        # Few releases leave kinks that ln K does not reflect: never fewer than LEAST_CELLS, nor than `cheap`.
        fewest = LEAST_CELLS * max(1.0, math.sqrt(1e-4 / tolerance))
        step = min(step, (high - low) / max(fewest, cheap) + 1e-15)
        wanted, step = step, max(step, (high - low) / (MOST_CELLS - 64))
        self.coarse = step > wanted
        self.step, self.tilt, self.count, self.low = step, tilt, count, low
        self.cells = scipy.fft.next_fast_len(int((high - low) / step) + 64, real=True)
        self.start = max(0, int((count * self.top - high) / step) - 16)
        masses, log_moment = self._release(one)
        self._sum(masses)
        self._weigh(one, rough, log_moment)

    def _release(self, one: Atoms) -> tuple[Array, float]:
        """Split atoms (n,) → tilted masses (cells,) of sum 1 at index (top − l)/step modulo the window, and ln K."""
        place = (self.top - one.losses) / self.step
        upper = np.floor(place)
        below = one.masses * np.expm1((place - upper) * self.step) / math.expm1(self.step)
        below = np.minimum(below, one.masses)
        index = upper.astype(np.int64) % self.cells
        # Relative to the largest tilted mass: a tilt may make the masses of the top losses vanish.
        with np.errstate(divide="ignore"):
            most = float((np.log(one.masses) - self.tilt * self.step * upper).max())
        fall = np.exp(-self.tilt * self.step * upper - most)
        masses = np.bincount(index, (one.masses - below) * fall, self.cells)
        lower = np.bincount(index, below * fall * math.exp(-self.tilt * self.step), self.cells)
        masses += np.roll(lower, 1)
        total = float(masses.sum())
        self._split = (upper, below)
        self._merged = int(np.bincount(index, minlength=self.cells).max())
        return masses / total, most + math.log(total)

    def _sum(self, masses: Array) -> None:
        spectrum = scipy.fft.rfft(masses)
        power = _power(spectrum, self.count)
        self.sum = np.roll(scipy.fft.irfft(power, self.cells), -(self.start % self.cells))
        self.error = _rounding(masses, np.abs(spectrum), self.sum, self.count)

    def _weigh(self, one: Atoms, rough: Rough, log_moment: float) -> None:
        """Losses of the window, in descending order from its largest, and the exponents for untilting."""
        self.peak = self.count * self.top - self.start * self.step
        self.losses = self.peak - np.arange(self.cells) * self.step
        # The mass at loss l is (tilted mass)·e^{T ln K + λ(T·top − l)}.
        self.log_moment = self.count * log_moment
        self.relative = self._relative(self.tilt, float(self.top - one.losses.min()), log_moment)
        self.lifted = np.maximum(self.sum + self.error, 0.0)
        self.tail = self._above(one, rough)

    def _relative(self, tilt: float, extent: float, log_moment: float) -> float:
        """Bound on the relative error that T tilted masses, each a sum of `_merged`, carry into every cell."""
        carried = self.count * UNIT * (64.0 + self._merged + 6.0 * tilt * extent + 4.0 * abs(log_moment))
        # Once: the untilting exponents, and a pairwise sum over the cells.
        return carried + UNIT * (8.0 * FARTHEST + 256.0)

    def _above(self, one: Atoms, rough: Rough) -> float:
        """Chernoff bound e^{T ln K(μ) − μ·peak} on the untilted mass above the window; `rough` chooses μ ≥ λ."""
        if self.start == 0:
            return 0.0
        push = 1.0 / (rough.deviation(self.tilt) * math.sqrt(self.count))
        choices = [self.tilt + factor * push for factor in (0.0, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)]
        tilt = min(choices, key=lambda mu: self.count * rough.cumulant(mu) - mu * self.peak)
        upper, below = self._split
        with np.errstate(divide="ignore"):
            most = float((np.log(one.masses) - tilt * self.step * upper).max())
        fall = np.exp(-tilt * self.step * upper - most)
        moment = most + math.log(float(((one.masses - below) + below * math.exp(-tilt * self.step)) @ fall))
        rounding = self._relative(tilt, float(self.top - one.losses.min()), moment) + UNIT * self.count * len(fall)
        return math.exp(min(0.0, self.count * moment + tilt * self.start * self.step + rounding))

    def delta(self, epsilon: float) -> float:
        """Upper bound on Σ_{l>ε} m(1 − e^{ε−l})."""
        return self._at(epsilon, self.lifted) * (1.0 + self.relative) + self.tail

    def reserve(self, epsilon: float) -> float:
        """The part of `delta(epsilon)` that is Fourier rounding and cut-off tail."""
        rounding = self._at(epsilon, np.full(self.cells, self.error))
        return rounding + self.tail + self.relative * self._at(epsilon, self.lifted)

    def _at(self, epsilon: float, masses: Array) -> float:
        place = min(math.ceil((self.peak - epsilon) / self.step), self.cells)
        if place <= 0:
            return 0.0
        # Relative to ε all exponents are ≤ 0, and all terms have one sign: nothing overflows, nothing cancels.
        beyond = np.maximum(self.losses[:place] - epsilon, 0.0)
        untilt = np.exp(np.maximum(-self.tilt * beyond, -FARTHEST))
        value = float(np.sum(masses[:place] * untilt * -np.expm1(-beyond)))
        scale = self.log_moment + self.tilt * (self.count * self.top - epsilon)
        return math.exp(min(math.log(value) + scale, FARTHEST)) if value > 0.0 else 0.0

    def epsilon(self, delta: float) -> float:
        """Least ε ≥ 0 with `delta(ε)` ≤ delta, accurate to a few last digits; ∞ if none is in the window."""
        if self.delta(self.peak) > delta:
            return math.inf
        if self.delta(0.0) <= delta:
            return 0.0

        def excess(epsilon: float) -> float:
            return math.log(max(self.delta(epsilon), 1e-300) / delta)

        found, raise_by = float(brentq(excess, 0.0, self.peak, xtol=1e-300, rtol=1e-14)), 1e-15
        while self.delta(found) > delta:
            found, raise_by = min(found * (1.0 + raise_by), self.peak), 2.0 * raise_by
        return found


def _power(values: Spectrum, exponent: int) -> Spectrum:
    """values^exponent by repeated squaring: relative error at most 3·exponent·u, whatever the argument's angle."""
    result = None
    while exponent:
        if exponent & 1:
            result = values if result is None else result * values
        exponent >>= 1
        if exponent:
            values = values * values
    assert result is not None
    return result


def _rounding(masses: Array, spectrum: Array, total: Array, count: int) -> float:
    """Bound on the error of any cell of the T-fold sum.

    With η = 16u·log₂N the normwise error of one transform of size 2^a·3^b·5^c (Higham 2002, theorem 24.2, and the same
    count for radices 3 and 5: docs/guarantees.md): an error ΔF of ‖ΔF‖₂ ≤ η√N‖f‖₂ in the spectrum moves a cell by at
    most (T/N)·Σ|F|^{T−1}|ΔF| ≤ T·η·‖f‖₂·‖f^{*(T−1)}‖₂ (Cauchy–Schwarz, Parseval); the power adds 3Tu·mean|F|^T, the
    way back η·‖g‖₂. Doubled for the terms of second order.
    """
    cells = len(masses)
    level = 16.0 * UNIT * math.log2(cells)
    weights = np.full(len(spectrum), 2.0)
    weights[0] = 1.0
    if cells % 2 == 0:
        weights[-1] = 1.0
    clipped = np.minimum(spectrum + level * math.sqrt(cells) * float(np.linalg.norm(masses)), 1.0)
    previous = math.sqrt(float(weights @ clipped ** (2 * (count - 1))) / cells)
    mean = float(weights @ clipped**count) / cells
    forward = count * level * float(np.linalg.norm(masses)) * previous
    return 2.0 * (forward + 3.0 * count * UNIT * mean + level * float(np.linalg.norm(total)))
