"""From a config to the parts of a run. Everything built here but the objective is public."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dpzo.config.defaults import default_learning_rate
from dpzo.config.schema import FROM_FILE, DataConfig, RunConfig, TrainingConfig, derived_fields, with_values
from dpzo.config.solve import solve_plan
from dpzo.data import own_chat
from dpzo.data.tasks import Task, find_task, own_classification, own_completion
from dpzo.errors import DpzoError
from dpzo.forecast import expected_passes, planned_passes, records_per_unit, timed_evaluations
from dpzo.forecast.parts import filled, lora_of, require_label_words, require_used, storage_of, update_of
from dpzo.forecast.sizing import Sized, memory_at, require_memory, size_up_if_possible
from dpzo.models import (
    LoadedModel,
    RowShape,
    Shapes,
    Work,
    check_measure,
    isolated_shapes,
    load_model,
    make_objective,
    peek_architecture,
    seeded_initialiser,
    settle_shift,
    settle_variants,
    synthetic_objective,
    template_pieces,
)
from dpzo.models.chat_tokens import choose_chat_template
from dpzo.models.conformance import check_conformance
from dpzo.models.round_trip import check_round_trip
from dpzo.privacy import PrivacyPlan
from dpzo.privacy.plan import relation_named
from dpzo.run.environment import environment
from dpzo.run.header import check_header
from dpzo.run.loop import Job, journal_header
from dpzo.run.movement import check_rate
from dpzo.run.private_count import PrivateCount
from dpzo.run.subject import Subject as Subject
from dpzo.run.subject import encode as encode
from dpzo.run.subject import encode_examples, end_token
from dpzo.run.subject import objective as objective
from dpzo.run.subject import row_shape as row_shape
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

OWN_MAX_LENGTH = 64


@dataclass(frozen=True)
class Forecast:
    """What a run will take, from shapes and a measurement on synthetic tokens. Public."""

    seconds_per_step: float
    memory_bytes: int  # most that the process will show; 0 where shapes do not tell


@dataclass(frozen=True)
class Assembled:
    """A run's public parts: the model at θ_0 with all that is declared about it, the job that trains it, a forecast."""

    subject: Subject
    job: Job
    forecast: Forecast
    notes: tuple[str, ...] = ()  # what the user should know before the run, in words


def task_of(config: RunConfig) -> Task:
    """The task that a config declares: a built-in one, or the user's own file."""
    data = config.data
    if data.task is not None:
        return find_task(data.task)
    if data.kind == "chat":
        return own_chat(max_length=OWN_MAX_LENGTH if data.max_length is None else data.max_length)
    if data.kind == "completion":
        return own_completion(max_length=OWN_MAX_LENGTH if data.max_length is None else data.max_length)
    if data.labels is None:
        raise DpzoError(
            "--labels is missing: declare the label set, as in --labels yes,no (read from the file it would be "
            "private); for prompt and completion columns give --kind completion"
        )
    if "{mask}" in data.template:
        return _own_masked(data.labels, data)
    task = own_classification(
        data.labels,
        template=data.template,
        label_words=data.label_words,
        max_length=OWN_MAX_LENGTH if data.max_length is None else data.max_length,
    )
    if task.fields != ("text",):
        raise DpzoError(
            f"--template: a file of one's own has the field {{text}}, not {{{task.fields[0]}}}; use {{text}}"
        )
    return task


def _own_masked(labels: tuple[str, ...], data: DataConfig) -> Task:
    """The user's own file, asked by a template whose mask a masked language model fills."""
    template_pieces(data.template)  # says what is wrong with it
    if data.label_words is None:
        raise DpzoError("--label-words is missing: a template with {mask} needs a word for each label, as in bad,good")
    plain = own_classification(labels, max_length=OWN_MAX_LENGTH if data.max_length is None else data.max_length)
    return replace(plain, mask_template=data.template, mask_words=data.label_words)


def build_plan(config: RunConfig, num_examples: int, count: PrivateCount | None = None) -> PrivacyPlan:
    """The privacy plan of a filled config; what a private `count` has spent of ε is no longer there.

    Raises DpzoError on what is out of range, unsupported or infeasible.
    """
    privacy = config.privacy
    epsilon = privacy.epsilon
    if count is not None and epsilon is not None:
        epsilon -= count.epsilon
    if privacy.steps is None or privacy.expected_batch_size is None or privacy.num_directions is None:
        raise DpzoError("the config still has open fields; fill its defaults first")
    # A batch chosen above a private count cannot be had, and nobody could know.
    batch = privacy.expected_batch_size if count is None else min(privacy.expected_batch_size, num_examples)
    return solve_plan(
        num_examples=num_examples,
        expected_batch_size=batch,
        steps=privacy.steps,
        delta=privacy.delta,
        epsilon=epsilon,
        noise_multiplier=privacy.noise_multiplier,
        clip_norm=1.0 if privacy.clip_norm is None else privacy.clip_norm,
        num_directions=privacy.num_directions,
        mechanism=privacy.mechanism,
        relation=relation_named(privacy.relation),
    )


