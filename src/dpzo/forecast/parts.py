"""Parts of a run that need no model: what a config says of them."""

from __future__ import annotations

from dpzo.config.defaults import Part, fill_defaults
from dpzo.config.schema import PRIVATE, ModelConfig, RunConfig, TrainingConfig, option_name, with_values
from dpzo.data.tasks import Task
from dpzo.errors import DpzoError
from dpzo.models import ADAPTERS, LoadedModel, LoraSettings, Storage
from dpzo.models.sources import Architecture
from dpzo.zo import SCHEDULES, Update, build_update


def filled(config: RunConfig, task: Task, architecture: Architecture, num_examples: int) -> tuple[RunConfig, Part]:
    """The config with every open field filled but the learning rate, which waits for the model; what part learns.

    Errors: DpzoError where `--constant-time` could not hold.
    """
    _require_constant_time(config)
    if config.data.max_length is None:
        config = with_values(config, data={"max_length": task.max_length})
    if config.data.max_answer_tokens is None:
        config = with_values(config, data={"max_answer_tokens": task.max_answer_tokens})
    trainable = config.model.trainable
    if trainable is None:
        trainable = "head" if architecture == "encoder" else "lora"
        config = with_values(config, model={"trainable": trainable})
    if config.training.ema > 0 and config.training.average is None:
        config = with_values(config, training={"average": 0.0})  # one average is released, and this one was asked for
    # The defaults of a head are for unit vectors; an output layer or a library's head reads longer ones.
    on_features = trainable == "head" and architecture == "encoder"
    part: Part = "head" if on_features else "lora" if trainable in ADAPTERS else "full"
    return fill_defaults(config, part, num_examples), part


def _require_constant_time(config: RunConfig) -> None:
    """Errors: DpzoError where `--constant-time` could not hold: an unbounded batch, or layers run once a record."""
    if not config.training.constant_time:
        return
    if config.data.unit_column is not None and config.data.max_records_per_unit is None:
        raise DpzoError(
            "--constant-time: with --unit-column the planned number of micro-batches needs a bound on the records of a "
            "unit; give --max-records-per-unit"
        )
    if config.training.prefix == "run":
        raise DpzoError(
            "--constant-time: training.prefix run evaluates layers when a record is first drawn, which takes a time of "
            "its own; leave one of them out"
        )


_ADAPTER_OPTIONS = {
    "lora": {"lora_rank", "lora_alpha", "lora_targets", "lora_layers", "lora_scaling"},
    "prefix": {"virtual_tokens"},
    "prompt": {"virtual_tokens"},
}


def refuse_unused_parts(config: RunConfig) -> None:
    """Errors: DpzoError naming an option that belongs to a part, an update or a count that this run does not have."""
    model, privacy, training = config.model, config.privacy, config.training
    unused: dict[str, str] = {}
    if model.trainable is not None:  # nothing is refused while that is open
        others = set().union(*_ADAPTER_OPTIONS.values()) - _ADAPTER_OPTIONS.get(model.trainable, set())
        unused |= {f"model.{name}": f"--trainable {model.trainable}" for name in sorted(others)}
    if training.update not in ("momentum", "adam"):
        unused["training.momentum"] = f"training.update {training.update}"
    if model.dtype == "float32":
        unused["training.master"] = "model.dtype float32, whose weights need no copy"
    if privacy.num_examples != PRIVATE:
        unused["privacy.count_share"] = "--num-examples N; only --num-examples private spends a share of ε"
    for field, where in unused.items():
        group, _, name = field.partition(".")
        chosen = getattr(config, group)
        if getattr(chosen, name) != type(chosen).model_fields[name].default:
            raise DpzoError(f"{option_name(field)}: is not used with {where}; leave it out")


def update_of(
    training: TrainingConfig, *, learning_rate: float, steps: int, expected_batch_size: float, noise_std: float
) -> Update:
    """The update that a filled config names. `noise_std` of a released number, slope units."""
    assert training.average is not None
    return build_update(
        training.update,
        schedule=SCHEDULES[training.schedule](learning_rate, steps, training.warmup_steps),
        expected_batch_size=expected_batch_size,
        steps=steps,
        noise_std=noise_std,
        momentum=training.momentum,
        shrinkage=training.shrinkage,
        ema=training.ema if training.ema > 0 else None,
        average=training.average,
        master=training.master == "float32",
    )


def require_used(config: RunConfig, architecture: Architecture) -> None:
    """Errors: `DpzoError` for label words or a template that the chosen model has no use for."""
    data = config.data
    if data.task is not None or architecture in ("causal", "masked"):
        return
    given = [
        flag
        for flag, is_given in (
            ("--label-words", data.label_words is not None),
            ("--template", data.template != "{text}"),
        )
        if is_given
    ]
    if given:
        kind = "an encoder" if architecture == "encoder" else "a sequence classifier"
        raise DpzoError(
            f"{' and '.join(given)}: --model {config.model.name} is used as {kind}, which reads the text alone and has "
            "no use for a prompt; leave it out, or use a causal model (or {mask} in --template with a masked one)"
        )


def require_label_words(task: Task, model: LoadedModel) -> None:
    """Errors: `DpzoError` where classes are told apart by words and the task has none."""
    if model.takes_options and task.label_words is None and task.option_fields is None:
        raise DpzoError("--label-words is missing: a causal model needs a word for each label, as in ' bad, good'")


def storage_of(model: ModelConfig) -> Storage:
    """How the base's weights are held."""
    return Storage(model.dtype, model.quantization)


def lora_of(model: ModelConfig) -> LoraSettings:
    """Shape of the adapters."""
    return LoraSettings(
        rank=model.lora_rank,
        alpha=model.lora_alpha,
        target=model.lora_targets,
        scaling=model.lora_scaling,
        layers=model.lora_layers,
    )
