"""Whole private runs of each kind of model through the command line: trained, replayed to the bit, evaluated."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dpzo.cli.app import app
from dpzo.lm.support import make_tiny

LINES = ["my order never came", "great film", "a dull story", "please reset the password", "okay", "the end"] * 4


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: make_tiny(family, tmp_path_factory.mktemp(family)) for family in ("Llama", "RoBERTa", "Mixtral")}


def command(*arguments: str | Path) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    result: dict[str, Any] = json.loads(done.stdout)
    return result


CASES: dict[str, tuple[str, list[str]]] = {
    "int4": ("Llama", ["--set", "model.quantization=int4"]),
    "int8 under bf16": ("Llama", ["--set", "model.quantization=int8", "--set", "model.dtype=bfloat16"]),
    "bf16 full": ("Llama", ["--set", "model.dtype=bfloat16", "--trainable", "full", "--smoothing", "0.05"]),
    "fp16 with a master": (
        "Llama",
        ["--set", "model.dtype=float16", "--set", "training.master=float32", "--trainable", "full"],
    ),
    "prefix": ("Llama", ["--trainable", "prefix", "--set", "model.virtual_tokens=3"]),
    "F1": ("Llama", ["--objective", "f1", "--smoothing", "0.5"]),
    "experts": ("Mixtral", []),
    "mask": (
        "RoBERTa",
        ["--template", "{text} It was {mask}.", "--label-words", "bad,great", "--objective", "accuracy"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_of_this_kind_is_private_and_replays(case: str, bases: dict[str, Path], tmp_path: Path) -> None:
    family, options = CASES[case]
    if "int" in case and importlib.util.find_spec("torchao") is None:
        pytest.skip("the quant extra is missing")
    data = tmp_path / "data.jsonl"
    if family == "RoBERTa":
        rows = [{"text": line, "label": ("no", "yes")[n % 2]} for n, line in enumerate(LINES)]
        options = [*options, "--labels", "no,yes"]
    else:
        rows = [{"prompt": line, "completion": f" {line}"} for line in LINES]
        options = [*options, "--kind", "completion", "--set", "data.max_answer_tokens=8"]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    run = tmp_path / "run"
    command(
        *("train", "--model", bases[family], "--data", data, "--output", run, "--num-examples", len(LINES)),
        *("--noise-multiplier", 2, "--delta", 1e-3, "--steps", 3, "--expected-batch-size", 6, "--num-directions", 2),
        *("--max-length", 24, *options),
    )
    assert json.loads((run / "privacy_card.json").read_text())["epsilon"] > 0
    assert command("replay", run, "--output", tmp_path / "again")["equals_run"] is True
    found = command("evaluate", run, "--data", data, "--data-is", "public")
    assert isinstance(found["value"], float)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--template", "{text} It was {mask}.", "--label-words", "bad,unbelievable"], "label word of several tokens"),
        (["--template", "It was {mask}.", "--label-words", "bad,great"], "names no field beside {mask}"),
        (["--template", "{text} {mask}"], "--label-words is missing"),
        (["--template", "{text} {mask}", "--label-words", "bad,great", "--objective", "f1"], "is for completion tasks"),
        (["--objective", "bleu"], "--objective (data.objective): must be"),
        (["--trainable", "prefix"], "--trainable prefix: is for causal"),
    ],
)
def test_a_mistake_is_one_line(options: list[str], message: str, bases: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"text": line, "label": "no"}) for line in LINES))
    done = CliRunner().invoke(
        app,
        [
            *("train", "--model", str(bases["RoBERTa"]), "--data", str(data), "--output", str(tmp_path / "run")),
            *(
                "--num-examples",
                "24",
                "--noise-multiplier",
                "2",
                "--delta",
                "1e-3",
                "--steps",
                "2",
                "--max-length",
                "24",
            ),
            *("--labels", "no,yes", *options),
        ],
    )
    text = done.output + str(done.exception)
    assert message in " ".join(text.split())
    assert not (tmp_path / "run").exists()
