"""DPZero's theorems as functions: from properties of a loss to clip, smoothing, step size, steps and noise.

Setting: n units, F the mean of their losses f_i over d parameters, every unit in every step, neighbours replace one
unit by another, directions u on the sphere of radius √d.

- Assumption A: each f_i is L-Lipschitz and F is ℓ-smooth.
- Assumption B: A, each f_i is ℓ-smooth, and −H ≼ ∇²F ≼ H with ‖H‖ ≤ ℓ and Tr H ≤ r·‖H‖: r is the effective rank.

Units: L slope (loss per parameter unit), ℓ slope per parameter unit, λ (`smoothing`) and α·slope parameter units; C is
a slope for DPZero, the length of a vector d_i·u for DPGD-0th. Orders are the paper's; **constants were rebuilt from its
proofs**, so treat them as ours. Privacy never depends on a theorem: `Prescription.plan` is accounted exactly.

Source: Zhang et al., DPZero, ICML 2024 (theorems 1 to 3); composition of Kairouz, Oh and Viswanath 2015.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpzo.errors import DpzoError
from dpzo.privacy import FullBatch, Gaussian, NeighboringRelation, PrivacyPlan

TAIL = 2.0 * math.sqrt(2.0 * math.pi)
"""Factor in front of the tail bound."""


def effective_rank(eigenvalues: Sequence[float] | NDArray[np.float64]) -> float:
    """r = Σ|λ_i| / max|λ_i| of a Hessian's eigenvalues, 1 ≤ r ≤ d: the effective number of directions with curvature.

    >>> effective_rank([1.0] * 50)
    50.0
    >>> round(effective_rank([1 / i for i in range(1, 1001)]), 3)  # the spectrum 1/i: about ln d + 0.577
    7.485
    """
    sizes = np.abs(np.asarray(eigenvalues, dtype=np.float64))
    if sizes.ndim != 1 or sizes.size == 0 or not np.isfinite(sizes).all() or sizes.max() == 0.0:
        raise DpzoError("eigenvalues: give a list of finite numbers, not all of them 0")
    return float((sizes / sizes.max()).sum())


def composition_log(epsilon: float, delta: float) -> float:
    """ln(e + ε/δ), the logarithm of the composition theorem. Raises DpzoError unless ε > 0 and 0 < δ < 1."""
    _positive("--epsilon", epsilon)
    if not 0.0 < delta < 1.0:
        raise DpzoError("--delta must lie in (0, 1): the composition theorem has no pure ε")
    return math.log(math.e + epsilon / delta)


def composition_noise(sensitivity: float, steps: int, epsilon: float, delta: float) -> float:
    """Noise std of each of T Gaussian releases of that sensitivity, by the composition theorem.

    Formula: σ = 2Δ·√(2T·ln(e + ε/δ))/ε. Not tight: the exact ε is 0.2 to 0.5 of the nominal one for ε ≤ 16. It is not a
    bound for very large ε (above about 130 at δ = 1e-3, 170 at 1e-5), which `Prescription.plan` rejects.
    Source: Kairouz, Oh and Viswanath 2015, as used in DPZero.
    """
    _positive("sensitivity", sensitivity)
    _count("--steps", steps)
    return 2.0 * sensitivity * math.sqrt(2.0 * steps * composition_log(epsilon, delta)) / epsilon


def mean_noise_std(clip_norm: float, steps: int, num_examples: int, epsilon: float, delta: float) -> float:
    """The paper's σ: std of the noise on the *mean* of n clipped slopes, neighbours by replacement (Δ = 2C/n).

    Formula: σ = 4C·√(2T·ln(e + ε/δ))/(nε).

    >>> round(mean_noise_std(1.0, 1000, 1000, epsilon=2.0, delta=1e-5), 5)
    0.31249
    """
    _positive("--clip-norm", clip_norm)
    _count("--num-examples", num_examples)
    return composition_noise(2.0 * clip_norm / num_examples, steps, epsilon, delta)


def noise_multiplier(steps: int, epsilon: float, delta: float) -> float:
    """The same noise in our convention: std on the *sum* ÷ clip_norm, nσ/C = 4√(2T·ln(e + ε/δ))/ε; n and C cancel.

    It includes the factor 2 of replacement, which a plan's `noise_multiplier` never includes; under `replace_one` the
    accountant doubles the shift instead. So this number is used unchanged.
    """
    return composition_noise(2.0, steps, epsilon, delta)


def tail_bound(
    clip_norm: float, lipschitz: float, *, smoothness: float = 0.0, smoothing: float = 0.0, dimension: int = 1
) -> float:
    """Upper bound on P(|d_i| > C) over one direction: the probability that a unit is clipped. At most 1.

    Formula: 2√(2π)·exp(−C₀²/(8L²)) with C₀ = C − ℓλd/2: |d_i − u·∇f_i| ≤ ℓλ‖u‖²/2, and u·∇f_i concentrates.
    Guarantee: an upper bound (loose: for small λ, d_i is close to N(0, ‖∇f_i‖²) in distribution, see `gaussian_tail`).
    Source: the lemma before theorem 3, constants rebuilt.
    """
    _positive("--clip-norm", clip_norm)
    _positive("lipschitz", lipschitz)
    if not (smoothness >= 0.0 and smoothing >= 0.0 and math.isfinite(smoothness * smoothing)):
        raise DpzoError("smoothness and smoothing must be finite and at least 0")
    _count("dimension", dimension)
    inner = clip_norm - smoothness * smoothing * dimension / 2.0
    if inner <= 0.0:
        return 1.0
    return min(1.0, TAIL * math.exp(-((inner / lipschitz) ** 2) / 8.0))


def gaussian_tail(clip_norm: float, gradient_norm: float) -> float:
    """P(|N(0, ‖∇f_i‖²)| > C) = erfc(C/(√2·‖∇f_i‖)): the share of steps in which a unit is clipped, for small λ.

    Exact for a quadratic loss and Gaussian directions. It shows the right size of a clip norm: a small multiple of the
    per-unit gradient norm, without a factor √d or d.

    >>> round(gaussian_tail(2.0, 1.0), 4)
    0.0455
    """
    _positive("--clip-norm", clip_norm)
    _positive("gradient_norm", gradient_norm)
    return math.erfc(clip_norm / (math.sqrt(2.0) * gradient_norm))


def clip_without_loss(lipschitz: float, num_events: float, failure: float) -> float:
    """C of theorem 3: except with probability `failure`, none of `num_events` = n·T slopes is clipped.

    Formula: C = √2·C₀ = 4L·√ln(2√(2π)·nT/failure), as C₀ = L·√(8 ln(…)); the √2 leaves room for `smoothing_bound`.
    Order L·√log(nd): not L·d (theorems 1 and 2), nor L·√d.
    """
    _positive("lipschitz", lipschitz)
    if not num_events >= 1.0:
        raise DpzoError("num_events must be at least 1: units times steps")
    if not 0.0 < failure < 1.0:
        raise DpzoError("failure must lie in (0, 1): the probability that some slope of the run is clipped")
    return 4.0 * lipschitz * math.sqrt(math.log(TAIL * num_events / failure))


def smoothing_bound(clip_norm: float, smoothness: float, dimension: int) -> float:
    """The largest λ of theorem 3: 2(√2 − 1)·C₀/(ℓd) with C₀ = C/√2, so that C₀ + ℓλd/2 ≤ C. Parameter units."""
    _positive("--clip-norm", clip_norm)
    _positive("smoothness", smoothness)
    _count("dimension", dimension)
    return (2.0 - math.sqrt(2.0)) * clip_norm / (smoothness * dimension)


@dataclass(frozen=True)
class Prescription:
    """The settings that a theorem prescribes. Public: they depend on declared constants alone.

    - `clip_norm`: of a slope (DPZero), of a vector d_i·u (DPGD-0th); `slope_clip`: the bound on one slope.
    - `smoothing`: the largest λ allowed; ∞ if clipping sets no limit (the bias is then of order λ²).
    - `learning_rate` α, `steps` T; `noise_std` σ on the mean (on each coordinate of it for DPGD-0th).
    """

    method: str
    num_examples: int
    dimension: int
    effective_rank: float
    smoothness: float
    epsilon: float
    delta: float
    clip_norm: float
    slope_clip: float
    smoothing: float
    learning_rate: float
    steps: int

    @property
    def noise_std(self) -> float:
        """σ on the mean: `mean_noise_std` at these numbers."""
        return mean_noise_std(self.clip_norm, self.steps, self.num_examples, self.epsilon, self.delta)

    @property
    def noise_multiplier(self) -> float:
        """σ in dpzo's convention: see the function of that name."""
        return noise_multiplier(self.steps, self.epsilon, self.delta)

    def plan(self) -> PrivacyPlan:
        """Full batch, replace-one, one direction per step: a plan whose exact ε is at most the theorem's.

        `plan.clip_norm` is `slope_clip`, as the channel clips slopes; `VectorNoise` multiplies it by √d again.
        Raises DpzoError if the composition theorem's noise would be insufficient.
        """
        plan = PrivacyPlan(
            num_examples=self.num_examples,
            sampler=FullBatch(),
            mechanism=Gaussian(self.noise_multiplier),
            clip_norm=self.slope_clip,
            steps=self.steps,
            num_directions=1,
            delta=self.delta,
            relation=NeighboringRelation.REPLACE_ONE,
        )
        if plan.epsilon > self.epsilon:
            raise DpzoError(
                f"--epsilon {self.epsilon:g}: the composition theorem's noise gives {plan.epsilon:.4g}, it holds for "
                "smaller ε only; choose a smaller one, or solve for the noise with dpzo plan"
            )
        return plan

    def gradient_bound(self, gap: float) -> float:
        """Bound on E‖∇F(x_τ)‖², τ uniform over the steps, when F starts `gap` above its infimum.

        Formula: 2·gap/(αT) + αℓrσ², from E F(x_{t+1}) ≤ E F(x_t) − α/2·E‖∇F‖² + α²ℓrσ²/2, which holds for
        α ≤ 1/(ℓ(r + 2)) as E[(u·g)²·uᵀHu] ≤ ℓ(r + 2)‖g‖² and both noises depend on Tr H ≤ ℓr.
        Guarantee: in the limit of small λ, if no slope is clipped. Derived here; half the paper's constants.
        """
        _positive("gap", gap)
        curvature = self.learning_rate * self.smoothness * self.effective_rank
        return 2.0 * gap / (self.learning_rate * self.steps) + curvature * self.noise_std**2


