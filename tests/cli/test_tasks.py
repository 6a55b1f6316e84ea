"""dpzo tasks, tasks show, generate: what a user sees of tasks, and what is refused in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpzo.data.tasks import TASKS


def test_every_task_is_shown_with_its_example(dpzo: Callable[..., Any]) -> None:
    listed = dpzo("tasks")
    assert listed.code == 0
    for name, task in TASKS.items():
        assert f"\n{name}: " in f"\n{listed.out}"
        said = dpzo("tasks", "show", name)
        assert said.code == 0
        for text in (task.example or {}).values():
            assert text.rstrip(" .?").lower() in said.out.lower()


def test_an_example_is_rendered_in_every_form(dpzo: Callable[..., Any]) -> None:
    shown = json.loads(dpzo("tasks", "show", "rte", "--json").out)
    assert shown["example"]["masked model"].endswith("repairs?<mask>, the museum was closed.")
    assert [text.rpartition("\n")[2] for text in shown["example"]["causal model, one line per option"]] == ["Yes", "No"]
    assert {"name": "superglue", "num_examples": {"train": 2490, "test": 277}} in shown["layouts"]


def test_a_task_file_is_shown_too(dpzo: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('kind: completion\ntemplate: "{ask}?"\nexample: {ask: "[b]who", completion: me}\n')
    said = dpzo("tasks", "show", path)
    assert said.code == 0
    assert "[b]who?" in said.out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["tasks", "show"], "the name of the task is missing"),
        (["tasks", "list"], "no such action; use dpzo tasks or dpzo tasks show NAME"),
        (["tasks", "show", "mlni"], "did you mean mnli?"),
        (["tasks", "show", "none.yaml"], "none.yaml"),
    ],
)
def test_mistakes_are_told_in_a_line(dpzo: Callable[..., Any], arguments: list[str], problem: str) -> None:
    said = dpzo(*arguments)
    assert said.code == 2
    assert problem in said.err
    assert said.err.count("\n") == 1


def test_a_classifier_generates_nothing(dpzo: Callable[..., Any], finished: Path) -> None:
    said = dpzo("generate", finished, "--prompt", "SECRET")
    assert said.code == 2
    assert "generates no text" in said.err
    assert "SECRET" not in said.err
