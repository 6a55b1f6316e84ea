"""Build the parts of a run from its config. Everything built here except the objective is public."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dpzo.config.defaults import default_learning_rate
from dpzo.config.plain import refusing
from dpzo.config.reading import derived_fields
from dpzo.config.resolve import (
    ResolvedConfig,
    ResolvedPrivacy,
    part_of,
    recorded_config,
    resolve,
    resolve_model,
    resolve_privacy,
)
from dpzo.config.schema import FROM_FILE, RunConfig
from dpzo.config.solve import solve_plan
from dpzo.data.tasks import Task
from dpzo.errors import DpzoError
from dpzo.forecast import expected_passes, timed_evaluations
from dpzo.forecast.sizing import Sized, memory_at, require_memory, size_up_if_possible
from dpzo.models import (
    LoadedModel,
    RowShape,
    Shapes,
    check_measure,
    load_model,
    peek_architecture,
    seeded_initialiser,
    settle_shift,
    settle_variants,
    synthetic_objective,
)
from dpzo.models.chat_tokens import choose_chat_template
from dpzo.models.sources import Architecture
from dpzo.privacy import PrivacyPlan
from dpzo.privacy.plan import relation_named
from dpzo.run.checks import isolated_or_refused, padded, planned_work, require_conformance
from dpzo.run.declared import require_used
from dpzo.run.header import NumExamplesSource, check_header, run_header
from dpzo.run.journal import Transcript
from dpzo.run.local import naming_base
from dpzo.run.loop import Job
from dpzo.run.movement import check_rate
from dpzo.run.output import no_run
from dpzo.run.private_count import PrivateCount
from dpzo.run.subject import (
    Subject,
    end_token,
    lora_of,
    require_label_words,
    row_shape,
    storage_of,
    task_of,
    update_of,
)
from dpzo.zo import (
    ESTIMATORS,
    SCHEME,
    DirectionScheme,
    TrainableParameters,
    direction_scheme,
    evaluations,
    is_own,
    update_facts,
)


@dataclass(frozen=True)
class RunFacts:
    """What a run is built from in addition to its config. Public.

    - `num_examples`, `num_examples_source`: N and where it comes from; `count`: its private count.
    - `plan`: a plan that is already solved (a journal's or a baseline's); None: solved from the config.
    - `base`: the base model's current location; its fingerprint must match the header's.
    """

    num_examples: int
    num_examples_source: NumExamplesSource
    count: PrivateCount | None = None
    has_guarantee: bool = True
    plan: PrivacyPlan | None = None
    base: str | None = None


@dataclass(frozen=True)
class Forecast:
    """A run's estimated memory and time, from shapes and a measurement on synthetic tokens. Public."""

    seconds_per_step: float
    memory_bytes: int  # peak memory of the process; 0 if shapes do not determine it


@dataclass(frozen=True)
class RunParts:
    """A run's public parts: the model at θ_0 with its declarations, the job that trains it, and a forecast."""

    subject: Subject
    job: Job
    forecast: Forecast = Forecast(0.0, 0)
    notes: tuple[str, ...] = ()  # messages for the user before the run


def start(config: RunConfig, facts: RunFacts, sized: Sized | None = None) -> RunParts:
    """Build the parts of a new run. No private data is read.

    Loads the base model, fills defaults and solves the plan. Checks isolation, conformance to the original libraries
    and the learning rate on synthetic tokens. `sized`: the run's memory, if already known.

    Raises:
        DpzoError: for every user error, including a model that is too large for memory.
    """
    task = task_of(config)
    require_used(config, _architecture(config, task, facts))
    return _checked(config, task, facts, sized, variants=None)


def restart(transcript: Transcript, base: str | None) -> RunParts:
    """Build the parts of an interrupted run, at θ_0, with the same checks as for a new run."""
    config, facts = _recorded(transcript, base)
    variants = transcript.header["evaluation"].get("variants", 1)
    with naming_base(base):
        return _checked(config, task_of(config), facts, None, variants=variants)


def rebuild(transcript: Transcript, base: str | None) -> RunParts:
    """Build the parts of a run at θ_0 for replay, without evaluation. `base` replaces the header's base model."""
    config, facts = _recorded(transcript, base)
    with refusing(no_run(transcript.path)):
        evaluation = transcript.header["evaluation"]
        shapes = Shapes(evaluation["microbatch_size"], evaluation["head_block"], torch.get_num_threads())
    with naming_base(base):
        return start_at(config, facts, shapes)


def start_at(config: RunConfig, facts: RunFacts, shapes: Shapes) -> RunParts:
    """Build the parts of a run whose shapes are already known, without evaluating the model."""
    found = _load(config, task_of(config), facts, None)
    return RunParts(Subject(found.config, found.task, found.loaded, shapes), _job(config, facts, found, shapes))


