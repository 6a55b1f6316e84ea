"""Flags that set a config's field: generated from the schema for every command that plans or trains a run."""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from dpzo.config.schema import Option

Command = TypeVar("Command", bound=Callable[..., Any])
Chosen = Callable[["Option"], bool]


def takes_options(chosen: Chosen = lambda option: True) -> Callable[[Command], Command]:
    """A command whose `**given` stands for the schema's flags that are `chosen`.

    The flags are added by `with_options` when the command is called: a list of commands reads no schema.
    """

    def decorate(command: Command) -> Command:
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
        command.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
        command.chosen_options = chosen  # type: ignore[attr-defined]
        return command

    return decorate


def options_of(command: Callable[..., Any]) -> dict[str, Option]:
    """The schema's options that a command has flags for, by the name of its parameter; none for other commands."""
    from dpzo.config.schema import options

    chosen: Chosen | None = getattr(command, "chosen_options", None)
    return {} if chosen is None else {o.name: o for o in options() if o.flag is not None and chosen(o)}


def with_options(command: Command) -> Command:
    """The command with a parameter for each of its options, as typer reads them."""
    hints = typing.get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
    ]
    flags = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[option.kind | None, _flag(option)],
        )
        for name, option in options_of(command).items()
    ]

    @functools.wraps(command)
    def whole(**given: Any) -> Any:
        return command(**given)

    whole.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
    whole.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *flags)}
    return whole  # type: ignore[return-value]


def _flag(option: Option) -> Any:
    """A flag without a value has no `--no-…` beside it: left out, it says nothing, and a config file decides."""
    return typer.Option(option.flag, help=help_of(option))


def help_of(option: Option) -> str:
    """The help of a flag: what the field is, and its default or how it is derived."""
    text = option.help
    if text[0].isascii() and not text.split()[0].endswith(","):  # a list of values stays as they are spelt
        text = f"{text[0].upper()}{text[1:]}"
    return f"{text}. [default: {option.default}]" if option.default else f"{text}."


def field_values(given: Mapping[str, Any], leave_out: Collection[str] = ()) -> dict[str, Any]:
    """{config field: value} of the flags that were given. A task file is read; names are split at their commas.

    A prompt or completion column that is named says that the records are completions.
    """
    from dpzo.config.schema import options
    from dpzo.data.tasks import is_task_file, read_task_file

    fields = {option.name: option.field for option in options()}
    found = {
        fields[name]: value
        for name, value in given.items()
        if value is not None and value != [] and name not in leave_out
    }
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
    if "`" not in message:
        return message
    from dpzo.config.schema import options

    names = {option.name for option in options() if option.flag is not None} | {"sampling_prob"}
    return re.sub(r"`(\w+)`", lambda m: f"--{m[1].replace('_', '-')}" if m[1] in names else m[0], message)
