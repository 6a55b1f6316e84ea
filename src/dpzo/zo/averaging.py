"""Averages of the iterates, released instead of the last one to reduce the noise of single steps at no privacy cost.

A mean receives each iterate through `add` and writes itself into θ in `finish`, independent of the update rule.
`TailAverage` and `ExponentialAverage` wrap an update with a mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpzo.errors import DpzoError
from dpzo.zo.directions import StepDirections
from dpzo.zo.parameters import TrainableParameters
from dpzo.zo.updates import State, Update, apply_inner, blocks, part, under_inner


@dataclass(frozen=True)
class TailMean:
    """The mean of θ after each of the last ⌈fraction·steps⌉ steps.

    To the operation: from step `first_step` on, sum_j ← sum_j + θ_j in float64 after each applied step, in order;
    `finish` writes θ_j ← fl32(sum_j / count). A burnt step, which is never applied, does not count; with no step
    counted, θ is unchanged.

    - Costs float64 per trainable element: two more copies of the trainable part in its own precision.
    - State: `tail.sum.<name>`, `tail.count` (int64).

    Raises DpzoError unless 0 < fraction ≤ 1 and steps ≥ 1. Source: Polyak and Juditsky 1992; tail averaging of
    Jain et al. 2018.
    """

    steps: int
    fraction: float

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise DpzoError(f"steps: {self.steps} is less than 1; choose at least 1")
        if not 0 < self.fraction <= 1:
            raise DpzoError(f"average_fraction: {self.fraction} is outside 0 … 1; choose a part of the steps above 0")

    @property
    def first_step(self) -> int:
        """The first step whose result the mean includes."""
        return self.steps - math.ceil(self.fraction * self.steps)

    def init(self, parameters: TrainableParameters) -> State:
        """Zero sums."""
        return {"tail.count": torch.zeros((), dtype=torch.int64), **_sums("tail.sum", parameters)}

    def add(self, parameters: TrainableParameters, state: State, step: int) -> None:
        """Add θ after `step` to the mean, if `step` belongs to the tail."""
        if step < self.first_step:
            return
        with torch.no_grad():
            for index, start, theta in blocks(parameters):
                part(state, f"tail.sum.{parameters.names[index]}", start, theta).add_(theta.double())
            state["tail.count"] += 1

    def finish(self, parameters: TrainableParameters, state: Mapping[str, Tensor]) -> None:
        """θ ← the mean."""
        if (count := int(state["tail.count"])) > 0:
            _write_quotients("tail.sum", parameters, state, float(count))


@dataclass(frozen=True)
class ExponentialMean:
    """The mean of θ after each step; a step's weight decreases by the factor `decay` with each later step.

    To the operation, in float64 after each applied step: e_j ← fl(fl(β·e_j) + fl((1 − β)·θ_j)) and
    w ← β·w + (1 − β), both from 0; `finish` writes θ_j ← fl32(e_j / w).

    - Bias-corrected: w = 1 − β^n after n steps, so the zeros that e starts from have no weight and neither does θ_0; a
      constant θ is its own mean after any number of steps. Burnt steps do not count; if none was applied, θ is
      unchanged.
    - Reaches back about 1/(1 − β) steps; unlike a tail it needs no number of steps beforehand.
    - Costs float64 per trainable element. State: `ema.sum.<name>`, `ema.weight` (float64).

    Raises DpzoError unless 0 < decay < 1. Source: Ruppert 1988; Polyak and Juditsky 1992.
    """

    decay: float

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise DpzoError(f"training.ema: {self.decay} is outside 0 … 1; choose a decay between them, such as 0.99")

    def init(self, parameters: TrainableParameters) -> State:
        """Zero sums of weight 0."""
        return {"ema.weight": torch.zeros((), dtype=torch.float64), **_sums("ema.sum", parameters)}

    def add(self, parameters: TrainableParameters, state: State, step: int) -> None:
        """Add θ after `step` to the mean."""
        fresh = 1.0 - self.decay
        with torch.no_grad():
            for index, start, theta in blocks(parameters):
                total = part(state, f"ema.sum.{parameters.names[index]}", start, theta)
                total.mul_(self.decay).add_(theta.double().mul_(fresh))
            state["ema.weight"].fill_(self.decay * float(state["ema.weight"]) + fresh)

    def finish(self, parameters: TrainableParameters, state: Mapping[str, Tensor]) -> None:
        """θ ← the mean."""
        if (weight := float(state["ema.weight"])) > 0:
            _write_quotients("ema.sum", parameters, state, weight)


@dataclass(frozen=True)
class TailAverage:
    """Release the `TailMean` of the iterates of `inner` instead of the last one. Post-processing.

    State: the mean's, and the inner state under `inner.`. Raises DpzoError as `TailMean` does.
    """

    inner: Update
    steps: int
    fraction: float

    def __post_init__(self) -> None:
        TailMean(self.steps, self.fraction)

    @property
    def mean(self) -> TailMean:
        """The mean that is released."""
        return TailMean(self.steps, self.fraction)

    def init(self, parameters: TrainableParameters) -> State:
        """Both states."""
        return {**under_inner(self.inner.init(parameters)), **self.mean.init(parameters)}

    def apply(
        self,
        parameters: TrainableParameters,
        state: State,
        directions: StepDirections,
        values: NDArray[np.float64],
        step: int,
    ) -> None:
        """One inner step, then the iterate is counted."""
        apply_inner(self.inner, parameters, state, directions, values, step)
        self.mean.add(parameters, state, step)

    def finish(self, parameters: TrainableParameters, state: Mapping[str, Tensor]) -> None:
        """θ ← the mean of the tail."""
        self.mean.finish(parameters, state)


@dataclass(frozen=True)
class ExponentialAverage:
    """Release the `ExponentialMean` of the iterates of `inner` instead of the last one. Post-processing.

    State: the mean's, and the inner state under `inner.`. Raises DpzoError as `ExponentialMean` does.
    """

    inner: Update
    decay: float

    def __post_init__(self) -> None:
        ExponentialMean(self.decay)

    def init(self, parameters: TrainableParameters) -> State:
        """Both states."""
        return {**under_inner(self.inner.init(parameters)), **ExponentialMean(self.decay).init(parameters)}

    def apply(
        self,
        parameters: TrainableParameters,
        state: State,
        directions: StepDirections,
        values: NDArray[np.float64],
        step: int,
    ) -> None:
        """One inner step, then the iterate is counted."""
        apply_inner(self.inner, parameters, state, directions, values, step)
        ExponentialMean(self.decay).add(parameters, state, step)

    def finish(self, parameters: TrainableParameters, state: Mapping[str, Tensor]) -> None:
        """θ ← the mean."""
        ExponentialMean(self.decay).finish(parameters, state)


def _sums(name: str, parameters: TrainableParameters) -> State:
    named = zip(parameters.names, parameters, strict=True)
    return {f"{name}.{n}": torch.zeros(p.shape, dtype=torch.float64, device=p.device) for n, p in named}


def _write_quotients(name: str, parameters: TrainableParameters, state: Mapping[str, Tensor], divisor: float) -> None:
    """θ_j ← fl32(sum_j / divisor), and to nearest even from there where θ has 16 bits."""
    names = parameters.names
    with torch.no_grad():
        for index, start, theta in blocks(parameters):
            total = part(state, f"{name}.{names[index]}", start, theta)
            # A tensor, not a number: some backends turn division by a number into a product with its inverse.
            theta.copy_((total / torch.full_like(total, divisor)).float())
