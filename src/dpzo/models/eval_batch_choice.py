"""Choose how many settings of the trainable part to evaluate together: the number that is measured to be fastest.

Everything here sees public synthetic tokens alone. More at a time change the rounding of a loss, never what it is a
function of: the isolation of records is checked on the very shape that is chosen.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from dpzo.errors import DpzoError
from dpzo.models.encoder import EncoderClassifier
from dpzo.models.isolation import RowShape, check_isolation, lively, synthetic_rows
from dpzo.models.memory import evaluation_memory
from dpzo.models.models import LoadedModel
from dpzo.models.objectives import FeatureObjective, Indices, Losses, TokenObjective
from dpzo.models.shapes import Shapes, TokenProbe, head_rows, synthetic_head, synthetic_objective
from dpzo.zo import DirectionScheme, TrainableParameters, shifted
from dpzo.zo.stack import Shift, Weights, stacked

Asked = Literal["auto"] | int

LEAST_GAIN = 1.05
"""How many times faster an evaluation has to be for several settings to go together."""
BYTES_AT_MOST = 1 << 30
"""Activations, logits and shifted weights of all settings together, when the number is chosen by measuring."""
LITTLE = 64 << 20
"""Bytes of them that are spent beside any model, however small."""
SHARE_OF_WEIGHTS = 1 / 8
"""What they may be of the model's weights. It pays where few rows are evaluated beside large weights, so more bytes
would mostly make a forecast of memory wrong."""
SECONDS_AT_MOST = 20.0
"""Longest time that is spent on measuring; what has been seen by then decides."""
SHARE_OF_RUN = 0.05
"""Measuring and checking may cost at most this share of a run's evaluations."""
COST_OF_A_TRIAL = 20
"""Evaluations that it takes to try V settings and to check them, in units of V, all smaller numbers included."""
TOLERANCE = 1e-3
"""Largest difference between losses one by one and together, as a share of how far the settings are apart."""
ROUNDINGS = 16
"""What comes on top: so many units in the last place of the base's own dtype."""


@dataclass(frozen=True)
class Work:
    """The public facts of a run that decide what measuring is worth."""

    evaluations: int  # of each record in a step
    smoothing: float
    passes: int  # micro-batches of a run in each evaluation: steps · ⌈expected batch ÷ micro-batch⌉


def settle_variants(
    loaded: LoadedModel,
    shape: RowShape,
    shapes: Shapes,
    parameters: TrainableParameters,
    scheme: DirectionScheme,
    work: Work,
    asked: Asked,
    *,
    strict: bool = True,
) -> Shapes:
    """`shapes` with the number of settings that are evaluated together, at most `work.evaluations`.

    - A number that is asked for is taken if the model can be evaluated so and records stay isolated.
    - `auto` times 1, 2, 4, 8 … up to `most_together` on one micro-batch of synthetic tokens, and takes the fastest, if
      it gains `LEAST_GAIN` and records stay isolated; 1 without a look where the run is too short to repay it.

    The answer depends on declarations and on this machine's speed. Errors: `DpzoError` when a number above 1 is asked
    for and not supported; with `strict` false the number is then 1.
    """
    most = most_together(loaded, shape, shapes, work, asked)
    if most < 2:
        return shapes
    trial = _Trial(loaded, shape, shapes, parameters, scheme, work)
    reason = _unserved(loaded, parameters)
    if reason is None:
        reason = trial.disagreement()
    if reason is None:
        choices = trial.faster(most) if asked == "auto" else [most]
        for count in choices:
            if trial.isolated(count):
                return replace(shapes, variants=count)
        reason = "the records of a micro-batch would not be isolated from each other"
    if asked != "auto" and strict:
        raise DpzoError(f"training.eval_batch {asked}: {reason}; choose auto or 1")
    return shapes


