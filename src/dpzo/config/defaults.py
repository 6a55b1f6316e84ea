"""Values for what a user left open: from the plan, the noise and the size of the trainable part; never per task.

How they follow from each other, how the constants were chosen and what they lose to a grid: docs/defaults.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from dpzo.config.schema import RunConfig, with_values
from dpzo.privacy import MECHANISMS, PrivacyPlan

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


def fill_defaults(config: RunConfig, part: Part, num_examples: int) -> RunConfig:
    """Every open field of `config` filled but the learning rate, which waits for the model; what is set stays.

    `num_examples` is public. A batch is at most a quarter of the units, so that sampling still hides who is in it. With
    L1 clipping (Laplace) the norm of K slopes grows as K and not as √K, and the default follows.
    """
    chosen = DEFAULTS[part]
    privacy: dict[str, Any] = {}
    training: dict[str, Any] = {}
    given = config.privacy
    num_directions = chosen.num_directions if given.num_directions is None else given.num_directions
    if given.num_directions is None:
        privacy["num_directions"] = num_directions
    if given.steps is None:
        privacy["steps"] = chosen.steps
    if given.expected_batch_size is None:
        privacy["expected_batch_size"] = max(1, min(chosen.expected_batch_size, num_examples // 4))
    if given.clip_norm is None:
        summed = given.mechanism in MECHANISMS and MECHANISMS[given.mechanism].order == 1
        root = num_directions if summed else math.sqrt(num_directions)
        privacy["clip_norm"] = chosen.slope * root
    if config.training.smoothing is None:
        exact = config.model.dtype == "float32" and config.model.quantization == "none"
        training["smoothing"] = chosen.smoothing if exact else chosen.coarse_smoothing
    if config.training.average is None:
        training["average"] = chosen.average
    if config.training.microbatch_size is None:
        training["microbatch_size"] = chosen.microbatch_size
    return with_values(config, privacy=privacy, training=training)


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
