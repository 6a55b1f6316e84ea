"""Flags that set a config's field: one list, from which every command that plans or trains a run takes its flags."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import typer

FIELDS = {
    "model": "model.name",
    "trainable": "model.trainable",
    "lora_rank": "model.lora_rank",
    "task": "data.task",
    "kind": "data.kind",
    "text_column": "data.text_column",
    "label_column": "data.label_column",
    "prompt_column": "data.prompt_column",
    "completion_column": "data.completion_column",
    "unit_column": "data.unit_column",
    "max_records_per_unit": "data.max_records_per_unit",
    "labels": "data.labels",
    "label_words": "data.label_words",
    "template": "data.template",
    "chat_template": "data.chat_template",
    "objective": "data.objective",
    "max_length": "data.max_length",
    "epsilon": "privacy.epsilon",
    "noise_multiplier": "privacy.noise_multiplier",
    "delta": "privacy.delta",
    "num_examples": "privacy.num_examples",
    "mechanism": "privacy.mechanism",
    "relation": "privacy.relation",
    "steps": "privacy.steps",
    "expected_batch_size": "privacy.expected_batch_size",
    "num_directions": "privacy.num_directions",
    "clip_norm": "privacy.clip_norm",
    "tuning": "privacy.tuning",
    "smoothing": "training.smoothing",
    "learning_rate": "training.learning_rate",
    "constant_time": "training.constant_time",
    "seed": "training.seed",
}
"""A command's parameter → the config field it sets. The flag's help is the field's own description."""

_TYPES: dict[str, Any] = {
    **dict.fromkeys(("labels", "label_words"), list[str]),
    **dict.fromkeys(
        ("epsilon", "noise_multiplier", "delta", "expected_batch_size", "clip_norm", "smoothing", "learning_rate"),
        float,
    ),
    **dict.fromkeys(("lora_rank", "max_records_per_unit", "max_length", "steps", "num_directions", "seed"), int),
    "constant_time": bool,
}
"""What a flag's value is read as; a text where nothing is said."""

_ARGUMENTS = {*FIELDS, "sampling_prob"}
"""Names of arguments, in the messages of errors, that are flags."""

Command = TypeVar("Command", bound=Callable[..., Any])


def with_fields(fields: Mapping[str, str]) -> Callable[[Command], Command]:
    """A command whose `**given` stands for one flag a field: typer sees the flags, the command their values."""

    def decorate(command: Command) -> Command:
        hints = typing.get_type_hints(command, include_extras=True)
        signature = inspect.signature(command)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
            for name, parameter in signature.parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        flags = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[_TYPES.get(name, str) | None, _option(name)],
            )
            for name in fields
        ]
        parameters = [*own, *flags]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def _option(name: str) -> Any:
    """A flag without a value has no `--no-…` beside it: left out, it says nothing, and a config file decides."""
    return typer.Option(f"--{name.replace('_', '-')}") if _TYPES.get(name) is bool else typer.Option()


def field_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """{config field: value} of the flags that were given. A task file is read; names are split at their commas.

    A prompt or completion column that is named says that the records are completions.
    """
    from dpzo.data.tasks import is_task_file, read_task_file

    found = {FIELDS[name]: value for name, value in given.items() if value is not None and value != []}
    if "data.kind" not in found and not found.keys().isdisjoint(("data.prompt_column", "data.completion_column")):
        found["data.kind"] = "completion"
    task = found.get("data.task")
    if task is not None and is_task_file(task):
        found["data.task"] = read_task_file(task)
    for field, strip in (("data.labels", True), ("data.label_words", False)):
        if field in found:
            found[field] = listed(found[field], strip=strip)
    return found


def listed(given: list[str], *, strip: bool) -> list[str]:
    """Names given once with commas between, or one by one, where a name may hold commas."""
    names = given[0].split(",") if len(given) == 1 else given
    return [name.strip() if strip else name for name in names]


def with_flags(message: str) -> str:
    """A message as the command line prints it: names of arguments, which stand in backquotes, become flags.

    >>> with_flags("`num_examples` must be at least 1")
    '--num-examples must be at least 1'
    """
    return re.sub(r"`(\w+)`", lambda m: f"--{m[1].replace('_', '-')}" if m[1] in _ARGUMENTS else m[0], message)
