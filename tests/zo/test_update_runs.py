"""Every update through whole runs: replay, resume, burnt steps, and that none of them changes what was spent."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from dpzo.errors import DpzoError
from dpzo.privacy import Release
from dpzo.run import loop as train
from dpzo.run.checkpoint import CHECKPOINT
from dpzo.run.header import journal_header
from dpzo.run.journal import read
from dpzo.run.step_key import STEP_KEY
from dpzo.zo import SCHEDULES, DirectionScheme, TrainableParameters, build_update, update_facts

STEPS = 12

COMBINATIONS: dict[str, dict[str, Any]] = {
    "momentum": {"rule": "momentum"},
    "adam": {"rule": "adam"},
    "sign": {"rule": "sign"},
    "sgd-snr": {"rule": "sgd", "shrinkage": "snr"},
    "sgd-ema": {"rule": "sgd", "ema": 0.8},
    "momentum-snr-ema": {"rule": "momentum", "momentum": 0.7, "shrinkage": "snr", "ema": 0.8},
    "adam-tail": {"rule": "adam", "average": 0.5},
    "adam-ema-bf16": {"rule": "adam", "ema": 0.8, "dtype": torch.bfloat16},
    "momentum-snr-bf16-master": {"rule": "momentum", "shrinkage": "snr", "dtype": torch.bfloat16, "master": True},
    "sign-tail-fp16": {"rule": "sign", "average": 0.3, "dtype": torch.float16},
}
every = pytest.mark.parametrize("name", sorted(COMBINATIONS))


def make_job(linear: ModuleType, *, steps: int = STEPS, dtype: torch.dtype = torch.float32, **parts: Any) -> train.Job:
    """The linear double's job with another update, and its weights in `dtype`."""
    job: train.Job = linear.make_job(steps)
    module = job.parameters.module.to(dtype)
    parameters = TrainableParameters(module, ["weight", "bias"])
    plan = job.plan
    update = build_update(
        **{"rule": "sgd", **parts},
        schedule=SCHEDULES["cosine"](0.05, steps, 1),
        expected_batch_size=plan.expected_batch_size,
        steps=steps,
        noise_std=plan.noise_multiplier * plan.clip_norm,
    )
    facts = {name: value for name, value in parts.items() if name in ("momentum", "shrinkage", "ema")}
    public = {"update": update_facts(parts.get("rule", "sgd"), **facts)}
    return replace(
        job,
        parameters=parameters,
        scheme=DirectionScheme("rademacher", 3, plan.num_directions, parameters.sizes),
        update=linear.Counted(update),
        header=journal_header(plan, has_guarantee=False, public=public),
        smoothing=1e-2 if dtype == torch.float32 else 0.25,
    )


def fingerprint(job: train.Job) -> bytes:
    return b"".join(tensor.view(-1).view(torch.uint8).numpy().tobytes() for tensor in job.parameters.state().values())


