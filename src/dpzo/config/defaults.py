"""Default values for open fields, from the plan, the noise and the size of the trainable part; never per task.

How they follow from each other, how the constants were chosen and what they lose to a grid: docs/defaults.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dpzo.privacy import PrivacyPlan

Part = Literal["head", "lora", "full"]


@dataclass(frozen=True)
class Defaults:
    """`slope`: clip_norm ÷ √K (L2), what one direction may show of a unit. Other names as in the config, or below.

    - `unclipped`: about what a direction shows of a unit at the start where nothing clips.
    - `coarse_smoothing`: φ where the base is held in 16 bits or fewer, whose rounding a slope divides by φ.
    - `drift` (parameter units): how far all noise together may move an element in a run, root mean square.
    - `longest` (parameter units): η·slope at most, the length of the gradient step of units that all agree.
    - `reference_dimension`: where more elements than that are trained, drift and `longest` shrink as 1/√d, so that the
      length of the whole displacement stays; None: they do not (a head's logit reads one unit vector, however many).
    """

    steps: int
    num_directions: int
    expected_batch_size: int
    slope: float
    unclipped: float
    smoothing: float
    coarse_smoothing: float
    drift: float
    longest: float
    reference_dimension: int | None
    average: float
    microbatch_size: int

    def shrink(self, dimension: int) -> float:
        """What `drift` and `longest` are multiplied by where d = `dimension` elements are trained."""
        reference = self.reference_dimension
        return 1.0 if reference is None else min(1.0, math.sqrt(reference / dimension))


DEFAULTS: dict[Part, Defaults] = {
    "head": Defaults(200, 64, 1024, 0.25, 1.0, 1e-2, 1e-2, 0.9, 8.0, None, 0.1, 32),
    "lora": Defaults(200, 16, 64, 5.0, 5.0, 3e-3, 1e-2, 0.02, 0.05, 10_000, 0.0, 16),
    "full": Defaults(200, 16, 64, 20.0, 20.0, 1e-3, 3e-3, 0.008, 0.02, 250_000, 0.0, 16),
}


def default_learning_rate(part: Part, dimension: int, plan: PrivacyPlan, rule: str = "sgd") -> float:
    """The rate η at which noise moves an element by `drift` (root mean square) in a run of `plan`, within `longest`.

    One step moves an element by noise of variance η²/(K·B²)·((σC)² + B·s²·(1 + K/d)), B = q·N, with s = C/√K (L2) or
    C/K (L1) the slope a direction shows of a unit: privacy noise, the chance of K directions, and that of B units. So

        η = min(drift·B·√K / √(T·((σC)² + B·s²·(1 + K/d))), longest / s).

    `dimension`: d, the dimensions that directions search. `rule`: the update; Adam's steps have one size whatever the
    gradient's, so there η = drift/√T. Public: a function of the plan and of shapes. Source: docs/defaults.md.
    """
    chosen = DEFAULTS[part]
    shrink = chosen.shrink(dimension)
    if rule == "adam":
        return chosen.drift * shrink / math.sqrt(plan.steps)
    directions, batch = plan.num_directions, plan.expected_batch_size
    slope = plan.clip_norm / (directions if plan.mechanism.order == 1 else math.sqrt(directions))
    noise_std = plan.noise_multiplier * plan.clip_norm
    walk = math.sqrt(plan.steps * (noise_std**2 + batch * slope**2 * (1 + directions / dimension)))
    return shrink * min(chosen.drift * batch * math.sqrt(directions) / walk, chosen.longest / slope)
