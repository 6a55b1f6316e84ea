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
    """The result of a method besides the trained parameters: its card, in the format of a run's privacy card."""

    card: dict[str, Any]


class Method(Protocol):
    """A training method. Frozen and public: every field may be printed.

    `run` starts from the weights in `job.parameters` and writes the trained ones there. From the job it uses the plan
    (units, sampling, noise, δ, relation, steps), the parameters and the public facts of the header; a method without
    directions ignores scheme, smoothing and update.
    """

    @property
    def name(self) -> str:
        """The method's name in tables."""
        ...

    def run(self, job: Job, objective: Objective, num_units: int, /) -> Outcome:
        """Train in place on units 0 … num_units − 1 of `objective`, for `job.plan.steps` steps exactly."""
        ...


def require_float32(parameters: TrainableParameters) -> None:
    """Refuse 16-bit trained weights: rounding would discard small steps, and a stalled baseline is no comparison."""
    for name, parameter in zip(parameters.names, parameters, strict=True):
        if parameter.dtype != torch.float32:
            raise DpzoError(f"trainable: {name!r} is {parameter.dtype}; baselines train float32 weights: use LoRA")
