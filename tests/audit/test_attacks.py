"""Scores are the log-likelihood ratios they say, and both ways of drawing draw the same law."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dpzo.audit import attacks
from dpzo.audit.attacks import log_density
from dpzo.audit.draws import channel_scores, mechanism_scores, processes, shipped, through_channels, whole_run
from dpzo.audit.known_seed import generators_put_back, seed_public_generators
from dpzo.noise.table import LatticeNoise
from dpzo.noise.tabled import Tabled
from dpzo.privacy import (
    FullBatch,
    Gaussian,
    Laplace,
    Mechanism,
    NeighboringRelation,
    PoissonSampling,
    PrivacyPlan,
    PrivateChannel,
)

MakePlan = Callable[..., PrivacyPlan]
TABLE = Tabled(LatticeNoise(tuple(w * 2**123 for w in (5, 5, 3, 2, 1)), 2**63, 2, 3, 6))


def test_the_canary_is_clipped_to_the_bound_and_no_further(make_plan: MakePlan) -> None:
    for mechanism, width in ((Gaussian(1.3), 1), (Gaussian(1.3), 16), (Laplace(0.7), 16)):
        for attack in attacks(make_plan(mechanism, num_directions=width)):
            length = np.linalg.norm(attack.shift, ord=mechanism.order)
            assert 0.998 * attack.grid.bound < length <= attack.grid.bound


@pytest.mark.parametrize("relation", NeighboringRelation)
@pytest.mark.parametrize("sampler", [FullBatch(), PoissonSampling(0.2)], ids=str)
def test_the_score_is_the_log_likelihood_ratio(
    make_plan: MakePlan, relation: NeighboringRelation, sampler: Any
) -> None:
    """Of continuous densities, by SciPy; a cell's ratio differs by what happens within the cell."""
    q = sampler.sampling_prob
    for mechanism, law in ((Gaussian(1.3), stats.norm(scale=1.3)), (Laplace(0.7), stats.laplace(scale=0.7))):
        if relation is NeighboringRelation.REPLACE_ONE and isinstance(mechanism, Laplace) and q < 1:
            continue  # the plan refuses it
        attack = attacks(make_plan(mechanism, sampler, relation=relation, num_directions=2))[0]
        values = np.random.Generator(np.random.PCG64(1)).integers(-3000, 3000, size=(50, 2)).astype(float)
        x = (values[:, 0] + 0.5) * attack.grid.unit / 0.5
        absent = law.pdf(x)
        if relation is NeighboringRelation.REPLACE_ONE:
            absent = (1 - q) * law.pdf(x) + q * law.pdf(x + 1)
        expected = np.log((1 - q) * law.pdf(x) + q * law.pdf(x - 1)) - np.log(absent)
        assert attack.score(values) == pytest.approx(expected, abs=3e-3)


def test_the_score_of_a_table_is_of_its_masses() -> None:
    values = np.array([[v] for v in range(-60, 61)], dtype=np.float64)
    cells = np.rint(values[:, 0] / 3).astype(int)
    found = log_density(TABLE, values, 0)[:, 0]
    assert found == pytest.approx([math.log(float(TABLE.noise.mass(int(c)))) for c in cells])


@pytest.mark.parametrize("relation", NeighboringRelation)
def test_neighbours_differ_in_the_canary_alone(make_plan: MakePlan, relation: NeighboringRelation) -> None:
    for attack in attacks(make_plan(num_directions=3, relation=relation)):
        there, absent = attack.data(True), attack.data(False)
        others = attack.num_units - 1
        assert np.array_equal(there[:others], absent[:others])
        if relation is NeighboringRelation.ADD_OR_REMOVE_ONE:
            assert len(absent) == others
        else:
            assert np.array_equal(absent[-1], (-1 if relation is NeighboringRelation.REPLACE_ONE else 0) * there[-1])


@pytest.mark.parametrize(
    ("mechanism", "sampler", "claims"),
    [
        (Gaussian(0.9), FullBatch(), {"num_directions": 3}),
        (Laplace(0.6), PoissonSampling(0.4), {"steps": 2}),
        (Gaussian(1.0), PoissonSampling(0.4), {"relation": NeighboringRelation.ADD_OR_REMOVE_ONE}),
        (Gaussian(1.0), FullBatch(), {"relation": NeighboringRelation.REPLACE_ONE}),
        (TABLE, FullBatch(), {"delta": 0.1}),
    ],
    ids=str,
)
def test_parts_and_channels_draw_the_same_law(
    make_plan: MakePlan, mechanism: Mechanism, sampler: Any, claims: dict[str, Any]
) -> None:
    attack = attacks(make_plan(mechanism, sampler, **claims))[0]
    for present in (False, True):
        through = channel_scores(PrivateChannel, whole_run, attack, present, 1500)
        parts = mechanism_scores(attack, present, 1500)
        assert stats.ks_2samp(through, parts, method="asymp").pvalue > 1e-5


def test_scores_in_several_processes_are_scores(make_plan: MakePlan) -> None:
    attack = attacks(make_plan())[0]
    assert shipped(PrivateChannel, whole_run)
    with processes(2) as share:
        for work in (mechanism_scores, through_channels(PrivateChannel, whole_run)):
            found = share(work, attack, True, 501)
            assert found.shape == (501,)
            assert len(np.unique(found)) > 100


def test_a_run_that_stops_early_is_no_transcript(make_plan: MakePlan) -> None:
    class Short(PrivateChannel):
        def draw_batch(self, num_units: int) -> Any:
            if self.spent == 1:
                raise RuntimeError("no more")
            return super().draw_batch(num_units)

    with pytest.raises(RuntimeError, match="no more"):
        channel_scores(Short, whole_run, attacks(make_plan(steps=3))[0], True, 2)


def test_seeding_is_undone() -> None:
    before = random.getstate(), str(np.random.get_state())  # noqa: NPY002
    with generators_put_back():
        seed_public_generators(5)
        first = random.random(), float(np.random.random())  # noqa: NPY002
        seed_public_generators(5)
        assert first == (random.random(), float(np.random.random()))  # noqa: NPY002
    assert before == (random.getstate(), str(np.random.get_state()))  # noqa: NPY002
