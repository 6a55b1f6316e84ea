"""The interface of a method in a comparison: a name, its public settings, and one call that trains in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dpzo.errors import DpzoError
from dpzo.run.loop import Job
from dpzo.zo import Objective, TrainableParameters


@dataclass(frozen=True)
class Outcome:
    """What a finished method leaves beside the trained parameters: its card, in the shape of a run's privacy card."""

    card: dict[str, Any]


class Method(Protocol):
    """A way to train. Frozen and public: every field may be printed.

    `run` starts from the weights in `job.parameters` and leaves the trained ones there. Of the job it takes the plan
    (units, sampling, noise, δ, relation, steps), the parameters and the public facts of the header; a method that does
    not walk along directions ignores scheme, smoothing and update.
    """

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def run(self, job: Job, objective: Objective, num_units: int, /) -> Outcome:
        """Train in place on units 0 … num_units − 1 of `objective`, for `job.plan.steps` steps exactly."""
        ...


def require_float32(parameters: TrainableParameters) -> None:
    """Refuse 16-bit trained weights: small steps would be rounded away, and a baseline that stalls compares nothing."""
    for name, parameter in zip(parameters.names, parameters, strict=True):
        if parameter.dtype != torch.float32:
            raise DpzoError(f"trainable: {name!r} is {parameter.dtype}; baselines train float32 weights: use LoRA")
