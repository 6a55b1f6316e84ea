"""Flags: what they are for, in panels with their defaults; and which one was meant by a name that is none."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from typer.core import TyperCommand

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
    from dpzo.config.schema import WITHOUT_FLAG

    leaf = name.removeprefix("--").replace("-", "_")
    return next((field for field in sorted(WITHOUT_FLAG) if field.rpartition(".")[2] == leaf), None)


def help_of(field: str) -> str:
    """The help of a flag that sets a config's field: what the field is, and its default or how it is derived."""
    from dpzo.config.schema import described

    text, default = described(field)
    if text[0].isascii() and not text.split()[0].endswith(","):  # a list of values stays as they are spelt
        text = f"{text[0].upper()}{text[1:]}"
    return f"{text}. [default: {default}]" if default else f"{text}."


def panelled(fields: dict[str, str]) -> type[TyperCommand]:
    """A command whose help shows its flags in panels, by the config's groups; `fields`: parameter → config field.

    A flag that sets a field takes its help from there, when it is asked for: starting a command reads no config.
    """

    class PanelledCommand(TyperCommand):
        def format_options(self, ctx: Any, formatter: Any) -> None:
            """The flags, a panel for each group of the config."""
            panels: dict[str, list[tuple[str, str]]] = {}
            for parameter in self.get_params(ctx):
                field = fields.get(str(parameter.name))
                if field is not None and not getattr(parameter, "help", None):
                    parameter.help = help_of(field)  # type: ignore[attr-defined]
                record = parameter.get_help_record(ctx)
                if record is not None:
                    panel = PANELS[field.partition(".")[0]] if field is not None else _PANEL.get(record[0].split()[0])
                    panel = OTHER if panel is None else panel
                    panels.setdefault(panel, []).append(record)
            for panel in (*PANELS.values(), OTHER):
                if panel in panels:
                    with formatter.section(panel):
                        formatter.write_dl(panels[panel])

    return PanelledCommand
