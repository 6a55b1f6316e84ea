"""Exceptions during evaluation: a unit that raises one counts as 0, without any visible sign."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from dpzo.errors import DpzoError
from dpzo.zo.directions import StepDirections
from dpzo.zo.estimators import Estimator, Objective, Projections, Units, is_padded
from dpzo.zo.parameters import TrainableParameters


@runtime_checkable
class FillableObjective(Protocol):
    """An objective that can evaluate a micro-batch of padding without any unit."""

    def evaluate_filling(self) -> None:
        """Evaluate one micro-batch of the usual shape without any unit; the result is discarded."""


@runtime_checkable
class ForgetfulObjective(Protocol):
    """An objective that caches data for the last units that it evaluated."""

    def forget(self) -> None:
        """Clear the cache."""


@dataclass(frozen=True)
class ExceptionSafeEstimator:
    """Wrap `estimator`: a unit whose evaluation raises an exception gets a row of NaN, which the channel counts as 0.

    If units evaluated together raise, each half is evaluated separately, down to a single unit in a padded micro-batch
    of the usual shape. A unit that raises there gets a row of NaN, whichever direction raised.

    - Row i depends on unit i alone if this holds for sets that raise nothing, and if a set raises if and only if one of
      its units raises alone. Each row is then that of the unit alone, whatever the batch.
    - Type, message and traceback of the exception are dropped: they may hold the record. It has no effect but the row.
    - A result of another shape than (B, K) is treated as an exception.
    - `KeyboardInterrupt`, `SystemExit` and exceptions of the type `stop` propagate: no record raises them.
    - Out of memory is handled like any exception, with smaller sets. Only if padding alone cannot be evaluated does the
      machine lack memory, and DpzoError is raised.
    """

    estimator: Estimator
    stop: type[Exception]

    def __call__(
        self,
        objective: Objective,
        parameters: TrainableParameters,
        units: Units,
        directions: StepDirections,
        smoothing: float,
    ) -> Projections:
        """(B, K) float64 slopes of each unit along the directions; rows of NaN for units that raise."""

        def evaluate(some: Units) -> Projections:
            return self.estimator(objective, parameters, some, directions, smoothing)

        if is_padded(objective) and isinstance(objective, ForgetfulObjective):
            objective.forget()  # a cache of the last batch would make an equal batch faster
        return self._rows(evaluate, objective, units, directions.num_directions)

    def _rows(
        self, evaluate: Callable[[Units], Projections], objective: Objective, units: Units, width: int
    ) -> Projections:
        is_memory_short = False
        try:
            rows = np.asarray(evaluate(units), dtype=np.float64)
            if rows.shape == (len(units), width):
                return rows
        except self.stop:
            raise
        except Exception as error:
            is_memory_short = _is_memory_short(error)
        # Outside the handler: the exception and its frames are gone, and no later error has it as context.
        if isinstance(objective, ForgetfulObjective):
            objective.forget()
        if is_memory_short:
            _free_memory()
        if len(units) > 1:
            half = len(units) // 2
            parts = (units[:half], units[half:])
            return np.concatenate([self._rows(evaluate, objective, part, width) for part in parts])
        if is_memory_short:
            _require_memory_for_filling(objective)
        return np.full((len(units), width), np.nan)


_ALLOCATION_FAILURES = ("DefaultCPUAllocator", "alloc_cpu", "can't allocate memory")
"""Parts of the message of a RuntimeError from torch's CPU allocator."""


def _is_memory_short(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATION_FAILURES)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _require_memory_for_filling(objective: Objective) -> None:
    """DpzoError if the machine cannot evaluate a micro-batch that holds no record, which says nothing of any record."""
    if not isinstance(objective, FillableObjective):
        return
    is_memory_short = False
    try:
        objective.evaluate_filling()
    except Exception as error:
        is_memory_short = _is_memory_short(error)
    if is_memory_short:
        raise DpzoError(
            "the machine has no memory left to evaluate a micro-batch, not even one without records; free memory or "
            "use a smaller microbatch_size, then resume the run"
        )
