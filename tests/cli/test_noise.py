"""`dpzo noise` and `--mechanism auto`: the table, the plan, and a whole run whose noise was searched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpzo.run.journal import read
from dpzo.run.journal_line import canonical

Dpzo = Callable[..., Any]
NOISE = ["noise", "--epsilon", 4, "--delta", 1e-10, "--sampling-prob", 1, "--steps", 1]
ASKED = "--num-examples 40 --expected-batch-size 40 --steps 1 --delta 1e-10 --epsilon 4 --mechanism auto"
PLAN = ["plan", *ASKED.split()]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for this file, and not the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "noise-cache"))


def test_the_families_are_compared(dpzo: Dpzo) -> None:
    said = dpzo(*NOISE)
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0].split()[:3] == ["noise", "variance", "ratio"]
    assert lines[1].split()[:2] == ["staircase", "0.0262"]
    assert lines[-1] == "staircase: 0.02619 of the Gaussian's variance"
    assert {line.split("  ")[0] for line in lines} >= {"gaussian", "laplace", "huber", "lmo", "truncated laplace"}
    found = json.loads(dpzo(*NOISE, "--json").out)
    assert found["winner"] == "staircase"
    assert set(found["families"]["laplace"]) >= {"variance_ratio", "variance", "parameters", "epsilon_certified"}
    assert found["families"]["staircase"]["variance_ratio"] <= 0.03
    assert found["families"]["staircase"]["epsilon_certified"] <= 4
    other = dpzo(*NOISE, "--objective", "usefulness:0.5").out.splitlines()
    assert other[0].split()[:3] == ["noise", "cost", "ratio"]


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        (["--objective", "least"], "--objective must be variance"),
        (["--delta", 0], "--mechanism laplace"),
        (["--sampling-prob", 2], "--sampling-prob"),
        (["--steps", 0], "--steps"),
        (["--epsilon", -1], "--epsilon"),
    ],
)
def test_bad_input(dpzo: Dpzo, changes: list[object], fragment: str) -> None:
    said = dpzo(*NOISE, *changes)
    assert (said.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert fragment in said.err


def test_a_plan_with_searched_noise(dpzo: Dpzo) -> None:
    said = dpzo(*PLAN)
    assert said.code == 0, said.err
    assert said.err.startswith("dpzo: --mechanism auto: staircase, epsilon ")
    assert "mechanism            lattice: staircase, epsilon" in said.out
    found = json.loads(dpzo(*PLAN, "--json").out)
    assert found["mechanism"] == "lattice"
    assert found["epsilon"] <= 4
    assert found["noise_scale"] == found["noise_multiplier"] < 0.26
    assert len(json.dumps(found)) < 100_000
    several = dpzo(*PLAN, "--num-directions", 3)
    assert "auto: gaussian; for rows of several directions" in several.err
    assert "mechanism            gaussian" in several.out
    refused = dpzo(*(x for x in PLAN if x not in ("--epsilon", "4")), "--noise-multiplier", 2)
    assert refused.code == 2
    assert "--mechanism auto searches the noise for an ε: give --epsilon" in refused.err


def test_a_whole_run_with_searched_noise(
    dpzo: Dpzo, arguments: Callable[..., list[object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    chosen = {"mechanism": "auto", "num_directions": 1, "epsilon": 4, "noise_multiplier": None}
    said = dpzo(*arguments(run, **chosen, expected_batch_size=40, steps=3, delta=1e-10))
    assert said.code == 0, said.err
    assert "dpzo: --mechanism auto: staircase" in said.err
    header = read(run).header
    assert header["plan"]["mechanism"] == "lattice"
    assert header["plan"]["noise"]["origin"].startswith("staircase, epsilon")
    assert header["lattice_bound"] == header["plan"]["noise"]["bound"]
    card = (run / "privacy_card.md").read_text()
    assert "staircase, epsilon" in card
    assert "integers of noise table" in card
    assert "floored" not in card
    assert "standard deviation" in card
    # What was searched stands in the journal: neither the cache nor a search is asked again.
    monkeypatch.setattr("dpzo.noise.search.search", lambda *a, **k: pytest.fail("searched again"))
    assert json.loads(dpzo("replay", run, "--output", tmp_path / "again", "--json").out)["equals_run"] is True
    before = (run / "journal.jsonl").read_bytes()
    assert dpzo("resume", run).code == 0
    assert (run / "journal.jsonl").read_bytes() == before


def test_a_run_of_searched_noise_goes_on_after_a_crash(
    dpzo: Dpzo, arguments: Callable[..., list[object]], tmp_path: Path
) -> None:
    """The journal of a process that died after two of three steps, with the third in flight."""
    run = tmp_path / "run"
    chosen = {"mechanism": "auto", "num_directions": 1, "epsilon": 4, "noise_multiplier": None}
    assert dpzo(*arguments(run, **chosen, expected_batch_size=40, steps=3, delta=1e-10)).code == 0
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (run / "journal.jsonl").write_bytes(b"".join(lines[:3]))
    head = json.loads((run / "journal.head").read_text())
    last = json.loads(lines[2])
    stood = {**head, "step": 2, "hash": last["hash"], "closed": False}
    (run / "journal.head").write_bytes(canonical(stood) + b"\n")
    said = dpzo("resume", run)
    assert said.code == 0, said.err
    entries = [entry for entry, _ in read(run).entries()]
    assert len(entries) == 3
    assert not hasattr(entries[2], "values")  # burnt: there is no key
    assert json.loads(dpzo("replay", run, "--output", tmp_path / "again", "--json").out)["equals_run"] is True
