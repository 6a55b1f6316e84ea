"""The families that a search covers: each calibrated to (ε, δ), with its parameters besides the scale optimised.

A family is a scale and at most one further parameter at a time (power, corner, step, share, spread), searched by a few
golden sections; the scale is the least whose ε, by the lattice accountant, is within budget. Floats only: the result
is a starting point for a table, which is accounted and certified separately.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scipy.special import erfc

from dpzo.errors import DpzoError
from dpzo.noise import families, lattice_pld
from dpzo.noise.mixture import LaplaceMixture
from dpzo.noise.shape import Shape
from dpzo.noise.tabulate import ScalarLaw

COARSE = 1e-3
"""Tolerance of the accountant while searching, and of a scale in ln."""
NARROW = 0.05
"""Golden sections end at this share of a parameter's range."""


@dataclass(frozen=True)
class SearchTask:
    """The search's requirements: (ε, δ) of `steps` releases at sampling probability q, and the cost to minimise.

    `objective`: "variance", "absolute" (E|X|) or "usefulness" (P(|X| > gamma), gamma in clip norms).
    """

    epsilon: float
    delta: float
    sampling_prob: float
    steps: int
    objective: str = "variance"
    gamma: float = 1.0

    def cost(self, shape: Shape) -> float:
        """The cost that is minimised."""
        if self.objective == "variance":
            return shape.variance
        return shape.mean_absolute if self.objective == "absolute" else 1.0 - shape.usefulness(self.gamma)

    def gaussian_cost(self, noise_multiplier: float) -> float:
        """The same of continuous Gaussian noise."""
        if self.objective == "variance":
            return noise_multiplier**2
        if self.objective == "absolute":
            return noise_multiplier * math.sqrt(2.0 / math.pi)
        return float(erfc(self.gamma / (noise_multiplier * math.sqrt(2.0))))

    def spent(self, shape: Shape, tolerance: float) -> float:
        """ε of a shape; ∞ if no ε is proved at this δ."""
        return lattice_pld.epsilon(shape, self.delta, self.sampling_prob, self.steps, tolerance=tolerance)


@dataclass(frozen=True)
class Candidate:
    """A calibrated member of a family: `at` gives the member at another scale, which a certification may need."""

    family: str
    at: Callable[[float], ScalarLaw]
    scale: float
    cells: int
    cost: float

    @property
    def member(self) -> ScalarLaw:
        return self.at(self.scale)

    def shape(self, factor: float = 1.0) -> Shape:
        """On cells, with its scale times `factor`."""
        return self.at(self.scale * factor).shape(self.cells)


def cells_for(std: float, fine: int = 24) -> int:
    """Cells in a clip norm: a power of two, at least `fine` in a standard deviation where 128 allow it."""
    return int(2 ** min(7, max(0, math.ceil(math.log2(fine / std)))))


def calibrated(
    task: SearchTask, name: str, at: Callable[[float], ScalarLaw], start: float, tolerance: float = COARSE
) -> Candidate:
    """The least scale within budget, to `tolerance` in ε. Errors: DpzoError when no scale reaches the ε."""
    fine = 24 if tolerance >= COARSE else 64

    def cells_at(scale: float) -> int:
        return max(cells_for(math.sqrt(at(scale).variance), fine), 8 if name == "staircase" else 1)

    cells = cells_at(start)

    def excess(log_scale: float) -> float:
        spent = task.spent(at(math.exp(log_scale)).shape(cells), tolerance)
        return math.log(max(min(spent, 1e6), 1e-9) / (task.epsilon * (1.0 - 0.3 * tolerance)))

    x = math.log(start)
    here = excess(x)
    for _ in range(40):
        width = 0.05 if abs(here) < 0.05 else min(1.0, 0.8 * abs(here))
        other = x + math.copysign(width, here)
        there = excess(other)
        if (here > 0.0) != (there > 0.0):
            break
        x, here = other, there
        cells = cells_at(math.exp(x))
        here = excess(x)
    else:
        raise DpzoError(f"{name}: no scale reaches `epsilon` {task.epsilon:g} at `delta` {task.delta:g}")
    low, at_low, high, at_high = (x, here, other, there) if here > 0.0 else (other, there, x, here)
    for _ in range(30):
        if at_high > -tolerance or high - low < 1e-7:
            break
        share = min(max(at_low / (at_low - at_high), 0.02), 0.98) if at_low < 5.0 else 0.5
        middle = low + share * (high - low)
        found = excess(middle)
        if found > 0.0:
            low, at_low = middle, found
        else:
            # An extra half step if the secant always moves the same end.
            high, at_high = middle, found
            if at_high < -tolerance:
                middle = 0.5 * (low + high)
                found = excess(middle)
                if found > 0.0:
                    low, at_low = middle, found
                else:
                    high, at_high = middle, found
    scale = math.exp(high)
    return Candidate(name, at, scale, cells, task.cost(at(scale).shape(cells)))


