"""What `dpzo audit` answers to a plan or an option that cannot be audited, and what it says was spent."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpzo.privacy import FullBatch, Gaussian, PrivacyPlan

Dpzo = Callable[..., Any]
PLAN = PrivacyPlan(100, FullBatch(), Gaussian(1.0), 1.0, 1, 1, 1e-5).to_dict()


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ("[" * 200_000, ["is not JSON"]),
        (json.dumps({**PLAN, "scale": -1}), ["--noise-multiplier must be"]),
        (json.dumps({**PLAN, "num_directions": 10**9}), ["--num-directions", "1,000,000,000 are more"]),
    ],
    ids=["deep", "negative noise", "wide"],
)
def test_a_plan_that_cannot_be_audited(dpzo: Dpzo, tmp_path: Path, content: str, fragments: list[str]) -> None:
    (tmp_path / "plan.json").write_text(content)
    said = dpzo("audit", "--plan", tmp_path / "plan.json", "--draws", 200)
    assert (said.code, said.out) == (2, "")
    error = said.err.splitlines()[-1]
    assert error.startswith("dpzo: error: ")
    assert "Traceback" not in said.err
    for fragment in fragments:
        assert fragment in error
    if "directions" not in error:
        assert f"--plan {tmp_path / 'plan.json'}" in error


def test_numbers_are_looked_at_before_anything_is_drawn(dpzo: Dpzo, finished: Path) -> None:
    for words, fragment in (
        (["--confidence", "nan"], "--confidence must lie between 0 and 1"),
        (["--draws", -5], "--draws must be at least 100"),
        (["--draws", 200, "--canaries", 20], "--draws: a run with canaries is one run"),
    ):
        said = dpzo("audit", finished, *words)
        assert (said.code, said.out) == (2, "")
        assert said.err.startswith("dpzo: error: ")
        assert fragment in said.err


@pytest.mark.parametrize(("data_is", "spends"), [("public", False), ("charged", True)])
def test_the_object_says_what_was_spent_and_not_how_long_it_took(
    dpzo: Dpzo, finished: Path, records: Path, tmp_path: Path, data_is: str, spends: bool
) -> None:
    """Steps on private records take longer with a larger batch: their duration is not a figure of the report."""
    run = shutil.copytree(finished, tmp_path / "run")  # a charged audit is written into it
    sure = ("--confidence", 1 - 1e-9)  # at 95 % a sound run is flagged now and then, which is exit code 1
    said = dpzo("audit", run, "--canaries", 20, "--data", records, "--data-is", data_is, *sure, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["epsilon_spent"] == (found["epsilon_claimed"] if spends else 0.0)
    assert found["seconds"] is None
    assert all(report["seconds"] is None for report in found["reports"])