def most_together(loaded: LoadedModel, shape: RowShape, shapes: Shapes, work: Work, asked: Asked) -> int:
    """The largest number of settings that `settle_variants` may try, from declarations and shapes alone."""
    if asked != "auto":
        return min(asked, work.evaluations)
    worth = int(SHARE_OF_RUN * work.passes * work.evaluations / COST_OF_A_TRIAL)
    weights = sum(p.numel() * p.element_size() for p in loaded.module.parameters())
    room = min(BYTES_AT_MOST, max(LITTLE, int(SHARE_OF_WEIGHTS * weights)))
    return min(work.evaluations, worth, room // max(1, evaluation_memory(loaded, shape, shapes)))


def _unserved(loaded: LoadedModel, parameters: TrainableParameters) -> str | None:
    """Why the model is evaluated at one setting at a time, from its declaration alone; None if it need not be."""
    if loaded.storage.quantization != "none":
        return "a quantised base takes one setting at a time"
    if loaded.has_experts:
        return "a mixture of experts takes one setting at a time"
    if loaded.trainable == "full" or parameters.effective_materialise() != "all":
        return "several copies of so large a trainable part are not made"
    return None


class _Trial:
    """Evaluations of synthetic records at several settings together."""

    def __init__(
        self,
        loaded: LoadedModel,
        shape: RowShape,
        shapes: Shapes,
        parameters: TrainableParameters,
        scheme: DirectionScheme,
        work: Work,
    ) -> None:
        self._loaded, self._shape, self._shapes, self._work = loaded, shape, shapes, work
        self._parameters, self._directions = parameters, scheme.at(0)
        self._size = shapes.rows

    def _shifts(self, count: int, scale: float) -> list[Shift]:
        """So many settings, ± along the directions that there are, farther out each time they are used again."""
        directions = self._directions.num_directions
        return [
            (place // 2 % directions, (-1) ** place * scale * (1 + place // (2 * directions))) for place in range(count)
        ]

    def disagreement(self) -> str | None:
        """Why two settings cannot go together: the module's course cannot be followed, or its losses are others."""
        objective = synthetic_objective(self._loaded, self._shape, self._shapes)
        units = np.arange(self._size, dtype=np.int64)
        with lively(self._loaded.module, self._loaded.trainable_names):
            shifts = self._shifts(2, max(self._work.smoothing, 0.05))
            alone = []
            for k, scale in shifts:
                with shifted(self._parameters, self._directions, k, scale):
                    alone.append(objective.losses(units))
            try:
                with stacked(self._parameters, self._directions, shifts) as weights:
                    together = objective.variant_losses(units, weights)
            except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
                return f"the model's forward cannot be run at several settings ({type(error).__name__})"
        apart = np.abs(alone[0] - alone[1]).max()
        rounding = ROUNDINGS * torch.finfo(self._loaded.storage.torch_dtype).eps * np.abs(alone).max()
        if not np.abs(np.array(alone) - together).max() <= TOLERANCE * apart + rounding:
            return "the model's losses at several settings are not those at each"
        return None

    def faster(self, most: int) -> list[int]:
        """Numbers of settings that gain `LEAST_GAIN` over one at a time, the fastest first; a step is what is timed.

        Larger numbers are tried until two in turn bring nothing.
        """
        objective = synthetic_objective(self._loaded, self._shape, self._shapes)
        units = np.arange(self._size, dtype=np.int64)
        deadline = time.perf_counter() + SECONDS_AT_MOST
        alone = self._work.evaluations * self._seconds(objective, units, 1)
        found: dict[int, float] = {}
        best, idle = alone, 0
        for count in candidates(self._work.evaluations, most):
            found[count] = -(-self._work.evaluations // count) * self._seconds(objective, units, count)
            idle = 0 if found[count] < best else idle + 1
            best = min(best, found[count])
            if idle == 2 or time.perf_counter() > deadline:
                break
        return sorted((count for count in found if LEAST_GAIN * found[count] <= alone), key=found.__getitem__)

    def _seconds(self, objective: TokenObjective | FeatureObjective, units: Indices, count: int) -> float:
        """The faster of two evaluations at `count` settings together, after one that warms up."""
        spent = []
        for _ in range(3):
            start = time.perf_counter()
            if count == 1:
                with shifted(self._parameters, self._directions, 0, self._work.smoothing):
                    objective.losses(units)
            else:
                shifts = self._shifts(count, self._work.smoothing)
                with stacked(self._parameters, self._directions, shifts) as weights:
                    objective.variant_losses(units, weights)
            spent.append(time.perf_counter() - start)
        return min(spent[1:])

    def isolated(self, count: int) -> bool:
        """Whether no record's loss depends on the other records when `count` settings are evaluated together."""
        shapes, size, loaded = self._shapes, self._size, self._loaded
        with lively(loaded.module, loaded.trainable_names):
            shifts = self._shifts(count, max(self._work.smoothing, 0.05))
            with stacked(self._parameters, self._directions, shifts) as weights:
                if shapes.head_block is not None:
                    module = loaded.module
                    assert isinstance(module, EncoderClassifier)
                    head = synthetic_head(module, head_rows(module, 2 * size), size)
                    return check_isolation(_HeadProbe(head, weights), size)
                rows = synthetic_rows(self._shape, 2 * size)
                keep, depth = shapes.keep, shapes.prefix_layers
                probe = TokenProbe(loaded.module, rows, size, prefix_layers=depth, keep=keep, weights=weights)
                return check_isolation(probe, size)


class _HeadProbe:
    """Stands in for a head's objective in the isolation check: a checksum over a record's losses at all settings."""

    def __init__(self, objective: FeatureObjective, weights: Weights) -> None:
        self._objective, self._weights = objective, weights

    def losses(self, records: Indices) -> Losses:
        """One 64-bit checksum per record, stored in a float: only its bits have a meaning."""
        bits = self._objective.variant_losses(records, self._weights).view(np.int64)
        odd = 2 * np.arange(len(bits), dtype=np.int64)[:, None] + 1
        result: Losses = (bits * odd).sum(axis=0).view(np.float64)
        return result


def candidates(evaluations: int, most: int) -> Sequence[int]:
    """Numbers of settings that cut so many evaluations evenly, near 2, 4, 8 … and at most `most`.

    >>> candidates(32, 32), candidates(17, 12), candidates(6, 6)
    ([2, 4, 8, 16, 32], [2, 4, 6, 9], [2, 3, 6])
    """
    found = set()
    goal = 2
    while goal < 2 * evaluations:
        found.add(-(-evaluations // -(-evaluations // min(goal, evaluations))))
        goal *= 2
    return sorted(count for count in found if 1 < count <= most)
