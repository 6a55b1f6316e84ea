"""The commands and flags that users' scripts rely on, frozen in flags.txt.

A change on purpose: `DPZO_REWRITE_FLAGS=1 pytest tests/cli/test_flags.py`, and an entry in the CHANGELOG.
"""

from __future__ import annotations

import inspect
import os
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dpzo.cli.app import app
from dpzo.cli.fields import help_of, with_options
from dpzo.cli.flags import ALIASES, suggestion
from dpzo.config.schema import options

FROZEN = Path(__file__).with_name("flags.txt")
REWRITE = "DPZO_REWRITE_FLAGS"


@dataclass(frozen=True)
class Flag:
    """One parameter of a command, read off its signature: typer's own objects change from version to version."""

    command: str
    name: str
    kind: str
    default: str
    help: str


def flags() -> Iterator[Flag]:
    grouped = [command for group in app.registered_groups for command in group.typer_instance.registered_commands]
    for registered in sorted([*app.registered_commands, *grouped], key=lambda command: command.callback.__name__):
        call = registered.callback
        call = with_options(call) if hasattr(call, "chosen_options") else call
        hints = typing.get_type_hints(call, include_extras=True)
        for parameter in inspect.signature(call).parameters.values():
            if parameter.name == "context":
                continue
            kind, info = typing.get_args(hints[parameter.name])
            # Within Annotated, what typer calls a default is the first name given.
            given = [info.default, *(info.param_decls or ())]
            named = [name for name in given if isinstance(name, str) and name.startswith("--")]
            option = type(info).__name__ == "OptionInfo"
            name = [*named, f"--{parameter.name.replace('_', '-')}"][0] if option else parameter.name
            required = parameter.default is inspect.Parameter.empty
            yield Flag(
                command=call.__name__,
                name=name,
                kind=kind.__name__
                if isinstance(kind, type) and not typing.get_args(kind)
                else str(kind).replace("pathlib.", ""),
                default="required" if required else f"default {parameter.default}",
                help=info.help,
            )


def test_the_flags_are_the_frozen_ones() -> None:
    found = "".join(f"{flag.command} {flag.name} ({flag.kind}, {flag.default}) {flag.help}\n" for flag in flags())
    if os.environ.get(REWRITE) == "1":
        FROZEN.write_text(found)
    assert found == FROZEN.read_text(), f"flags changed; if on purpose, {REWRITE}=1 rewrites {FROZEN.name}"


def test_the_commands_are_the_frozen_ones() -> None:
    named = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert named == [
        "plan",
        "train",
        "resume",
        "replay",
        "evaluate",
        "generate",
        "tasks",
        "verify",
        "sign",
        "noise",
        "audit",
        "compare",
        "demo",
        "env",
    ]
    assert [group.name for group in app.registered_groups] == ["recipe"]
    (recipe,) = app.registered_groups
    assert [command.name for command in recipe.typer_instance.registered_commands] == ["list", "show", "run"]


def test_every_flag_says_what_it_is() -> None:
    assert [flag for flag in flags() if not flag.help] == []


def test_the_help_shows_every_flag(dpzo: Callable[..., Any]) -> None:
    shown = dpzo("train", "--help").out
    assert [flag.name for flag in flags() if flag.command == "train" and f"{flag.name} " not in shown] == []


def test_train_has_the_flags_of_the_schema() -> None:
    known = {flag.name for flag in flags() if flag.command == "train"}
    assert {option.flag for option in options() if option.flag is not None} <= known
    assert not {f"--{option.name.replace('_', '-')}" for option in options() if option.flag is None} & known


def test_the_help_of_train_shows_each_default_or_how_it_is_derived(dpzo: Callable[..., Any]) -> None:
    said = dpzo("train", "--help")
    words = " ".join(said.out.split())
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= 80
    places = [words.index(f"{panel}: --") for panel in ("Model", "Data", "Privacy", "Training", "Run")]
    assert places == sorted(places)
    must = {"model", "task", "labels", "label_words", "epsilon", "noise_multiplier", "delta"}
    for option in options():
        if option.flag is not None:
            assert ("[default: " in help_of(option)) is (option.name not in must), option.name
            assert " ".join(help_of(option).split()) in words
    for part in ("[default: 8]", "[default: zero_out]", "[default: from the plan and its noise]", "[default: {text}]"):
        assert part in words


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("--lr", "did you mean --learning-rate?"),
        ("--eps", "did you mean --epsilon?"),
        ("--batch-size", "did you mean --expected-batch-size?"),
        ("--sigma", "did you mean --noise-multiplier?"),
        ("--max-grad-norm", "did you mean --clip-norm?"),
        ("--epochs", "did you mean --steps (steps = epochs × N ÷ expected batch size)?"),
        ("--force", "did you mean --overwrite?"),
        ("--lerning-rate", "did you mean --learning-rate?"),
        ("--microbatch-size", "give it as --set training.microbatch_size=VALUE"),
        ("--dtype", "give it as --set model.dtype=VALUE"),
        ("--zzzz", ""),
        ("--hepl", "did you mean --help?"),
    ],
)
def test_an_unknown_flag_is_told_which_one_was_meant(name: str, hint: str) -> None:
    assert suggestion(name, [*(flag.name for flag in flags() if flag.command == "train"), "--help"]) == hint


def test_every_alias_names_a_flag_and_is_none_itself() -> None:
    known = {flag.name for flag in flags()}
    assert set(ALIASES.values()) <= known
    assert not set(ALIASES) & known


def test_the_version_is_printed(dpzo: Callable[..., Any]) -> None:
    import dpzo as package

    said = dpzo("--version")
    assert (said.code, said.out) == (0, f"dpzo {package.__version__}\n")


def test_help_fits_a_narrow_terminal(dpzo: Callable[..., Any]) -> None:
    said = dpzo("--help")
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= 80
    assert "..." not in re.sub(r"\[ARGS\]\.\.\.", "", said.out)  # no summary is cut short


def test_no_arguments_show_the_help_and_not_an_error(dpzo: Callable[..., Any]) -> None:
    said = dpzo()
    assert said.code == 2
    assert said.err.startswith("Usage: dpzo")
