"""Transformations of the released row before a rule uses it: shrinkage by signal-to-noise ratio, or signs only.

Both read the released values and the public noise level only, so they cost no privacy and change no event.
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
from dpzo.zo.updates import State, Update, apply_inner, inner_of, released, under_inner

MEAN_ABSOLUTE = math.sqrt(2.0 / math.pi)
"""E|x| of a standard normal x: the size of a released number that holds noise alone, in units of its deviation."""


@dataclass(frozen=True)
class Shrinkage:
    """s ← f_t·s with f_t = max(floor, e_t/(e_t + K)), e_t the mean excess of ‖s/σ‖² over the K that noise alone has.

    `noise_std` σ: standard deviation of the noise on each released number (slope units), public.

    To the operation, in float64: u_k = s_k/σ; x = Σ_k fl(u_k·u_k) − K, the sum correctly rounded (`math.fsum`, so no
    order matters); m ← β·m + (1 − β)·x and w ← β·w + (1 − β), both from 0; e = max(0, m/w); f = 1/(1 + K/e), 0 for
    e = 0, and never below `floor`; s_k ← fl(f·s_k).

    - E‖s‖² = ‖signal‖² + K·σ², so e_t estimates the signal's energy in units of σ² and f_t the Wiener factor, the
      multiple of s with the least mean squared error to the true row. After one release, f is 1 − K/‖s/σ‖², a
      positive-part James–Stein factor; later factors also use earlier releases.
    - The row keeps its direction and becomes shorter: steps shrink as noise dominates the slopes late in training.
    - The floor keeps a run moving. Noise alone puts e/K at ±√(2(1 − β)/((1 + β)K)) about 0, which for the default decay
      0.99 is 0.1 at K = 1 and less for more directions: below the default floor nothing would be learnt from e.
    - State: `shrinkage.energy`, `shrinkage.weight`, float64 scalars, and the inner state under `inner.`. Burnt steps do
      not count.

    Raises DpzoError for a noise that is not positive (there is nothing to shrink by), a floor outside 0 < floor ≤ 1 or
    a decay outside 0 ≤ β < 1. Source: James and Stein 1961; after the idea of SAGE (arXiv 2608.03277).
    """

    inner: Update
    noise_std: float
    decay: float = 0.99
    floor: float = 0.1

    def __post_init__(self) -> None:
        _check_noise("training.shrinkage", self.noise_std)
        if not 0 <= self.decay < 1:
            raise DpzoError(f"shrinkage decay: {self.decay} is outside 0 … 1; choose at least 0 and below 1")
        if not 0 < self.floor <= 1:
            raise DpzoError(f"shrinkage floor: {self.floor} is outside 0 … 1; choose one above 0, such as 0.1")

    def init(self, parameters: TrainableParameters) -> State:
        """No energy seen yet, beside the inner state."""
        zero = torch.zeros((), dtype=torch.float64)
        return {
            **under_inner(self.inner.init(parameters)),
            "shrinkage.energy": zero.clone(),
            "shrinkage.weight": zero.clone(),
        }

    def factor(self, state: State, values: NDArray[np.float64]) -> float:
        """Return f_t, after adding the release to the state."""
        scaled = [float(s) / self.noise_std for s in released(values)]
        excess = math.fsum(u * u for u in scaled) - len(scaled)
        fresh = 1.0 - self.decay
        energy = self.decay * float(state["shrinkage.energy"]) + fresh * excess
        weight = self.decay * float(state["shrinkage.weight"]) + fresh
        state["shrinkage.energy"].fill_(energy)
        state["shrinkage.weight"].fill_(weight)
        estimate = energy / weight
        return max(self.floor, 1.0 / (1.0 + len(scaled) / estimate)) if estimate > 0 else self.floor

    def apply(
        self,
        parameters: TrainableParameters,
        state: State,
        directions: StepDirections,
        values: NDArray[np.float64],
        step: int,
    ) -> None:
        """The inner step on the shrunk row."""
        shrunk = self.factor(state, values) * values.astype(np.float64)
        apply_inner(self.inner, parameters, state, directions, shrunk, step)

    def finish(self, parameters: TrainableParameters, state: Mapping[str, Tensor]) -> None:
        """What the inner update releases."""
        self.inner.finish(parameters, inner_of(state))


@dataclass(frozen=True)
class SignRelease:
    """s_k ← sign(s_k)·√(2/π)·σ: of each released number one bit reaches the inner update.

    `noise_std` σ as for `Shrinkage`. To the operation: scale = fl64(√(2/π)·σ); ±scale by the sign, 0 stays 0.

    - √(2/π)·σ is E|s| of Gaussian noise alone (Laplace noise has 0.89 of it): with little signal, the usual case, a
      step is about as long as without signs and learning rates stay comparable; strong slopes are cut to that length.
    - Bounds a step by a public number, whatever is released. State: the inner one.

    Raises DpzoError for a noise that is not positive. Source: signSGD, Bernstein et al. 2018, on released slopes.
    """

    inner: Update
    noise_std: float

    def __post_init__(self) -> None:
        _check_noise("training.update sign", self.noise_std)

    def init(self, parameters: TrainableParameters) -> State:
        """The inner state."""
        return self.inner.init(parameters)

    def apply(
        self,
        parameters: TrainableParameters,
        state: State,
        directions: StepDirections,
        values: NDArray[np.float64],
        step: int,
    ) -> None:
        """The inner step on ±scale."""
        signs = np.sign(released(values)) * (MEAN_ABSOLUTE * self.noise_std)
        self.inner.apply(parameters, state, directions, signs, step)

    def finish(self, parameters: TrainableParameters, state: Mapping[str, Tensor]) -> None:
        """What the inner update releases."""
        self.inner.finish(parameters, state)


def _check_noise(option: str, noise_std: float) -> None:
    if not 0 < noise_std < math.inf:
        raise DpzoError(f"{option}: needs the noise of a release, and {noise_std} is none; choose another")
