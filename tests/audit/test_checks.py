"""Checks of a channel: sound ones are found sound, p-values are valid, and the law of the noise is the exact one.

Secret randomness cannot be seeded, so what is asked of real channels is asked at a chance of an error of 10⁻¹⁰. That
the p-values are valid is tested on made-up draws from a seeded generator, so those tests cannot fail by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dpzo.audit.batch_checks import check_batches
from dpzo.audit.checking import check_channel
from dpzo.audit.clip_checks import batch_of, check_clip, check_hidden_noise, crowd, hostile_rows
from dpzo.audit.draws import whole_run
from dpzo.audit.noise_checks import check_entropy, check_independence, check_law
from dpzo.audit.noise_law import NoiseLaw, sum_beyond
from dpzo.audit.observed import Observed
from dpzo.audit.tally import CheckTally
from dpzo.noise.table import LatticeNoise
from dpzo.noise.tabled import Tabled
from dpzo.privacy import (
    Gaussian,
    Laplace,
    NeighboringRelation,
    PoissonSampling,
    PrivacyPlan,
    PrivateChannel,
    SecretRandom,
    clip_rows,
    lattice,
)

MakePlan = Callable[..., PrivacyPlan]
TABLE = Tabled(LatticeNoise(tuple(w * 2**123 for w in (5, 5, 3, 2, 1)), 2**63, 2, 3, 6))
CERTAIN = 1e-10
SOUND: list[tuple[Any, dict[str, Any]]] = [
    (Gaussian(1.0), {}),
    (Gaussian(0.3), {"num_directions": 5, "steps": 7}),
    (Laplace(2.0), {"num_directions": 3, "relation": NeighboringRelation.ADD_OR_REMOVE_ONE}),
    (Laplace(0.5), {"sampler": PoissonSampling(0.3), "steps": 4}),
    (Gaussian(3.0), {"sampler": PoissonSampling(0.002), "steps": 2, "num_examples": 30}),
    (Gaussian(1.0), {"steps": 400, "relation": NeighboringRelation.REPLACE_ONE}),
    (TABLE, {"delta": 0.1, "steps": 2}),
]


@pytest.mark.parametrize(("mechanism", "claims"), SOUND, ids=str)
def test_a_sound_channel_is_found_sound(make_plan: MakePlan, mechanism: Any, claims: dict[str, Any]) -> None:
    found = check_channel(make_plan(mechanism, **claims), PrivateChannel, whole_run, 1500, CERTAIN)
    assert found.findings == ()
    assert found.releases > 0


def law_of(plan: PrivacyPlan) -> NoiseLaw:
    return NoiseLaw(plan.mechanism, lattice(plan.mechanism, plan.clip_norm, plan.num_directions))


@pytest.mark.parametrize("mechanism", [Gaussian(1.0), Laplace(0.7), TABLE], ids=str)
def test_the_law_is_that_of_the_draws(make_plan: MakePlan, mechanism: Any) -> None:
    """Masses sum to one, and a table's are its own; real draws become normals."""
    law = law_of(make_plan(mechanism, delta=0.1))
    reach = 600 if mechanism is TABLE else int(20 * law.scale)
    every = np.arange(-reach, reach + 1, dtype=np.float64)
    masses = law.masses(every)
    assert masses.sum() == pytest.approx(1.0, abs=1e-6)
    assert law.largest_mass == masses.max()
    if mechanism is TABLE:
        own = [float(TABLE.noise.mass(round(v / 3))) / 3 for v in every]
        assert masses == pytest.approx(own)
    grid = lattice(mechanism, 0.5, 1)
    draws = np.array(mechanism.draw(grid.bits, 4000, SecretRandom().words()), dtype=np.float64)
    z = law.normals(draws, np.random.default_rng(1).random(4000))
    assert stats.kstest(z, "norm").pvalue > CERTAIN


@pytest.mark.parametrize("mechanism", [Gaussian(1.0), Laplace(0.7), TABLE], ids=str)
def test_the_ends_of_a_cell_are_those_of_its_neighbours(make_plan: MakePlan, mechanism: Any) -> None:
    law = law_of(make_plan(mechanism, delta=0.1))
    draws = np.arange(-12.0, 12.0)
    low, high = law.normals(draws, np.full(24, 1.0)), law.normals(draws, np.zeros(24))
    low, high = np.minimum(low, high), np.maximum(low, high)
    assert high[:-1] == pytest.approx(low[1:], abs=1e-9)