def dpzero(
    *,
    num_examples: int,
    dimension: int,
    lipschitz: float,
    smoothness: float,
    effective_rank: float,
    epsilon: float,
    delta: float,
    failure: float | None = None,
) -> Prescription:
    """Theorem 3 (assumption B): one noisy scalar per step. E‖∇F‖² = O(√(r·log)/(nε)) up to log(nd), without a factor d.

    T = n(r + 2)ε/(4√(r·ln(e + ε/δ))), α = 1/(4ℓ(r + 2)), C by `clip_without_loss`, λ by `smoothing_bound`.
    `failure`: probability that any slope is clipped, 1/(nd) unless given.
    """
    _problem(num_examples, dimension, lipschitz, smoothness, effective_rank)
    width = math.sqrt(effective_rank * composition_log(epsilon, delta))
    steps = _whole(num_examples * (effective_rank + 2.0) * epsilon / (4.0 * width))
    missed = 1.0 / (num_examples * dimension + 1.0) if failure is None else failure
    clip_norm = clip_without_loss(lipschitz, float(num_examples) * steps, missed)
    return Prescription(
        method="dpzero",
        num_examples=num_examples,
        dimension=dimension,
        effective_rank=effective_rank,
        smoothness=smoothness,
        epsilon=epsilon,
        delta=delta,
        clip_norm=clip_norm,
        slope_clip=clip_norm,
        smoothing=smoothing_bound(clip_norm, smoothness, dimension),
        learning_rate=1.0 / (4.0 * smoothness * (effective_rank + 2.0)),
        steps=steps,
    )


