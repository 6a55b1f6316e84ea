"""Published and independently computed figures; each row of tests/golden/accounting.json names its source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpzo.privacy import accounting
from dpzo.privacy.accounting import calibrate, second_opinion
from dpzo.privacy.events import ComposedEvent, GaussianEvent, LaplaceEvent, NeighboringRelation, PoissonSampledEvent

ROWS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "golden" / "accounting.json").read_text(encoding="utf-8")
)
CALIBRATED = {
    "headline.T20000.eps6",
    "sigma.a.q016_T75000.eps1.0",
    "sigma.n_ablation.n5000",
    "sigma.b.q125_T1000.eps0.1",
    "sigma.c.q0.0304_T192.eps0.3",
    "laplace.approx.b.eps1.0",
}
"""Rows solved from scratch; the others are bracketed, which asks for the same accuracy with two evaluations."""


def _event(inputs: dict[str, Any], noise: float) -> ComposedEvent:
    mechanism = LaplaceEvent(noise) if inputs["mechanism"] == "laplace" else GaussianEvent(noise)
    return ComposedEvent(PoissonSampledEvent(inputs["sampling_prob"], mechanism), inputs["steps"])


@pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])
def test_golden(row: dict[str, Any]) -> None:
    inputs, expected, tolerance = row["inputs"], row["expected"], row["rel_tol"]
    delta, relation = inputs["delta"], NeighboringRelation(inputs["relation"])
    quantity = row["quantity"]
    if quantity == "epsilon":
        found = accounting.epsilon(_event(inputs, inputs["noise"]), delta, relation)
    elif quantity == "rdp_epsilon":
        found = second_opinion.rdp_epsilon(_event(inputs, inputs["noise"]), delta, relation)
    elif quantity == "noise_multiplier_rdp":
        found = second_opinion.rdp_epsilon(_event(inputs, expected), delta, relation)
        # ε falls at least in proportion to the noise, so agreement in ε is at least agreement in the noise.
        expected = inputs["epsilon"]
        tolerance *= 2.0
    elif delta == 0.0 or row["id"] in CALIBRATED:
        found = calibrate.noise(lambda x: _event(inputs, x), inputs["epsilon"], delta, relation)
    else:
        within = accounting.epsilon(_event(inputs, expected * (1 + tolerance)), delta, relation)
        beyond = accounting.epsilon(_event(inputs, expected * (1 - tolerance)), delta, relation)
        assert within <= inputs["epsilon"] < beyond
        return
    if row["compare"] == "le":
        assert found <= expected
    else:
        assert found == pytest.approx(expected, rel=tolerance)


def test_rows_are_many_and_sourced() -> None:
    assert len(ROWS) > 150
    assert all(row["source"] for row in ROWS)


def test_no_grid_shows_in_the_longest_runs() -> None:
    # At dp-accounting's default grid 1e-4 the same setting reads 0.50038, above the published claim of 0.5.
    event = ComposedEvent(PoissonSampledEvent(0.016, GaussianEvent(30.9)), 75_000)
    assert accounting.epsilon(event, 1e-5, NeighboringRelation.ZERO_OUT) == pytest.approx(0.49870, abs=2e-5)
