"""Estimators: from losses to projections. This is the only module of `zo` that evaluates private data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dpzo.zo.directions import StepDirections
from dpzo.zo.parameters import TrainableParameters
from dpzo.zo.shift import shifted
from dpzo.zo.stack import Shift, Weights, stacked

Units = NDArray[np.int64]
Projections = NDArray[np.float64]


class Objective(Protocol):
    """A loss per unit. Entry i of the result depends on unit i and the weights alone, bit for bit (law 7)."""

    def losses(self, units: Units, /) -> NDArray[np.floating[Any]]:
        """(B,) float32 or float64 losses of `units` at the module's current weights; NaN and ±inf are allowed."""


@runtime_checkable
class VariantObjective(Protocol):
    """An objective that can also evaluate several settings of the trainable part together. Optional."""

    @property
    def variants(self) -> int:
        """V: the number of settings per call; 1 to evaluate them one by one through `losses`."""

    def losses(self, units: Units, /) -> NDArray[np.floating[Any]]:
        """As in `Objective`."""

    def variant_losses(self, units: Units, weights: Weights, /) -> NDArray[np.floating[Any]]:
        """(V, B) losses of `units` with the trainable part replaced by each of the V settings in `weights`.

        Entry (v, i) depends on setting v and unit i alone, bit for bit, at the shape that V makes.
        """


@runtime_checkable
class PaddedObjective(Protocol):
    """An objective that runs at least a planned number of passes for any batch: see `--constant-time`."""

    @property
    def planned_passes(self) -> int:
        """Minimum passes of an evaluation; extra passes hold no unit. 0: as many as the units need."""


def is_padded(objective: object) -> bool:
    """Whether an evaluation runs a planned number of passes, and therefore also runs for an empty batch."""
    return isinstance(objective, PaddedObjective) and objective.planned_passes > 0


class Estimator(Protocol):
    """(B, K) slopes of each unit's loss along the step's directions."""

    def __call__(
        self,
        objective: Objective,
        parameters: TrainableParameters,
        units: Units,
        directions: StepDirections,
        smoothing: float,
    ) -> Projections: ...


def central_difference(
    objective: Objective,
    parameters: TrainableParameters,
    units: Units,
    directions: StepDirections,
    smoothing: float,
) -> Projections:
    """Directional slopes by two evaluations per direction. Private: pass them only to `PrivateChannel.release`.

    d_ik = (ℓ_i(θ + φ·z_k) − ℓ_i(θ − φ·z_k)) / (2φ), in float64 from the losses as given; shape (B, K), loss per
    parameter unit. It estimates z_k·∇ℓ_i(θ) with an error of order φ², exact for a quadratic loss, so that
    E[d_ik·z_k] is the gradient of ℓ_i smoothed over φz.

    - B = 0 gives shape (0, K); the objective is not called unless it is padded (`is_padded`).
    - A unit whose loss is NaN or ±inf on a side may get NaN or ±inf: the channel counts such a row as 0.
    - θ is never written: see `shifted`. Row i depends on unit i alone if this holds for the objective.

    Args:
        objective: The per-example loss.
        parameters: The trainable part; φ shifts it.
        units: Indices of the B units.
        directions: The step's K directions.
        smoothing: φ, in parameter units.

    Returns:
        Slopes, float64, shape (B, K), loss per parameter unit.

    Raises:
        ValueError: if the objective does not return one loss per unit.

    Source: the two-point estimator of Spall 1992 (simultaneous perturbation).
    """
    if not smoothing > 0:
        raise ValueError("smoothing must be positive")
    if len(units) == 0 and not is_padded(objective):
        return np.zeros((0, directions.num_directions))
    shifts = [(k, scale) for k in range(directions.num_directions) for scale in (smoothing, -smoothing)]
    losses = _evaluate(objective, parameters, units, directions, shifts)
    with np.errstate(invalid="ignore", over="ignore"):
        slopes: Projections = (losses[0::2] - losses[1::2]) / (2 * smoothing)
    return np.ascontiguousarray(slopes.T)