NumExamplesSource = Literal["declared", "task", "from-file", "private-count"]


def assemble(
    config: RunConfig,
    *,
    num_examples: int,
    num_examples_source: NumExamplesSource,
    has_guarantee: bool = True,
    base: str | None = None,
    plan: PrivacyPlan | None = None,
    shapes: Shapes | None = None,
    count: PrivateCount | None = None,
    variants: int | None = None,
    sized: Sized | None = None,
) -> Assembled:
    """Load the base model, fill the defaults, solve the plan, check isolation on synthetic tokens; build the job.

    `base` replaces the config's model name or folder (the fingerprint in the header still decides whether it is the
    same model). A journal's own `plan` is taken as it is, not solved anew. With `shapes` given nothing is evaluated,
    neither to check isolation nor to forecast: that is for a replay. `variants`: those of a journal, for a resume.
    `count` is where a private `num_examples` comes from. `sized`: the run's memory, where it is known already.
    Nothing private is read. Raises DpzoError for whatever the user can mend, a model too large for memory among it.
    """
    task = task_of(config)
    name = config.model.name if base is None else base
    prompted = task.mask_template is not None
    architecture = peek_architecture(name, task.kind, prompted=prompted, revision=config.model.revision)
    if config.data.task is None and prompted and architecture != "masked":
        raise DpzoError(f"--template: {{mask}} asks a masked language model, and --model {name} is none; leave it out")
    chosen = config
    if plan is None:
        require_used(config, architecture)
    config, part = filled(config, task, architecture, num_examples)
    plan = build_plan(config, num_examples, count) if plan is None else plan
    seed = config.training.seed

    assert config.model.trainable is not None
    if sized is None:
        sized = size_up_if_possible(config, task, num_examples, base)
    if sized is not None:
        require_memory(sized)
    loaded = load_model(
        name,
        task.kind,
        initialiser=seeded_initialiser(seed),
        labels=task.labels,
        trainable=config.model.trainable,
        lora=lora_of(config.model),
        virtual_tokens=config.model.virtual_tokens,
        architecture=architecture,
        revision=config.model.revision,
        storage=storage_of(config.model),
    )
    require_label_words(task, loaded)
    choose_chat_template(loaded.tokenizer, config.data.chat_template, is_chat=config.data.kind == "chat")
    config = with_values(config, data={"end_token": end_token(config.data, task, loaded.tokenizer)})
    parameters = TrainableParameters(loaded.module, loaded.trainable_names)
    scheme = _directions(config.training, plan.num_directions, parameters)
    if config.training.learning_rate is None:
        rate = default_learning_rate(part, scheme.effective_dimension, plan, config.training.update)
        config = with_values(config, training={"learning_rate": rate})
    training = config.training
    assert training.learning_rate is not None
    assert training.smoothing is not None
    assert training.average is not None
    update = update_of(
        training,
        learning_rate=training.learning_rate,
        steps=plan.steps,
        expected_batch_size=plan.expected_batch_size,
        noise_std=plan.noise_multiplier * plan.clip_norm,
    )
    ema = training.ema if training.ema > 0 else None
    shape = row_shape(config, task, loaded)
    check_measure(config.data.objective, shape.form)
    replayed = shapes is not None
    notes: tuple[str, ...] = ()
    if shapes is None:
        shapes = _isolated(loaded, shape, training, config.model.quantization)
        _require_conformance(Subject(config, task, loaded, shapes), shape)
        synthetic = synthetic_objective(loaded, shape, shapes)
        settle_shift(parameters, synthetic, shapes.microbatch_size)
        note = check_rate(training.learning_rate, training.update, plan, parameters, scheme, synthetic)
        notes = () if note is None else (note,)
        shapes = _padded(shapes, config, plan)
        work, asked = _work(plan, training, shapes), training.variants if variants is None else variants
        shapes = settle_variants(loaded, shape, shapes, parameters, scheme, work, asked, strict=variants is None)
    public = {
        "config": config.model_dump(mode="json"),
        "derived": list(derived_fields(chosen, config)),
        "base": {
            "name": config.model.name,
            "revision": config.model.revision,
            "fingerprint": loaded.base_fingerprint,
            "architecture": loaded.architecture,
        },
        "task": {"name": task.name, "version": task.version, "kind": task.kind},
        "num_examples_source": num_examples_source,
        "count": None if count is None else count.to_dict(),
        "unit_column": config.data.unit_column,
        "tuning": config.privacy.tuning,
        "directions": scheme.description,
        "initialisation": {"scheme": SCHEME, "seed": seed, "new": list(loaded.new_names)},
        "estimator": training.estimator,
        "update": {
            **update_facts(training.update, momentum=training.momentum, shrinkage=training.shrinkage, ema=ema),
            "learning_rate": training.learning_rate,
            "schedule": training.schedule,
            "warmup_steps": training.warmup_steps,
            "average": training.average,
            "master": training.master,
        },
        "parameters": [
            [n, list(s), d] for n, s, d in zip(parameters.names, parameters.shapes, parameters.dtypes, strict=True)
        ],
        "evaluation": {
            "microbatch_size": shapes.microbatch_size,
            "head_block": shapes.head_block,
            "isolation": "passed" if is_own(ESTIMATORS[training.estimator]) else "assumed",
            "prefix": {"layers": shapes.prefix_layers, "keep": shapes.keep},
            "variants": shapes.variants,
            **({"planned_passes": shapes.planned_passes} if shapes.planned_passes else {}),
        },
        "nonprivate_uses": [],
        "environment": environment(),
    }
    header = journal_header(plan, has_guarantee, public)
    check_header(header)
    job = Job(
        plan=plan,
        parameters=parameters,
        scheme=scheme,
        smoothing=training.smoothing,
        update=update,
        estimator=ESTIMATORS[training.estimator],
        header=header,
        checkpoint_every=training.checkpoint_every,
    )
    seconds = 0.0
    if not replayed:
        timed = synthetic_objective(loaded, shape, shapes)
        passes = shapes.planned_passes or expected_passes(plan.expected_batch_size, num_examples, timed.microbatch_size)
        first, further = timed_evaluations(parameters, scheme.at(0), training.smoothing, timed)
        rounds = math.ceil(evaluations(training.estimator, plan.num_directions) / timed.variants)
        seconds = passes * (first + (rounds - 1) * further)
    memory = 0
    if sized is not None:
        memory = memory_at(replace(sized, microbatch_size=shapes.microbatch_size)).peak_resident
    return Assembled(Subject(config, task, loaded, shapes), job, Forecast(seconds, memory), notes)


