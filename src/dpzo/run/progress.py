"""Progress information of a run for its watcher. All of it is public."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dpzo.privacy import PrivacyPlan, Release
from dpzo.run.build import RunParts
from dpzo.run.published import promises, whole_epsilon


@dataclass(frozen=True)
class Progress:
    """Public facts for a watcher: the plan, the run's total ε, and a forecast made on synthetic data."""

    plan: PrivacyPlan
    epsilon: float
    guarantee: bool
    seconds_per_step: float
    memory_bytes: int


Watcher = Callable[[Progress], Callable[[Release | None], None]]


def unwatched(progress: Progress) -> Callable[[Release | None], None]:
    """A watcher that ignores all progress."""
    return lambda release: None


def progress_of(parts: RunParts) -> Progress:
    """The progress information before a run's first step."""
    plan, header, forecast = parts.job.plan, parts.job.header, parts.forecast
    return Progress(
        plan, whole_epsilon(plan, header), promises(header), forecast.seconds_per_step, forecast.memory_bytes
    )
