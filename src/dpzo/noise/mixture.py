"""Laplace noise of a random scale (R2DP, LMO-DP) for a scalar: closed forms of the distribution and their limits.

u = a1·Gamma(k, scale θ) + a3·Exponential(rate λ) + a4·Uniform[low, high], independent, and X | u ~ Laplace(0, 1/u), in
units of clip_norm. Everything follows from M(t) = E e^{tu}. The exponential is given by its *rate*; `sampled_as_scale`
gives the distribution that published code draws when it uses the same number as a scale.

X has a mixture distribution, and its privacy is that of the mixture: u must stay secret. Rényi formulas that treat u
as known (`renyi_bound`) are upper bounds, and only at orders inside the radius of M.
Sources: Mohammady et al. 2020 (R2DP); Yang et al. 2024 (LMO-DP); the variance and radius conditions are derived here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property

import numpy as np
from scipy.optimize import brentq

from dpzo.errors import DpzoError
from dpzo.noise.shape import Shape
from dpzo.noise.tabulate import CELLS, MOST_CELLS, TAIL_NATS, Side


@dataclass(frozen=True)
class LaplaceMixture:
    """The mixture of weights (a1, a3, a4): gamma `gamma_shape`, `gamma_scale`; rate `rate`; uniform on [low, high].

    A weight of 0 disables its part. Errors: DpzoError on a negative weight, parameters that are not positive and
    finite, 0 ≤ low < high broken, or no part at all.
    """

    gamma_weight: float
    gamma_shape: float
    gamma_scale: float
    exponential_weight: float
    rate: float
    uniform_weight: float
    low: float
    high: float

    def __post_init__(self) -> None:
        weights = (self.gamma_weight, self.exponential_weight, self.uniform_weight)
        if not all(0.0 <= weight < math.inf for weight in weights) or not any(weights):
            raise DpzoError("the weights of a Laplace mixture must be at least 0 and finite, and one of them positive")
        if not all(0.0 < value < math.inf for value in (self.gamma_shape, self.gamma_scale, self.rate)):
            raise DpzoError("the gamma's shape and scale and the exponential's rate must be positive and finite")
        if not 0.0 <= self.low < self.high < math.inf:
            raise DpzoError("the uniform part of a Laplace mixture needs 0 ≤ low < high, finite")

    @property
    def name(self) -> str:
        """Family and parameters in one line."""
        return (
            f"lmo, {self.gamma_weight!r}·gamma({self.gamma_shape!r}, scale {self.gamma_scale!r}) + "
            f"{self.exponential_weight!r}·exponential(rate {self.rate!r}) + "
            f"{self.uniform_weight!r}·uniform({self.low!r}, {self.high!r})"
        )

    def sampled_as_scale(self) -> LaplaceMixture:
        """The distribution that is drawn if `rate` is passed to a sampler that expects a scale: rate 1/rate."""
        return replace(self, rate=1.0 / self.rate)

    def scaled(self, factor: float) -> LaplaceMixture:
        """The distribution of factor·X: u is divided by the factor."""
        return replace(
            self,
            gamma_weight=self.gamma_weight / factor,
            exponential_weight=self.exponential_weight / factor,
            uniform_weight=self.uniform_weight / factor,
        )

    @property
    def radius(self) -> float:
        """min(1/(a1·θ), λ/a3): M(t) is finite only for smaller t."""
        gamma = 1.0 / (self.gamma_weight * self.gamma_scale) if self.gamma_weight > 0.0 else math.inf
        return min(gamma, self.rate / self.exponential_weight if self.exponential_weight > 0.0 else math.inf)

    def log_moment(self, t: float) -> float:
        """ln M(t). Errors: DpzoError at or beyond the radius, where M is infinite even if the formula is finite."""
        if not t < self.radius:
            raise DpzoError(
                f"the moment generating function of this mixture is infinite at {t:g}, its radius {self.radius:g}"
            )
        total = -self.gamma_shape * math.log1p(-self.gamma_weight * self.gamma_scale * t)
        total -= math.log1p(-self.exponential_weight / self.rate * t)
        width = self.uniform_weight * (self.high - self.low)
        return total + self.uniform_weight * self.low * t + _log_mean_exp(width * t)

    def _slopes(self, t: float) -> tuple[float, float]:
        """First and second derivative of ln M at t."""
        first = second = 0.0
        if self.gamma_weight > 0.0:
            pole = self.gamma_weight * self.gamma_scale
            first += self.gamma_shape * pole / (1.0 - pole * t)
            second += self.gamma_shape * (pole / (1.0 - pole * t)) ** 2
        if self.exponential_weight > 0.0:
            pole = self.exponential_weight / self.rate
            first += pole / (1.0 - pole * t)
            second += (pole / (1.0 - pole * t)) ** 2
        if self.uniform_weight > 0.0:
            width = self.uniform_weight * (self.high - self.low)
            slope, bend = _mean_exp_slopes(width * t)
            first += self.uniform_weight * self.low + width * slope
            second += width * width * bend
        return first, second

    def tilted_mean(self, t: float) -> float:
        """M'(t) = E u·e^{tu}."""
        return math.exp(self.log_moment(t)) * self._slopes(t)[0]

    def tilted_square(self, t: float) -> float:
        """M''(t) = E u²·e^{tu}."""
        first, second = self._slopes(t)
        return math.exp(self.log_moment(t)) * (first * first + second)

    def density(self, x: float) -> float:
        """f(x) = M'(−|x|)/2."""
        return self.tilted_mean(-abs(x)) / 2.0

    def survival(self, x: float) -> float:
        """P(|X| > x) = M(−x), x ≥ 0."""
        return math.exp(self.log_moment(-x))

    def usefulness(self, gamma: float) -> float:
        """P(|X| ≤ gamma) = 1 − M(−gamma)."""
        return -math.expm1(self.log_moment(-gamma))

    @property
    def tail_power(self) -> float:
        """P(|X| > x) decreases like x^−tail_power; ∞ if exponentially (a uniform part that excludes 0)."""
        if self.uniform_weight > 0.0 and self.low > 0.0:
            return math.inf
        gamma = self.gamma_shape if self.gamma_weight > 0.0 else 0.0
        return gamma + (self.exponential_weight > 0.0) + (self.uniform_weight > 0.0)

    @cached_property
    def mean_absolute(self) -> float:
        """E|X| = ∫ M(−x) dx; ∞ unless tail_power > 1."""
        return self._integral(lambda x: self.survival(x)) if self.tail_power > 1.0 else math.inf

    @cached_property
    def variance(self) -> float:
        """E X² = 2·∫ x·M(−x) dx = 2·E u^−2, by quadrature; ∞ unless tail_power > 2."""
        return 2.0 * self._integral(lambda x: x * self.survival(x)) if self.tail_power > 2.0 else math.inf

    def finite_variance(self) -> float:
        """The variance. Errors: DpzoError when it is infinite, so that no search selects such a distribution."""
        if self.variance == math.inf:
            raise DpzoError(
                f"this mixture has infinite variance (its tail falls like x^−{self.tail_power:g}): "
                "give the gamma a shape above 2, or the uniform a low above 0"
            )
        return self.variance

    def pure_epsilon(self, shift: float = 1.0) -> float:
        """ln(E u / E u·e^{−u·shift}): exact, always finite; worst at x = 0 (log-convex sides)."""
        return math.log(self._slopes(0.0)[0] / self.tilted_mean(-shift))

    def epsilon(self, delta: float, shift: float = 1.0) -> float:
        """Exact ε at δ of one scalar release: least ε with ∫ (f(x−s) − e^ε·f(x))₊ dx ≤ δ.

        The loss ln f(x−s)/f(x) increases up to x = s and decreases beyond, so the set above ε is one interval around s.
        """

        def loss(x: float) -> float:
            ahead, here = self._slopes(-abs(x - shift))[0], self._slopes(-x)[0]
            return self.log_moment(-abs(x - shift)) - self.log_moment(-x) + math.log(ahead / here)

        def spent(level: float) -> float:
            left = brentq(lambda x: loss(x) - level, shift / 2.0, shift, xtol=1e-15)
            right = 2.0 * shift
            while loss(right) > level and right < 1e6 * shift:
                right *= 2.0
            crossed = loss(right) <= level
            if crossed:
                right = brentq(lambda x: loss(x) - level, shift, right, xtol=1e-15)

            def excess(x: float) -> float:
                return math.expm1(max(0.0, loss(x) - level)) * self.density(x)

            # If the loss never decreases to the level, all mass beyond counts: on the safe side, and negligible.
            beyond = 0.0 if crossed else self.survival(right - shift) / 2.0
            cuts = [left, shift, *(c for c in (shift * (1.0 + 4.0**i) for i in range(-6, 12)) if c < right), right]
            pieces = (_gauss(excess, a, b) for a, b in itertools.pairwise(cuts))
            return beyond + math.exp(level) * sum(pieces)

        worst = self.pure_epsilon(shift)
        low, high = 0.0, worst * (1.0 - 1e-12)
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if spent(middle) <= delta else (middle, high)
        return high

    @property
    def log_lipschitz(self) -> float:
        """L = E u²/E u: |ln f(x) − ln f(y)| ≤ L·|x − y|, reached at 0."""
        return self.tilted_square(0.0) / self.tilted_mean(0.0)

    @cached_property
    def fisher_information(self) -> float:
        """∫ f'²/f = ∫ M''(−x)²/M'(−x) dx over x > 0; 1/√ of it is the equivalent Gaussian σ for many small shifts."""
        return self._integral(lambda x: self.tilted_square(-x) ** 2 / max(self.tilted_mean(-x), 1e-300))

    def renyi_bound(self, order: float, shift: float = 1.0) -> float:
        """Upper bound on D_α of one release: ln{[αM((α−1)s) + (α−1)M(−αs)]/(2α−1)}/(α−1).

        That is the Rényi divergence of a release that also reveals u. ln of the braces is a log-sum-exp of functions
        convex in s, zero at s = 0, hence superadditive: the bound holds for rows of L1 norm ≤ s in any dimension.
        Errors: DpzoError at order ≤ 1, and when (order − 1)·shift reaches the radius.
        """
        if not 1.0 < order < math.inf:
            raise DpzoError(f"Rényi order is {order}, must be above 1 and finite")
        if not (order - 1.0) * shift < self.radius:
            raise DpzoError(
                f"Rényi order {order:g} is at or beyond {1.0 + self.radius / shift:g}, where the moment generating "
                "function ends: no bound is there, use lower orders"
            )
        rising = math.log(order / (2.0 * order - 1.0)) + self.log_moment((order - 1.0) * shift)
        falling = math.log((order - 1.0) / (2.0 * order - 1.0)) + self.log_moment(-order * shift)
        return float(np.logaddexp(rising, falling)) / (order - 1.0)

    def renyi_epsilon(self, delta: float, orders: range = range(2, 129)) -> tuple[float, int]:
        """ε at δ from `renyi_bound` at those of `orders` that lie inside the radius, and the order that gives it.

        Formula: D_α + ln(1 − 1/α) − ln(δα)/(α−1). Errors: DpzoError when no order is inside.
        """
        valid = [order for order in orders if order - 1.0 < self.radius]
        if not valid:
            raise DpzoError(f"no Rényi order is below {1.0 + self.radius:g}, where the moment generating function ends")
        found = [(self.renyi_bound(a) + math.log1p(-1.0 / a) - math.log(delta * a) / (a - 1.0), a) for a in valid]
        return min(found)

    def zcdp(self, clip_norm: float = 1.0) -> float:
        """ρ = L²·C²/2 for i.i.d. coordinates on rows of L2 norm ≤ C, in any dimension, as X is log-Lipschitz."""
        return (self.log_lipschitz * clip_norm) ** 2 / 2.0

    @cached_property
    def _reach(self) -> float:
        """The x at which M(−x) falls below 2^−64, at most the reach of the largest table."""
        far = 1.0
        while self.log_moment(-far) > -TAIL_NATS and far < 2.0**60:
            far *= 1.05
        return far

    def _edges(self, cells: int) -> int:
        count = min(math.ceil(self._reach * cells), MOST_CELLS)
        beyond = self.survival((count - 0.5) / cells)
        if beyond > 1e-6:
            raise DpzoError(
                f"this mixture still has {beyond:.1g} of its mass {count / cells:.3g} clip norms out, beyond the "
                "largest table: give the gamma a larger shape or scale, or the uniform a low above 0"
            )
        return max(2, count)

    def shape(self, cells: int = CELLS) -> Shape:
        """The distribution rounded to cells (survival differences), in floats; mass beyond becomes a geometric tail."""
        edges = (np.arange(self._edges(cells) + 1) + 0.5) / cells
        # Differences of ln M keep their precision where differences of the survival function would cancel.
        logs = np.array([0.0, *(self.log_moment(-edge) for edge in edges.tolist())])
        masses = -np.exp(logs[:-1]) * np.expm1(np.diff(logs)) / 2.0
        masses[0] *= 2.0
        outer = math.exp(logs[-2]) / 2.0
        return Shape.normalised(np.minimum.accumulate(masses), 1.0 - masses[-1] / outer, cells)

    def side(self, cells: int = CELLS) -> Side:
        """The same in decimals."""
        last = self._edges(cells) + 1
        survival = [Decimal(1), *self._decimal_survival(last, Decimal(1) / (2 * cells))]
        masses = [(near - far) / 2 for near, far in itertools.pairwise(survival)]
        masses[0] *= 2
        return Side(masses, 1 - 2 * masses[-1] / survival[-2])

    def _decimal_survival(self, count: int, half: Decimal) -> list[Decimal]:
        """M(−x) at x = half, 3·half, 5·half, …; exponentials by a running product."""
        gamma = Decimal(self.gamma_weight) * Decimal(self.gamma_scale)
        pole = Decimal(self.exponential_weight) / Decimal(self.rate)
        ends = [Decimal(self.uniform_weight) * Decimal(end) for end in (self.low, self.high)]
        falls = [(-end * half).exp() for end in ends]
        steps = [fall * fall for fall in falls]
        values = []
        for c in range(count):
            x = (2 * c + 1) * half
            value = 1 / (1 + pole * x)
            if gamma:
                value /= (1 + gamma * x) ** Decimal(self.gamma_shape)
            if self.uniform_weight > 0.0:
                value *= (falls[0] - falls[1]) / ((ends[1] - ends[0]) * x)
                falls = [fall * step for fall, step in zip(falls, steps, strict=True)]
            values.append(value)
        return values

    def _integral(self, function: Callable[[float], float]) -> float:
        """∫_0^∞ f(x) dx of a positive f that is analytic in x > 0: trapezoidal rule in ln x, whose error is e^{−π²/h}.

        Marches from the mean scale to either side until a term is below 1e-18 of the sum.
        """
        start, step, total = -math.log(self._slopes(0.0)[0]), 0.1, 0.0
        for direction in (1, -1):
            for k in itertools.count(0 if direction == 1 else 1):
                x = math.exp(start + direction * k * step)
                term = x * function(x)
                total += term
                if (term < 1e-18 * total and k > 50) or x > 1e150:
                    break
        return step * total


