"""The arithmetic of a step's time, and that clocks time what they say. Nothing here depends on a machine's speed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from dpzo.config.schema import RunConfig, load_config, with_values
from dpzo.forecast import TimeForecast, expected_passes, planned_passes
from dpzo.forecast.advice import Situation, Suggestion, suggest
from dpzo.forecast.memory import frozen_layers
from dpzo.forecast.sizing import look_up, memory_at, planned_update, size_up
from dpzo.forecast.timing import DirectionCost, StandInClock, direction_cost, threads
from dpzo.models import RowShape, Storage
from dpzo.models.skeleton import find_checkpoint
from dpzo.run.build import task_of


def test_a_steps_time_is_its_passes_and_its_update() -> None:
    time = TimeForecast(2.0, 3.0, 1.0, evaluations=5, passes=4.5, directions=0.5, update=0.25, steps=10, once=7.0)
    assert time.per_step == 4.5 * (3.0 + 4 * 1.0) + 0.25
    assert time.run == 7.0 + 10 * time.per_step


@pytest.mark.parametrize(("batch", "units", "size"), [(3, 40, 2), (16, 200, 16), (0.5, 9, 4), (199, 200, 8)])
def test_the_expected_number_of_passes_is_that_of_a_binomial_batch(batch: float, units: int, size: int) -> None:
    draws = np.random.default_rng(1).binomial(units, batch / units, 200_000)
    assert expected_passes(batch, units, size) == pytest.approx(np.ceil(draws / size).mean(), rel=0.01)
    assert expected_passes(units, units, size) == math.ceil(units / size)


def test_a_stand_in_goes_on_in_a_straight_line(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a layer that takes 2 and the rest 5, nine layers take 23, and 11 with six passed by."""
    checkpoint = find_checkpoint(tiny_llama, "completion")
    checkpoint.config.num_hidden_layers = 9
    clock = StandInClock(checkpoint, None, Storage())

    def counted(module: torch.nn.Module, *_arguments: object) -> float:
        return 5.0 + 2.0 * len({name.split(".")[2] for name, _ in module.named_parameters() if ".layers." in name})

    monkeypatch.setattr("dpzo.forecast.timing.ModelClock.seconds", lambda self, *given: counted(self.module))
    shape = RowShape("completion", max_length=24, vocabulary=264, num_classes=1, max_answer_tokens=3, left_padded=True)
    assert clock.seconds(shape, 4) == pytest.approx(23.0)
    assert clock.seconds(shape, 4, 6) == pytest.approx(11.0)
    monkeypatch.setattr("dpzo.forecast.timing._STAND_IN_OPERATIONS", 1)
    shape = replace(shape, max_length=64)
    assert clock.seconds(shape, 4) == pytest.approx(23.0 * 4 * 2)  # one row of 32 tokens is timed


def test_directions_cost_something_and_threads_are_put_back() -> None:
    config = load_config(
        None,
        {
            "model.name": "x",
            "privacy.delta": 1e-5,
            "privacy.expected_batch_size": 4,
            "privacy.steps": 5,
            "training.average": 0,
        },
    )
    cost = direction_cost("rademacher", 2, planned_update(config), 5000)
    assert cost.shift > 0
    assert cost.update > 0
    before = torch.get_num_threads()
    with threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


@dataclass(frozen=True)
class MadeUpClock:
    """A layer takes one second for each hundred tokens, whatever else."""

    layers: int = 2

    def seconds(self, shape: RowShape, microbatch_size: int, shared_layers: int = 0) -> float:
        return (self.layers - shared_layers) * microbatch_size * shape.max_length / 100

    def head_seconds(self) -> float | None:
        return 0.001


