"""The plan for vectors with a published mixture on every coordinate: from sampler, distribution, clip and steps to ε.

`PrivacyPlan` holds mechanisms that are sampled exactly. Mixture noise on a vector is drawn in floats (`baselines.lmo`),
so its ε holds in real arithmetic only, and it has a plan type of its own. One object defines both the sampled and the
accounted noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from dpzo.errors import DpzoError
from dpzo.noise.mixture import LaplaceMixture
from dpzo.noise.mixture_vectors import VectorBound, vector_epsilon
from dpzo.noise.published import DELTA, PUBLISHED, published
from dpzo.privacy.accounting.headline import epsilon as event_epsilon
from dpzo.privacy.events import ComposedEvent, GaussianEvent, NeighboringRelation
from dpzo.privacy.sampling import FullBatch, PoissonSampling, Sampler

PREFIX, AS_CODED = "lmo-", "-as-coded"

BOUNDS = {
    "l1": "RDP of rows clipped in L1, in any dimension (own: the mixture's bound inside its radius, pure ε, L²/2 zCDP)",
    "l2": "zCDP of rows clipped in L2, in any dimension (own: ρ = L²/2 of a log-Lipschitz law)",
}
ORDERS = {"l1": 1, "l2": 2}


@lru_cache(maxsize=64)
def _law(label: str, as_coded: bool) -> tuple[LaplaceMixture, float]:
    """A published distribution and its standard deviation, in units of clip_norm. DpzoError for an unknown label."""
    found = published(label).mixture
    law = found.sampled_as_scale() if as_coded else found
    return law, math.sqrt(law.finite_variance())


@dataclass(frozen=True)
class MixtureNoise:
    """The distribution of a published set, scaled to `noise_multiplier` (standard deviation ÷ clip_norm). Public.

    `as_coded`: the distribution that the published sampler draws, which uses the exponential's rate as a scale.
    """

    label: str
    as_coded: bool
    noise_multiplier: float

    def __post_init__(self) -> None:
        _law(self.label, self.as_coded)
        if not 0.0 < self.noise_multiplier < math.inf:
            raise DpzoError("`noise_multiplier` must be a positive finite number")

    @property
    def name(self) -> str:
        """As in `privacy.mechanism`: lmo-0.3, lmo-useful-2-as-coded."""
        return PREFIX + self.label.replace(" ", "-") + (AS_CODED if self.as_coded else "")

    @property
    def stretch(self) -> float:
        """Standard deviation ÷ that of the set as published: 1 for the paper's own noise."""
        return self.noise_multiplier / _law(self.label, self.as_coded)[1]

    @property
    def law(self) -> LaplaceMixture:
        """The distribution of one coordinate, in units of clip_norm."""
        return _law(self.label, self.as_coded)[0].scaled(self.stretch)


def mixture_names() -> tuple[str, ...]:
    """Every name that `mixture_noise` accepts."""
    return tuple(PREFIX + label.replace(" ", "-") + suffix for label in PUBLISHED for suffix in ("", AS_CODED))


def mixture_noise(mechanism: str, noise_multiplier: float | None = None) -> MixtureNoise:
    """The noise of `mechanism` (lmo-LABEL, or lmo-LABEL-as-coded), as published if no multiplier is given.

    >>> mixture_noise("lmo-0.3").name, round(mixture_noise("lmo-0.3").noise_multiplier, 3)
    ('lmo-0.3', 7.124)
    """
    if mechanism not in mixture_names():
        known = ", ".join(name for name in mixture_names() if not name.endswith(AS_CODED))
        raise DpzoError(f"`mechanism` {mechanism}: no published set of LMO noise; use one of {known}")
    as_coded = mechanism.endswith(AS_CODED)
    label = mechanism.removeprefix(PREFIX).removesuffix(AS_CODED).replace("-", " ")
    own = _law(label, as_coded)[1]
    return MixtureNoise(label, as_coded, own if noise_multiplier is None else noise_multiplier)


