"""docs/noise.md: its examples run as printed, its tables are the code's, its figure and results are there."""

from __future__ import annotations

import doctest
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dpzo.noise.published import published

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "noise.md"
RESULTS = ROOT / "benchmarks" / "results"


def rows(columns: int) -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return [row for row in cells if len(row) == columns and re.match(r"\d", row[1])]


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.testfile(str(PAGE), module_relative=False, optionflags=flags)
    assert found.attempted >= 6
    assert found.failed == 0


def test_the_published_labels_are_worth_what_the_page_says() -> None:
    table = [row for row in rows(5) if re.fullmatch(r"[\d.]+", row[0])]
    assert len(table) == 9
    for label, *values in table:
        known = published(label)
        told = (known.truth, known.truth_as_sampled)
        expected = [value for truth in told for value in (truth.pure, truth.composed)]
        assert [float(value) for value in values] == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize(("sigma", "room"), [(16.4, 0.998), (4.0, 0.97), (2.0, 0.88), (1.0, 0.58)])
def test_the_room_that_theory_leaves(sigma: float, room: float) -> None:
    c = math.expm1(1.0 / sigma**2)
    assert math.log1p(c) / c == pytest.approx(room, abs=6e-3)
    assert f"{room:g}" in PAGE.read_text()


def test_the_figure_is_that_of_the_results() -> None:
    drawn = ElementTree.parse(ROOT / "docs" / "figures" / "noise.svg").getroot()
    found = json.loads((RESULTS / "noise.json").read_text())["rows"]
    circles = [part for part in drawn if part.tag.endswith("circle")]
    assert len(circles) == len(found) > 30
    for row in found:
        assert 0 < row["ratio"] <= 1
        assert (row["winner"] == "gaussian") == (row["ratio"] > 0.99)


def test_runs_are_told_as_they_were_measured() -> None:
    found = json.loads((RESULTS / "noise_runs.json").read_text())["rows"]
    told = {(float(row[0]), int(row[2])): [float(cell.split()[0]) for cell in row[4:8]] for row in rows(8)}
    assert len(told) == len(found)
    for row in found:
        shown = [100 * row["without_noise"], 100 * row["gaussian"], 100 * row["auto"], 100 * row["difference"]]
        assert told[row["epsilon"], row["steps"]] == pytest.approx(shown, abs=0.051)
