"""From a release to the next weights: post-processing, specified to the operation so that a replay gives the same bits.

An update sees the released values and public directions, never the data. What it remembers is a plain dict of tensors
that a checkpoint can hold; `init` makes it, `apply` changes it in place, `finish` turns the last weights into the
released ones. Momentum and Adam fit the same three functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpzo.errors import DpzoError
from dpzo.zo.directions import StepDirections
from dpzo.zo.parameters import TrainableParameters
from dpzo.zo.schedules import Schedule

State = dict[str, Tensor]

_BLOCK = 1 << 16
"""Elements updated at a time: what an update allocates beside θ. Bits do not depend on it."""


class Update(Protocol):
    """θ ← U(θ, state, directions, values); a pure function of its arguments, bit for bit, that never reads data."""

    def init(self, parameters: TrainableParameters) -> State:
        """The state before the first step."""

    def apply(
        self,
        parameters: TrainableParameters,
        state: State,
        directions: StepDirections,
        values: NDArray[np.float64],
        step: int,
    ) -> None:
        """Write θ and `state` for one step (0-based); `values` (K,) is the released noisy sum of clipped rows."""

    def finish(self, parameters: TrainableParameters, state: Mapping[str, Tensor]) -> None:
        """Write the weights to release into θ. The state is only read, so a continued run may go on from it and θ_T."""


def blocks(parameters: TrainableParameters) -> Iterator[tuple[int, int, Tensor]]:
    """(parameter, start, flat view of θ), block after block, the order in which an update streams through θ."""
    for index, size in enumerate(parameters.sizes):
        flat = parameters.flat(index)
        for start in range(0, size, _BLOCK):
            yield index, start, flat[start : start + _BLOCK]


@dataclass(frozen=True)
class Sgd:
    """θ ← θ − η_t/(K·qN) · Σ_k s_k·z_k, with qN = `expected_batch_size` (public).

    To the operation: c_k = fl32(−(η_t·s_k) / (K·qN)), the inside in float64 in that order; g_j = Σ_k fl(c_k·z_kj)
    sequentially for k = 0 … K − 1 from 0, in fp32; θ_j ← fl(θ_j + g_j). No fused operation. No state.

    A 16-bit θ_j ← the same fp32 sum, rounded stochastically by public bits (`StepDirections.round_into`): what a step
    adds arrives on average, and a replay rounds alike. With `master`, fp32 copies of the 16-bit parameters are the
    state instead: M_j ← fl(M_j + g_j), θ_j ← M_j to nearest even; the journal names the choice.

    - Streams through θ in blocks; nothing of θ's size is allocated.
    - Raises ValueError when `values` is not (K,) or not finite: a release always is.
    """

    schedule: Schedule
    expected_batch_size: float
    master: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.expected_batch_size < float("inf"):
            raise DpzoError(f"expected_batch_size: {self.expected_batch_size} is not positive; choose one above 0")

    def init(self, parameters: TrainableParameters) -> State:
        """No state, or `master.<name>` for each 16-bit parameter."""
        if not self.master:
            return {}
        wanted = zip(parameters.names, parameters, strict=True)
        return {f"master.{name}": p.detach().float() for name, p in wanted if p.dtype != torch.float32}

    def coefficients(self, values: NDArray[np.float64], step: int) -> list[float]:
        """c_k as the class documents it, exact fp32 values."""
        if values.ndim != 1 or not np.isfinite(values).all():
            raise ValueError("values must be K finite numbers")
        with np.errstate(over="ignore"):  # a diverged run may reach fp32's infinity; it still replays
            wide = -(self.schedule(step) * values.astype(np.float64)) / (len(values) * self.expected_batch_size)
            return [float(c) for c in wide.astype(np.float32)]

    def apply(
        self,
        parameters: TrainableParameters,
        state: State,
        directions: StepDirections,
        values: NDArray[np.float64],
        step: int,
    ) -> None:
        """One step; see the class."""
        coefficients = self.coefficients(values, step)
        scratch: dict[torch.device, Tensor] = {}
        names = parameters.names
        with torch.no_grad():
            for index, start, theta in blocks(parameters):
                if theta.device not in scratch:
                    scratch[theta.device] = torch.empty(_BLOCK, dtype=torch.float32, device=theta.device)
                gradient = scratch[theta.device][: theta.numel()]
                directions.combine(index, coefficients, gradient, start)
                if theta.dtype == torch.float32:
                    theta.add_(gradient)
                elif self.master:
                    own = state[f"master.{names[index]}"].view(-1)[start : start + theta.numel()]
                    theta.copy_(own.add_(gradient))
                else:
                    directions.round_into(index, gradient.add_(theta), theta, start)

    def finish(self, parameters: TrainableParameters, state: Mapping[str, Tensor]) -> None:
        """The last iterate is the result."""


@dataclass(frozen=True)
class TailAverage:
    """Release the mean of the iterates after the last ⌈fraction·steps⌉ steps of `inner`, in place of the last one.

    To the operation: from step `first_step` on, sum_j ← sum_j + θ_j in float64 after each applied step, in
    order; `finish` writes θ_j ← fl32(sum_j / count). A step that was never applied (burnt) does not count; with no step
    counted, θ_T itself is released.

    - Averages out the noise of late steps, at no privacy cost: post-processing of releases.
    - Costs float64 per trainable element: two more copies of the trainable part in its own precision.
    - State: `tail.sum.<name>`, `tail.count` (int64), and the inner state under `inner.`.

    Raises DpzoError unless 0 < fraction ≤ 1 and steps ≥ 1. Source: Polyak and Juditsky 1992; tail averaging of
    Jain et al. 2018.
    """

    inner: Update
    steps: int
    fraction: float

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise DpzoError(f"steps: {self.steps} is less than 1; choose at least 1")
        if not 0 < self.fraction <= 1:
            raise DpzoError(f"average_fraction: {self.fraction} is outside 0 … 1; choose a part of the steps above 0")

    @property
    def first_step(self) -> int:
        """The first step whose result enters the mean."""
        return self.steps - math.ceil(self.fraction * self.steps)

    def init(self, parameters: TrainableParameters) -> State:
        """Zero sums beside the inner state."""
        state = {f"inner.{key}": value for key, value in self.inner.init(parameters).items()}
        state["tail.count"] = torch.zeros((), dtype=torch.int64)
        for name, parameter in zip(parameters.names, parameters, strict=True):
            state[f"tail.sum.{name}"] = torch.zeros(parameter.shape, dtype=torch.float64, device=parameter.device)
        return state

    def apply(
        self,
        parameters: TrainableParameters,
        state: State,
        directions: StepDirections,
        values: NDArray[np.float64],
        step: int,
    ) -> None:
        """One inner step, then add θ to the sums when the tail has begun."""
        prefix = "inner."
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        self.inner.apply(parameters, inner, directions, values, step)
        state.update({prefix + key: value for key, value in inner.items()})
        if step < self.first_step:
            return
        names = parameters.names
        with torch.no_grad():
            for index, start, theta in blocks(parameters):
                total = state[f"tail.sum.{names[index]}"].view(-1)
                total[start : start + theta.numel()].add_(theta.double())
            state["tail.count"] += 1

    def finish(self, parameters: TrainableParameters, state: Mapping[str, Tensor]) -> None:
        """θ ← the mean of the tail."""
        if int(state["tail.count"]) == 0:
            return
        divisor = state["tail.count"].double()
        names = parameters.names
        with torch.no_grad():
            for index, start, theta in blocks(parameters):
                total = state[f"tail.sum.{names[index]}"].view(-1)[start : start + theta.numel()]
                # A tensor, not a number: some backends turn division by a number into a product with its inverse.
                theta.copy_((total / divisor.to(total.device)).float())


UPDATES: dict[str, type[Sgd]] = {"sgd": Sgd}
