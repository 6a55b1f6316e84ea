"""A whole curve δ(ε) is an upper bound, does not rise, and lies next to the single answers where δ matters."""

from __future__ import annotations

import numpy as np
import pytest

from dpzo import solve_plan
from dpzo.privacy import NeighboringRelation
from dpzo.privacy.accounting import curves

EPSILONS = np.concatenate([[0.0], np.geomspace(1e-4, 24.0, 140)])


@pytest.mark.parametrize("relation", [NeighboringRelation.ZERO_OUT, NeighboringRelation.REPLACE_ONE])
@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
@pytest.mark.parametrize(("batch", "steps"), [(5, 200), (20, 6), (100, 2), (20, 1)])
def test_a_curve_is_near_the_single_answers(
    batch: int, steps: int, mechanism: str, relation: NeighboringRelation
) -> None:
    plan = solve_plan(
        num_examples=100,
        expected_batch_size=batch,
        steps=steps,
        delta=1e-5,
        epsilon=2,
        mechanism=mechanism,
        relation=relation,
    )
    curve = curves.delta_curve(plan.event, EPSILONS, relation)
    assert (np.diff(curve) <= 0).all()
    for index in (0, 60, 100, 110, 120):
        one = curves.delta(plan.event, float(EPSILONS[index]), relation)
        if one > 1e-8:
            assert 0.999 * one <= curve[index] <= 1.01 * one
