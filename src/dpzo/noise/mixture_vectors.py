"""ε of a Laplace mixture drawn independently for each coordinate of a vector: two proved routes, two refused ones.

- **l1**: rows of L1 norm ≤ C. The one-dimensional Rényi bound holds in any dimension (`LaplaceMixture.renyi_bound`, at
  orders inside its radius), and so does pure ε = L·C, L the log-Lipschitz constant, because Σ|s_i|·L ≤ L·C. Such rows
  are also within C in L2, so the next bound applies too; the least of the three is used at each order.
- **l2**: rows of L2 norm ≤ C. A coordinate that moves by s loses at most ε_s = L·s, pure, hence D_α ≤ α·ε_s²/2; summed
  over coordinates ρ = L²C²/2 zCDP, in any dimension. The cost is that a Gaussian with this ρ has std C/L.
- **l2_scalar**, refused: L2 rows with the scalar's ε. A row spread over d coordinates loses more than the same row on
  one, up to what a Gaussian of variance 1/(Fisher information) would.
- **equivalent_gaussian**, refused: composing as the Gaussian that has the same (ε, δ) for one release. One point of a
  privacy curve says nothing about its composition.

Sources: Bun and Steinke 2016, proposition 3.3 (pure ε to zCDP); Mironov, Talwar and Zhang 2019 (Poisson sampling).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dpzo.errors import DpzoError
from dpzo.noise.mixture import LaplaceMixture
from dpzo.privacy.accounting.query import check_delta
from dpzo.privacy.accounting.renyi import amplified

ORDERS = (*range(2, 65), *range(72, 257, 8), 512, 1024)

REFUSED = {
    "l2_scalar": (
        "i.i.d. coordinates on an L2-clipped vector do not have the scalar's epsilon: a row spread over many of them "
        "feels Gaussian noise of variance 1/(Fisher information); clip in L1, use the l2 route, or gaussian"
    ),
    "equivalent_gaussian": (
        "an 'equivalent sigma' matches one (epsilon, delta) of one release, which bounds nothing after composition: "
        "compose the noise itself by the l1 or l2 route"
    ),
}


@dataclass(frozen=True)
class VectorBound:
    """(ε, δ) of `count` releases of a vector; the Rényi order that gives it (∞: pure ε); the cost in variance.

    `price`: variance per coordinate ÷ that of the Gaussian with the same zCDP at this clip (never below 1).
    """

    epsilon: float
    order: float
    price: float

    def __str__(self) -> str:
        against = f"{self.price:.3g} × the variance of the Gaussian of equal ρ"
        return f"ε = {self.epsilon:.4g} at order {self.order:g}; {against}"


def vector_epsilon(
    mixture: LaplaceMixture, route: str, delta: float, sampling_prob: float = 1.0, count: int = 1
) -> VectorBound:
    """Smallest ε proved for `count` releases, i.i.d. coordinates in units of the clip norm, by `route` ("l1" or "l2").

    Errors: DpzoError with the reason on a refused route, an unknown one, infinite variance or δ out of range.
    """
    if route in REFUSED:
        raise DpzoError(REFUSED[route])
    if route not in ("l1", "l2"):
        raise DpzoError(f"no route {route!r} for vectors: use l1 or l2")
    check_delta(delta)
    if not 0.0 < sampling_prob <= 1.0 or count < 1:
        raise DpzoError("sampling probability must be in (0, 1] and the number of releases at least 1")
    price = mixture.finite_variance() * mixture.log_lipschitz**2
    best, at = math.inf, math.inf
    if route == "l1":
        best = count * math.log1p(sampling_prob * math.expm1(min(mixture.log_lipschitz, 700.0)))
    if delta == 0.0:
        if route == "l2":
            raise DpzoError("no pure ε holds for L2 rows of every dimension: give a `delta` above 0, or clip in L1")
        return VectorBound(best, at, price)
    for order, bound in _curve(mixture, route, sampling_prob):
        converted = count * bound + math.log1p(-1.0 / order) - math.log(delta * order) / (order - 1.0)
        if converted < best:
            best, at = converted, float(order)
    return VectorBound(max(0.0, best), at, price)


def _curve(mixture: LaplaceMixture, route: str, sampling_prob: float) -> Iterator[tuple[int, float]]:
    """Integer orders α, and bounds on D_α of one release."""
    cumulants = [0.0, 0.0]
    for order in ORDERS:
        for j in range(len(cumulants), order + 1):
            bound = mixture.zcdp() * j
            if route == "l1":
                inside = j - 1.0 < mixture.radius
                bound = min(bound, mixture.log_lipschitz, mixture.renyi_bound(j) if inside else math.inf)
            cumulants.append((j - 1) * bound)
        if sampling_prob == 1.0:
            yield order, cumulants[order] / (order - 1)
        else:
            yield order, amplified(np.array(cumulants), sampling_prob)
