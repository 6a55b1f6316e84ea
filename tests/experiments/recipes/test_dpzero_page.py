"""docs/dpzero.md: the example runs as printed, and the tables are what the accountant says."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dpzo.experiments.recipes import conversions, theory
from dpzo.privacy import FullBatch, Gaussian, NeighboringRelation, PoissonSampling, PrivacyPlan

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "dpzero.md"
ZERO_OUT, REPLACE_ONE = NeighboringRelation.ZERO_OUT, NeighboringRelation.REPLACE_ONE
MULTIPLIERS = {  # m of its code, by RDP: golden.json, also in tests/golden/accounting.json
    ("SST-2, RTE", 2.0): 13.468,
    ("SST-2, RTE", 6.0): 5.1511,
    ("SNLI, MNLI", 2.0): 9.0007,
    ("SNLI, MNLI", 6.0): 3.4789,
    ("SST-5", 2.0): 5.4375,
    ("SST-5", 6.0): 2.166,
    ("TREC", 2.0): 4.5511,
    ("TREC", 6.0): 1.8467,
    ("OPT", 2.0): 2.5432,
    ("OPT", 6.0): 1.1462,
}


def rows(columns: int) -> list[list[str]]:
    """The body rows of the page's table with that many columns."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if len(row) == columns and re.match(r"\d", row[1])]


def epsilon(batch: float, number: int, steps: int, noise: float, relation: NeighboringRelation) -> float:
    sampler = FullBatch() if batch == number else PoissonSampling(batch / number)
    return PrivacyPlan(number, sampler, Gaussian(noise), 1.0, steps, 1, 1e-5, relation).epsilon


def test_the_example_runs_as_printed() -> None:
    result = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert result.attempted >= 8
    assert result.failed == 0


def test_the_slack_table() -> None:
    table = [[float(cell) for cell in row] for row in rows(4) if re.match(r"\d", row[0])]
    assert len(table) == 6
    for nominal, delta, exact, share in table:
        full = theory.noise_multiplier(1000, nominal, delta)

        def plan(noise: float, delta: float = delta) -> PrivacyPlan:
            return PrivacyPlan(1000, FullBatch(), Gaussian(noise), 1.0, 1000, 1, delta, REPLACE_ONE)

        assert plan(full).epsilon == pytest.approx(exact, abs=6e-5)
        assert plan(full * (share + 6e-4)).epsilon < nominal < plan(full * (share - 6e-4)).epsilon


@pytest.mark.parametrize("row", rows(9), ids=lambda row: f"{row[0]}, {row[1]}")
def test_the_noise_table(row: list[str]) -> None:
    named = re.match(r"(.*) \((\d+)/(\d+)\)", row[0])
    assert named is not None
    name, batch, number = named[1], int(named[2]), int(named[3])
    nominal, by_theorem, full, code, exchanged, zeroed, really, really_exchanged = map(float, row[1:])
    steps = 20_000 if name == "OPT" else 10_000
    noise = conversions.dpzero_noise_multiplier(MULTIPLIERS[name, nominal])
    assert theory.mean_noise_std(1.0, steps, number, nominal, 1e-5) == pytest.approx(by_theorem, abs=6e-5)
    assert conversions.mean_slope_noise(noise, 1.0, batch) == pytest.approx(code, abs=6e-5)
    for size, relation, stated in (
        (number, REPLACE_ONE, full),
        (batch, REPLACE_ONE, exchanged),
        (batch, ZERO_OUT, zeroed),
    ):
        within = epsilon(size, number, steps, size * (stated * 1.0015 + 5e-5), relation)
        beyond = epsilon(size, number, steps, size * (stated * 0.9985 - 5e-5), relation)
        assert within < nominal < beyond
    for relation, stated in ((ZERO_OUT, really), (REPLACE_ONE, really_exchanged)):
        assert epsilon(batch, number, steps, noise, relation) == pytest.approx(stated, rel=2e-3)


def test_every_setting_is_in_the_table() -> None:
    assert {(row[0].rpartition(" (")[0], float(row[1])) for row in rows(9)} == set(MULTIPLIERS)


def test_the_dimension_table_is_the_result_file() -> None:
    """Each printed figure is the stored one, and the figure beside it is a readable SVG."""
    stored = json.loads((ROOT / "benchmarks" / "results" / "dimension.json").read_text())
    assert stored["command"] == "python -m benchmarks.dimension"
    found = {(row["spectrum"], str(row["dimension"]), row["method"]): row for row in stored["rows"]}
    table = [row for row in rows(8) if row[0] in ("identity", "1/sqrt(i)", "1/i")]
    assert len(table) * 2 == len(found)
    for spectrum, dimension, rank, start, *shown in table:
        for method, (error, cost) in (("dpzero", shown[:2]), ("dpgd-0th", shown[2:])):
            row = found[spectrum, dimension, method]
            assert error == f"{row['squared_gradient']:.3g} ± {row['standard_error']:.1g}"
            assert float(cost) == pytest.approx(row["squared_gradient"] - row["without_privacy"], rel=0.06)
            assert float(rank) == pytest.approx(row["effective_rank"], abs=0.05)
            assert float(start) == pytest.approx(row["start"]["squared_gradient"], rel=0.01)
    drawing = ElementTree.parse(PAGE.parent / "figures" / "dimension.svg").getroot()
    assert len(drawing.findall("{*}polyline")) == 6
    assert len(drawing.findall("{*}circle")) == len(found)