def situation(folder: Path, **options: object) -> Situation:
    given = {name.replace("__", "."): value for name, value in options.items()}
    fixed = {"data.labels": ["no", "yes"], "data.label_words": [" no", " yes"], "data.max_length": 32}
    config = load_config(None, {"model.name": str(folder), "privacy.delta": 1e-5, **fixed, **given})
    task = task_of(config)
    sized = size_up(config, task, look_up(config, task), 1000)
    clock, shared = MadeUpClock(sized.skeleton.checkpoint.num_layers), frozen_layers(sized.skeleton)
    whole, rest = clock.seconds(sized.shape, 16), clock.seconds(sized.shape, 16, shared)
    time = TimeForecast(whole, whole, rest, evaluations=32, passes=4.5, directions=0.0, update=0.0, steps=100)

    def memory_of(other: RunConfig, shape: RowShape) -> object:
        return memory_at(size_up(other, task, sized.skeleton.checkpoint, 1000), shape)

    return Situation(
        config=sized.config,
        skeleton=sized.skeleton,
        shape=sized.shape,
        num_examples=1000,
        microbatch_size=16,
        shared_layers=shared,
        time=time,
        memory=sized.memory,
        clock=clock,
        cost=DirectionCost(2e-9, 2e-9),
        cost_of=lambda kind: DirectionCost(1e-9, 1e-9),
        memory_of=memory_of,  # type: ignore[arg-type]
    )


def advice(now: Situation) -> dict[str, Suggestion]:
    return {one.change: one for one in suggest(now)}


def test_suggestions_are_computed_and_only_those_that_apply(tiny_llama: Path) -> None:
    found = advice(situation(tiny_llama))
    assert found["--num-directions 8"].faster == pytest.approx(2.0)
    assert found["--set training.estimator=forward"].faster == pytest.approx(32 / 17)
    assert found["--max-length 16"].faster == pytest.approx(2.0)
    assert "--trainable head" not in found  # only an encoder's features can be kept
    assert "--set training.prefix=run" not in found  # nothing is frozen below
    assert "--set training.directions=rademacher" not in found
    assert "--set model.lora_layers=top:1" not in found  # two layers are few
    assert all(one.faster >= 1.05 or one.smaller >= 1.05 for one in found.values())
    order = [one.faster for one in suggest(situation(tiny_llama)) if one.faster >= 1.05]
    assert order == sorted(order, reverse=True)
    forward = advice(situation(tiny_llama, training__estimator="forward", privacy__num_directions=1))
    assert not any("estimator" in change or "--num-directions" in change for change in forward)


def test_frozen_layers_can_be_kept_for_the_run(tiny_llama: Path) -> None:
    now = situation(tiny_llama, model__lora_layers="top:1", privacy__num_directions=2)
    now = replace(now, time=replace(now.time, evaluations=4))
    assert now.shared_layers == 1
    kept = advice(now)["--set training.prefix=run"]
    step, saved = 4.5 * (2 + 3 * 1), 4.5
    assert kept.faster == pytest.approx(100 * step / (100 * (step - saved) + 63), rel=0.01)
    assert kept.needed_bytes > now.memory.needed


def test_an_encoders_features_and_other_laws(tiny_bert: Path) -> None:
    now = situation(tiny_bert, model__trainable="full", training__directions="gaussian")
    now = replace(now, time=replace(now.time, directions=4.0, update=2.0, first=now.time.first + 4 / 144))
    found = advice(now)
    assert found["--trainable head"].run_seconds == pytest.approx(
        63 * now.time.forward + 100 * 32 * 0.001 * expected_passes(64, 1000, 256), rel=0.01
    )
    assert "--set model.dtype=bfloat16" not in found  # 100 kB of weights are not worth a line
    slow = replace(now, time=replace(now.time, forward=1e-4, first=0.03, further=0.03, directions=4.0))
    assert advice(slow)["--set training.directions=rademacher"].faster > 1.5
    head = advice(situation(tiny_bert, model__trainable="head"))
    assert not any("microbatch" in change or "--trainable" in change for change in head)
    assert with_values(now.config, training={"directions": "rademacher"}) != now.config


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize(
    ("batch", "units", "steps", "size"),
    [(64, 10**6, 200, 16), (1024, 100_000, 5000, 256), (2.5, 40, 7, 1), (0.01, 50, 10, 8), (64, 64, 1, 16)],
)
def test_planned_passes_are_the_fewest_that_a_run_hardly_exceeds(
    batch: float, units: int, steps: int, size: int, each: int
) -> None:
    """T·P(r·X > c·m) ≤ 10⁻⁶ at c, and not at c − 1, for r records of each unit."""
    found = planned_passes(batch, units, steps, size, each)

    def beyond(passes: int) -> float:
        return steps * float(stats.binom.sf(passes * size // each, units, batch / units))

    assert beyond(found) <= 1e-6
    assert found == 1 or beyond(found - 1) > 1e-6
    assert found <= math.ceil(units * each / size)