@pytest.mark.parametrize("mechanism", [Gaussian(1.0), Laplace(0.7), TABLE], ids=str)
def test_the_tail_of_a_sum_is_bounded(make_plan: MakePlan, mechanism: Any) -> None:
    """No smaller than what is seen of sums of 5 draws, and small where it should be."""
    plan = make_plan(mechanism, delta=0.1)
    law, grid = law_of(plan), lattice(mechanism, plan.clip_norm, 1)
    draws = np.array(mechanism.draw(grid.bits, 20_000, SecretRandom().words()), dtype=np.float64)
    sums, one = draws.reshape(-1, 5).sum(axis=1), np.ones(1)
    for share in (0.5, 0.1, 0.02):
        at = float(np.quantile(sums, 1 - share))
        hits = int((sums >= at).sum())
        bound = float(sum_beyond(law, np.asarray(at), one, 5))
        assert stats.binom.sf(hits - 1, len(sums), min(1.0, bound)) > CERTAIN
    assert float(sum_beyond(law, np.asarray(60.0 * draws.std()), one, 5)) < 1e-6


def made_up(plan: PrivacyPlan, draw: np.random.Generator, runs: int) -> Observed:
    """Sound observations from a seeded generator: no channel is asked."""
    n, width, q = runs * plan.steps, plan.num_directions, plan.sampler.sampling_prob
    scale = 2 ** lattice(plan.mechanism, plan.clip_norm, width).bits
    own = draw.standard_normal if isinstance(plan.mechanism, Gaussian) else draw.laplace
    values = np.floor(scale * own(size=(n, width)))
    units = np.repeat(draw.choice([0, 1, 9, 40], size=runs), plan.steps)
    batches = [np.flatnonzero(draw.random(count) < q) for count in units]
    return Observed(
        plan,
        values,
        np.zeros((n, width)),
        np.repeat(np.arange(runs), plan.steps),
        np.tile(np.arange(plan.steps), runs),
        units,
        draw.integers(8, size=n),
        batches=batches,
    )


@pytest.mark.parametrize(
    ("mechanism", "claims", "runs"),
    [
        (Gaussian(1.0), {"num_directions": 4, "steps": 3, "sampler": PoissonSampling(0.2)}, 60),
        (Laplace(0.7), {"sampler": PoissonSampling(0.5)}, 300),
        (Gaussian(0.05), {"steps": 30}, 14),
    ],
    ids=str,
)
def test_p_values_are_valid(make_plan: MakePlan, mechanism: Any, claims: dict[str, Any], runs: int) -> None:
    """On sound draws the chance that a check states is at most x with probability at most x, from 0.02 to 0.5."""
    plan, draw, repeats = make_plan(mechanism, **claims), np.random.Generator(np.random.PCG64(5)), 30
    law, chances = law_of(plan), []
    for _ in range(repeats):
        seen = made_up(plan, draw, runs)
        z = law.normals(seen.noise, draw.random(seen.noise.shape))
        tallies = [CheckTally(str(i)) for i in range(4)]
        check_law(tallies[0], z, seen)
        check_independence(tallies[1], z, seen)
        check_entropy(tallies[2], law, seen, 1e-8)
        check_batches(tallies[3], seen, 1e-8)
        chances.append([tally.chance for tally in tallies])
    for level in (0.02, 0.1, 0.5):
        assert ((np.array(chances) <= level).sum(axis=0) <= stats.binom.isf(1e-4, repeats, level)).all()


def test_hostile_rows_at_the_bound_are_no_finding(make_plan: MakePlan) -> None:
    """Sums that go as far as a sound clip can, with made-up noise: the bound itself is allowed."""
    plan, draw = make_plan(Gaussian(1.0), num_directions=3), np.random.Generator(np.random.PCG64(5))
    rows = hostile_rows(plan, draw)
    grid, count = lattice(plan.mechanism, plan.clip_norm, 3), crowd(3)
    kinds = np.repeat(np.arange(len(rows)), 2)
    with np.errstate(all="ignore"):
        sums = np.array([clip_rows(batch_of(plan, rows[k], count), grid).sum(axis=0) for k in kinds], dtype=np.float64)
    values = sums + np.floor(2**grid.bits * draw.standard_normal(sums.shape))
    same = np.zeros(len(kinds), dtype=np.int64)
    seen = Observed(plan, values, sums, same, same, same + count, kinds, batches=[np.arange(count)] * len(kinds))
    tally = CheckTally("clip")
    check_clip(tally, law_of(plan), seen, rows)
    check_hidden_noise(tally, law_of(plan), seen, rows)
    assert tally.tests > 1000
    assert tally.finding(1e-3) is None


def test_the_verdict_is_bonferronis() -> None:
    tally = CheckTally("a")
    tally.add("few", [0.3, 0.9])
    tally.add("one of many", 1e-6, 998)
    tally.add("nothing", [])
    assert tally.chance == pytest.approx(1e-3)
    assert tally.finding(9e-4) is None
    found = tally.finding(1.1e-3)
    assert found is not None
    assert "one of many" in str(found)
    assert math.isclose(found.chance, 1e-3)
