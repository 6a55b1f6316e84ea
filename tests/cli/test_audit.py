"""`dpzo audit`: a plan file or a run, the table, the object, the exit code; and what is no plan."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpzo.audit.plans import plan_of
from dpzo.config.solve import plan_summary
from dpzo.errors import DpzoError
from dpzo.privacy import FullBatch, Gaussian, PrivacyPlan
from dpzo.run.header import journal_header
from dpzo.run.journal import Journal

Dpzo = Callable[..., Any]
PLAN = PrivacyPlan(100, FullBatch(), Gaussian(1.0), 1.0, 1, 1, 1e-5)


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    monkeypatch.setattr(os, "urandom", random.Random(7).randbytes)  # a sound audit errs once in a while, but not here


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_summary(PLAN)))
    return path


def a_run(folder: Path, *, secret: bool) -> Path:
    folder.mkdir()
    Journal.create(folder, journal_header(PLAN, secret, {})).close(clean=True)
    return folder


@pytest.mark.slow
def test_the_table(dpzo: Dpzo, plan_file: Path) -> None:
    said = dpzo("audit", "--plan", plan_file, "--draws", 1000)
    assert said.code == 0
    assert said.err == "dpzo: drawing up to 1,000 transcripts per side\n"
    lines = said.out.splitlines()
    assert lines[0].startswith("ε at δ = 1e-05; all lower bounds hold jointly with confidence 0.95")
    assert lines[1] == "a flag is false at most once in 1,000,000 audits"
    assert [line.split()[0] for line in lines[3:-1:2]] == ["gaussian_dp", "clopper_pearson", "checks"]
    assert lines[-1].startswith("A flag proves a fault")
    assert all(len(line) <= 120 for line in lines[:-1])


@pytest.mark.slow
def test_the_object_of_a_run(dpzo: Dpzo, tmp_path: Path) -> None:
    said = dpzo("audit", a_run(tmp_path / "run", secret=True), "--draws", 1000, "--confidence", 0.99, "--json")
    assert (said.code, said.err) == (0, "")
    found = json.loads(said.out)
    assert found["epsilon_claimed"] == PLAN.epsilon
    assert 0 < found["epsilon_lower"] < PLAN.epsilon
    assert (found["confidence"], found["method"], found["flagged"]) == (0.99, "gaussian_dp", False)
    assert [report["method"] for report in found["reports"]] == ["gaussian_dp", "clopper_pearson", "checks"]


def test_a_flag_is_an_exit_code_and_a_line(dpzo: Dpzo, plan_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Gaussian.draw
    monkeypatch.setattr(Gaussian, "draw", lambda self, bits, size, words: own(self, bits - 2, size, words))
    said = dpzo("audit", "--plan", plan_file, "--draws", 2000, "--json")
    assert said.code == 1
    assert said.err.startswith("dpzo: the releases deviate from the plan: law of the noise: ")
    assert said.err.count("\n") == 1
    assert json.loads(said.out)["flagged"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds no plan"),
        ("{}", "lacks sampling"),
        (json.dumps({**PLAN.to_dict(), "mechanism": "none"}), "--mechanism must be one of"),
        (json.dumps({**PLAN.to_dict(), "scale": "much"}), "a value of the wrong kind"),
        ("\x00\x01\x02", "is not JSON"),
    ],
)
def test_what_is_no_plan(dpzo: Dpzo, tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    said = dpzo("audit", "--plan", tmp_path / "plan.json")
    assert (said.code, said.out) == (2, "")
    assert complaint in said.err
    assert said.err.count("\n") == 1


def test_one_source_is_asked_for(dpzo: Dpzo, plan_file: Path, tmp_path: Path) -> None:
    assert "give one of RUN" in dpzo("audit").err
    assert "give one of RUN" in dpzo("audit", tmp_path, "--plan", plan_file).err
    assert "No such file" in dpzo("audit", "--plan", tmp_path / "none.json").err
    assert "--draws must be at least 100" in dpzo("audit", "--plan", plan_file, "--draws", 3).err


def test_a_run_without_secret_noise_claims_nothing(tmp_path: Path) -> None:
    with pytest.raises(DpzoError, match="was not secret"):
        plan_of(a_run(tmp_path / "run", secret=False), None)
