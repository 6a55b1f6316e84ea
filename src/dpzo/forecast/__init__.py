"""Forecast a run before it starts: memory from shapes, time from a short measurement on synthetic tokens."""

from dpzo.forecast.machine import available_memory, in_words, processors
from dpzo.forecast.memory import MemoryForecast, forecast_memory, state_bytes, what_fits
from dpzo.forecast.timing import (
    TimeForecast,
    expected_passes,
    passes_of,
    planned_passes,
    records_per_unit,
    timed_evaluations,
)

__all__ = [
    "MemoryForecast",
    "TimeForecast",
    "available_memory",
    "expected_passes",
    "forecast_memory",
    "in_words",
    "passes_of",
    "planned_passes",
    "processors",
    "records_per_unit",
    "state_bytes",
    "timed_evaluations",
    "what_fits",
]
