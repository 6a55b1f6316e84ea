"""Scalar noise by formula: generalised normal (including Laplace and Gaussian), Huber, staircase, truncated Laplace.

All are symmetric and unimodal, in units of clip_norm, and given by their density at the centres of the cells, except
the staircase, whose steps consist of whole cells so that its pure ε stays exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property

import numpy as np
from scipy.special import gammaincc, gammaln, log_ndtr, ndtr

from dpzo.errors import DpzoError
from dpzo.noise.shape import Array, Shape
from dpzo.noise.tabulate import CELLS, TAIL_NATS, Side, cell_count, point_shape, point_side, positive


@dataclass(frozen=True)
class GeneralisedNormal:
    """Density ∝ exp(−|x/scale|^power): power 1 is Laplace, 2 a Gaussian of std scale/√2.

    Formula: variance scale²·Γ(3/p)/Γ(1/p); P(|X| > t) = Q(1/p, (t/scale)^p), Q the upper incomplete gamma ratio.
    Errors: DpzoError unless scale > 0 and 0.5 ≤ power ≤ 16. Source: Subbotin 1923; Nadarajah 2005.
    """

    scale: float
    power: float

    def __post_init__(self) -> None:
        positive("the scale of generalised normal noise", self.scale)
        if not 0.5 <= self.power <= 16.0:
            raise DpzoError(f"the power of generalised normal noise is {self.power}, must lie in [0.5, 16]")

    @property
    def name(self) -> str:
        return f"generalised normal, scale {self.scale!r}, power {self.power!r}"

    @property
    def variance(self) -> float:
        return self.scale**2 * math.exp(float(gammaln(3.0 / self.power)) - float(gammaln(1.0 / self.power)))

    def survival(self, x: float) -> float:
        return float(gammaincc(1.0 / self.power, math.pow(x / self.scale, self.power)))

    @property
    def _reach(self) -> float:
        return self.scale * math.pow(TAIL_NATS, 1.0 / self.power)

    def shape(self, cells: int = CELLS) -> Shape:
        x = np.arange(cell_count(self._reach, cells) + 2) / (cells * self.scale)
        return point_shape(-(x**self.power), cells)

    def side(self, cells: int = CELLS) -> Side:
        power, width = Decimal(self.power), Decimal(cells) * Decimal(self.scale)
        return point_side([-((Decimal(c) / width) ** power) for c in range(cell_count(self._reach, cells) + 2)])


@dataclass(frozen=True)
class Huber:
    """Density ∝ exp(−ρ(x/scale)), ρ(y) = y²/2 up to |y| = corner, then corner·|y| − corner²/2.

    Log-Lipschitz with constant corner/scale, so a shift of 1 costs at most pure ε = corner/scale.
    Formula, at scale 1: variance (G − c·e^{−c²/2} + e^{−c²/2}(c + 2/c + 2/c³))/(G + e^{−c²/2}/c), where
    G = √(π/2)·erf(c/√2). Errors: DpzoError unless scale > 0 and 0.01 < corner < 30.
    Source: Huber 1964 (the least favourable distribution of robust estimation).
    """

    scale: float
    corner: float

    def __post_init__(self) -> None:
        positive("the scale of Huber noise", self.scale)
        positive("the corner of Huber noise", self.corner, 0.01, 30.0)

    @property
    def name(self) -> str:
        return f"huber, scale {self.scale!r}, corner {self.corner!r}"

    @cached_property
    def _parts(self) -> tuple[float, float]:
        """∫ of e^{−ρ} over (0, corner) and over (corner, ∞)."""
        inner = math.sqrt(math.pi / 2.0) * math.erf(self.corner / math.sqrt(2.0))
        return inner, math.exp(-(self.corner**2) / 2.0) / self.corner

    @property
    def variance(self) -> float:
        c, (inner, outer) = self.corner, self._parts
        edge = math.exp(-c * c / 2.0)
        return self.scale**2 * (inner - c * edge + edge * (c + 2.0 / c + 2.0 / c**3)) / (inner + outer)

    def survival(self, x: float) -> float:
        y, (inner, outer) = x / self.scale, self._parts
        if y >= self.corner:
            return outer * math.exp(-self.corner * (y - self.corner)) / (inner + outer)
        body = math.sqrt(2.0 * math.pi) * (math.exp(float(log_ndtr(-y))) - float(ndtr(-self.corner)))
        return (body + outer) / (inner + outer)

    @property
    def _reach(self) -> float:
        quadratic = math.sqrt(2.0 * TAIL_NATS)
        if quadratic <= self.corner:
            return self.scale * quadratic
        return self.scale * (TAIL_NATS / self.corner + self.corner / 2.0)

    def shape(self, cells: int = CELLS) -> Shape:
        y = np.arange(cell_count(self._reach, cells) + 2) / (cells * self.scale)
        linear = self.corner * y - self.corner**2 / 2.0
        return point_shape(np.where(y <= self.corner, -0.5 * y * y, -linear), cells)

    def side(self, cells: int = CELLS) -> Side:
        corner, width = Decimal(self.corner), Decimal(cells) * Decimal(self.scale)

        def log_weight(y: Decimal) -> Decimal:
            return -y * y / 2 if y <= corner else corner * corner / 2 - corner * y

        return point_side([log_weight(Decimal(c) / width) for c in range(cell_count(self._reach, cells) + 2)])


@dataclass(frozen=True)
class Staircase:
    """Steps of one clip norm: density a on [0, γ), then a·e^{−ε(k+1)} on [k+γ, k+1+γ): exactly ε-DP, pure.

    Formula: a = (1−b)/(2(γ + b(1−γ))), b = e^{−ε}; the variance-optimal γ* = −b/(1−b) +
    (b − 2b² + 2b⁴ − b⁵)^{1/3}/(2^{1/3}(1−b)²). On cells γ becomes (g − ½)/cells, with an integer g ≥ 1.
    Errors: DpzoError unless 0 < ε < 100 and 0 < γ ≤ 1. Source: Geng and Viswanath 2014.
    """

    epsilon: float
    gamma: float

    def __post_init__(self) -> None:
        positive("the epsilon of staircase noise", self.epsilon, 0.0, 100.0)
        if not 0.0 < self.gamma <= 1.0:
            raise DpzoError(f"the gamma of staircase noise is {self.gamma}, must lie in (0, 1]")

    @classmethod
    def best(cls, epsilon: float) -> Staircase:
        """The staircase of least variance: γ*."""
        positive("the epsilon of staircase noise", epsilon, 0.0, 100.0)
        b, gap = math.exp(-epsilon), -math.expm1(-epsilon)
        # b − 2b² + 2b⁴ − b⁵ = b(1−b)³(1+b): no cancellation at small ε.
        gamma = (-b + (b * (1.0 + b) / 2.0) ** (1.0 / 3.0)) / gap
        return cls(epsilon, gamma)

    @property
    def name(self) -> str:
        return f"staircase, epsilon {self.epsilon!r}, gamma {self.gamma!r}"

    @property
    def _height(self) -> float:
        b = math.exp(-self.epsilon)
        return -math.expm1(-self.epsilon) / (2.0 * (self.gamma + b * (1.0 - self.gamma)))

    @property
    def variance(self) -> float:
        b, g, gap = math.exp(-self.epsilon), self.gamma, -math.expm1(-self.epsilon)
        # Σ b^k, Σ k b^k, Σ k² b^k against ∫ x² over [k, k+γ) and b·∫ x² over [k+γ, k+1).
        zeroth, first, second = 1.0 / gap, b / gap**2, b * (1.0 + b) / gap**3
        steps = second * (g + b * (1.0 - g)) + first * (g * g + b * (1.0 - g * g))
        return 2.0 * self._height * (steps + zeroth * (g**3 + b * (1.0 - g**3)) / 3.0)

    def survival(self, x: float) -> float:
        b, g = math.exp(-self.epsilon), self.gamma
        k = math.floor(x)
        rest = max(0.0, g - (x - k)) + b * min(1.0 - g, 1.0 - (x - k))
        period = g + b * (1.0 - g)
        return 2.0 * self._height * (b**k * rest + period * b ** (k + 1) / -math.expm1(-self.epsilon))

    def _steps(self, cells: int) -> tuple[int, int]:
        """Cells of the top step on either side, g; number of steps before the tail."""
        top = min(max(1, round(self.gamma * cells + 0.5)), cells)
        steps = max(1, math.ceil(TAIL_NATS / self.epsilon))
        cell_count(steps + 1.0, cells)
        return top, steps

    def shape(self, cells: int = CELLS) -> Shape:
        top, steps = self._steps(cells)
        step = (np.arange(top + steps * cells) + cells - top) // cells
        return Shape.normalised(np.exp(-self.epsilon * step), math.exp(-self.epsilon), cells, cells)

    def side(self, cells: int = CELLS) -> Side:
        top, steps = self._steps(cells)
        b = (-Decimal(self.epsilon)).exp()
        heights = [b**k for k in range(steps + 1)]
        return Side([heights[(c + cells - top) // cells] for c in range(top + steps * cells)], b, cells)


@dataclass(frozen=True)
class TruncatedLaplace:
    """Density ∝ exp(−|x|/scale) up to |x| = reach, 0 beyond: δ > 0 always, never a pure ε.

    Formula: with reach = scale·ln(1 + (e^{1/scale} − 1)/(2δ)), one release is (1/scale, δ)-DP; variance
    scale²(2 − e^{−t}(t² + 2t + 2))/(1 − e^{−t}), with t = reach/scale.
    Errors: DpzoError unless scale > 0 and reach > 0. Source: Geng, Ding, Guo and Kumar 2020.
    """

    scale: float
    reach: float

    def __post_init__(self) -> None:
        positive("the scale of truncated Laplace noise", self.scale)
        positive("the reach of truncated Laplace noise", self.reach)

    @classmethod
    def of(cls, epsilon: float, delta: float) -> TruncatedLaplace:
        """The distribution that makes one release (ε, δ)-DP."""
        positive("the epsilon of truncated Laplace noise", epsilon, 0.0, 100.0)
        positive("the delta of truncated Laplace noise", delta, 0.0, 0.5)
        return cls(1.0 / epsilon, math.log1p(math.expm1(epsilon) / (2.0 * delta)) / epsilon)

    @property
    def name(self) -> str:
        return f"truncated laplace, scale {self.scale!r}, reach {self.reach!r}"

    @property
    def variance(self) -> float:
        t = self.reach / self.scale
        if t < 1e-2:  # series: both sides cancel
            return self.reach**2 * (1.0 / 3.0 - t / 12.0)
        return self.scale**2 * (2.0 - math.exp(-t) * (t * t + 2.0 * t + 2.0)) / -math.expm1(-t)

    def survival(self, x: float) -> float:
        if x >= self.reach:
            return 0.0
        rest = math.exp(-x / self.scale) * -math.expm1((x - self.reach) / self.scale)
        return rest / -math.expm1(-self.reach / self.scale)

    def _last(self, cells: int) -> int:
        cell_count(self.reach, cells)
        return max(1, math.floor(self.reach * cells))

    def shape(self, cells: int = CELLS) -> Shape:
        x: Array = np.arange(self._last(cells) + 1) / (cells * self.scale)
        return Shape.normalised(np.exp(-x), 0.0, cells)

    def side(self, cells: int = CELLS) -> Side:
        width = Decimal(cells) * Decimal(self.scale)
        return Side([(-Decimal(c) / width).exp() for c in range(self._last(cells) + 1)], Decimal(0))


def laplace(scale: float) -> GeneralisedNormal:
    """Laplace noise of scale b: variance 2b², pure ε = 1/b."""
    return GeneralisedNormal(scale, 1.0)


def gaussian(noise_multiplier: float) -> GeneralisedNormal:
    """Gaussian noise of standard deviation σ."""
    return GeneralisedNormal(math.sqrt(2.0) * noise_multiplier, 2.0)
