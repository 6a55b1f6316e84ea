"""Free-form noise: any symmetric unimodal distribution on cells, its cost minimised by gradients at a fixed (ε, δ).

Variables are the decreases s_c = ln f(c−1) − ln f(c) ≥ 0 of the log density ("falls"): one per cell if a clip norm is
wide compared with the noise, else linear between knots; the last one is also the tail's. So every point of the search
is unimodal.

**Gradient.** Consider one of the T releases. With S_P(y), S_Q(y) the mass above y of the sum of the other T − 1 losses
under either distribution,

    δ = Σ_x P(x)·S_P(ε − l(x)) − e^ε·Q(x)·S_Q(ε − l(x)),
    ∂δ/∂P(x) = T·S_P(ε − l(x)),   ∂δ/∂Q(x) = −T·e^ε·S_Q(ε − l(x)),

exact because the set where the sum exceeds ε is optimal, so its change has no first-order effect (envelope theorem).
One Fourier transform gives both, for any number of variables. The result is neither pessimistic nor certified.

**Constraint.** min ln cost(f) subject to ln δ_remove, ln δ_add ≤ ln δ, by an augmented Lagrangian over L-BFGS-B.
Source of the idea that such a search helps for few compositions: Geng and Viswanath 2014 (staircase), here by gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy.optimize import minimize

from dpzo.noise.shape import Array, Shape

GRID = 2**13
ROUNDS = 10
TRUST = 0.5
STEPS = 40
LEAST_FALL, DEEPEST = 1e-9, 300.0


@dataclass(frozen=True, eq=False)
class Basis:
    """Falls (M,) = max(knots @ θ, 0), θ (n,) ≥ 0: linear interpolation between knots at cells `at`."""

    at: Array
    cells: int

    @classmethod
    def of(cls, falls: Array, shift: int, most: int = 80) -> Basis:
        """One variable per cell where steps can matter: near the clip norm, or in a starting point that has steps."""
        cells = len(falls)
        stepped = float(np.mean(falls < 1e-3 * float(falls.mean()))) > 0.3
        if cells <= max(most, 12 * shift, 3000 if stepped else 0):
            return cls(np.arange(1.0, cells + 1.0), cells)
        # Dense where most of the mass is, sparse far out.
        inner = np.linspace(1.0, cells / 3.0, 2 * most // 3)
        return cls(np.concatenate([inner, np.geomspace(cells / 3.0, cells, most // 3 + 2)[1:]]), cells)

    def falls(self, theta: Array) -> Array:
        return np.asarray(np.interp(np.arange(1.0, self.cells + 1.0), self.at, theta))

    def pull(self, gradient: Array) -> Array:
        """Gradient by the falls (M,) → by θ (n,)."""
        c = np.arange(1.0, self.cells + 1.0)
        right = np.clip(np.searchsorted(self.at, c, side="left"), 1, len(self.at) - 1)
        left = right - 1
        share = (c - self.at[left]) / (self.at[right] - self.at[left])
        size = len(self.at)
        found = np.bincount(left, gradient * (1.0 - share), size) + np.bincount(right, gradient * share, size)
        return np.asarray(found, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Law:
    """f(0), …, f(M) (M+1,) from falls, normalised, the tail geometric with ratio e^{−s_M}."""

    masses: Array
    ratio: float
    shift: int

    @classmethod
    def of(cls, falls: Array, shift: int) -> Law:
        weights = np.exp(np.concatenate([[0.0], np.maximum(-np.cumsum(falls), -DEEPEST)]))
        ratio = math.exp(-min(max(float(falls[-1]), LEAST_FALL), DEEPEST / shift))
        total = weights[0] + 2.0 * weights[1:].sum() + 2.0 * weights[-1] * ratio / (1.0 - ratio)
        return cls(weights / total, ratio, shift)

    @property
    def beyond(self) -> float:
        """One tail's mass ÷ f(M)."""
        return self.ratio / (1.0 - self.ratio)

    def by_falls(self, by_mass: Array) -> Array:
        """Gradient by f(0 … M) → by s_1 … s_M: ∂/∂ln w_c = f_c·g_c − weight_c·mean, ln w_c = −Σ_{j ≤ c} s_j."""
        share = self.masses * by_mass
        weight = 2.0 * self.masses
        weight[0] *= 0.5
        weight[-1] *= 1.0 + self.beyond
        by_log = share - weight * float(share.sum())
        return np.asarray(-np.cumsum(by_log[::-1])[::-1][1:])

    def shape(self) -> Shape:
        return Shape(self.masses, self.ratio, self.shift)