def _recorded(transcript: Transcript, base: str | None) -> tuple[ResolvedConfig, RunFacts]:
    """A journal's config, and the other facts that its run was built from."""
    header = transcript.header
    check_header(header)
    with refusing(no_run(transcript.path)):
        plan, count = PrivacyPlan.from_dict(header["plan"]), header.get("count")
        return recorded_config(header["config"]), RunFacts(
            num_examples=plan.num_examples,
            num_examples_source=header["num_examples_source"],
            count=None if count is None else PrivateCount.from_dict(count),
            has_guarantee=header["secret_randomness"],
            plan=plan,
            base=base,
        )


@dataclass(frozen=True)
class _Loaded:
    """A run with its base model loaded: resolved, and not yet checked."""

    config: ResolvedConfig
    task: Task
    loaded: LoadedModel
    plan: PrivacyPlan
    parameters: TrainableParameters
    scheme: DirectionScheme
    shape: RowShape
    sized: Sized | None


def _load(config: RunConfig, task: Task, facts: RunFacts, sized: Sized | None) -> _Loaded:
    architecture = _architecture(config, task, facts)
    model = resolve_model(config.model, architecture)
    part = part_of(model.trainable, architecture)
    privacy = resolve_privacy(config, part, facts.num_examples)
    plan = build_plan(privacy, facts.num_examples, facts.count) if facts.plan is None else facts.plan
    sized = size_up_if_possible(config, task, facts.num_examples, facts.base) if sized is None else sized
    if sized is not None:
        require_memory(sized)
    loaded = load_model(
        config.model.name if facts.base is None else facts.base,
        task.kind,
        initialiser=seeded_initialiser(config.training.seed),
        labels=task.labels,
        trainable=model.trainable,
        lora=lora_of(model),
        virtual_tokens=model.virtual_tokens,
        architecture=architecture,
        revision=model.revision,
        storage=storage_of(model),
    )
    require_label_words(task, loaded)
    choose_chat_template(loaded.tokenizer, config.data.chat_template, is_chat=config.data.kind == "chat")
    parameters = TrainableParameters(loaded.module, loaded.trainable_names)
    scheme = _directions(config, plan.num_directions, parameters)
    resolved = resolve(
        config,
        task,
        architecture,
        facts.num_examples,
        learning_rate=default_learning_rate(part, scheme.effective_dimension, plan, config.training.update),
        end_token=end_token(config.data, task, loaded.tokenizer),
    )
    shape = row_shape(resolved, task, loaded)
    check_measure(config.data.objective, shape.form)
    return _Loaded(resolved, task, loaded, plan, parameters, scheme, shape, sized)


def _architecture(config: RunConfig, task: Task, facts: RunFacts) -> Architecture:
    name = config.model.name if facts.base is None else facts.base
    prompted = task.mask_template is not None
    architecture = peek_architecture(name, task.kind, prompted=prompted, revision=config.model.revision)
    if config.data.task is None and prompted and architecture != "masked":
        raise DpzoError(f"--template: {{mask}} asks a masked language model, and --model {name} is none; leave it out")
    return architecture


def _checked(config: RunConfig, task: Task, facts: RunFacts, sized: Sized | None, *, variants: int | None) -> RunParts:
    """Parts with isolation, conformance and movement checked on synthetic tokens; `variants`: the journal's."""
    found = _load(config, task, facts, sized)
    training, plan, loaded = found.config.training, found.plan, found.loaded
    shapes = isolated_or_refused(loaded, found.shape, training, found.config.model.quantization)
    require_conformance(Subject(found.config, task, loaded, shapes), found.shape)
    synthetic = synthetic_objective(loaded, found.shape, shapes)
    settle_shift(found.parameters, synthetic, shapes.microbatch_size)
    note = check_rate(training.learning_rate, training.update, plan, found.parameters, found.scheme, synthetic)
    shapes = padded(shapes, found.config, plan)
    work, asked = planned_work(plan, training, shapes), training.eval_batch if variants is None else variants
    shapes = settle_variants(
        loaded, found.shape, shapes, found.parameters, found.scheme, work, asked, strict=variants is None
    )
    return RunParts(
        Subject(found.config, task, loaded, shapes),
        _job(config, facts, found, shapes),
        _forecast(facts.num_examples, found, shapes),
        () if note is None else (note,),
    )


def _job(config: RunConfig, facts: RunFacts, found: _Loaded, shapes: Shapes) -> Job:
    training, plan = found.config.training, found.plan
    return Job(
        plan=plan,
        parameters=found.parameters,
        scheme=found.scheme,
        smoothing=training.smoothing,
        update=update_of(
            training,
            steps=plan.steps,
            expected_batch_size=plan.expected_batch_size,
            noise_std=plan.noise_multiplier * plan.clip_norm,
        ),
        estimator=ESTIMATORS[training.estimator],
        header=_header(config, facts, found, shapes),
        checkpoint_every=training.checkpoint_every,
    )


