"""Flags: what they are for, in panels with their defaults; and which one was meant by a name that is none."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from typer.core import TyperCommand, TyperGroup

# Names that other tools give to what is a flag here.
ALIASES = {
    "--lr": "--learning-rate",
    "--eps": "--epsilon",
    "--target-epsilon": "--epsilon",
    "--target-delta": "--delta",
    "--sigma": "--noise-multiplier",
    "--noise": "--noise-multiplier",
    "--noise-scale": "--noise-multiplier",
    "--max-grad-norm": "--clip-norm",
    "--clip": "--clip-norm",
    "--clipping-norm": "--clip-norm",
    "--threshold": "--clip-norm",
    "--batch": "--expected-batch-size",
    "--batch-size": "--expected-batch-size",
    "--per-device-train-batch-size": "--expected-batch-size",
    "--epochs": "--steps",
    "--num-epochs": "--steps",
    "--num-train-epochs": "--steps",
    "--max-steps": "--steps",
    "--num-steps": "--steps",
    "--iterations": "--steps",
    "--n": "--num-examples",
    "--num-samples": "--num-examples",
    "--dataset": "--data",
    "--train-file": "--data",
    "--file": "--data",
    "--model-name": "--model",
    "--model-name-or-path": "--model",
    "--base-model": "--model",
    "--out": "--output",
    "--out-dir": "--output",
    "--output-dir": "--output",
    "--rank": "--lora-rank",
    "--lora-r": "--lora-rank",
    "--zo-eps": "--smoothing",
    "--mu": "--smoothing",
    "--max-seq-length": "--max-length",
    "--max-seq-len": "--max-length",
    "--seq-len": "--max-length",
    "--random-seed": "--seed",
    "--force": "--overwrite",
    "--user-column": "--unit-column",
    "--classes": "--labels",
    "--max-tokens": "--max-new-tokens",
}
_EPOCHS = ("--epochs", "--num-epochs", "--num-train-epochs")

PANELS = {"model": "Model", "data": "Data", "privacy": "Privacy", "training": "Training"}
OTHER = "Run"
_PANEL = {
    **dict.fromkeys(("--model", "--base"), "Model"),
    **dict.fromkeys(("--task", "--layouts", "--data", "--data-dir", "--data-is", "--data-revision"), "Data"),
    **dict.fromkeys(("--split", "--eval-data", "--eval-split"), "Data"),
    **dict.fromkeys(("--epsilons", "--delta"), "Privacy"),
    "--seeds": "Training",
}
"""Panels of flags that set no field of a config."""


def suggestion(name: str, flags: Iterable[str]) -> str:
    """What to say after an unknown flag `name` of a command that has `flags`; empty where nothing is near.

    >>> suggestion("--lr", ["--learning-rate", "--model"])
    'did you mean --learning-rate?'
    """
    known = list(flags)
    meant = ALIASES.get(name)
    if meant in known:
        beside = " (steps = epochs × N ÷ expected batch size)" if name in _EPOCHS else ""
        return f"did you mean {meant}{beside}?"
    field = _field_without_flag(name)
    if field is not None and "--set" in known:
        return f"give it as --set {field}=VALUE"
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else ""


def _field_without_flag(name: str) -> str | None:
    from dpzo.config.schema import options

    leaf = name.removeprefix("--").replace("-", "_")
    return next((option.field for option in options() if option.flag is None and option.name == leaf), None)


class PanelledCommand(TyperCommand):
    """A command whose help shows its flags in panels, by the config's groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The flags, a panel for each group of the config."""
        from dpzo.config.schema import options

        groups = {option.flag: option.field.partition(".")[0] for option in options()}
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                flag = record[0].split()[0]
                panel = _PANEL.get(flag) or PANELS.get(groups.get(flag, ""), OTHER)
                panels.setdefault(panel, []).append(record)
        for panel in (*PANELS.values(), OTHER):
            if panel in panels:
                with formatter.section(panel):
                    formatter.write_dl(panels[panel])


class RootGroup(TyperGroup):
    """The commands of dpzo: one that takes the schema's flags gets them when it is called, and not before."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first word names, with all its flags."""
        name, command, rest = super().resolve_command(ctx, args)
        called = getattr(getattr(command, "callback", None), "__wrapped__", None)
        return name, command if not hasattr(called, "chosen_options") else with_all_flags(called), rest


def with_all_flags(command: Any) -> Any:
    """The command line of a function that `takes_options`."""
    import typer

    from dpzo.cli.fields import with_options

    alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    alone.command(command.__name__, cls=PanelledCommand)(with_options(command))
    return typer.main.get_command(alone)
