"""Plans to audit, and the planting of faults that tests/mutants uses."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dpzo.privacy import FullBatch, Gaussian, Mechanism, NeighboringRelation, PrivacyPlan, Sampler

MUTANTS = Path(__file__).resolve().parents[1] / "mutants" / "conftest.py"


def _mutants() -> ModuleType:
    name = "dpzo_tests_planting"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, MUTANTS)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


planted = _mutants().planted


def _plan(
    mechanism: Mechanism | None = None,
    sampler: Sampler | None = None,
    *,
    steps: int = 1,
    num_directions: int = 1,
    delta: float = 1e-5,
    relation: NeighboringRelation = NeighboringRelation.ZERO_OUT,
    num_examples: int = 40,
) -> PrivacyPlan:
    return PrivacyPlan(
        num_examples=num_examples,
        sampler=FullBatch() if sampler is None else sampler,
        mechanism=Gaussian(1.0) if mechanism is None else mechanism,
        clip_norm=0.5,
        steps=steps,
        num_directions=num_directions,
        delta=delta,
        relation=relation,
    )


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., PrivacyPlan]:
    """`make_plan(mechanism, sampler, steps=…)` → a plan; by default one release of Gaussian noise on everyone."""
    return _plan


@pytest.fixture(scope="session")
def audited() -> Callable[..., dict[str, Any]]:
    """`audited(plan, channel_factory=…)` → the reports by method; what is sound is flagged with a chance of `miss`."""
    from dpzo.audit import audit_mechanism

    def run(plan: PrivacyPlan, draws: int = 2000, miss: float = 1e-3, **options: Any) -> dict[str, Any]:
        found = audit_mechanism(plan, draws=draws, channel_draws=draws, confidence=1 - miss, **options)
        return {report.method: report for report in found}

    return run
