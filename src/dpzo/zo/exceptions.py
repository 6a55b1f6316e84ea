"""Exceptions raised while units are evaluated: the unit that raises one counts 0, and nothing says that it did."""

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
    """An objective that can evaluate a micro-batch of filling, which holds no unit."""

    def evaluate_filling(self) -> None:
        """Evaluate one micro-batch of the usual shape without any unit in it; the result is dropped."""


@runtime_checkable
class ForgetfulObjective(Protocol):
    """An objective that holds something for the units it was asked for last."""

    def forget(self) -> None:
        """Drop it."""


@dataclass(frozen=True)
class ExceptionSafeEstimator:
    """`estimator`, where a unit whose evaluation raises an exception has a row of NaN, which the channel counts as 0.

    If units evaluated together raise, each half of them is evaluated by itself, down to a unit alone in a filled
    micro-batch of the usual shape; a unit that raises there has the row of NaN, whichever direction raised.

    - Row i depends on unit i alone where the rows of sets that raise nothing do, and a set raises if and only if one
      of its units does so alone: then each row is that of the unit alone, whoever else is in the batch.
    - Type, message and traceback of the exception are dropped: they may hold the record. It has no effect but the row.
    - A result of another shape than (B, K) is treated as an exception.
    - `KeyboardInterrupt`, `SystemExit` and exceptions of the type `stop` pass: no record raises them.
    - Out of memory: as any exception, with less held at a time. If even filling cannot be evaluated, the machine is
      what lacks memory: then, and only then, DpzoError.
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
            objective.forget()  # what is held for the last batch would make an equal one faster
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
"""What a plain RuntimeError of torch's allocator for the CPU says."""


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
