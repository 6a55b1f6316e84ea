"""Values for what a user left open: chosen once, on public data, by the size of the trainable part; never per task.

How they were chosen, and what they give, is in docs/decisions.md ("Defaults").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from dpzo.config import RunConfig, with_values

Part = Literal["head", "lora", "full"]


@dataclass(frozen=True)
class Defaults:
    """`clip_per_root_k`: clip_norm ÷ √K (L2), the slope that one direction may show. Other names as in the config.

    `learning_rate` is for `reference_dimension` trainable elements; see `default_learning_rate`.
    """

    steps: int
    num_directions: int
    expected_batch_size: int
    clip_per_root_k: float
    smoothing: float
    learning_rate: float
    reference_dimension: int
    average: float
    microbatch_size: int


DEFAULTS: dict[Part, Defaults] = {
    "head": Defaults(200, 64, 1024, 0.5, 1e-2, 8.0, 1_000, 0.5, 32),
    "lora": Defaults(200, 16, 64, 5.0, 1e-2, 1e-2, 10_000, 0.0, 16),
    "full": Defaults(200, 16, 64, 20.0, 1e-3, 1e-3, 250_000, 0.0, 16),
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
        root = num_directions if given.mechanism == "laplace" else math.sqrt(num_directions)
        privacy["clip_norm"] = chosen.clip_per_root_k * root
    if config.training.smoothing is None:
        training["smoothing"] = chosen.smoothing
    if config.training.average is None:
        training["average"] = chosen.average
    if config.training.microbatch_size is None:
        training["microbatch_size"] = chosen.microbatch_size
    return with_values(config, privacy=privacy, training=training)


def default_learning_rate(part: Part, dimension: int) -> float:
    """η = η_ref · min(1, √(d_ref / d)) for d trainable elements.

    A step's noise has length ∝ η·√d, so a larger trainable part needs a smaller rate to be moved as far; below the
    reference the published rates no longer grow, and neither does this one.
    """
    chosen = DEFAULTS[part]
    return chosen.learning_rate * min(1.0, math.sqrt(chosen.reference_dimension / dimension))
