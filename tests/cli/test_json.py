"""`--json`: one object on standard output, nothing else there and nothing on standard error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

PLAN_FIELDS = {
    "epsilon",
    "delta",
    "noise_multiplier",
    "noise_scale",
    "clip_norm",
    "sampling_prob",
    "expected_batch_size",
    "num_examples",
    "steps",
    "mechanism",
    "relation",
    "accountant",
}
PLAN = "plan --num-examples 100 --expected-batch-size 10 --steps 5 --delta 1e-5 --noise-multiplier 2 --clip-norm 3"


def read(said: Any) -> dict[str, Any]:
    assert said.code == 0, said.err
    assert said.err == ""
    found = json.loads(said.out)
    assert isinstance(found, dict)
    assert said.out.isascii()  # whatever the locale
    return found


def test_plan(dpzo: Callable[..., Any]) -> None:
    plan = read(dpzo(*PLAN.split(), "--json"))
    assert set(plan) >= PLAN_FIELDS
    assert plan["noise_scale"] == plan["noise_multiplier"] * plan["clip_norm"] == 6.0
    assert plan["sampling_prob"] == 0.1
    assert 0 < plan["epsilon"] < math.inf
    shown = dpzo(*PLAN.split()).out
    first, number = shown.splitlines()[0].split()
    assert first == "epsilon"
    assert plan["epsilon"] <= float(number) <= plan["epsilon"] * 1.0001  # never shown smaller than it is


def test_a_run_from_train_to_evaluation(
    dpzo: Callable[..., Any], arguments: Callable[..., list[object]], records: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trained = read(dpzo(*arguments(run), "--json"))
    assert trained["output"] == str(run)
    assert trained["card"] == json.loads((run / "privacy_card.json").read_text())
    resumed = read(dpzo("resume", run, "--json"))  # of a finished run: nothing is spent, nothing changes
    assert resumed == trained
    replayed = read(dpzo("replay", run, "--output", tmp_path / "rebuilt", "--json"))
    assert replayed["equals_run"] is True
    scored = read(dpzo("evaluate", run, "--data", records, "--data-is", "private", "--json"))
    assert scored["metric"] == "accuracy"
    assert 0 <= scored["value"] <= 1
    assert scored["covered"] is False
    assert "not covered" in scored["note"]
    public = read(dpzo("evaluate", run, "--data", records, "--data-is", "public", "--json"))
    assert public == scored | {"covered": True, "note": None}


def test_tasks_and_env(dpzo: Callable[..., Any]) -> None:
    assert {task["name"] for task in read(dpzo("tasks", "--json"))["tasks"]} >= {"sst2", "demo"}
    env = read(dpzo("env", "--json"))
    assert {"os", "cpus", "device", "python", "dpzo", "torch", "transformers", "threads"} <= set(env)
    assert "absent" not in env.values()


def test_an_error_leaves_standard_output_empty(dpzo: Callable[..., Any], tmp_path: Path) -> None:
    said = dpzo("resume", tmp_path, "--json")
    assert (said.code, said.out) == (2, "")
