"""`dpzo plan --model`, and what `dpzo train` refuses for want of memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpzo.config.schema import options

ASKED = ["--labels", "yes,no", "--num-examples", 40, "--max-length", 16, "--num-directions", 2, "--steps", 3]


def test_a_forecast_of_the_model_itself(dpzo: Callable[..., Any], tiny_bert: Path) -> None:
    privacy = ["--noise-multiplier", 4, "--delta", 1e-5]
    said = dpzo("plan", "--model", tiny_bert, *ASKED, *privacy, "--trainable", "full", "--json")
    assert said.code == 0, said.err
    assert said.err == ""
    found = json.loads(said.out)
    assert found["plan"]["noise_multiplier"] == 4
    assert found["model"]["trainable"] == "full"
    assert found["run"] == {"steps": 3, "num_directions": 2, "expected_batch_size": 10, "num_examples": 40}
    memory, time = found["memory"], found["time"]
    assert memory["needed"] <= memory["available"]
    assert memory["while_training"] == sum(
        memory[name] for name in ("weights", "scratch", "update_state", "activations", "kept")
    )
    assert time["evaluations"] in (1, 2, 4)
    passes = time["passes"] * (time["first"] + (time["evaluations"] - 1) * time["further"])
    assert time["per_step"] == pytest.approx(passes + time["update"] + time["release"])
    assert time["run"] == pytest.approx(time["once"] + 3 * time["per_step"])


def test_a_forecast_from_a_configuration_alone(dpzo: Callable[..., Any], tiny_bert: Path) -> None:
    said = dpzo("plan", "--model", tiny_bert / "config.json", *ASKED)
    assert said.code == 0, said.err
    for words in (
        "memory",
        "the process, at most",
        "estimated: ",
        "not measured: the model's weights",
        "million parameters",
    ):
        assert words in said.out
    assert "epsilon" not in said.out  # no ε was asked for
    assert max(map(len, said.out.splitlines())) <= 150


def test_a_model_too_large_is_refused_before_anything_is_loaded(
    dpzo: Callable[..., Any],
    arguments: Callable[..., list[object]],
    tiny_bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def untouched(*_given: object, **_named: object) -> None:
        raise AssertionError("records or weights were asked for")

    monkeypatch.setattr("dpzo.forecast.sizing.available_memory", lambda: 1 << 20)
    monkeypatch.setattr("dpzo.run.local.read_records", untouched)
    monkeypatch.setattr("dpzo.run.build.load_model", untouched)
    folder = tmp_path / "run"
    for said in (dpzo(*arguments(folder)), dpzo(*arguments(folder), "--json")):
        assert (said.code, said.out) == (2, "")
        (line,) = [line for line in said.err.splitlines() if "error:" in line]
        assert "of memory (its weights" in line
        assert "1 MiB are free" in line
        assert "a model of about" in line
    assert not folder.exists()
    monkeypatch.setattr("dpzo.forecast.planner.available_memory", lambda: 1 << 20)
    refused = dpzo("plan", "--model", tiny_bert, *ASKED)
    assert refused.code == 2
    assert "1 MiB are free" in refused.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--labels", "a,b", "--num-examples", 9], "--labels: is for a forecast"),
        (["--set", "training.density=0.5"], "--set: is for a forecast"),
        (["--learning-rate", 0.1], "--learning-rate: is for a forecast"),
        (["--num-examples", "private"], "--num-examples: a plan needs a whole number"),
        (
            ["--model", "MODEL", "--labels", "a,b", "--num-examples", 9, "--chat-template", "x"],
            "--chat-template (data.chat_template): is not used with --kind classification",
        ),
        (["--model", "MODEL", "--labels", "a,b"], "--num-examples is missing"),
        (["--model", "MODEL", "--num-examples", 9], "--labels is missing"),
        (["--model", "/nowhere/at/all", "--labels", "a,b", "--num-examples", 9], "no such folder"),
        (["--num-examples", 9, "--steps", 2, "--delta", 1e-5, "--epsilon", 1], "--expected-batch-size is missing"),
    ],
)
def test_what_is_missing_is_named(dpzo: Callable[..., Any], tiny_bert: Path, given: list[object], said: str) -> None:
    found = dpzo("plan", *(tiny_bert if word == "MODEL" else word for word in given))
    assert (found.code, found.out) == (2, "")
    assert said in found.err


def test_a_plan_takes_every_flag_of_train_that_sets_a_field(dpzo: Callable[..., Any]) -> None:
    shown = dpzo("plan", "--help").out
    places = [shown.index(f"{panel}:\n") for panel in ("Model", "Data", "Privacy", "Training", "Run")]
    assert places == sorted(places)
    assert [option.flag for option in options() if option.flag and f"{option.flag} " not in shown] == []
