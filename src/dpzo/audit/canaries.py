"""Canaries: synthetic units with the largest influence that clipping allows, and their scores from a journal.

Canary i's loss is a steep line in one trained element j_i, so its slope along z_k is a multiple of z_k[j_i] and its
clipped row C·z[j_i]/‖z[j_i]‖: known from the public seed, different for every canary, and of the greatest possible
length. Its score is Σ_t ⟨release_t, that row⟩, which holds the row's own square wherever the canary took part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dpzo.privacy import PrivacyPlan, Release
from dpzo.run.journal import Transcript
from dpzo.zo import DirectionScheme, Objective, TrainableParameters

_STEEP = 1e4
"""Slope of a canary's loss in units of the clip: far beyond it, whatever fp32 makes of θ ± φz."""


@dataclass(frozen=True)
class Place:
    """Element `element` of trainable parameter `parameter`."""

    parameter: int
    element: int


def places(scheme: DirectionScheme, count: int, draw: np.random.Generator) -> list[Place]:
    """`count` different elements of the trainable part, by a public generator. ValueError where there are fewer."""
    if count > scheme.dimension:
        raise ValueError("more canaries than trained elements")
    flat = np.sort(draw.choice(scheme.dimension, size=count, replace=False))
    bounds = np.array(scheme.origins)
    owners = np.searchsorted(bounds, flat, side="right") - 1
    return [Place(int(owner), int(at - bounds[owner])) for owner, at in zip(owners, flat, strict=True)]


@dataclass(frozen=True, repr=False)
class WithCanaries:
    """An objective of `num_units` units, then one canary at each of `at`. Canary i's loss: slope · θ[at_i].

    `parameters` must be held whole under a shift (`materialise="all"`): canaries read them from outside any layer.
    """

    objective: Objective
    num_units: int
    parameters: TrainableParameters
    at: Sequence[Place]
    slope: float

    def losses(self, units: npt.NDArray[np.int64], /) -> npt.NDArray[np.float64]:
        """(B,) losses of units and canaries, in their order."""
        found = np.empty(len(units))
        real = units < self.num_units
        found[real] = np.asarray(self.objective.losses(units[real]), dtype=np.float64) if real.any() else 0.0
        if not real.all():
            found[~real] = self.slope * self._values()[units[~real] - self.num_units]
        return found

    def _values(self) -> npt.NDArray[np.float64]:
        """The current value of each canary's element of θ."""
        values = np.empty(len(self.at))
        for index, parameter in enumerate(self.parameters):
            own = [i for i, place in enumerate(self.at) if place.parameter == index]
            if own:
                elements = torch.tensor([self.at[i].element for i in own], device=parameter.device)
                values[own] = parameter.detach().view(-1)[elements].double().cpu().numpy()
        return values


def steepness(plan: PrivacyPlan) -> float:
    """A slope that clipping always shortens."""
    return _STEEP * plan.clip_norm


def scores(transcript: Transcript, plan: PrivacyPlan, scheme: DirectionScheme, at: Sequence[Place]) -> list[float]:
    """Each canary's score from the journal alone, in units of its standard deviation under Gaussian noise only.

    Formula: Σ_t ⟨s_t, u_ti⟩ / √(Σ_t ‖u_ti‖²·(σC)²), u_ti = C·z_t[j_i]/‖z_t[j_i]‖, ‖·‖ the norm that is clipped.
    """
    sums, squares = np.zeros(len(at)), np.zeros(len(at))
    by_parameter: dict[int, list[int]] = {}
    for index, place in enumerate(at):
        by_parameter.setdefault(place.parameter, []).append(index)
    for entry, _ in transcript.entries():
        if not isinstance(entry, Release):
            continue
        rows = _rows(scheme, entry.step, at, by_parameter)
        norms = np.linalg.norm(rows, ord=plan.mechanism.order, axis=1, keepdims=True)
        rows = plan.clip_norm * np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
        sums += rows @ entry.slopes()
        squares += (rows * rows).sum(axis=1)
    std = plan.noise_multiplier * plan.clip_norm
    return list(sums / np.maximum(np.sqrt(squares) * std, np.finfo(np.float64).tiny))


def _rows(
    scheme: DirectionScheme, step: int, at: Sequence[Place], by_parameter: dict[int, list[int]]
) -> npt.NDArray[np.float64]:
    """z_k[j_i], shape (canaries, K)."""
    directions = scheme.at(step)
    found = np.empty((len(at), scheme.num_directions))
    for parameter, own in by_parameter.items():
        elements = [at[index].element for index in own]
        first, last = min(elements), max(elements)
        z = torch.empty(last - first + 1)
        for k in range(scheme.num_directions):
            directions.fill(k, parameter, z, first)
            found[own, k] = z.numpy()[[element - first for element in elements]]
    return found
