"""Forecast a run's memory and time; no private data is read."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpzo.config.schema import RunConfig
from dpzo.config.solve import plan_summary
from dpzo.forecast import (
    MemoryForecast,
    TimeForecast,
    available_memory,
    passes_of,
)
from dpzo.forecast.sizing import Sized, look_up, memory_at, require_memory, size_up
from dpzo.forecast.timing import DirectionCost, direction_cost, forward_seconds, timed_evaluations
from dpzo.models import synthetic_objective
from dpzo.privacy import PrivacyPlan, PrivateChannel
from dpzo.run.build import RunFacts, RunParts, build_plan, start
from dpzo.run.declared import refuse_ignored
from dpzo.run.header import journal_header
from dpzo.run.journal import Journal
from dpzo.run.subject import task_of, update_of
from dpzo.zo import evaluations

_STAND_IN_DELTA = 1e-5


@dataclass(frozen=True)
class RunForecast:
    """The forecast of a run. Everything in it follows from declarations, shapes and synthetic tokens: it is public."""

    sized: Sized
    privacy: PrivacyPlan | None  # None if neither ε nor noise was requested
    memory: MemoryForecast
    available: int | None
    time: TimeForecast | None  # None if the weights are not local
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """For `--json`: bytes and seconds."""
        config, skeleton = self.sized.config, self.sized.skeleton
        return {
            "plan": None if self.privacy is None else plan_summary(self.privacy),
            "model": {
                "name": config.model.name,
                "parameters": skeleton.elements,
                "trainable": config.model.trainable,
                "trainable_parameters": skeleton.dimension,
                "max_length": self.sized.shape.max_length,
                "microbatch_size": self.sized.microbatch_size,
            },
            "run": {
                "steps": config.privacy.steps,
                "num_directions": config.privacy.num_directions,
                "expected_batch_size": config.privacy.expected_batch_size,
                "num_examples": self.sized.num_examples,
            },
            "memory": {
                **asdict(self.memory),
                **{f"while_{name}": size for name, size in self.memory.phases.items()},
                "needed": self.memory.needed,
                "peak_resident": self.memory.peak_resident,
                "available": self.available,
            },
            "time": None if self.time is None else _in_seconds(self.time),
            "guessed": list(self.sized.guessed),
            "threads": self.threads,
        }


def _in_seconds(time: TimeForecast) -> dict[str, Any]:
    return {**asdict(time), "per_step": time.per_step, "run": time.run}


def plan_run(config: RunConfig, num_examples: int, *, tell: Callable[[str], None] = lambda text: None) -> RunForecast:
    """Forecast the run of `config` on a declared number of units.

    Memory is computed from shapes, before anything is loaded. Time is measured on the model if its weights are local.
    Errors: `DpzoError` as for a run, and for a model that does not fit in memory.
    """
    refuse_ignored(config, from_folder=config.data.layout is not None)
    task = task_of(config)
    checkpoint = look_up(config, task)
    sized = size_up(config, task, checkpoint, num_examples)
    available = available_memory()
    require_memory(sized, available)
    asked = (sized.config.privacy.epsilon is None) != (sized.config.privacy.noise_multiplier is None)
    privacy = build_plan(sized.config.privacy, num_examples) if asked else None
    if not checkpoint.is_here:
        return RunForecast(sized, privacy, sized.memory, available, None, torch.get_num_threads())
    tell("loading the base model, checking isolation and timing it on synthetic tokens")
    plan = _stand_in_plan(sized) if privacy is None else privacy
    parts = start(config, RunFacts(num_examples, "declared", plan=plan), sized)
    sized = replace(sized, microbatch_size=parts.subject.shapes.microbatch_size)
    sized = replace(sized, memory=memory_at(sized))
    time = replace(_measured(sized, parts), release=_release_seconds(plan))
    return RunForecast(sized, privacy, sized.memory, available, time, torch.get_num_threads())


def _stand_in_plan(sized: Sized) -> PrivacyPlan:
    """A plan with some noise if no ε is requested: the amount of noise does not affect the time."""
    noise = {"epsilon": None, "noise_multiplier": 1.0, "delta": _STAND_IN_DELTA, "mechanism": "gaussian"}
    return build_plan(sized.config.privacy.model_copy(update=noise), sized.num_examples)


def _release_seconds(plan: PrivacyPlan) -> float:
    """Seconds of one draw of a batch, one release of zeros and one line of a journal, all discarded."""
    channel = PrivateChannel(plan)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal.create(Path(folder), journal_header(plan, False, {}))
        start = time.perf_counter()
        units = channel.draw_batch(plan.num_examples)
        journal.append(channel.release(np.zeros((len(units), plan.num_directions))))
        taken = time.perf_counter() - start
        journal.close(clean=True)
    return taken


def _measured(sized: Sized, parts: RunParts) -> TimeForecast:
    """Times of the evaluations that training makes."""
    subject, job, shapes, training = parts.subject, parts.job, parts.subject.shapes, sized.config.training
    count, dtype = job.plan.num_directions, sized.skeleton.trainable[0][1]
    update = update_of(training, steps=job.plan.steps, expected_batch_size=job.plan.expected_batch_size)
    cost = direction_cost(training.directions, count, update, sized.skeleton.dimension, dtype)
    synthetic = synthetic_objective(subject.loaded, sized.shape, shapes)
    first, further = timed_evaluations(job.parameters, job.scheme.at(0), job.smoothing, synthetic)
    forward = forward_seconds(subject.loaded.module, sized.shape, shapes.microbatch_size)
    records = math.ceil(sized.num_examples / shapes.microbatch_size)
    return _time(
        sized,
        forward=forward if shapes.head_block is None else further,
        first=first,
        further=further,
        cost=cost,
        rows=synthetic.microbatch_size,
        together=synthetic.variants,
        once=records * forward if shapes.head_block is not None else records * first if shapes.keep == "run" else 0.0,
    )


def _passes(sized: Sized, rows: int) -> float:
    return passes_of(sized.config, sized.num_examples, rows)


def _time(
    sized: Sized,
    forward: float,
    first: float,
    further: float,
    cost: DirectionCost,
    rows: int,
    together: int,
    once: float,
) -> TimeForecast:
    privacy = sized.config.privacy
    passes = _passes(sized, rows)
    times = 1.0 if sized.shifts_whole else max(1.0, passes)  # held a layer at a time, they are computed for every pass
    made = evaluations(sized.config.training.estimator, privacy.num_directions)
    count = math.ceil(made / together)
    shifts = made * cost.shift * sized.skeleton.dimension
    return TimeForecast(
        forward=forward,
        first=first,
        further=further,
        evaluations=count,
        passes=passes,
        directions=shifts * times,
        update=cost.update * sized.skeleton.dimension,
        steps=privacy.steps,
        once=once,
    )
