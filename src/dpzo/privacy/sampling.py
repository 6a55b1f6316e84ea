"""Samplers: how a step's batch is drawn. A closed set, SAMPLERS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from dpzo.errors import DpzoError
from dpzo.privacy.events import MechanismEvent, PoissonSampledEvent
from dpzo.privacy.randomness import Randomness, poisson_members


@dataclass(frozen=True)
class PoissonSampling:
    """Every unit joins independently with probability `sampling_prob`. The batch is secret; its size varies."""

    sampling_prob: float
    name: ClassVar[Literal["poisson"]] = "poisson"

    def __post_init__(self) -> None:
        if not 0 < self.sampling_prob <= 1:
            raise DpzoError(
                f"sampling probability {self.sampling_prob:g} must lie in (0, 1]: lower `expected_batch_size` to at "
                "most `num_examples`"
            )

    def draw(self, num_units: int, randomness: Randomness) -> npt.NDArray[np.int64]:
        """Indices of the units in this step's batch, ascending; shape (batch,), possibly empty."""
        return poisson_members(num_units, self.sampling_prob, randomness)

    def event(self, inner: MechanismEvent) -> PoissonSampledEvent:
        """The event of `inner` on such a batch."""
        return PoissonSampledEvent(self.sampling_prob, inner)


@dataclass(frozen=True)
class FullBatch:
    """Every unit in every step, without privacy amplification."""

    name: ClassVar[Literal["full_batch"]] = "full_batch"
    sampling_prob: ClassVar[float] = 1.0

    def draw(self, num_units: int, randomness: Randomness) -> npt.NDArray[np.int64]:
        """Indices of all units; shape (num_units,)."""
        return np.arange(num_units, dtype=np.int64)

    def event(self, inner: MechanismEvent) -> MechanismEvent:
        """`inner` itself."""
        return inner


Sampler = PoissonSampling | FullBatch
"""`draw` draws a batch and `event` describes its effect on a mechanism's event, in one object."""

SAMPLERS: dict[str, type[Sampler]] = {"poisson": PoissonSampling, "full_batch": FullBatch}
