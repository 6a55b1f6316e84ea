"""Many tests, one verdict: the smallest of their exact p-values, times their number."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import special, stats

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Defect:
    """`check` fails: `what` was seen, which a sound channel shows with probability at most `chance`."""

    check: str
    what: str
    chance: float

    def __str__(self) -> str:
        certain = "never on a sound channel" if self.chance == 0.0 else f"probability {self.chance:.1g} if sound"
        return f"{self.check}: {self.what} ({certain})"


@dataclass
class CheckTally:
    """Collects p-values under the name of one check.

    Guarantee: every p-value added is valid (P(p ≤ x) ≤ x on a sound channel, for every x and every number of draws),
    so by the union bound `finding(miss)` exists on a sound channel with probability at most `miss`.
    """

    check: str
    tests: int = 0
    _least: dict[str, float] = field(default_factory=dict)

    def add(self, what: str, chances: npt.ArrayLike, tests: int | None = None) -> None:
        """p-values of as many tests; `tests`: how many they are the smallest ones of."""
        found = np.asarray(chances, dtype=np.float64).ravel()
        if found.size == 0:
            return
        self.tests += found.size if tests is None else tests
        least = float(np.nanmin(np.append(found, 1.0)))
        self._least[what] = min(least, self._least.get(what, 1.0))

    def finding(self, miss: float) -> Defect | None:
        """The first failed test, if the smallest p-value is below `miss` ÷ the number of tests."""
        if not self._least or self.chance > miss:
            return None
        return Defect(self.check, min(self._least, key=lambda name: self._least[name]), self.chance)

    @property
    def chance(self) -> float:
        """The smallest p-value times the number of tests: a p-value of all of them together."""
        return min(1.0, min(self._least.values()) * self.tests) if self._least else 1.0


def both_sides(below: npt.ArrayLike, above: npt.ArrayLike) -> Numbers:
    """Two-sided p-values from P(≤ seen) and P(≥ seen)."""
    return np.asarray(np.minimum(1.0, 2.0 * np.minimum(below, above)), dtype=np.float64)


def of_count(found: npt.ArrayLike, trials: npt.ArrayLike, probability: npt.ArrayLike) -> Numbers:
    """Two-sided exact binomial p-values of counts."""
    hits = np.asarray(found, dtype=np.float64)
    return both_sides(stats.binom.cdf(hits, trials, probability), stats.binom.sf(hits - 1.0, trials, probability))


def of_squares(sums: npt.ArrayLike, counts: npt.ArrayLike) -> Numbers:
    """Two-sided p-values of Σz², which is χ² with as many degrees of freedom as normals."""
    half, degrees = np.asarray(sums, dtype=np.float64) / 2.0, np.asarray(counts, dtype=np.float64) / 2.0
    return both_sides(special.gammainc(degrees, half), special.gammaincc(degrees, half))


def of_sums(sums: npt.ArrayLike, squared_weights: npt.ArrayLike) -> Numbers:
    """Two-sided p-values of Σwz, which is normal with variance Σw²."""
    spread = np.sqrt(np.asarray(squared_weights, dtype=np.float64))
    return np.asarray(2.0 * special.ndtr(-np.abs(np.asarray(sums, dtype=np.float64)) / spread))


def of_correlation(products: Numbers, squares: Numbers, pairs: int) -> Numbers:
    """p-values of ⟨x, y⟩, given ‖x‖²‖y‖², x and y independent normals: the squared cosine is Beta(½, (n−1)/2).

    The angle's distribution needs only one of the two to be spherical, so y may be anything independent of x.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = 1.0 - np.where(squares > 0.0, products**2 / squares, 0.0)
    return np.asarray(special.betainc((pairs - 1) / 2.0, 0.5, np.clip(rest, 0.0, 1.0)))
