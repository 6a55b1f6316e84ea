"""Update rules with state from past releases: heavy ball and Adam, over g_t = Σ_k s_k·z_k/(K·qN).

A step's directions are not stored, so the state has θ's size: fp32 buffers, one for `Momentum`, two
for `Adam`, whatever θ's own dtype. Everything is post-processing of releases: no plan, event or ε depends on the rule.
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
from dpzo.zo.schedules import Schedule
from dpzo.zo.updates import (
    State,
    check_batch,
    combined,
    master_of,
    masters,
    move,
    part,
    released,
    sgd_weights,
    single,
)


@dataclass(frozen=True)
class Momentum:
    """Heavy ball: v ← β·v + (1 − β)·u_t and θ ← θ + v, with u_t = −η_t·g_t the step that `Sgd` would make.

    To the operation: c_k = fl32((1 − β)·w_k) with w_k = −(η_t·s_k) / (K·qN), the inside in float64;
    v_j ← fl(fl(fl32(β)·v_j) + Σ_k fl(c_k·z_kj)) in fp32, the sum sequentially for k = 0 … K − 1 from 0;
    θ_j ← fl(θ_j + v_j), or as `updates.move` says for 16 bits. No fused operation.

    - With the factor 1 − β a release moves θ by η_t·g_t in total, spread over about 1/(1 − β) steps: learning rates
      have the same meaning as for `Sgd`, and β = 0 is `Sgd` bit for bit. (Conventions without it are η/(1 − β) here.)
    - Deliberately no bias correction. Dividing by 1 − β^t would give the first release a total weight of 3.0 and the
      tenth 1.25 (β = 0.9), and unequal weights on equally noisy releases only add variance. The disadvantage: the last
      1/(1 − β) releases have not moved θ by their full share when the run ends.
    - The rate is applied when a release enters v, so a decreasing schedule does not shrink earlier releases that v
      still contains.
    - A step that was never applied (burnt) changes nothing: v neither decays nor moves θ.
    - State: `momentum.<name>`, fp32, one more copy of the trainable part; `master.<name>` as for `Sgd`.

    Raises DpzoError unless 0 ≤ β < 1. Source: Polyak 1964.
    """

    schedule: Schedule
    expected_batch_size: float
    momentum: float = 0.9
    master: bool = False

    def __post_init__(self) -> None:
        check_batch(self.expected_batch_size)
        _check_decay("training.momentum", self.momentum)

    def init(self, parameters: TrainableParameters) -> State:
        """v = 0, and masters when asked for."""
        return {**_zeros("momentum", parameters), **(masters(parameters) if self.master else {})}

    def apply(
        self,
        parameters: TrainableParameters,
        state: State,
        directions: StepDirections,
        values: NDArray[np.float64],
        step: int,
    ) -> None:
        """One step; see the class."""
        weights = sgd_weights(values, self.schedule(step), self.expected_batch_size)
        coefficients, keep = single((1.0 - self.momentum) * weights), _fl32(self.momentum)
        names = parameters.names
        with torch.no_grad():
            for index, start, theta, gradient in combined(parameters, directions, coefficients):
                velocity = part(state, f"momentum.{names[index]}", start, theta)
                velocity.mul_(keep).add_(gradient)
                own = master_of(state, names[index], start, theta)
                move(theta, gradient.copy_(velocity), directions, index, start, own)

    def finish(self, parameters: TrainableParameters, state: Mapping[str, Tensor]) -> None:
        """The last iterate is the result."""


@dataclass(frozen=True)
class Adam:
    """θ ← θ − η_t·m̂/(√v̂ + ε), m and v the exponential means of g and g², each divided by its accumulated weight.

    To the operation: c_k = fl32(s_k / (K·qN)); g_j = Σ_k fl(c_k·z_kj) in fp32, sequentially from 0;
    m_j ← fl(fl(β₁·m_j) + fl(α₁·g_j)), v_j ← fl(fl(β₂·v_j) + fl(α₂·fl(g_j·g_j))), with β and α = 1 − β (float64) rounded
    to fp32. The weights follow in float64: w₁ ← β₁·w₁ + α₁, w₂ ← β₂·w₂ + α₂ from 0, which is 1 − β^n after n applied
    steps: no power is ever taken. Then with r = fl32(1/√w₂) and a = fl32(−η_t/w₁):
    δ_j = fl(a·fl(m_j / fl(fl(fl(√v_j)·r) + fl32(ε)))), and θ_j ← θ_j + δ_j as `updates.move` says. No fused operation;
    √ and ÷ correctly rounded, as IEEE has them.

    - Bias correction, unlike `Momentum`: without it v starts near 0 and the first steps would be far too long. The
      steps have the size of η_t in parameter units, whatever the slopes: rates for `Sgd` do not carry over.
    - With Rademacher directions and K = 1, g² is the same number everywhere: Adam is then a normalised heavy ball.
      It distinguishes coordinates only if K > 1 or directions are Gaussian, and v then holds mostly privacy noise.
    - A coordinate that no direction has changed has m = v = 0 and does not move.
    - State: `adam.first.<name>`, `adam.second.<name>`, fp32, two more copies of the trainable part; `adam.weights`
      (w₁, w₂) float64; `master.<name>` as for `Sgd`. Burnt steps do not count.

    Raises DpzoError for a decay outside 0 ≤ β < 1 or an ε that fp32 cannot hold above 0. Source: Kingma and Ba 2015.
    """

    schedule: Schedule
    expected_batch_size: float
    momentum: float = 0.9
    second: float = 0.999
    stabiliser: float = 1e-8
    master: bool = False

    def __post_init__(self) -> None:
        check_batch(self.expected_batch_size)
        _check_decay("training.momentum", self.momentum)
        _check_decay("second", self.second)
        if not 0 < self.stabiliser < math.inf or not 0 < _fl32(self.stabiliser) < math.inf:
            raise DpzoError(f"stabiliser: {self.stabiliser} is not a positive single-precision number; 1e-8 is usual")

    def init(self, parameters: TrainableParameters) -> State:
        """Both means 0 with weight 0, and masters when asked for."""
        means = {**_zeros("adam.first", parameters), **_zeros("adam.second", parameters)}
        weights = {"adam.weights": torch.zeros(2, dtype=torch.float64)}
        return {**means, **weights, **(masters(parameters) if self.master else {})}

    def apply(
        self,
        parameters: TrainableParameters,
        state: State,
        directions: StepDirections,
        values: NDArray[np.float64],
        step: int,
    ) -> None:
        """One step; see the class."""
        coefficients = single(released(values) / (len(values) * self.expected_batch_size))
        weights = state["adam.weights"]
        first_weight = self.momentum * float(weights[0]) + (1.0 - self.momentum)
        second_weight = self.second * float(weights[1]) + (1.0 - self.second)
        scale, rise = _fl32(-self.schedule(step) / first_weight), _fl32(1.0 / math.sqrt(second_weight))
        keep_first, add_first = _fl32(self.momentum), _fl32(1.0 - self.momentum)
        keep_second, add_second = _fl32(self.second), _fl32(1.0 - self.second)
        stabiliser, names = _fl32(self.stabiliser), parameters.names
        with torch.no_grad():
            for index, start, theta, gradient in combined(parameters, directions, coefficients):
                first = part(state, f"adam.first.{names[index]}", start, theta)
                second = part(state, f"adam.second.{names[index]}", start, theta)
                first.mul_(keep_first).add_(gradient * add_first)
                second.mul_(keep_second).add_(gradient.mul_(gradient).mul_(add_second))
                # Through fp64, as in `kernels.reference`: torch's fp32 root misses the last bit in one element of six.
                gradient.copy_(torch.sqrt(second.double()))
                torch.div(first, gradient.mul_(rise).add_(stabiliser), out=gradient)
                own = master_of(state, names[index], start, theta)
                move(theta, gradient.mul_(scale), directions, index, start, own)
            weights.copy_(torch.tensor([first_weight, second_weight], dtype=torch.float64))

    def finish(self, parameters: TrainableParameters, state: Mapping[str, Tensor]) -> None:
        """The last iterate is the result."""


def _zeros(name: str, parameters: TrainableParameters) -> State:
    named = zip(parameters.names, parameters, strict=True)
    return {f"{name}.{n}": torch.zeros(p.shape, dtype=torch.float32, device=p.device) for n, p in named}


def _fl32(number: float) -> float:
    """Round to fp32, to nearest even, as a tensor operation would."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(number))


def _check_decay(option: str, decay: float) -> None:
    if not 0 <= decay < 1:
        raise DpzoError(f"{option}: {decay} is outside 0 … 1; choose a decay of at least 0 and below 1, such as 0.9")
