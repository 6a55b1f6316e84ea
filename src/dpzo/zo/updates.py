"""Updates from a release to the next weights: post-processing, specified per operation so that a replay is bit-exact.

An update reads the released values and public directions, never the data. Its state is a plain dict of tensors that a
checkpoint can hold: `init` creates it, `apply` changes it in place, and `finish` turns the last weights into the
released ones. This module has the protocol, shared functions and `Sgd`; `moments`, `averaging` and `shaping` have the
other rules, and `rules` combines them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpzo.errors import DpzoError
from dpzo.zo.directions import StepDirections
from dpzo.zo.kernels.choose import block_elements
from dpzo.zo.parameters import TrainableParameters
from dpzo.zo.schedules import Schedule

State = dict[str, Tensor]


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
        """Write the weights to release into θ. The state is only read, so a run may continue from it and θ_T."""


def blocks(parameters: TrainableParameters) -> Iterator[tuple[int, int, Tensor]]:
    """(parameter, start, flat view of θ), block after block, the order in which an update streams through θ."""
    for index, size in enumerate(parameters.sizes):
        flat = parameters.flat(index)
        block = block_elements(flat.device)
        for start in range(0, size, block):
            yield index, start, flat[start : start + block]


def combined(
    parameters: TrainableParameters,
    directions: StepDirections,
    coefficients: Sequence[float],
    sixteen_bit: bool = False,
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """`blocks`, each with g_j = Σ_k fl(c_k·z_kj), sequentially for k = 0 … K − 1 from 0, in fp32.

    The last tensor is scratch that the caller may change; the next block overwrites it. With `sixteen_bit` only the
    blocks of parameters that are not fp32.
    """
    scratch: dict[torch.device, Tensor] = {}
    for index, start, theta in blocks(parameters):
        if sixteen_bit and theta.dtype == torch.float32:
            continue
        if theta.device not in scratch:
            size = min(block_elements(theta.device), max(parameters.sizes))
            scratch[theta.device] = torch.empty(size, dtype=torch.float32, device=theta.device)
        gradient = scratch[theta.device][: theta.numel()]
        directions.combine(index, coefficients, gradient, start)
        yield index, start, theta, gradient


def part(state: Mapping[str, Tensor], name: str, start: int, like: Tensor) -> Tensor:
    """The flat view of a state tensor of θ's shape that belongs to the block `like` at `start`."""
    return state[name].view(-1)[start : start + like.numel()]


def masters(parameters: TrainableParameters) -> State:
    """`master.<name>`: an fp32 copy of each 16-bit parameter."""
    named = zip(parameters.names, parameters, strict=True)
    return {f"master.{name}": p.detach().float() for name, p in named if p.dtype != torch.float32}


def move(theta: Tensor, delta: Tensor, directions: StepDirections, index: int, start: int, own: Tensor | None) -> None:
    """θ_j ← fl(θ_j + δ_j) in fp32; `delta` is scratch.

    A 16-bit θ_j ← the same fp32 sum, rounded stochastically by public bits (`StepDirections.round_into`): the rounding
    is unbiased, and a replay rounds identically. With `own`, its fp32 master M: M_j ← fl(M_j + δ_j), θ_j ← M_j to
    nearest even.
    """
    if theta.dtype == torch.float32:
        theta.add_(delta)
    elif own is not None:
        theta.copy_(own.add_(delta))
    else:
        directions.round_into(index, delta.add_(theta), theta, start)


def master_of(state: Mapping[str, Tensor], name: str, start: int, theta: Tensor) -> Tensor | None:
    """The block of the fp32 master of a parameter; None if the state holds none."""
    return part(state, f"master.{name}", start, theta) if f"master.{name}" in state else None


def released(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`values` in float64. Raises ValueError when it is not (K,) or not finite: a release always is."""
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError("values must be K finite numbers")
    return values.astype(np.float64)


def single(wide: NDArray[np.float64]) -> list[float]:
    """fl32 of each number, to nearest even."""
    with np.errstate(over="ignore"):  # a diverged run may reach fp32's infinity; it still replays
        return [float(c) for c in wide.astype(np.float32)]


def sgd_weights(values: NDArray[np.float64], rate: float, expected_batch_size: float) -> NDArray[np.float64]:
    """−(η·s_k) / (K·qN) in float64, in that order: what each direction weighs in a step of `Sgd`."""
    with np.errstate(over="ignore"):
        return -(rate * released(values)) / (len(values) * expected_batch_size)


def check_batch(expected_batch_size: float) -> None:
    """Raises DpzoError unless qN is positive and finite."""
    if not 0 < expected_batch_size < float("inf"):
        raise DpzoError(f"expected_batch_size: {expected_batch_size} is not positive; choose one above 0")


@dataclass(frozen=True)
class Sgd:
    """θ ← θ − η_t/(K·qN) · Σ_k s_k·z_k, with qN = `expected_batch_size` (public).

    To the operation: c_k = fl32(−(η_t·s_k) / (K·qN)), the inside in float64 in that order; g_j = Σ_k fl(c_k·z_kj)
    sequentially for k = 0 … K − 1 from 0, in fp32; θ_j ← fl(θ_j + g_j). No fused operation. No state.

    A 16-bit θ is rounded stochastically, or with `master` fp32 copies of the 16-bit parameters are the state; see
    `move`. The journal records the choice.

    - Streams through θ in blocks; nothing of θ's size is allocated.
    - Raises ValueError when `values` is not (K,) or not finite: a release always is.
    """

    schedule: Schedule
    expected_batch_size: float
    master: bool = False

    def __post_init__(self) -> None:
        check_batch(self.expected_batch_size)

    def init(self, parameters: TrainableParameters) -> State:
        """No state, or `master.<name>` for each 16-bit parameter."""
        return masters(parameters) if self.master else {}

    def coefficients(self, values: NDArray[np.float64], step: int) -> list[float]:
        """c_k as the class documents it, exact fp32 values."""
        return single(sgd_weights(values, self.schedule(step), self.expected_batch_size))

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
        names = parameters.names
        with torch.no_grad():
            together: set[int] = set()
            for group in parameters.together("all"):
                if parameters.dtypes[group[0]] == "float32":
                    directions.step_each(group, coefficients, [parameters.flat(index) for index in group])
                    together.update(group)
            for index, dtype in enumerate(parameters.dtypes):
                if index not in together and (dtype == "float32" or not self.master):
                    directions.step_into(index, coefficients, parameters.flat(index))
            mastered = combined(parameters, directions, coefficients, sixteen_bit=True) if self.master else ()
            for index, start, theta, gradient in mastered:
                move(theta, gradient, directions, index, start, master_of(state, names[index], start, theta))

    def finish(self, parameters: TrainableParameters, state: Mapping[str, Tensor]) -> None:
        """The last iterate is the result."""


_INNER = "inner."


def apply_inner(
    inner: Update,
    parameters: TrainableParameters,
    state: State,
    directions: StepDirections,
    values: NDArray[np.float64],
    step: int,
) -> None:
    """A step of the update that a wrapper holds, on its part of the wrapper's state."""
    own = inner_of(state)
    inner.apply(parameters, own, directions, values, step)
    state.update(under_inner(own))


def inner_of(state: Mapping[str, Tensor]) -> State:
    """The inner update's part of a wrapper's state: the entries under `inner.`, without that prefix."""
    return {key.removeprefix(_INNER): value for key, value in state.items() if key.startswith(_INNER)}


def under_inner(state: Mapping[str, Tensor]) -> State:
    """An inner update's state as a wrapper holds it: under `inner.`."""
    return {_INNER + key: value for key, value in state.items()}
