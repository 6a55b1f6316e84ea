"""DP-SGD and DP-Adam with LMO noise: the paper's setting, with the bounds that hold for vectors, drawn in floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaincinv
from torch import Tensor

from dpzo.experiments.baselines.cards import FLOAT_NOISE_LACKS, GRADIENTS_IN_MEMORY, baseline_card
from dpzo.experiments.baselines.first_order import DpGradient, descend, settings_of
from dpzo.experiments.baselines.method import Outcome
from dpzo.noise.mixture import LaplaceMixture
from dpzo.noise.mixture_plan import MixturePlan, mixture_noise
from dpzo.privacy import PrivacyPlan, Randomness
from dpzo.run.loop import Job
from dpzo.zo import Objective

Route = Literal["l1", "l2"]

_BLOCK = 1 << 16
"""Numbers drawn at a time, as in `baselines.noise`."""


def float_mixture(size: int, law: LaplaceMixture, randomness: Randomness) -> NDArray[np.float64]:
    """`size` independent draws of X ~ Laplace(0, 1/u), with a new u from `law` for each: shape (size,), float64.

    X = ±e/u with e ~ Exponential(1); u = a1·Gamma + a3·Exponential/λ + a4·Uniform. Every deviate has 52 bits and lies
    strictly inside (0, 1), so nothing is infinite. A gamma of integer shape is a sum of exponentials, any other the
    inverse of its distribution function. No guarantee against attacks on floating-point noise (Mironov 2012).
    """
    scale = np.zeros(size)
    if law.gamma_weight > 0.0:
        scale += law.gamma_weight * law.gamma_scale * _gammas(size, law.gamma_shape, randomness)
    if law.exponential_weight > 0.0:
        scale += law.exponential_weight / law.rate * -np.log(_uniforms(size, randomness))
    if law.uniform_weight > 0.0:
        scale += law.uniform_weight * (law.low + (law.high - law.low) * _uniforms(size, randomness))
    words = randomness.word_array(size)
    magnitude = -np.log(_unit(words)) / scale
    return np.where(words & np.uint64(1), magnitude, -magnitude)


def _gammas(size: int, shape: float, randomness: Randomness) -> NDArray[np.float64]:
    if shape == int(shape) and shape <= 16:
        return np.asarray(np.sum([-np.log(_uniforms(size, randomness)) for _ in range(int(shape))], axis=0))
    return np.asarray(gammaincinv(shape, _uniforms(size, randomness)))


def _uniforms(size: int, randomness: Randomness) -> NDArray[np.float64]:
    return _unit(randomness.word_array(size))


def _unit(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """(w + ½)·2⁻⁵² of the 52 high bits; the low bits are ignored."""
    return np.asarray(((words >> np.uint64(12)) + 0.5) * 2.0**-52)


def add_mixture(flat: Tensor, law: LaplaceMixture, clip_norm: float, randomness: Randomness) -> None:
    """flat_j ← flat_j + clip_norm·X_j in place, block by block, each X_j a new draw; flat is one-dimensional, fp32."""
    for start in range(0, flat.numel(), _BLOCK):
        part = flat[start : start + _BLOCK]
        noise = (clip_norm * float_mixture(part.numel(), law, randomness)).astype(np.float32)
        part.add_(torch.from_numpy(noise).to(part.device))


@dataclass(frozen=True)
class LmoGradient:
    """`descent` with a published mixture in place of its Gaussian: ĝ = (Σ_{i ∈ B_t} clip(g_i) + C·X) / (qN).

    - `mechanism`: lmo-LABEL as written, or lmo-LABEL-as-coded as the published sampler draws it; i.i.d. coordinates.
    - `route`: l1 clips gradients in L1, where the mixture's own Rényi bound holds in any dimension; l2 clips them in L2
      as the paper does, where zCDP of ρ = L²/2 holds, at a cost in variance that the card states. Anything else,
      including the paper's own accounting, is refused with the reason.
    - The noise has the standard deviation of the plan's, σ·C: `mixture_noise(mechanism).noise_multiplier` is the
      published noise itself. Noise is multiplied by C, which the published code omits (it has C = 1).
    - q, N, T, δ, relation are the plan's; everything else, including C, is `descent`'s.

    Guarantee: none on a computer (floating-point noise); (ε, δ) of `account` in real arithmetic. Raises DpzoError as
    `DpGradient` and `MixturePlan` do. Sources: Yang et al. 2024 (LMO-DP); `noise.mixture_vectors`.
    """

    descent: DpGradient
    mechanism: str
    route: Route

    @property
    def name(self) -> str:
        """lmo-sgd or lmo-adam; with -l2 if rows are clipped in L2."""
        return f"lmo-{self.descent.rule}" + ("-l2" if self.route == "l2" else "")

    def account(self, plan: PrivacyPlan) -> MixturePlan:
        """The noise and ε of a run under `plan`. DpzoError if no ε is proved."""
        return MixturePlan(
            num_examples=plan.num_examples,
            sampler=plan.sampler,
            mechanism=mixture_noise(self.mechanism, plan.noise_multiplier),
            route=self.route,
            clip_norm=self.descent.clip_norm,
            steps=plan.steps,
            delta=plan.delta,
            relation=plan.relation,
        )

    def run(self, job: Job, objective: Objective, num_units: int, /) -> Outcome:
        """Train in place; see the class."""
        plan = self.account(job.plan)
        law = plan.mechanism.law

        def add(flat: Tensor, randomness: Randomness) -> None:
            add_mixture(flat, law, plan.clip_norm, randomness)

        descend(self.descent, job, objective, num_units, plan, add, plan.norm_order)
        private = self.descent.nonprivate_randomness is None
        card = baseline_card(
            self.name,
            {**settings_of(self.descent), "mechanism": self.mechanism, "route": self.route},
            plan,
            job.header,
            level="float-noise" if private else "none",
            lacks=(*FLOAT_NOISE_LACKS, GRADIENTS_IN_MEMORY),
            clip=f"L{plan.norm_order} norm of a unit's gradient over all trainable elements",
            draws="Laplace deviates of a random scale",
        )
        return Outcome({**card, "noise": plan.facts() if private else None})
