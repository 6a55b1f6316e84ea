"""The commands and flags that users' scripts rely on, frozen in flags.txt.

A change on purpose: `DPZO_REWRITE_FLAGS=1 pytest tests/cli/test_flags.py`, and an entry in the CHANGELOG.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from dpzo.cli.app import app
from dpzo.config import WITHOUT_FLAG, RunConfig

FROZEN = Path(__file__).with_name("flags.txt")
REWRITE = "DPZO_REWRITE_FLAGS"


def flags() -> Iterator[str]:
    """A line a command, and one a parameter: names, type, whether it is needed, its default, its help."""
    for name, command in sorted(typer.main.get_command(app).commands.items()):  # type: ignore[attr-defined]
        yield f"{name}: {command.help.splitlines()[0]}"
        for parameter in command.params:
            needed = "required" if parameter.required else f"default {parameter.default}"
            names = " ".join(parameter.opts)
            repeatable = ", repeatable" if parameter.multiple else ""
            yield f"  {names} ({parameter.type.name}, {needed}{repeatable}) {getattr(parameter, 'help', None) or ''}"


def test_the_flags_are_the_frozen_ones() -> None:
    found = "\n".join(line.rstrip() for line in flags()) + "\n"
    if os.environ.get(REWRITE) == "1":
        FROZEN.write_text(found)
    assert found == FROZEN.read_text(), f"flags changed; if on purpose, {REWRITE}=1 rewrites {FROZEN.name}"


def test_every_option_says_what_it_is() -> None:
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        for parameter in command.params:
            assert parameter.help, f"dpzo {name} {parameter.opts}"


def test_error_messages_name_flags_that_exist() -> None:
    """A config error names the flag of its field; fields that have none are listed beside that code."""
    train = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    known = {option for parameter in train.params for option in parameter.opts}
    for group, field in RunConfig.model_fields.items():
        for leaf in field.annotation.model_fields:  # type: ignore[union-attr]
            flag = "--model" if f"{group}.{leaf}" == "model.name" else f"--{leaf.replace('_', '-')}"
            assert (flag in known) != (f"{group}.{leaf}" in WITHOUT_FLAG), f"{group}.{leaf}"


def test_help_fits_a_narrow_terminal(dpzo: Callable[..., Any]) -> None:
    said = dpzo("--help")
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= 80
    assert "..." not in re.sub(r"\[ARGS\]\.\.\.", "", said.out)  # no summary is cut short


def test_no_arguments_show_the_help_and_not_an_error(dpzo: Callable[..., Any]) -> None:
    said = dpzo()
    assert said.code == 2
    assert said.err.startswith("Usage: dpzo")
