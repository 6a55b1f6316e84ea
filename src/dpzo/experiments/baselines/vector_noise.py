"""DPGD-0th: zeroth-order slopes, but noise on every coordinate of θ. The baseline for scalar noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dpzo.errors import DpzoError
from dpzo.experiments.baselines.cards import FLOAT_NOISE_LACKS, baseline_card
from dpzo.experiments.baselines.first_order import settings_of, vector_plan
from dpzo.experiments.baselines.method import Outcome, require_float32
from dpzo.experiments.baselines.noise import add_noise
from dpzo.experiments.baselines.tail import Tail
from dpzo.privacy import Randomness, SecretRandom
from dpzo.run.loop import Job
from dpzo.zo import SCHEDULES, DirectionScheme, Objective, central_difference
from dpzo.zo.updates import blocks


@dataclass(frozen=True)
class VectorNoise:
    """DPGD-0th: θ ← θ − η_t·(Σ_{i ∈ B_t} clip_C(d_i·u_t) + σC·N(0, I_d)) / (qN), u_t on the sphere of radius √d.

    All d_i·u_t are parallel to u_t, so clip_C(d_i·u) = u·clip_{C/√d}(d_i): no per-unit vector is ever computed. u_t is
    regenerated block by block along θ, and so is the noise, so nothing of θ's size is allocated.

    - `clip_norm` C: of the vector d_i·u; None: √d times the plan's, so that slopes are clipped as scalar methods clip
      them. σ, q, N, δ, T are the plan's; a slope that is not finite counts as 0.
    - Scalar noise moves θ by σ·C/√d·‖u‖ = σC per step, this noise by about σC·√d: if the loss is equally sensitive to
      all coordinates, d times the squared displacement for the same ε.
    - One direction per step, for any K of the plan. `nonprivate_randomness`: for tests.

    Guarantee: none on a computer (floating-point noise); (ε, δ) of the plan in real arithmetic. Raises DpzoError for a
    plan whose noise is not Gaussian. Source: the comparison algorithm of Zhang et al., DPZero, ICML 2024.
    """

    learning_rate: float
    clip_norm: float | None = None
    schedule: str = "constant"
    warmup_steps: int = 0
    average: float = 0.0
    nonprivate_randomness: Randomness | None = None

    @property
    def name(self) -> str:
        """dpgd-0th."""
        return "dpgd-0th"

    def run(self, job: Job, objective: Objective, num_units: int, /) -> Outcome:
        """Train in place; see the class."""
        parameters = job.parameters
        require_float32(parameters)
        length = math.sqrt(parameters.dimension)
        plan = vector_plan(job.plan, job.plan.clip_norm * length if self.clip_norm is None else self.clip_norm)
        if self.schedule not in SCHEDULES:
            raise DpzoError(f"schedule: must be one of {', '.join(SCHEDULES)}")
        rate = SCHEDULES[self.schedule](self.learning_rate, plan.steps, self.warmup_steps)
        secret = SecretRandom() if self.nonprivate_randomness is None else self.nonprivate_randomness
        scheme = DirectionScheme("sphere", job.scheme.seed, 1, parameters.sizes)
        tail = Tail(job, self.average)
        with torch.no_grad():
            for step in range(plan.steps):
                directions = scheme.at(step)
                units = plan.sampler.draw(num_units, secret)
                slopes = central_difference(objective, parameters, units, directions, job.smoothing)[:, 0]
                total = float(clipped(slopes, plan.clip_norm / length).sum())
                weight = -rate(step) / plan.expected_batch_size
                for index, start, theta in blocks(parameters):
                    moved = torch.empty(theta.numel(), dtype=torch.float32, device=theta.device)
                    directions.combine(index, [total], moved, start)
                    add_noise(moved, plan.noise_scale, secret)
                    theta.add_(moved, alpha=weight)
                tail.add(step)
            tail.finish()
        return Outcome(
            baseline_card(
                self.name,
                settings_of(self),
                plan,
                job.header,
                level="float-noise" if self.nonprivate_randomness is None else "none",
                lacks=FLOAT_NOISE_LACKS,
                clip="L2 norm of a unit's slope times its direction",
            )
        )


def clipped(slopes: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """Slopes (B,) cut to ±bound; NaN and ±inf become 0."""
    finite = np.where(np.isfinite(slopes), slopes, 0.0)
    return np.clip(finite, -bound, bound)
