"""A finished event tree, checked and flattened to the few values every accountant reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from dpzo.errors import DpzoError
from dpzo.privacy.events import (
    ComposedEvent,
    Event,
    GaussianEvent,
    LaplaceEvent,
    LatticeEvent,
    NeighboringRelation,
    PoissonSampledEvent,
)

MechanismName = Literal["gaussian", "laplace", "lattice"]
SamplingName = Literal["poisson", "full_batch"]


@dataclass(frozen=True)
class Query:
    """`count` adaptive releases of one mechanism, each on a new Poisson sample (all units when sampling_prob is 1).

    `noise` is the Gaussian standard deviation or the Laplace scale, in units of `clip_norm`; for a noise table, it is
    the standard deviation, and `table` defines the distribution.
    """

    mechanism: MechanismName
    noise: float
    dimension: int
    sampling_prob: float
    count: int
    table: Any = None

    @property
    def sampling(self) -> SamplingName:
        return "full_batch" if self.sampling_prob == 1.0 else "poisson"


def flatten(event: Event) -> Query:
    """Check every number of an event tree and flatten it.

    Errors: DpzoError naming the argument when a noise is not positive and finite, a sampling probability is outside
    (0, 1], or a count or a dimension is below 1.
    """
    count = 1
    if isinstance(event, ComposedEvent):
        count, event = _whole(event.count, "steps"), event.event
    sampling_prob = 1.0
    if isinstance(event, PoissonSampledEvent):
        sampling_prob, event = float(event.sampling_prob), event.event
        if not 0.0 < sampling_prob <= 1.0:
            raise DpzoError(
                f"sampling probability is {sampling_prob}, must be in (0, 1]: "
                "lower `expected_batch_size` or raise `num_examples`"
            )
    if isinstance(event, GaussianEvent):
        return Query("gaussian", _positive(event.noise_multiplier), 1, sampling_prob, count)
    if isinstance(event, LaplaceEvent):
        dimension = _whole(event.dimension, "num_directions")
        return Query("laplace", _positive(event.scale), dimension, sampling_prob, count)
    if isinstance(event, LatticeEvent):
        dimension, noise = _whole(event.dimension, "num_directions"), event.noise
        return Query("lattice", noise.noise_multiplier, dimension, sampling_prob, count, noise)
    raise DpzoError(f"no accountant knows an event of type {type(event).__name__}: use gaussian or laplace")


def check_delta(delta: float) -> None:
    """Refuse a δ outside [0, 1), NaN included."""
    if not 0.0 <= delta < 1.0:
        raise DpzoError(f"`delta` is {delta}, must be at least 0 and below 1: a usual choice is 1e-5")


def shift(relation: NeighboringRelation) -> float:
    """How far one unit moves the released sum, in units of `clip_norm`: 2 for replace_one, else 1."""
    return 2.0 if relation is NeighboringRelation.REPLACE_ONE else 1.0


def _positive(noise: float) -> float:
    if not 0.0 < noise < math.inf:
        raise DpzoError(f"`noise_multiplier` is {noise}, must be positive and finite")
    return float(noise)


def _whole(value: int, argument: str) -> int:
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise DpzoError(f"`{argument}` is {value}, must be a whole number of at least 1")
    return int(value)