class Units:
    """The double's losses at weights of any dtype, or none at all."""

    def __init__(self, linear: ModuleType, job: train.Job, silent: bool = False) -> None:
        self.squares, self.silent = linear.Squares(lambda x: module(x.to(module.weight.dtype)).float()), silent
        module: Any = job.parameters.module

    def losses(self, units: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.zeros(len(units)) if self.silent else self.squares.losses(units)


def go(linear: ModuleType, act: Any, folder: Path, name: str, silent: bool = False, **options: Any) -> train.Job:
    job = make_job(linear, **COMBINATIONS.get(name, {}))
    folder.mkdir(exist_ok=True)
    noise = linear.Draws()
    act(job, Units(linear, job, silent), linear.NUM_UNITS, folder, nonprivate_randomness=noise, **options)
    return job


def releases(folder: Path) -> list[Release]:
    return [entry for entry, _ in read(folder).entries() if isinstance(entry, Release)]


@every
def test_a_replay_gives_the_same_bits(linear: ModuleType, tmp_path: Path, name: str) -> None:
    fitted = go(linear, train.fit, tmp_path, name)
    again = make_job(linear, **COMBINATIONS[name])
    assert fingerprint(again) != fingerprint(fitted)
    train.replay(again, read(tmp_path))
    assert fingerprint(again) == fingerprint(fitted)
    plain = make_job(linear)
    with pytest.raises(DpzoError, match="its update is not"):
        train.replay(plain, read(tmp_path))


@every
def test_a_stop_and_a_resume_from_the_checkpoint_change_nothing(linear: ModuleType, tmp_path: Path, name: str) -> None:
    whole = go(linear, train.fit, tmp_path / "whole", name)

    def interrupt(release: Any) -> None:
        if release.step == 6:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(train.Stopped):
        go(linear, train.fit, tmp_path / "parts", name, observe=interrupt)
    resumed = go(linear, train.resume, tmp_path / "parts", name)
    assert resumed.update.applied == list(range(7, STEPS))  # type: ignore[attr-defined]  # from its state, not anew
    assert fingerprint(resumed) == fingerprint(whole)
    assert [r.values for r in releases(tmp_path / "parts")] == [r.values for r in releases(tmp_path / "whole")]


@every
def test_after_a_death_the_burnt_step_counts_nowhere(linear: ModuleType, tmp_path: Path, name: str) -> None:
    """A resume from the checkpoint of step 5, one that lost it, and a replay agree; step 8 was in flight."""

    def die(step: int) -> None:
        if step == 8:
            raise linear.Died

    def noise(step: int) -> Any:
        die(step)
        return linear.Noise(step)

    job = make_job(linear, **COMBINATIONS[name])
    with pytest.raises(linear.Died):
        train.fit(job, Units(linear, job), linear.NUM_UNITS, tmp_path, nonprivate_randomness=noise)
    assert (tmp_path / CHECKPOINT).exists()
    (tmp_path / STEP_KEY).unlink(missing_ok=True)  # a lost key: the step is burnt
    resumed = go(linear, train.resume, tmp_path, name)
    assert linear.burnt(tmp_path) == {8}
    assert resumed.update.applied == [5, 6, 7, 9, 10, 11]  # type: ignore[attr-defined]
    again = make_job(linear, **COMBINATIONS[name])
    train.replay(again, read(tmp_path))
    assert again.update.applied == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11]  # type: ignore[attr-defined]
    assert fingerprint(again) == fingerprint(resumed)


@every
def test_no_update_changes_an_event_or_a_release(linear: ModuleType, tmp_path: Path, name: str) -> None:
    """Same plan, event and ε; the same first release; and, where losses say nothing, the same releases to the end."""
    options = COMBINATIONS[name]
    dtype = options.get("dtype", torch.float32)
    job, plain = make_job(linear, **options), make_job(linear, dtype=dtype)
    assert job.plan == plain.plan
    assert job.plan.event == plain.plan.event
    assert job.plan.epsilon == plain.plan.epsilon
    assert {**job.header, "update": None} == {**plain.header, "update": None}
    found = {}
    for kind, silent in (("learning", False), ("silent", True)):
        go(linear, train.fit, tmp_path / kind, name, silent)
        other = make_job(linear, dtype=dtype)
        folder = tmp_path / f"{kind}-plain"
        folder.mkdir()
        objective = Units(linear, other, silent)
        train.fit(other, objective, linear.NUM_UNITS, folder, nonprivate_randomness=linear.Draws())
        found[kind] = releases(tmp_path / kind), releases(folder)
    assert found["learning"][0][0] == found["learning"][1][0]
    assert found["silent"][0] == found["silent"][1]
    assert len(found["learning"][0]) == len(found["learning"][1]) == job.plan.steps
    assert found["learning"][0] != found["learning"][1] or options["rule"] == "sgd"


@every
def test_updates_learn_and_leave_the_global_generators_alone(linear: ModuleType, name: str) -> None:
    """From the double's start, on noiseless rows: the loss falls under every combination."""
    options = COMBINATIONS[name]
    before = torch.get_rng_state()
    job = make_job(linear, steps=60, **options)
    everyone = np.arange(linear.NUM_UNITS)
    objective = Units(linear, job)
    start = float(objective.losses(everyone).mean())
    state = job.update.init(job.parameters)
    with torch.no_grad():
        for step in range(60):
            at = job.scheme.at(step)
            rows = train.central_difference(objective, job.parameters, everyone[:8], at, job.smoothing)
            job.update.apply(job.parameters, state, at, rows.sum(axis=0), step)
        job.update.finish(job.parameters, state)
    assert float(objective.losses(everyone).mean()) < 0.8 * start
    assert torch.equal(torch.get_rng_state(), before)
