"""What the watcher of a run is told, all of it public."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dpzo.privacy import PrivacyPlan, Release
from dpzo.run.build import RunParts
from dpzo.run.published import promises, whole_epsilon


@dataclass(frozen=True)
class Progress:
    """What a watcher is told, all of it public: the plan, the run's whole ε, a forecast made on synthetic data."""

    plan: PrivacyPlan
    epsilon: float
    guarantee: bool
    seconds_per_step: float
    memory_bytes: int


Watcher = Callable[[Progress], Callable[[Release | None], None]]


def unwatched(progress: Progress) -> Callable[[Release | None], None]:
    """Tell nobody."""
    return lambda release: None


def progress_of(parts: RunParts) -> Progress:
    """What there is to tell of a run before its first step."""
    plan, header, forecast = parts.job.plan, parts.job.header, parts.forecast
    return Progress(
        plan, whole_epsilon(plan, header), promises(header), forecast.seconds_per_step, forecast.memory_bytes
    )