@dataclass(frozen=True)
class Cost:
    """The cost of a noise, to be minimised: "variance", "absolute" (E|X|) or "usefulness" (P(|X| > gamma))."""

    objective: str = "variance"
    gamma: float = 1.0

    def of(self, law: Law) -> tuple[float, Array]:
        """ln cost and its gradient by f(0 … M), with the tail proportional to f(M)."""
        last = len(law.masses) - 1
        c = np.arange(last + 1) / law.shift
        # E (M + G)^k beyond the last cell, G geometric from 1.
        first, width, far = 1.0 / (1.0 - law.ratio), 1.0 / law.shift, last / law.shift
        if self.objective == "variance":
            values, beyond = c * c, far * far + width * first * (2.0 * far + width * (1.0 + law.ratio) * first)
        elif self.objective == "absolute":
            values, beyond = c, far + width * first
        else:
            values, beyond = (c > self.gamma + 1e-9).astype(np.float64), 1.0
        values = 2.0 * values
        values[-1] += 2.0 * beyond * law.beyond
        cost = float(values @ law.masses)
        return math.log(cost), values / cost


class Surrogate:
    """ln δ of T releases at ε, and its gradient by the masses, of both directions; not certified."""

    def __init__(self, shift: int, cells: int, epsilon: float, sampling_prob: float, count: int) -> None:
        self.shift, self.cells, self.epsilon, self.q, self.count = shift, cells, epsilon, sampling_prob, count
        x = np.arange(-cells, cells + shift + 1)
        self.here, self.there = np.abs(x), np.abs(x - shift)
        self.tilt: dict[int, float] = {}

    def laws(self, law: Law) -> tuple[Array, Array]:
        """f(x), f(x − D) on the line, the two tails lumped in front and behind."""
        tail = law.masses[-1] * law.ratio ** np.arange(1, self.shift + 1)
        side = np.concatenate([law.masses, tail])
        beyond, fade = law.masses[-1] * law.ratio / (1.0 - law.ratio), law.ratio**self.shift
        still = np.concatenate([[beyond], side[self.here], [beyond * fade]])
        moved = np.concatenate([[beyond * fade], side[self.there], [beyond]])
        return still, moved

    def pull(self, law: Law, by_still: Array, by_moved: Array) -> Array:
        """Gradient by f(0 … M), with the tail proportional to f(M) (its ratio is held fixed)."""
        size = self.cells + self.shift + 1
        found = np.bincount(self.here, by_still[1:-1], size) + np.bincount(self.there, by_moved[1:-1], size)
        beyond, fade = law.ratio / (1.0 - law.ratio), law.ratio**self.shift
        powers = law.ratio ** np.arange(1, self.shift + 1)
        last = float(found[self.cells + 1 :] @ powers)
        last += beyond * (by_still[0] + fade * by_still[-1] + fade * by_moved[0] + by_moved[-1])
        kept = np.array(found[: self.cells + 1], dtype=np.float64)
        kept[-1] += last
        return kept

    def evaluate(self, law: Law) -> list[tuple[float, Array]]:
        """(ln δ, ∂ ln δ/∂f (M+1,)) of "remove", and of "add" if it differs because of sampling."""
        still, moved = self.laws(law)
        q = self.q
        mixed = moved if q == 1.0 else (1.0 - q) * still + q * moved
        answers = []
        for direction in (0, 1) if q < 1.0 else (0,):
            first, second = (mixed, still) if direction == 0 else (still, mixed)
            value, by_first, by_second = self._one(direction, first, second)
            by_mixed, by_still = (by_first, by_second) if direction == 0 else (by_second, by_first)
            gradient = self.pull(law, by_still + (1.0 - q) * by_mixed, q * by_mixed)
            spent = value > 1e-200
            answers.append((math.log(value), gradient / value) if spent else (-500.0, np.zeros_like(gradient)))
        return answers

    def _one(self, direction: int, first: Array, second: Array) -> tuple[float, Array, Array]:
        losses = np.log(first / second)
        above_first, above_second = self._others(direction, losses, first)
        by_first = self.count * above_first
        by_second = -self.count * above_second
        value = float(first @ above_first - second @ above_second)
        return value, by_first, by_second

    def _others(self, direction: int, losses: Array, masses: Array) -> tuple[Array, Array]:
        """S_P(ε − l) and e^ε·S_Q(ε − l) at every loss, of T − 1 releases."""
        others, epsilon = self.count - 1, self.epsilon
        if others == 0:
            inside = (losses > epsilon).astype(float)
            return inside, math.exp(epsilon) * inside
        tilt = self._tilt(direction, losses, masses)
        weights = np.log(masses) + tilt * losses
        log_moment = float(np.logaddexp.reduce(weights))
        tilted = np.exp(weights - log_moment)
        mean = float(tilted @ losses)
        spread = math.sqrt(max(others * float(tilted @ (losses - mean) ** 2), 1e-24))
        # The window must hold the tilted sum, and ε − l for the losses that matter.
        low = max(min(others * mean - 12.0 * spread, epsilon - float(losses.max())), others * float(losses.min()))
        high = min(max(others * mean + 14.0 * spread, epsilon - float(losses.min())), others * float(losses.max()))
        high = min(high, others * mean + 60.0 / max(tilt, 1e-3) + 14.0 * spread)
        step = max((high - low) / (GRID - 8), 1e-15)
        place = losses / step
        floor = np.floor(place)
        upper = place - floor
        index = floor.astype(np.int64)
        size = GRID
        grid = np.bincount(index % size, tilted * (1.0 - upper), size)
        grid += np.bincount((index + 1) % size, tilted * upper, size)
        total = scipy.fft.irfft(scipy.fft.rfft(grid) ** others, size)
        start = math.floor(low / step)
        total = np.maximum(np.roll(total, -(start % size)), 0.0)
        points = (start + np.arange(size)) * step
        scale = others * log_moment
        first = np.exp(np.clip(scale - tilt * points, -700.0, 700.0)) * total
        second = np.exp(np.clip(scale - (tilt + 1.0) * points + epsilon, -700.0, 700.0)) * total
        sums = [np.append(np.cumsum(part[::-1])[::-1], 0.0) for part in (first, second)]
        # Mass above y: the grid point at or above y + step/2, linear between.
        edges = np.append(points - 0.5 * step, points[-1] + 0.5 * step)
        wanted = epsilon - losses
        above_first = np.interp(wanted, edges, sums[0])
        above_second = np.interp(wanted, edges, sums[1])
        return np.minimum(above_first, 1.0), above_second

    def _tilt(self, direction: int, losses: Array, masses: Array) -> float:
        """λ near the saddle point of δ(ε); found once, then updated by a few Newton steps in ln λ."""
        logs = np.log(masses)

        def bound(log_tilt: float) -> float:
            tilt = math.exp(log_tilt)
            cumulant = float(np.logaddexp.reduce(logs + tilt * losses))
            return self.count * cumulant - tilt * self.epsilon + tilt * log_tilt - (tilt + 1.0) * math.log1p(tilt)

        best = self.tilt.get(direction, 1.0)
        least = bound(best)
        for width in (1.0, 0.25):
            for side in (-width, width):
                while -5.0 < best + side < 14.0 and (found := bound(best + side)) < least:
                    best, least = best + side, found
        self.tilt[direction] = best
        return math.exp(best)


