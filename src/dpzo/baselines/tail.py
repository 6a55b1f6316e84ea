"""The mean of the last iterates, for methods that move the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpzo.train import Job
from dpzo.zo import StepDirections, TailAverage, TrainableParameters
from dpzo.zo.updates import State


class Tail:
    """`zo.TailAverage` over iterates that somebody else makes: `add` after every step, `finish` at the end.

    `fraction` 0 keeps the last iterate and holds nothing. Post-processing of what was released.
    """

    def __init__(self, job: Job, fraction: float) -> None:
        self._job = job
        self._average = TailAverage(_Moved(), job.plan.steps, fraction) if fraction != 0 else None
        self._state = {} if self._average is None else self._average.init(job.parameters)

    def add(self, step: int) -> None:
        """Count the weights as they are after `step`."""
        if self._average is not None:
            self._average.apply(self._job.parameters, self._state, self._job.scheme.at(step), np.zeros(1), step)

    def finish(self) -> None:
        """Write the mean into the weights."""
        if self._average is not None:
            self._average.finish(self._job.parameters, self._state)


@dataclass(frozen=True)
class _Moved:
    """An update that finds its work done."""

    def init(self, parameters: TrainableParameters) -> State:
        return {}

    def apply(
        self,
        parameters: TrainableParameters,
        state: State,
        directions: StepDirections,
        values: NDArray[np.float64],
        step: int,
    ) -> None:
        pass

    def finish(self, parameters: TrainableParameters, state: Mapping[str, object]) -> None:
        pass
