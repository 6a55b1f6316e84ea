"""How long a step takes, from a short measurement on synthetic tokens: never on the user's data."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import nn

from dpzo.config.resolve import ResolvedConfig
from dpzo.config.schema import DataConfig
from dpzo.models import FeatureObjective, RowShape, TokenObjective
from dpzo.models.isolation import synthetic_rows
from dpzo.zo import DirectionScheme, StepDirections, TrainableParameters, Update, shifted, stacked

_ENOUGH_SECONDS = 0.6
_MOST_REPEATS = 7
_SAMPLE = 1 << 22
"""Trained elements that directions and an update are timed on, at most."""
_SAMPLE_WORK = 1 << 27
"""The same times the number of directions, at most."""


@dataclass(frozen=True)
class TimeForecast:
    """Seconds. A step consists of `passes` micro-batches, each evaluated `evaluations` times, then the update.

    `forward`: a plain evaluation of one micro-batch. `first`, `further`: evaluations of it at shifted weights, the
    first of a step through all layers, the others past those whose output is shared. `once`: before the first step.
    """

    forward: float
    first: float
    further: float
    evaluations: int
    passes: float
    directions: float  # of a step, within its evaluations: computing shifted weights
    update: float
    steps: int
    once: float = 0.0
    release: float = 0.0  # of a step: sampling the batch, clipping, noise

    @property
    def per_step(self) -> float:
        """passes · (first + (evaluations − 1) · further) + update + release."""
        return self.passes * (self.first + (self.evaluations - 1) * self.further) + self.update + self.release

    @property
    def run(self) -> float:
        """All steps, and the work before them."""
        return self.once + self.steps * self.per_step


def expected_passes(expected_batch_size: float, num_examples: int, microbatch_size: int) -> float:
    """E⌈X/m⌉ for the batch's size X ~ Binomial(N, B/N), by the tail sum Σ_{j ≥ 0} P(X > j·m).

    >>> expected_passes(64, 64, 16), round(expected_passes(64, 10**6, 16), 2)
    (4.0, 4.47)
    """
    prob = min(1.0, expected_batch_size / num_examples)
    if prob == 1.0:
        return float(math.ceil(num_examples / microbatch_size))
    spread = expected_batch_size + 12 * math.sqrt(expected_batch_size) + 12
    last = min(num_examples, math.ceil(spread))
    return float(stats.binom.sf(np.arange(0, last + 1, microbatch_size), num_examples, prob).sum())


BEYOND_PLAN = 1e-6
"""Probability that any batch of a run takes more micro-batches than `planned_passes`."""


def planned_passes(
    expected_batch_size: float, num_examples: int, steps: int, microbatch_size: int, records_per_unit: int = 1
) -> int:
    """⌈r·x/m⌉ for the least x with T·P(X > x) ≤ `BEYOND_PLAN`, X ~ Binomial(N, B/N), r records of a unit at most.

    Public: a function of the plan and of shapes. All T batches stay within it except with that probability (union
    bound); at most ⌈r·N/m⌉.

    >>> planned_passes(64, 64, 200, 16), planned_passes(64, 10**6, 200, 16)
    (4, 8)
    """
    prob = min(1.0, expected_batch_size / num_examples)
    units = num_examples
    if prob < 1.0:
        within = BEYOND_PLAN / steps
        units = int(stats.binom.isf(within, num_examples, prob))
        while stats.binom.sf(units, num_examples, prob) > within:
            units += 1
        while units > 0 and stats.binom.sf(units - 1, num_examples, prob) <= within:
            units -= 1
    return max(1, math.ceil(units * records_per_unit / microbatch_size))


def passes_of(config: ResolvedConfig, num_examples: int, microbatch_size: int) -> float:
    """Micro-batches of an evaluation: the planned number under `constant_time`, else the expected one.

    The expectation assumes one record per unit: the number of records is not known.
    """
    batch, steps = config.privacy.expected_batch_size, config.privacy.steps
    if not config.training.constant_time:
        return expected_passes(batch, num_examples, microbatch_size)
    return float(planned_passes(batch, num_examples, steps, microbatch_size, records_per_unit(config.data)))


def records_per_unit(data: DataConfig) -> int:
    """The most records of a unit that are used, if that is declared; else 1."""
    declared = data.unit_column is not None and data.max_records_per_unit is not None
    return data.max_records_per_unit if declared else 1  # type: ignore[return-value]


def forward_seconds(module: nn.Module, shape: RowShape, microbatch_size: int) -> float:
    """Seconds of one plain evaluation of a micro-batch of synthetic tokens, at the current weights."""
    objective = TokenObjective(module, synthetic_rows(shape, microbatch_size), microbatch_size, keep="none")
    units = np.arange(microbatch_size, dtype=np.int64)
    return median_seconds(lambda: objective.losses(units))


def median_seconds(call: Callable[[], object]) -> float:
    """The median of a few calls after a warm-up; a slow one is called twice in total."""
    start = time.perf_counter()
    call()
    warming = time.perf_counter() - start
    taken: list[float] = []
    while not taken or (len(taken) < _MOST_REPEATS and sum(taken) + warming < _ENOUGH_SECONDS):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


@dataclass(frozen=True)
class DirectionCost:
    """Seconds per trained element: for one shifted copy, and for an update by all directions."""

    shift: float
    update: float


def direction_cost(
    kind: str, num_directions: int, update: Update, dimension: int, dtype: torch.dtype = torch.float32
) -> DirectionCost:
    """Time directions and an update on a stand-in of at most `_SAMPLE` elements; masks and ranks are ignored."""
    size = max(1, min(dimension, _SAMPLE, _SAMPLE_WORK // num_directions))
    module = nn.Module()
    module.weight = nn.Parameter(torch.full((size,), 0.5, dtype=dtype), requires_grad=False)
    parameters = TrainableParameters(module, ["weight"])
    directions = DirectionScheme(kind, 0, num_directions, parameters.sizes).at(0)
    out = torch.empty(size, dtype=dtype)
    state, values = update.init(parameters), np.full(num_directions, 1e-3)
    with torch.no_grad():
        shift = median_seconds(lambda: directions.shift(0, 0, parameters.flat(0), 1e-3, out))
        whole = median_seconds(lambda: update.apply(parameters, state, directions, values, 0))
    return DirectionCost(shift / size, whole / size)


def timed_evaluations(
    parameters: TrainableParameters,
    directions: StepDirections,
    smoothing: float,
    synthetic: TokenObjective | FeatureObjective,
) -> tuple[float, float]:
    """Seconds of a micro-batch's first evaluation in a step, and of each further one, at shifted weights.

    If the output of frozen layers is shared, only the first evaluation of a step runs them; `variants` evaluations
    count as one.
    """
    units = np.arange(synthetic.microbatch_size, dtype=np.int64)

    together = synthetic.variants

    def timed() -> float:
        start = time.perf_counter()
        if together > 1:
            with stacked(parameters, directions, [(0, smoothing)] * together) as weights:
                synthetic.variant_losses(units, weights)
        else:
            with shifted(parameters, directions, 0, smoothing):
                synthetic.losses(units)
        return time.perf_counter() - start

    timed()  # compiles the kernels
    synthetic.forget()
    return timed(), timed()