def _require_conformance(subject: Subject, shape: RowShape) -> None:
    """What is computed and what will be saved are the plain libraries' own; see docs/isolation.md."""
    loaded, shapes = subject.loaded, subject.shapes
    examples = encode_examples(subject)
    check_conformance(loaded, lambda rows: make_objective(loaded, rows, shapes), shape, examples)
    check_round_trip(loaded, subject.task.labels)


def _directions(training: TrainingConfig, num_directions: int, parameters: TrainableParameters) -> DirectionScheme:
    return direction_scheme(
        training.directions,
        training.seed,
        num_directions,
        parameters,
        keep_fraction=training.mask if training.mask < 1 else None,
        rank=training.direction_rank if training.direction_rank > 0 else None,
        basis=None if training.basis is None else _basis_file(training.basis),
    )


def _basis_file(named: str) -> Path:
    """Where the public basis lies: at its path, or, for a run that was made elsewhere, in the working directory.

    Which of them serves decides nothing: the header holds the hash of its vectors.
    """
    path = Path(named).expanduser()
    return Path(path.name) if not path.exists() and Path(path.name).is_file() else path


def _isolated(loaded: LoadedModel, shape: RowShape, training: TrainingConfig, quantization: str) -> Shapes:
    """`isolated_shapes`, with a model that cannot read such rows refused in words: only synthetic tokens were seen."""
    try:
        return isolated_shapes(loaded, shape, training.microbatch_size, training.prefix)
    except (RuntimeError, IndexError, ValueError, AssertionError) as error:
        if loaded.trainable in ("prefix", "prompt"):
            raise DpzoError(
                f"--trainable {loaded.trainable}: this model's layers take no virtual tokens before padded rows "
                f"({type(error).__name__}); train lora instead"
            ) from None
        if quantization != "none":
            raise DpzoError(
                f"model.quantization {quantization}: this model's layers do not run so on this device "
                f"({type(error).__name__}); choose another, or none"
            ) from None
        raise DpzoError(
            f"--max-length {shape.max_length}: the model cannot read rows of that length ({type(error).__name__}); "
            "choose one within its positions"
        ) from None


def _padded(shapes: Shapes, config: RunConfig, plan: PrivacyPlan) -> Shapes:
    """`shapes` with the planned number of micro-batches, where `--constant-time` asks for it."""
    if not config.training.constant_time:
        return shapes
    most = records_per_unit(config.data)
    passes = planned_passes(plan.expected_batch_size, plan.num_examples, plan.steps, shapes.rows, most)
    return replace(shapes, planned_passes=passes)


def _work(plan: PrivacyPlan, training: TrainingConfig, shapes: Shapes) -> Work:
    assert training.smoothing is not None
    passes = plan.steps * (shapes.planned_passes or math.ceil(plan.expected_batch_size / shapes.rows))
    return Work(evaluations(training.estimator, plan.num_directions), training.smoothing, passes)


def resolve_num_examples(
    config: RunConfig, task: Task, data_dir: Path | None, count_units: Callable[[], int]
) -> tuple[int, NumExamplesSource]:
    """N and where it comes from: declared, a public fact of the task, or (no guarantee) counted from the file."""
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
