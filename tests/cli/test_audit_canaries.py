"""`dpzo audit RUN --canaries`: a run's own plan on public records once more, and never on private ones unasked."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Dpzo = Callable[..., Any]


@pytest.fixture(autouse=True)
def _the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound audit flags a run once in a while, but not here."""
    monkeypatch.setattr(os, "urandom", random.Random(7).randbytes)


def test_a_run_is_trained_once_more(dpzo: Dpzo, finished: Path, records: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    said = dpzo("audit", finished, "--canaries", 20, "--data", records, "--data-is", "public", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert [report["method"] for report in found["reports"]] == ["one_run", "one_run_gaussian"]
    assert 0 <= found["epsilon_lower"] < found["epsilon_claimed"]
    assert found["draws"] == 20
    assert found["flagged"] is False
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_base_that_has_moved_is_named(
    dpzo: Dpzo, arguments: Callable[..., list[object]], tiny_bert: Path, records: Path, tmp_path: Path
) -> None:
    here, run = shutil.copytree(tiny_bert, tmp_path / "here"), tmp_path / "run"
    assert dpzo(*arguments(run, model=here)).code == 0
    moved = here.rename(tmp_path / "moved")
    ask = ("audit", run, "--canaries", 20, "--data", records, "--data-is", "public", "--json")
    lost = dpzo(*ask)
    assert lost.code == 2
    assert "name it with --base" in lost.err
    found = dpzo(*ask, "--base", moved)
    assert found.code == 0, found.err
    assert json.loads(found.out)["draws"] == 20


def test_private_records_are_charged_for_aloud(dpzo: Dpzo, finished: Path, records: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    said = dpzo("audit", run, "--canaries", 20, "--data", records, "--data-is", "charged")
    assert said.code == 0, said.err
    assert "this has spent ε = " in said.err
    assert "one_run" in said.out
    assert "Once audited with canaries on private data" in (run / "privacy_card.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--canaries", 20, "--data", "DATA"], "say --data-is public, or --data-is charged"),
        (["--canaries", 20, "--data", "DATA", "--data-is", "private"], "say --data-is public"),
        (["--canaries", 20, "--data-is", "public"], "one of --data FILE and --data-dir FOLDER"),
        (["--canaries", 3, "--data", "DATA", "--data-is", "public"], "use at least 20"),
        (["--canaries", 10_000_000, "--data", "DATA", "--data-is", "public"], "an element each"),
        (["--data", "DATA"], "--data: the mechanism's audit reads no data"),
    ],
)
def test_what_is_refused(dpzo: Dpzo, finished: Path, records: Path, arguments: list[Any], said: str) -> None:
    ended = dpzo("audit", finished, *(records if argument == "DATA" else argument for argument in arguments))
    assert ended.code == 2 or ended.code == 1
    assert said in ended.err
    assert len(ended.err.splitlines()) <= 3