def _header(config: RunConfig, facts: RunFacts, found: _Loaded, shapes: Shapes) -> dict[str, Any]:
    resolved, training, loaded, task = found.config, found.config.training, found.loaded, found.task
    return run_header(
        found.plan,
        has_guarantee=facts.has_guarantee,
        base={
            "name": config.model.name,
            "revision": config.model.revision,
            "fingerprint": loaded.base_fingerprint,
            "architecture": loaded.architecture,
        },
        tuning=resolved.privacy.tuning,
        parameters=found.parameters,
        scheme=found.scheme,
        estimator=training.estimator,
        update={
            **update_facts(
                training.update,
                momentum=training.momentum,
                shrinkage=training.shrinkage,
                ema=training.ema if training.ema > 0 else None,
            ),
            "learning_rate": training.learning_rate,
            "schedule": training.schedule,
            "warmup_steps": training.warmup_steps,
            "average": training.average,
            "master": training.master,
        },
        evaluation={
            "microbatch_size": shapes.microbatch_size,
            "head_block": shapes.head_block,
            "isolation": "passed" if is_own(ESTIMATORS[training.estimator]) else "assumed",
            "prefix": {"layers": shapes.prefix_layers, "keep": shapes.keep},
            "variants": shapes.variants,
            **({"planned_passes": shapes.planned_passes} if shapes.planned_passes else {}),
        },
        num_examples_source=facts.num_examples_source,
        unit_column=resolved.data.unit_column,
        config=resolved.model_dump(mode="json"),
        derived=list(derived_fields(config, resolved)),
        task={"name": task.name, "version": task.version, "kind": task.kind},
        count=None if facts.count is None else facts.count.to_dict(),
        initialisation={"scheme": SCHEME, "seed": training.seed, "new": list(loaded.new_names)},
    )


def _forecast(num_examples: int, found: _Loaded, shapes: Shapes) -> Forecast:
    plan, training = found.plan, found.config.training
    timed = synthetic_objective(found.loaded, found.shape, shapes)
    passes = shapes.planned_passes or expected_passes(plan.expected_batch_size, num_examples, timed.microbatch_size)
    first, further = timed_evaluations(found.parameters, found.scheme.at(0), training.smoothing, timed)
    rounds = math.ceil(evaluations(training.estimator, plan.num_directions) / timed.variants)
    memory = 0
    if found.sized is not None:
        memory = memory_at(replace(found.sized, microbatch_size=shapes.microbatch_size)).peak_resident
    return Forecast(passes * (first + (rounds - 1) * further), memory)


def build_plan(privacy: ResolvedPrivacy, num_examples: int, count: PrivateCount | None = None) -> PrivacyPlan:
    """The privacy plan of a run. The ε that a private `count` spent is subtracted from the privacy budget.

    Raises:
        DpzoError: if a value is out of range, unsupported or infeasible.
    """
    epsilon, batch = privacy.epsilon, privacy.expected_batch_size
    if count is not None:
        # The user cannot know a private count in advance, so a larger chosen batch is reduced to it.
        batch = min(batch, num_examples)
        epsilon = None if epsilon is None else epsilon - count.epsilon
    return solve_plan(
        num_examples=num_examples,
        expected_batch_size=batch,
        steps=privacy.steps,
        delta=privacy.delta,
        epsilon=epsilon,
        noise_multiplier=privacy.noise_multiplier,
        clip_norm=privacy.clip_norm,
        num_directions=privacy.num_directions,
        mechanism=privacy.mechanism,
        relation=relation_named(privacy.relation),
    )


def _directions(config: RunConfig, num_directions: int, parameters: TrainableParameters) -> DirectionScheme:
    training = config.training
    return direction_scheme(
        training.directions,
        training.seed,
        num_directions,
        parameters,
        keep_fraction=training.density if training.density < 1 else None,
        rank=training.direction_rank if training.direction_rank > 0 else None,
        basis=None if training.basis is None else _basis_file(training.basis),
    )


def _basis_file(named: str) -> Path:
    """The public basis file: at its path, or, for a run from another machine, in the working directory.

    The choice does not affect the result: the header holds the hash of the vectors.
    """
    path = Path(named).expanduser()
    return Path(path.name) if not path.exists() and Path(path.name).is_file() else path


def resolve_num_examples(
    config: RunConfig, task: Task, data_dir: Path | None, count_units: Callable[[], int]
) -> tuple[int, NumExamplesSource]:
    """N and its source: declared, a public fact of the task, or (no guarantee) counted from the file."""
    declared = config.privacy.num_examples
    if declared == FROM_FILE:
        return count_units(), "from-file"
    if isinstance(declared, int):
        return declared, "declared"
    published = None if data_dir is None else task.public_num_examples(data_dir, "train", config.data.layout)
    if published is not None:
        return published, "task"
    raise DpzoError(
        "--num-examples is missing: N enters the guarantee, so it must be a public number that you declare, not one "
        "counted from the private file; '--num-examples from-file' counts it, and the card then says no guarantee"
    )
