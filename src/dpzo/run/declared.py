"""What a run's options declare about its data: the kind of records. Options that would be ignored are errors."""

from __future__ import annotations

from dpzo.config.reading import with_values
from dpzo.config.schema import PRIVATE, RunConfig, option_name
from dpzo.data import kind_by_columns, refuse_unused
from dpzo.data.tasks.tables import Tell, untold
from dpzo.errors import DpzoError
from dpzo.models.sources import Architecture
from dpzo.run.local import DataSource
from dpzo.run.subject import task_of


def without_ignored(config: RunConfig, source: DataSource, *, tell: Tell = untold) -> RunConfig:
    """The config with its kind of data known. Errors: DpzoError naming an option that this run would ignore."""
    config = with_kind(config, source, tell)
    refuse_ignored(config, from_folder=source.folder is not None)
    return config


def refuse_ignored(config: RunConfig, *, from_folder: bool) -> None:
    """Errors: DpzoError naming an option that a run would ignore; `from_folder`: it reads a built-in task's files."""
    refuse_unused(config.data, task_of(config), from_folder=from_folder)
    refuse_unused_parts(config)
    _require_constant_time(config)


def with_kind(config: RunConfig, source: DataSource, tell: Tell = untold) -> RunConfig:
    """The config with the kind that the columns name, where neither a kind nor a task nor labels are declared."""
    data = config.data
    if (data.kind, data.task, data.labels) != (None, None, None) or not source.places:
        return config
    kind = kind_by_columns(source.places[0], data, split=source.split, tell=tell)
    return config if kind is None else with_values(config, data={"kind": kind})


def _require_constant_time(config: RunConfig) -> None:
    """Errors: DpzoError where `--constant-time` could not hold: an unbounded batch, or layers run once a record."""
    if not config.training.constant_time:
        return
    if config.data.unit_column is not None and config.data.max_records_per_unit is None:
        raise DpzoError(
            "--constant-time: with --unit-column the planned number of micro-batches needs a bound on the records of a "
            "unit; give --max-records-per-unit"
        )
    if config.training.frozen_cache == "run":
        raise DpzoError(
            "--constant-time: training.frozen_cache run evaluates layers when a record is first drawn, which takes a "
            "time of its own; leave one of them out"
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