def _gauss(function: Callable[[float], float], low: float, high: float) -> float:
    """∫ over [low, high] by 24 Gauss–Legendre nodes."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    half = (high - low) / 2.0
    values = np.array([function(low + half * (1.0 + node)) for node in nodes.tolist()])
    return half * float(weights @ values)


def _log_mean_exp(y: float) -> float:
    """ln((e^y − 1)/y), the cumulant of a uniform distribution on [0, 1]."""
    if abs(y) < 1e-5:
        return y / 2.0 + y * y / 24.0
    if y > 30.0:
        return y - math.log(y) + math.log1p(-math.exp(-y))
    return math.log(math.expm1(y) / y)


def _mean_exp_slopes(y: float) -> tuple[float, float]:
    """First and second derivative of `_log_mean_exp`: 1/(1−e^{−y}) − 1/y, and 1/y² − 1/(4 sinh²(y/2))."""
    if abs(y) < 0.1:
        z = y * y
        first = 0.5 + y * (1.0 / 12.0 - z * (1.0 / 720.0 - z * (1.0 / 30240.0 - z / 1209600.0)))
        return first, 1.0 / 12.0 - z * (1.0 / 240.0 - z * (1.0 / 6048.0 - z / 172800.0))
    first = -1.0 / math.expm1(-y) - 1.0 / y if y > -700.0 else -1.0 / y
    curved = 1.0 / (4.0 * math.sinh(y / 2.0) ** 2) if abs(y) < 700.0 else 0.0
    return first, 1.0 / (y * y) - curved
