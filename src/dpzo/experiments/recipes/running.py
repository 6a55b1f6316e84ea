"""Run an experiment: the private loop into a run folder, a baseline into a folder with card and score."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpzo.config.reading import derived_fields, dump_config, with_values
from dpzo.config.resolve import ResolvedConfig, part_of
from dpzo.config.schema import RunConfig
from dpzo.data.tasks import Task
from dpzo.errors import DpzoError
from dpzo.experiments.baselines import (
    AdamW,
    DpGradient,
    LmoGradient,
    Method,
    NonprivateZerothOrder,
    VectorNoise,
    ZeroShot,
)
from dpzo.experiments.baselines.first_order import Rule
from dpzo.experiments.recipes.base import Experiment
from dpzo.experiments.recipes.methods import LMO, BaselineName, drift_rate, local_model
from dpzo.models import save
from dpzo.models.quiet import silent_libraries
from dpzo.run import folders as runs
from dpzo.run.build import RunFacts, RunParts, resolve_num_examples, start
from dpzo.run.journal import write_durably
from dpzo.run.local import located
from dpzo.run.output import CONFIG, make_folder, require_new
from dpzo.run.scoring import score
from dpzo.run.subject import objective, task_of
from dpzo.run.trained_model import MODEL

CARD, SCORE = "baseline_card.json", "score.json"


@dataclass(frozen=True)
class Finished:
    """The result of an experiment: its card, and a baseline's score (for a run, use `dpzo evaluate`)."""

    card: dict[str, Any]
    score: dict[str, Any] | None


def run_experiment(
    experiment: Experiment,
    data_dir: Path,
    output: Path,
    *,
    watch: runs.Watcher = lambda progress: lambda release: None,
    tell: Callable[[str], None] = lambda text: None,
) -> Finished:
    """Write to the new folder `output`: a run as `dpzo train` writes it, or a baseline's model, config, card and score.

    Raises the errors of `runs.train`, and DpzoError if a baseline is not supported.
    """
    config = located(with_local_model(experiment.config))
    source = runs.DataSource(folder=data_dir)
    if experiment.baseline is not None:
        return _run_baseline(config, experiment, data_dir, output, tell)
    return Finished(runs.train(config, source, output, watch=watch, tell=tell), None)


def _run_baseline(
    config: RunConfig, experiment: Experiment, data_dir: Path, output: Path, tell: Callable[[str], None]
) -> Finished:
    assert experiment.baseline is not None
    require_new(output)
    task, lmo = task_of(config), experiment.baseline in LMO
    tell("reading the records")
    records = task.load(data_dir, "train", config.data.layout)
    number, origin = resolve_num_examples(config, task, data_dir, lambda: records.num_units)
    tell("loading the base model, solving the plan, checking isolation on synthetic tokens")
    plan = replace(experiment, config=with_values(config, privacy={"num_examples": number})).plan() if lmo else None
    parts = start(config, RunFacts(number, origin, plan=plan))
    method = make_baseline(experiment.baseline, parts, config)
    tell(f"training by {method.name}")
    with silent_libraries():
        card = method.run(parts.job, objective(records, parts.subject), records.num_units).card
    make_folder(output)
    filled = as_trained(parts.subject.config, card)
    card = {**card, "config": filled.model_dump(mode="json"), "derived": list(derived_fields(config, filled))}
    write_durably(output / CONFIG, dump_config(config).encode())
    write_durably(output / CARD, (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode())
    model = output / MODEL
    model.mkdir(mode=0o700)
    save(parts.subject.loaded, model, labels=task.labels, max_length=filled.data.max_length)
    tell("scoring it on held-out records")
    found = score(parts.subject, task.load(data_dir, held_out(task, data_dir, config.data.layout), config.data.layout))
    write_durably(output / SCORE, (json.dumps(found, indent=2) + "\n").encode())
    return Finished(card, found)


def make_baseline(name: BaselineName, parts: RunParts, asked: RunConfig) -> Method:
    """The baseline for the assembled config, with that config's rate, clip, schedule, warm-up and averaging.

    `asked` is the config before defaults were filled: if it leaves the rate of DPGD-0th open, the rate of one scalar
    direction is divided by √d, as each of the d coordinates then gets noise of √d times the slope's; the open rate of
    DP-SGD, with Gaussian or LMO noise, is `methods.drift_rate`.
    """
    config, training = parts.subject.config, parts.subject.config.training
    if training.constant_time:
        raise DpzoError(
            f"--constant-time: the baseline {name} evaluates as many micro-batches as a batch has; leave it out"
        )
    rate = training.learning_rate
    common: dict[str, Any] = {
        "learning_rate": rate,
        "schedule": training.schedule,
        "warmup_steps": training.warmup_steps,
        "average": training.average,
    }
    if name == "zero-shot":
        return ZeroShot()
    if name == "mezo":
        return NonprivateZerothOrder(seed=training.seed)
    if name == "adamw":
        return AdamW(**common, seed=training.seed)
    if name == "dpgd-0th":
        if asked.training.learning_rate is None:
            common["learning_rate"] = rate / math.sqrt(parts.job.parameters.dimension)
        return VectorNoise(**common)
    rule: Rule = LMO[name][0] if name in LMO else "sgd" if name == "dp-sgd" else "adam"
    if rule == "sgd":
        if asked.training.learning_rate is None:
            plan = replace(parts.job.plan, num_directions=1, clip_norm=config.privacy.clip_norm)
            common["learning_rate"] = drift_rate(part_of(config.model.trainable), parts.job.parameters.dimension, plan)
        common["momentum"] = training.momentum if training.update == "momentum" else 0.0
    descent = DpGradient(rule, clip_norm=config.privacy.clip_norm, **common)
    return LmoGradient(descent, config.privacy.mechanism, LMO[name][1]) if name in LMO else descent


def as_trained(config: ResolvedConfig, card: dict[str, Any]) -> ResolvedConfig:
    """The resolved config with the rate that a baseline actually used."""
    rate = card.get("settings", {}).get("learning_rate")
    if rate is None:
        return config
    return config.model_copy(update={"training": config.training.model_copy(update={"learning_rate": rate})})


def held_out(task: Task, data_dir: Path, layout: str | None) -> Any:
    """The split for the score: test, or dev if a public copy has no labelled test split."""
    return "test" if "test" in task.layout(data_dir, layout).files else "dev"


def with_local_model(config: RunConfig) -> RunConfig:
    """The config with the small encoder's hub name replaced by the folder of its package, if that is installed."""
    name = local_model(config.model.name)
    return config if name == config.model.name else with_values(config, model={"name": name})
