"""Bounds on sound plans: close below the claim where they can be, and never above it.

How close is measured by bounds that err half of the time: they lie near what was seen, on either side of the claim.
That none lies above is asked of bounds of which one in 10⁹ may.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dpzo.audit import AuditReport, audit_mechanism, joint, mechanism
from dpzo.config.solve import solve_plan
from dpzo.errors import DpzoError
from dpzo.noise.table import LatticeNoise
from dpzo.noise.tabled import Tabled
from dpzo.privacy import Gaussian, Laplace, NeighboringRelation, PrivacyPlan

MakePlan = Callable[..., PrivacyPlan]
CERTAIN, EVEN = 1 - 1e-9, 0.5


def solved(epsilon: float, mechanism: str = "gaussian", **claims: Any) -> PrivacyPlan:
    given = {
        "num_examples": 100,
        "expected_batch_size": 100,
        "steps": 1,
        "delta": 1e-5,
        "noise_multiplier": None,
        "clip_norm": 1.0,
        "num_directions": 1,
        "relation": NeighboringRelation.ZERO_OUT,
    }
    return solve_plan(**{**given, **claims}, epsilon=epsilon, mechanism=mechanism)


@pytest.mark.slow
def test_a_gaussian_plan_at_one_is_measured_to_within_a_fifth() -> None:
    plan = solved(1.0)
    (found, counted, _) = audit_mechanism(plan, draws=20_000, channel_draws=120_000, confidence=EVEN)
    assert (found.method, counted.method) == ("gaussian_dp", "clopper_pearson")
    assert 0.8 * plan.epsilon <= found.epsilon_lower <= 1.2 * plan.epsilon


@pytest.mark.slow
def test_a_gaussian_plan_at_four_is_measured_to_within_a_fifth() -> None:
    plan = solved(4.0, steps=2)
    (found, counted, _) = audit_mechanism(plan, draws=60_000, channel_draws=20_000, confidence=EVEN)
    assert 0.8 * plan.epsilon <= found.epsilon_lower <= 1.2 * plan.epsilon
    assert 0.3 * plan.epsilon <= counted.epsilon_lower <= plan.epsilon
    for report in audit_mechanism(plan, draws=5000, channel_draws=5000, confidence=CERTAIN):
        assert report.epsilon_lower <= plan.epsilon
        assert not report.flagged


@pytest.mark.slow
def test_pure_laplace_is_measured_by_both(make_plan: MakePlan) -> None:
    plan = make_plan(Laplace(1.0), delta=0.0)
    for report in audit_mechanism(plan, draws=20_000, channel_draws=32_000, confidence=CERTAIN)[:-1]:
        assert 0.7 * plan.epsilon <= report.epsilon_lower <= plan.epsilon == 1.0


def test_a_table_is_counted_and_has_no_family(make_plan: MakePlan) -> None:
    table = Tabled(LatticeNoise(tuple(w * 2**123 for w in (5, 5, 3, 2, 1)), 2**63, 2, 3, 6))
    plan = make_plan(table, delta=0.01)
    (report, _) = audit_mechanism(plan, draws=60_000, channel_draws=1000, confidence=CERTAIN)
    assert report.method == "clopper_pearson"
    assert 0.7 * plan.epsilon <= report.epsilon_lower <= plan.epsilon


@pytest.mark.slow
def test_long_plans_are_audited_in_part_and_say_so(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The f-DP estimator goes on from the noise it has seen to all T steps; Clopper–Pearson counts what it has seen."""
    plan = make_plan(Gaussian(30.0), steps=1000)
    audited, transcripts = mechanism._extent(plan, 100_000, 400_000)
    assert (audited.steps, transcripts) == (40, 10_000)
    monkeypatch.setattr(mechanism, "FEWEST", 2000)
    monkeypatch.setattr(mechanism, "MOST_RELEASES", 8000)
    monkeypatch.setattr(mechanism, "MOST_STEPS", 8000)
    (found, counted, _) = audit_mechanism(plan, draws=10_000, channel_draws=10_000)
    assert "transcripts of 3 of 1000 steps" in found.note
    assert "transcripts of 4 of 1000 steps" in counted.note
    assert counted.epsilon_lower < 0.5 < plan.epsilon


def test_numbers_out_of_range_are_named(make_plan: MakePlan) -> None:
    with pytest.raises(DpzoError, match="--confidence"):
        audit_mechanism(make_plan(), confidence=1.0)
    with pytest.raises(DpzoError, match="--draws"):
        audit_mechanism(make_plan(), draws=10)


def test_the_joint_report_leads_with_the_strongest() -> None:
    low = AuditReport("a", 1.0, 0.5, 1e-5, 0.95, 10, 0.1)
    high = AuditReport("b", 1.0, 1.5, 1e-5, 0.95, 10, 0.1)
    said = joint([low, high])
    assert (said["method"], said["flagged"], said["epsilon_lower"]) == ("b", True, 1.5)
    assert [report["flagged"] for report in said["reports"]] == [False, True]
    assert {"epsilon_claimed", "epsilon_lower", "confidence", "method", "flagged"} <= set(said)