def forward_difference(
    objective: Objective,
    parameters: TrainableParameters,
    units: Units,
    directions: StepDirections,
    smoothing: float,
) -> Projections:
    """Directional slopes by K + 1 evaluations; all directions share the evaluation at θ. Private.

    d_ik = (ℓ_i(θ + φ·z_k) − ℓ_i(θ)) / φ, in float64 from the losses as given; shape (B, K), loss per parameter unit.
    For a loss with Hessian H_i it is z_k·∇ℓ_i(θ) + (φ/2)·z_kᵀH_i z_k + O(φ²).

    - The second term has the mean φ·tr(H_i)/2 in every slope of the row, whatever k: it does not shrink with K, and it
      takes its part of `clip_norm`. Directions are symmetric (z and −z as likely), so E[z·zᵀHz] = 0: without clipping
      E[d_ik·z_k] is still the gradient up to order φ², and the term is noise, of order φ instead of φ².
    - Use a smaller φ than for `central_difference`. Rounding of the losses bounds φ from below: the error is divided by
      φ instead of 2φ, and the rounding of ℓ_i(θ) adds an offset shared by all K.
    - Arguments, result, errors, empty batches, non-finite losses and θ as in `central_difference`. A non-finite loss at
      θ makes the whole row non-finite.

    Source: the one-sided estimator of Nesterov and Spokoiny 2017; what the second term does is derived here.
    """
    if not smoothing > 0:
        raise ValueError("smoothing must be positive")
    if len(units) == 0 and not is_padded(objective):
        return np.zeros((0, directions.num_directions))
    shifts = [(0, 0.0), *((k, smoothing) for k in range(directions.num_directions))]
    losses = _evaluate(objective, parameters, units, directions, shifts)
    with np.errstate(invalid="ignore", over="ignore"):
        slopes: Projections = (losses[1:] - losses[0]) / smoothing
    return np.ascontiguousarray(slopes.T)


def _evaluate(
    objective: Objective,
    parameters: TrainableParameters,
    units: Units,
    directions: StepDirections,
    shifts: Sequence[Shift],
) -> NDArray[np.float64]:
    """(E, B) losses at each of E shifted weights, `objective.variants` at a time if the objective supports it."""
    losses = np.zeros((len(shifts), len(units)))
    at_once = objective.variants if isinstance(objective, VariantObjective) else 1
    if isinstance(objective, VariantObjective) and at_once > 1:
        for start in range(0, len(shifts), at_once):
            chosen = shifts[start : start + at_once]
            with stacked(parameters, directions, chosen, at_once) as weights:
                found = np.asarray(objective.variant_losses(units, weights), dtype=np.float64)
            if found.shape != (at_once, len(units)):
                raise ValueError("the objective must return one loss a setting and unit")
            losses[start : start + len(chosen)] = found[: len(chosen)]
        return losses
    for place, (k, scale) in enumerate(shifts):
        if scale == 0:
            losses[place] = _losses(objective, units)
            continue
        with shifted(parameters, directions, k, scale):
            losses[place] = _losses(objective, units)
    return losses


def _losses(objective: Objective, units: Units) -> NDArray[np.float64]:
    losses = np.asarray(objective.losses(units), dtype=np.float64)
    if losses.shape != (len(units),):
        raise ValueError("the objective must return one loss a unit")  # without the private batch size
    return losses


ESTIMATORS: dict[str, Estimator] = {"central": central_difference, "forward": forward_difference}


def is_own(estimator: Estimator) -> bool:
    """Whether an estimator is built into dpzo, so that each row depends on its own unit by construction."""
    return estimator in (central_difference, forward_difference)


def evaluations(estimator: str, num_directions: int) -> int:
    """Evaluations of each unit's loss in a step of K directions: 2K for `central`, K + 1 for `forward`.

    >>> evaluations("central", 16), evaluations("forward", 16)
    (32, 17)
    """
    return num_directions + 1 if estimator == "forward" else 2 * num_directions