class Descent:
    """One search: ln cost and ln δ as functions of the knots, and steps that never worsen a feasible distribution."""

    def __init__(
        self,
        start: Shape,
        epsilon: float,
        delta: float,
        sampling_prob: float,
        count: int,
        cost: Cost,
    ) -> None:
        self.shift, self.cells, self.cost = start.shift, len(start.masses) - 1, cost
        self.surrogate = Surrogate(self.shift, self.cells, epsilon, sampling_prob, count)
        self.wanted = math.log(delta)
        falls = np.maximum(-np.diff(np.log(start.masses)), 0.0)
        self.basis = Basis.of(falls, self.shift)
        theta = np.interp(self.basis.at, np.arange(1.0, self.cells + 1.0), falls)
        self.unit = np.maximum(theta, 0.1 * float(theta.mean()) + 1e-12)
        self.best, self.best_cost = self.flattened(theta)

    def law(self, theta: Array) -> Law:
        return Law.of(self.basis.falls(theta), self.shift)

    def flattened(self, theta: Array) -> tuple[Array, float]:
        """τ·θ with the largest τ that is within δ (the log density made flatter, or steeper), and ln of its cost."""

        def over(factor: float) -> bool:
            return max(value for value, _ in self.surrogate.evaluate(self.law(factor * theta))) > self.wanted

        low, high = 1.0, 1.0
        for _ in range(40):
            if not over(low):
                break
            low, high = low / 1.05, low
        while high < 20.0 and not over(high):
            low, high = high, high * 1.05
        for _ in range(14):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if over(middle) else (middle, high)
        return low * theta, self.cost.of(self.law(low * theta))[0]

    def multipliers(self, theta: Array) -> Array:
        """The change of ln cost per unit of ln δ along τ, assigned to the binding direction."""
        near, far = self.law(theta), self.law(1.001 * theta)
        at = [value for value, _ in self.surrogate.evaluate(near)]
        rise = [value - before for (value, _), before in zip(self.surrogate.evaluate(far), at, strict=True)]
        gain = self.cost.of(near)[0] - self.cost.of(far)[0]
        found = np.zeros(len(at))
        binding = int(np.argmax(at))
        if rise[binding] > 0.0:
            found[binding] = max(0.0, gain / rise[binding])
        return found

    def step(self, trust: float, penalty: float, multipliers: Array) -> Array:
        """The result of L-BFGS-B within `trust` units of the best knots, for the augmented Lagrangian."""

        def value(scaled: Array) -> tuple[float, Array]:
            law = self.law(scaled * self.unit)
            total, by_mass = self.cost.of(law)
            for k, (log_delta, gradient) in enumerate(self.surrogate.evaluate(law)):
                pressure = max(0.0, multipliers[k] + penalty * (log_delta - self.wanted))
                total += (pressure**2 - multipliers[k] ** 2) / (2.0 * penalty)
                by_mass = by_mass + pressure * gradient
            return total, self.basis.pull(law.by_falls(by_mass)) * self.unit

        start = self.best / self.unit
        found = minimize(
            value,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[(max(0.0, x - trust), x + trust) for x in start],
            options={"maxiter": STEPS, "maxcor": 20},
        )
        return np.asarray(found.x * self.unit)


def improve(start: Shape, epsilon: float, delta: float, sampling_prob: float, count: int, cost: Cost) -> Shape:
    """A shape of at most `start`'s cost, with about δ(ε) = delta; its ε must still be calibrated and certified."""
    search = Descent(start, epsilon, delta, sampling_prob, count, cost)
    trust, penalty, idle = 0.5, 1.0, 0
    multipliers = search.multipliers(search.best)
    for _ in range(ROUNDS):
        theta, found = search.flattened(search.step(trust, penalty, multipliers))
        gain = search.best_cost - found
        if gain > 0.0:
            search.best, search.best_cost = theta, found
            multipliers = search.multipliers(theta)
            trust = min(2.0 * trust, 1.0)
        else:
            trust, penalty = 0.3 * trust, 2.0 * penalty
        idle = idle + 1 if gain < 2e-4 else 0
        if idle >= 4 or trust < 1e-3:
            break
    return search.law(search.best).shape()
