"""The mean of the last iterates, for methods that update the weights themselves."""

from __future__ import annotations

from dpzo.run.loop import Job
from dpzo.zo import TailMean


class Tail:
    """`zo.TailMean` over iterates computed elsewhere: call `add` after every step and `finish` at the end.

    `fraction` 0 keeps the last iterate and stores no sum. Post-processing of releases.
    """

    def __init__(self, job: Job, fraction: float) -> None:
        self._parameters = job.parameters
        self._mean = TailMean(job.plan.steps, fraction) if fraction != 0 else None
        self._state = {} if self._mean is None else self._mean.init(job.parameters)

    def add(self, step: int) -> None:
        """Add the weights after `step` to the mean."""
        if self._mean is not None:
            self._mean.add(self._parameters, self._state, step)

    def finish(self) -> None:
        """Write the mean into the weights."""
        if self._mean is not None:
            self._mean.finish(self._parameters, self._state)