@dataclass(frozen=True)
class MixturePlan:
    """T releases of Σ clipped rows + clip_norm·X, with X i.i.d. from `mechanism` on every coordinate. Public.

    `route`: "l1" or "l2", the norm in which rows are clipped and the bound that follows; others are refused with the
    reason. Guarantee, in real arithmetic: (`epsilon`, `delta`) under `relation`. DpzoError on a number out of range, on
    δ = 0, and under replace_one, for which sampled mixtures have no proof here.
    """

    num_examples: int
    sampler: Sampler
    mechanism: MixtureNoise
    route: str
    clip_norm: float
    steps: int
    delta: float
    relation: NeighboringRelation = NeighboringRelation.ZERO_OUT

    def __post_init__(self) -> None:
        if self.route not in ORDERS:
            vector_epsilon(self.mechanism.law, self.route, self.delta)  # raises with the reason
        for argument, count in (("num_examples", self.num_examples), ("steps", self.steps)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise DpzoError(f"`{argument}` must be a whole number of at least 1")
        if not 0.0 < self.clip_norm < math.inf:
            raise DpzoError("`clip_norm` must be a positive finite number (gradient units)")
        if not 0.0 < self.delta < 1.0:
            raise DpzoError("`delta` must lie in (0, 1) for noise on a vector; 1e-5 is a usual choice")
        if self.relation is NeighboringRelation.REPLACE_ONE:
            raise DpzoError("`relation` replace_one: not proved for mixture noise on vectors; use zero_out")

    @cached_property
    def bound(self) -> VectorBound:
        """ε, the Rényi order that gives it, and the cost in variance."""
        return vector_epsilon(self.mechanism.law, self.route, self.delta, self.sampler.sampling_prob, self.steps)

    @property
    def epsilon(self) -> float:
        """The ε that is proved for all T releases."""
        return self.bound.epsilon

    @property
    def accountant(self) -> str:
        """The bound that `epsilon` uses."""
        return BOUNDS[self.route]

    @property
    def norm_order(self) -> int:
        """1 or 2: the norm in which rows are clipped."""
        return ORDERS[self.route]

    @property
    def expected_batch_size(self) -> float:
        """q·N."""
        return self.sampler.sampling_prob * self.num_examples

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of a coordinate's noise ÷ clip_norm."""
        return self.mechanism.noise_multiplier

    @property
    def noise_scale(self) -> float:
        """Standard deviation of a coordinate's noise, gradient units."""
        return self.mechanism.noise_multiplier * self.clip_norm

    def gaussian_epsilon(self, noise_multiplier: float | None = None) -> float:
        """ε of the same releases with Gaussian noise, by default of the same standard deviation; L2 rows."""
        noise = self.noise_multiplier if noise_multiplier is None else noise_multiplier
        event = ComposedEvent(self.sampler.event(GaussianEvent(noise)), self.steps)
        return event_epsilon(event, self.delta, self.relation)

    @property
    def spread_epsilon(self) -> float | None:
        """Lower bound on ε of the worst L2 rows in high dimension: the limit of rows spread evenly; None for L1.

        That limit is Gaussian noise of variance 1/(Fisher information) (local asymptotic normality).
        """
        if self.route == "l1":
            return None
        return self.gaussian_epsilon(1.0 / math.sqrt(self.mechanism.law.fisher_information))

    def facts(self) -> dict[str, Any]:
        """The noise, the claim of its label, and its proved ε: plain data for a card.

        `label`: the paper's ε of one unsampled release at δ = 1e-10, and the one proved for this noise by this route.
        """
        noise, law = self.mechanism, self.mechanism.law
        once = vector_epsilon(law, self.route, DELTA)
        return {
            "law": law.name,
            "published_set": noise.label,
            "drawn": "as coded (rate taken for a scale)" if noise.as_coded else "as written",
            "stretch": noise.stretch,
            "label": {"epsilon": published(noise.label).claimed_epsilon, "proved": once.epsilon, "delta": DELTA},
            "bound": self.accountant,
            "epsilon": self.bound.epsilon,
            "order": None if self.bound.order == math.inf else self.bound.order,
            "price": self.bound.price,
            "gaussian_of_same_deviation": self.gaussian_epsilon(),
            "spread_rows": self.spread_epsilon,
        }


def solve_mixture_plan(
    *,
    num_examples: int,
    expected_batch_size: float,
    steps: int,
    delta: float,
    mechanism: str,
    route: str,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    clip_norm: float = 1.0,
    relation: NeighboringRelation = NeighboringRelation.ZERO_OUT,
) -> MixturePlan:
    """The plan for `noise_multiplier`, or for the least noise whose proved ε is at most `epsilon` (to 0.1 %).

    Give exactly one. Raises DpzoError on a value that is out of range, unsupported, or unattainable.
    """
    if (epsilon is None) == (noise_multiplier is None):
        raise DpzoError("give exactly one of `epsilon` and `noise_multiplier`")
    if not 0 < expected_batch_size <= num_examples:
        raise DpzoError("`expected_batch_size` must lie between 0 and `num_examples`")
    full = expected_batch_size == num_examples
    sampler = FullBatch() if full else PoissonSampling(expected_batch_size / num_examples)
    noise = mixture_noise(mechanism, noise_multiplier)
    plan = MixturePlan(num_examples, sampler, noise, route, clip_norm, steps, delta, relation)
    return plan if epsilon is None else _solved(plan, epsilon)


def _solved(plan: MixturePlan, epsilon: float) -> MixturePlan:
    """Bisection on the logarithm of the noise, as ε decreases with it."""
    if not 0.0 < epsilon < math.inf:
        raise DpzoError("`epsilon` must be a positive finite number")

    def at(log_stretch: float) -> MixturePlan:
        noise = plan.mechanism.noise_multiplier * math.exp(log_stretch)
        return replace(plan, mechanism=replace(plan.mechanism, noise_multiplier=noise))

    low, high = 0.0, 0.0
    while at(high).epsilon > epsilon:
        low, high = high, high + 1.0
        if high > 25.0:
            raise DpzoError(f"`epsilon` {epsilon:g}: no stretch of {plan.mechanism.name} reaches it; raise `epsilon`")
    while low == high or at(low).epsilon <= epsilon:
        low, high = low - 1.0, min(high, low)
        if low < -15.0:
            raise DpzoError(f"`epsilon` {epsilon:g}: hardly any noise gives it already; lower `epsilon`")
    while high - low > 1e-5:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if at(middle).epsilon > epsilon else (low, middle)
    return at(high)
