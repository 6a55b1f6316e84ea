"""Estimate how far a run moves the weights, on public synthetic records, before any privacy budget is spent."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dpzo.errors import DpzoError
from dpzo.models.objectives import FeatureObjective, TokenObjective
from dpzo.privacy import PrivacyPlan
from dpzo.zo import DirectionScheme, TrainableParameters
from dpzo.zo.shift import shifted

RUINED = 10.0
"""Nats by which the noise of a whole run may raise the mean loss of synthetic records: a perplexity of 22,000 times."""
_SMALLEST = 1.4e-45
"""The smallest positive float32: a smaller movement changes no element, not even zero."""
_RELATIVE = 2.0**-25
"""Half the gap of float32 numbers, relative to their size."""


def noise_walk(plan: PrivacyPlan, learning_rate: float, update: str) -> float:
    """Root mean square movement of an element by the noise of all steps, in parameter units.

    η·√T·σC / (B·√K) for steps along the release, B = q·N; η·√T for Adam and sign steps, whose length is η.
    """
    walk = learning_rate * math.sqrt(plan.steps)
    if update in ("adam", "sign"):
        return walk
    noise_std = plan.noise_multiplier * plan.clip_norm
    return walk * noise_std / (plan.expected_batch_size * math.sqrt(plan.num_directions))


def check_rate(
    learning_rate: float,
    update: str,
    plan: PrivacyPlan,
    parameters: TrainableParameters,
    scheme: DirectionScheme,
    synthetic: TokenObjective | FeatureObjective,
) -> str | None:
    """Reject a learning rate whose noise ruins the model or that moves no weight; a note if it moves little.

    `synthetic`: the production objective over public synthetic records. θ is moved by `noise_walk` along a public
    direction and put back. Public. Errors: `DpzoError` naming the rate and what to do.
    """
    walk = noise_walk(plan, learning_rate, update)
    name = f"training.learning_rate {learning_rate:g}"
    furthest = learning_rate * plan.steps * max(1.0, plan.clip_norm * (1.0 + plan.noise_multiplier))
    if furthest < _SMALLEST:
        raise DpzoError(f"{name}: moves no weight at all in float32; leave it out for one that follows from the plan")
    count = len(synthetic.empty) if isinstance(synthetic, FeatureObjective) else len(synthetic.encoded)
    records = np.arange(count, dtype=np.int64)
    before = _mean(synthetic, records)
    with shifted(parameters, scheme.at(0), 0, walk):
        after = _mean(synthetic, records)
    if not after <= before + RUINED:
        raise DpzoError(
            f"{name}: the privacy noise alone would move the weights by {walk:.3g} and raise the loss of synthetic "
            f"records from {before:.3g} to {after:.3g}; lower it, or leave it out for one that follows from the plan"
        )
    sizes = [float(p.detach().float().abs().mean()) for p in parameters if p.numel()]
    if 0 < furthest < _RELATIVE * min(sizes, default=0.0):
        return f"{name} is below the rounding of the weights: the run spends its budget and moves almost nothing"
    return None


def _mean(objective: TokenObjective | FeatureObjective, records: NDArray[np.int64]) -> float:
    return float(np.mean(objective.losses(records)))
