"""A logistic regression in a few dimensions with gradients that a reader can derive, and jobs over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dpzo.config.solve import solve_plan
from dpzo.experiments.baselines import Pass
from dpzo.run.header import journal_header
from dpzo.run.loop import Job
from dpzo.zo import SCHEDULES, DirectionScheme, Sgd, TrainableParameters


@dataclass(frozen=True)
class Logistic:
    """−log σ(y·(w·x + b)) of each record; y = ±1. `poison` records have a NaN loss."""

    module: torch.nn.Linear
    x: torch.Tensor
    y: torch.Tensor

    def loss(self, records: np.ndarray[Any, np.dtype[np.int64]]) -> torch.Tensor:
        rows = torch.from_numpy(np.ascontiguousarray(records))
        return torch.nn.functional.softplus(-self.y[rows] * self.module(self.x[rows])[:, 0])

    def losses(self, records: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        with torch.no_grad():
            return np.asarray(self.loss(records).double().numpy())

    def passes(self, records: np.ndarray[Any, np.dtype[np.int64]], microbatch_size: int) -> Iterator[Pass]:
        for start in range(0, len(records), microbatch_size):
            chosen = records[start : start + microbatch_size]
            yield Pass(len(chosen), 1, len(chosen), partial(self.loss, chosen))

    def mean(self) -> float:
        return float(self.losses(np.arange(len(self.y))).mean())


def make(
    units: int = 64,
    dimension: int = 5,
    *,
    steps: int = 3,
    batch: float = 16.0,
    noise: float = 1.0,
    learning_rate: float = 0.5,
    clip_norm: float = 1.0,
) -> SimpleNamespace:
    draw = np.random.Generator(np.random.PCG64(17))
    x = draw.standard_normal((units, dimension))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    truth = draw.standard_normal(dimension)
    module = torch.nn.utils.skip_init(torch.nn.Linear, dimension, 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    module.eval()
    objective = Logistic(module, torch.from_numpy(x).float(), torch.from_numpy(np.sign(x @ truth)).float())
    parameters = TrainableParameters(module, ["weight", "bias"])
    plan = solve_plan(
        num_examples=units,
        expected_batch_size=batch,
        steps=steps,
        delta=1e-5,
        noise_multiplier=noise,
        clip_norm=clip_norm,
        num_directions=1,
    )
    public = {
        "num_examples_source": "declared",
        "unit_column": None,
        "tuning": "none",
        "nonprivate_uses": [],
        "base": {"name": "logistic", "fingerprint": "0" * 64},
    }
    job = Job(
        plan=plan,
        parameters=parameters,
        scheme=DirectionScheme("sphere", 5, 1, parameters.sizes),
        smoothing=1e-3,
        update=Sgd(SCHEDULES["constant"](learning_rate, steps, 0), plan.expected_batch_size),
        header=journal_header(plan, True, public),
    )
    return SimpleNamespace(job=job, objective=objective, units=units, plan=plan, replace=replace)


@pytest.fixture(scope="session")
def logistic() -> Callable[..., SimpleNamespace]:
    return make


@dataclass
class Recorded:
    """Seeded words, so that a test can repeat a draw; nothing secret about it."""

    seed: int

    def __post_init__(self) -> None:
        self._draw = np.random.Generator(np.random.PCG64(self.seed))

    def words(self) -> Iterator[int]:
        while True:
            yield from self.word_array(64).tolist()

    def word_array(self, size: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        return self._draw.integers(0, 2**64, size=size, dtype=np.uint64)


@pytest.fixture(scope="session")
def recorded() -> type[Recorded]:
    return Recorded
