"""What the table says of means, errors and ties, and that it says it in all three forms."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpzo.experiments.compare.figure import draw
from dpzo.experiments.compare.table import Entry, entries, guarantee, mark, standard_error, to_json, to_markdown

PRIVATE = {"guarantee": True, "epsilon": 2.0, "delta": 1e-5}
FLOATS = {"guarantee": False, "delta": None, "level": "float-noise"}


def result(
    name: str, value: float, seed: int = 0, epsilon: float | None = 2.0, task: str = "made-up", **changes: Any
) -> dict[str, Any]:
    return {
        "cell": {"task": [task, 1], "name": name, "epsilon": epsilon, "seed": seed},
        "score": {"metric": changes.get("metric", "accuracy"), "value": value},
        "card": changes.get("card", PRIVATE),
        "evaluations_per_record": changes.get("cost", {"forward": 400.0, "backward": 0.0}),
    }


def marked(made: tuple[Entry, ...]) -> set[str]:
    return {entry.method for entry in made if entry.marked}


def test_the_standard_error_is_numpys() -> None:
    values = [0.81, 0.79, 0.84, 0.8]
    assert standard_error(values) == pytest.approx(np.std(values, ddof=1) / 2)
    assert standard_error([0.5]) is None


def test_best_and_whoever_cannot_be_told_from_it_are_marked() -> None:
    runs = {"best": [0.80, 0.82, 0.84], "near": [0.78, 0.80, 0.82], "far": [0.70, 0.71, 0.72]}
    made = entries(result(name, value, seed) for name, values in runs.items() for seed, value in enumerate(values))
    assert [entry.method for entry in made] == ["best", "near", "far"]
    assert marked(made) == {"best", "near"}
    # 2 points apart, 2·√(1.15² + 1.15²) = 3.3 points allowed; the same means with a tenth of the spread are no tie.
    sharp = {"best": [0.818, 0.82, 0.822], "near": [0.798, 0.80, 0.802]}
    assert marked(entries(result(n, v, s) for n, values in sharp.items() for s, v in enumerate(values))) == {"best"}


def test_every_epsilon_and_task_has_its_own_best_and_what_has_no_epsilon_has_none() -> None:
    made = entries(
        [
            result("a", 0.9, epsilon=1.0),
            result("b", 0.8, epsilon=1.0),
            result("a", 0.7, epsilon=2.0),
            result("b", 0.8, epsilon=2.0),
            result("b", 0.1, task="other"),
            result("ceiling", 0.99, epsilon=None, card={"guarantee": False, "delta": None, "level": "none"}),
        ]
    )
    found = {(entry.task, entry.method, entry.epsilon) for entry in made if entry.marked}
    assert found == {("made-up", "a", 1.0), ("made-up", "b", 2.0), ("other", "b", 2.0)}


def test_one_seed_tells_no_ties_unless_equal() -> None:
    assert marked(entries([result("a", 0.8), result("b", 0.799), result("c", 0.8)])) == {"a", "c"}


def test_a_loss_is_better_when_lower() -> None:
    assert marked(entries([result("a", 4.0, metric="loss"), result("b", 3.0, metric="loss")])) == {"b"}


def test_guarantees_in_words() -> None:
    assert guarantee(PRIVATE) == "ε exact"
    assert guarantee({**PRIVATE, "delta": 0.0}) == "pure ε, exact"
    assert guarantee(FLOATS) == "ε in real arithmetic"
    assert guarantee({"guarantee": False, "level": "none"}) == "none"
    assert guarantee({"guarantee": False, "epsilon": None, "delta": None}) == "none"
    assert guarantee({"guarantee": False, "level": "zero-shot"}) == "no record read"


def test_markdown_and_json_hold_the_numbers() -> None:
    made = entries(
        [
            *(result("a", value, seed) for seed, value in enumerate([0.80, 0.84])),
            *(result("b", value, seed, card=FLOATS) for seed, value in enumerate([0.60, 0.62])),
            result("c", 0.95, epsilon=None, card={"guarantee": False, "level": "none"}, cost=_f_b(50)),
        ]
    )
    text = to_markdown(made)
    assert "| a | **82.0 ± 2.0** | – | ε exact | 400 | 2 |" in text
    assert "| b | 61.0 ± 1.0 | – | ε in real arithmetic | 400 | 2 |" in text
    assert "| c | – | 95.0 | none | 50 f+b | 1 |" in text
    assert "one seed" in text
    rows = {row["method"]: row for row in to_json(made)}
    assert rows["a"]["mean"] == pytest.approx(0.82)
    assert rows["a"]["standard_error"] == pytest.approx(0.02)
    assert rows["c"]["standard_error"] is None
    assert rows["a"]["marked"]
    assert not rows["b"]["marked"]


def _f_b(count: float) -> dict[str, float]:
    return {"forward": 0.0, "backward": count}


def test_the_figure_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = [
        result(name, value, seed, epsilon, task)
        for task in ("one", "two")
        for name in ("a", "b")
        for epsilon in (0.5, 2.0)
        for seed, value in enumerate((0.7, 0.8))
    ]
    made = entries([*runs, result("ceiling", 0.9, epsilon=None, task="one")])
    path = tmp_path / "figure.png"
    draw(made, path)
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    assert width > height > 200
    assert all(math.isfinite(entry.mean) for entry in mark(made))
