"""Whole private runs of each kind of model through the command line: trained, replayed to the bit, evaluated."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from dpzo.cli.app import app
from dpzo.config.reading import parse_config
from dpzo.models.families import make_tiny
from dpzo.privacy import Release
from dpzo.run import folders as runs
from dpzo.run.journal import read

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
    "kept for the run": ("Llama", ["--set", "training.frozen_cache=run", "--set", "model.lora_layers=top:1"]),
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


def test_sharing_changes_no_bit_of_a_run(bases: dict[str, Path], tmp_path: Path, linear: ModuleType) -> None:
    """Batches and noise of a double that depends on the step alone: all runs get the same."""
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": line, "completion": f" {line}", "who": n // 3} for n, line in enumerate(LINES)]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    weights, releases = set(), set()
    for keep, layers in (("none", 0), ("batch", 1), ("run", 1)):
        config = parse_config(
            {
                "model": {"name": str(bases["Llama"]), "lora_layers": "top:1"},
                "data": {"kind": "completion", "max_length": 24, "max_answer_tokens": 8, "unit_column": "who"},
                "privacy": {"noise_multiplier": 0.1, "delta": 1e-3, "num_examples": 8, "expected_batch_size": 4}
                | {"steps": 6, "num_directions": 3},
                "training": {"frozen_cache": keep, "learning_rate": 1e-2, "microbatch_size": 4},
            }
        )
        run = tmp_path / keep
        runs.train(config, runs.DataSource(file=data), run, nonprivate_randomness=linear.Noise)
        transcript = read(run)
        evaluation = transcript.header["evaluation"]
        assert (evaluation["prefix"]["layers"], evaluation["prefix"]["keep"]) == (layers, keep)
        releases.add(tuple(tuple(entry.values) for entry, _ in transcript.entries() if isinstance(entry, Release)))
        weights.add((run / "model" / "trained.json").read_text())
        assert runs.replay(run, tmp_path / f"{keep} again").equals_run
    assert len(releases) == len(weights) == 1
    assert any(any(values) for values in releases.pop())


def test_records_beyond_the_cap_of_a_unit_change_nothing(
    bases: dict[str, Path], tmp_path: Path, linear: ModuleType
) -> None:
    """Two files; the person of many records has two before the cap, and whatever follows them leaves no trace."""
    options = {
        "model": {"name": str(bases["Llama"])},
        "data": {"kind": "completion", "max_length": 24, "max_answer_tokens": 8, "unit_column": "who"}
        | {"max_records_per_unit": 2},
        "privacy": {"noise_multiplier": 0.1, "delta": 1e-3, "num_examples": 4, "expected_batch_size": 4}
        | {"steps": 2, "num_directions": 2},
        "training": {"learning_rate": 1e-2, "microbatch_size": 4},
    }

    def releases(name: str, later: list[str], cap: int) -> list[Any]:
        first = [{"prompt": line, "completion": " yes", "who": n} for n, line in enumerate(LINES[:4])]
        second = [{"prompt": "again", "completion": " no", "who": 0}]
        second += [{"prompt": line, "completion": " no", "who": 0} for line in later]
        for place, rows in (("a", first), ("b", second)):
            (tmp_path / f"{name}{place}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        source = runs.DataSource(file=tmp_path / f"{name}a.jsonl", more=(tmp_path / f"{name}b.jsonl",))
        chosen = {**options, "data": {**options["data"], "max_records_per_unit": cap}}
        runs.train(parse_config(chosen), source, tmp_path / name, nonprivate_randomness=linear.Noise)
        return [entry for entry, _ in read(tmp_path / name).entries()]

    capped = releases("short", [], 2)
    assert releases("long", LINES[4:20], 2) == capped
    assert releases("uncapped", LINES[4:20], 20) != capped


def test_a_cap_needs_the_column_of_the_unit(bases: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "a", "completion": " b"}))
    run = ("--output", str(tmp_path / "run"), "--num-examples", "8", "--epsilon", "2", "--delta", "1e-3")
    done = CliRunner().invoke(
        app, ["train", "--model", str(bases["Llama"]), "--data", str(data), *run, "--max-records-per-unit", "2"]
    )
    assert done.exit_code != 0
    assert "--max-records-per-unit: needs --unit-column" in str(done.exception or done.output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--template", "{text} It was {mask}.", "--label-words", "bad,unbelievable"], "label word of several tokens"),
        (["--template", "It was {mask}.", "--label-words", "bad,great"], "names no field beside {mask}"),
        (["--template", "{text} {mask}"], "--label-words is missing"),
        (["--template", "{text} {mask}", "--label-words", "bad,great", "--objective", "f1"], "is for completion tasks"),
        (["--objective", "bleu"], "--objective (data.objective): must be"),
        (["--trainable", "prefix"], "--trainable prefix: is for causal"),
        (["--set", "training.frozen_cache=run"], "training.frozen_cache run: no layer lies wholly below what learns"),
        (["--set", "model.lora_layers=top:7"], "model.lora_layers top:7: the model has 2 layers"),
        (["--set", "model.lora_layers=two"], "model.lora_layers: must be top:N"),
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