def dpgd_0th(
    *,
    num_examples: int,
    dimension: int,
    lipschitz: float,
    smoothness: float,
    epsilon: float,
    delta: float,
    effective_rank: float | None = None,
) -> Prescription:
    """Theorems 1 (assumption A, `effective_rank` None) and 2 (B): noise on every coordinate. No slope is ever clipped.

    C = L·d, as ‖d_i·u‖ ≤ L‖u‖². Theorem 1: α = 1/(4ℓd), T = nε/√(d·log), error O(d·√(d·log)/(nε)).
    Theorem 2: α = 1/(4ℓ(r + 2)), T = n(r + 2)ε/(d·√(r·log)), error O(d·√(r·log)/(nε)): the factor d remains.
    """
    rank = float(dimension) if effective_rank is None else effective_rank
    _problem(num_examples, dimension, lipschitz, smoothness, rank)
    width = math.sqrt(rank * composition_log(epsilon, delta))
    if effective_rank is None:
        steps, damping = num_examples * epsilon / width, float(dimension)
    else:
        steps, damping = num_examples * (rank + 2.0) * epsilon / (dimension * width), rank + 2.0
    return Prescription(
        method="dpgd-0th",
        num_examples=num_examples,
        dimension=dimension,
        effective_rank=rank,
        smoothness=smoothness,
        epsilon=epsilon,
        delta=delta,
        clip_norm=lipschitz * dimension,
        slope_clip=lipschitz * math.sqrt(dimension),
        smoothing=math.inf,
        learning_rate=1.0 / (4.0 * smoothness * damping),
        steps=_whole(steps),
    )


def _problem(num_examples: int, dimension: int, lipschitz: float, smoothness: float, rank: float) -> None:
    _count("--num-examples", num_examples)
    _count("dimension", dimension)
    _positive("lipschitz", lipschitz)
    _positive("smoothness", smoothness)
    if not 1.0 <= rank <= dimension:
        raise DpzoError("effective_rank must lie between 1 and dimension: effective_rank(eigenvalues) computes it")


def _whole(steps: float) -> int:
    """T rounded up: at least one step."""
    return max(1, math.ceil(steps))


def _count(option: str, number: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise DpzoError(f"{option} must be a whole number of at least 1")


def _positive(option: str, number: float) -> None:
    if not 0.0 < number < math.inf:
        raise DpzoError(f"{option} must be a positive finite number")
