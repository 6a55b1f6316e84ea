"""The arithmetic of a step's time, and that clocks time what they say. Nothing here depends on a machine's speed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dpzo.forecast import TimeForecast, expected_passes, planned_passes
from dpzo.forecast.timing import direction_cost
from dpzo.zo import SCHEDULES, Sgd


def test_a_steps_time_is_its_passes_and_its_update() -> None:
    time = TimeForecast(2.0, 3.0, 1.0, evaluations=5, passes=4.5, directions=0.5, update=0.25, steps=10, once=7.0)
    assert time.per_step == 4.5 * (3.0 + 4 * 1.0) + 0.25
    assert time.run == 7.0 + 10 * time.per_step


@pytest.mark.parametrize(("batch", "units", "size"), [(3, 40, 2), (16, 200, 16), (0.5, 9, 4), (199, 200, 8)])
def test_the_expected_number_of_passes_is_that_of_a_binomial_batch(batch: float, units: int, size: int) -> None:
    draws = np.random.default_rng(1).binomial(units, batch / units, 200_000)
    assert expected_passes(batch, units, size) == pytest.approx(np.ceil(draws / size).mean(), rel=0.01)
    assert expected_passes(units, units, size) == math.ceil(units / size)


def test_directions_and_an_update_take_time() -> None:
    cost = direction_cost("rademacher", 2, Sgd(SCHEDULES["constant"](1e-3, 5, 0), 4), 5000)
    assert cost.shift > 0
    assert cost.update > 0


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize(
    ("batch", "units", "steps", "size"),
    [(64, 10**6, 200, 16), (1024, 100_000, 5000, 256), (2.5, 40, 7, 1), (0.01, 50, 10, 8), (64, 64, 1, 16)],
)
def test_planned_passes_are_the_fewest_that_a_run_hardly_exceeds(
    batch: float, units: int, steps: int, size: int, each: int
) -> None:
    """T·P(r·X > c·m) ≤ 10⁻⁶ at c, and not at c − 1, for r records of each unit."""
    found = planned_passes(batch, units, steps, size, each)

    def beyond(passes: int) -> float:
        return steps * float(stats.binom.sf(passes * size // each, units, batch / units))

    assert beyond(found) <= 1e-6
    assert found == 1 or beyond(found - 1) > 1e-6
    assert found <= math.ceil(units * each / size)