def polished(task: SearchTask, candidate: Candidate) -> Candidate:
    """The same member on finer cells, its scale to a tenth of the tolerance."""
    return calibrated(task, candidate.family, candidate.at, candidate.scale, 0.1 * COARSE)


def least(low: float, high: float, of: Callable[[float], Candidate]) -> Candidate:
    """The candidate of least cost over one parameter in [low, high], both ends included: golden section."""
    found: dict[float, Candidate] = {}

    def cost(x: float) -> float:
        if x not in found:
            found[x] = of(x)
        return found[x].cost

    golden = 0.5 * (math.sqrt(5.0) - 1.0)
    a, b = low, high
    c, d = b - golden * (b - a), a + golden * (b - a)
    while b - a > NARROW * (high - low):
        if cost(c) < cost(d):
            b, d = d, c
            c = b - golden * (b - a)
        else:
            a, c = c, d
            d = a + golden * (b - a)
    for end in (low, high):
        if abs(0.5 * (a + b) - end) < 2.0 * NARROW * (high - low):
            cost(end)
    return min(found.values(), key=lambda candidate: candidate.cost)


def candidates(task: SearchTask, noise_multiplier: float) -> Iterator[tuple[str, Callable[[], Candidate]]]:
    """Each family's name and its search; `noise_multiplier` is the calibrated Gaussian's."""
    known: dict[str, float] = {"std": noise_multiplier * min(1.4, math.sqrt(0.06 * task.steps + 0.05))}

    def member(name: str, at: Callable[[float], ScalarLaw], unit_std: float) -> Candidate:
        """Calibrate, starting from the previous member's scale."""
        found = calibrated(task, name, at, known["std"] / unit_std)
        known["std"] = math.sqrt(found.member.variance)
        return found

    def power_law(power: float, name: str = "generalised normal") -> Candidate:
        unit = math.sqrt(families.GeneralisedNormal(1.0, power).variance)
        return member(name, lambda scale: families.GeneralisedNormal(scale, power), unit)

    def huber(log_corner: float) -> Candidate:
        corner = math.exp(log_corner)
        unit = math.sqrt(families.Huber(1.0, corner).variance)
        return member("huber", lambda scale: families.Huber(scale, corner), unit)

    def staircase(shift: float) -> Candidate:
        def at(scale: float) -> ScalarLaw:
            gamma = families.Staircase.best(1.0 / scale).gamma
            odds = gamma / (1.0 - gamma) * math.exp(shift)
            return families.Staircase(1.0 / scale, odds / (1.0 + odds))

        return member("staircase", at, math.sqrt(2.0))

    def truncated(logit: float) -> Candidate:
        share = 1.0 / (1.0 + math.exp(-logit))
        lost = min(0.4, share * task.delta / (task.steps * task.sampling_prob))

        def at(scale: float) -> ScalarLaw:
            return families.TruncatedLaplace(scale, families.TruncatedLaplace.of(1.0 / scale, lost).reach)

        return member("truncated laplace", at, math.sqrt(2.0))

    def mixture(parts: tuple[float, float, float], spread: float) -> Candidate:
        gamma, exponential, uniform = parts
        shape = 1.0 / spread**2
        unit = LaplaceMixture(gamma, shape, 1.0 / shape, exponential, 1.0, uniform, 1.0 - spread, 1.0 + spread)
        return member("lmo", unit.scaled, math.sqrt(unit.finite_variance()))

    def mixtures() -> Candidate:
        gamma = least(0.02, 0.4, lambda spread: mixture((1.0, 0.0, 0.0), spread))
        uniform = least(0.02, 0.6, lambda spread: mixture((0.0, 0.0, 1.0), spread))
        return min((gamma, uniform, mixture((0.4, 0.1, 0.5), 0.1)), key=lambda candidate: candidate.cost)

    yield "laplace", lambda: power_law(1.0, "laplace")
    yield (
        "generalised normal",
        lambda: min((power_law(1.005), least(1.05, 2.6, power_law)), key=lambda candidate: candidate.cost),
    )
    yield "huber", lambda: least(math.log(0.2), math.log(5.0), huber)
    yield "staircase", lambda: least(-1.5, 1.5, staircase)
    yield "truncated laplace", lambda: least(-3.0, 3.0, truncated)
    yield "lmo", mixtures
