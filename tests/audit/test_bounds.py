"""Rates to ε: exact where there is a formula, right as often as promised where there is chance."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpzo.audit.bounds import Rates, candidates, clopper_pearson_epsilon, rates, upper
from dpzo.audit.family import GRAIN, MOST, NoiseFamily
from dpzo.privacy import (
    ComposedEvent,
    FullBatch,
    Gaussian,
    Laplace,
    LaplaceEvent,
    NeighboringRelation,
    PoissonSampling,
    PrivacyPlan,
)
from dpzo.privacy.accounting import curves
from dpzo.privacy.accounting.closed_form import gaussian_epsilon

MakePlan = Callable[..., PrivacyPlan]


def pair(false_positive: float, false_negative: float) -> Rates:
    return Rates(np.array([false_positive]), np.array([false_negative]))


@given(draws=st.integers(1, 10**7), share=st.floats(0, 1), miss=st.floats(1e-9, 0.5))
def test_the_bound_is_the_exact_binomial_one(draws: int, share: float, miss: float) -> None:
    hits = int(share * draws)
    bound = float(upper(hits, draws, miss))
    assert hits / draws <= bound <= 1.0
    if bound < 1.0:
        assert stats.binom.cdf(hits, draws, bound) == pytest.approx(miss, rel=1e-2)


def test_the_bounds_hold_as_often_as_promised() -> None:
    draw = np.random.Generator(np.random.PCG64(3))
    hits, repeats, rate = draw.binomial(200, 0.07, 4000), 4000, 0.07
    missed = int((upper(hits, 200, 0.05) < rate).sum())
    assert stats.binom.sf(missed - 1, repeats, 0.05) > 1e-6
    assert missed > 0.02 * repeats  # and they are not bought by being far off


def test_counting_is_of_scores_at_or_above() -> None:
    absent, present = np.array([0.0, 1.0, 1.0, 2.0]), np.array([1.0, 2.0, 2.0, 3.0])
    found = rates(absent, present, np.array([1.0, 1.5, 2.0, 9.0]), 0.1)
    assert found.false_positive == pytest.approx(upper([3, 1, 1, 0], 4, 0.05))
    assert found.false_negative == pytest.approx(upper([0, 1, 1, 4], 4, 0.05))


def test_both_sides_of_an_atom_are_candidates() -> None:
    atoms = np.repeat([-1.0, 1.0], 50)
    tried = candidates(atoms, atoms)
    assert {-1.0, 1.0} <= set(tried)
    assert any(1.0 < value < 1.0 + 1e-9 for value in tried)


def test_epsilon_of_known_rates() -> None:
    assert clopper_pearson_epsilon(pair(0.01, 0.5), 0.0)[0] == pytest.approx(math.log(50))
    assert clopper_pearson_epsilon(pair(0.5, 0.01), 0.1)[0] == pytest.approx(math.log(40))
    assert clopper_pearson_epsilon(pair(0.5, 0.5), 0.1)[0] == 0.0
    assert clopper_pearson_epsilon(pair(1.0, 1.0), 0.1)[0] == 0.0


@settings(max_examples=25, deadline=None)
@given(mu=st.floats(0.1, 4.0), threshold=st.floats(-2.0, 4.0), steps=st.sampled_from([1, 7]))
def test_exact_rates_of_a_gaussian_give_its_own_noise(
    make_plan: MakePlan, mu: float, threshold: float, steps: int
) -> None:
    """For a Gaussian on everyone the least refuted noise is that of μ = Φ⁻¹(1 − FPR) − Φ⁻¹(FNR)."""
    plan = make_plan(Gaussian(2.0), steps=steps)
    claimed = math.sqrt(steps) / 2.0
    family = NoiseFamily(plan, steps)
    found = family.least_refuted(pair(stats.norm.sf(threshold), stats.norm.cdf(threshold - mu)))
    assert found >= claimed / mu * (1 - 1e-9) or found == pytest.approx(GRAIN**-280)
    if 0.3 < claimed / mu < 50 and min(stats.norm.sf(threshold), stats.norm.cdf(threshold - mu)) > 1e-6:
        assert found == pytest.approx(claimed / mu, rel=0.02)
    assert family.epsilon(1.0) == pytest.approx(plan.epsilon)
    assert family.epsilon(2.0) == pytest.approx(gaussian_epsilon(plan.delta, claimed / 2.0), rel=1e-6)


def test_hopeless_rates_refute_no_noise(make_plan: MakePlan) -> None:
    family = NoiseFamily(make_plan(), 1)
    assert family.least_refuted(pair(0.6, 0.6)) == math.inf
    assert family.epsilon(math.inf) == 0.0
    assert family.least_refuted(pair(1e-9, 1e-9)) == GRAIN**-280
    assert GRAIN**MOST > 1000


@pytest.mark.parametrize(("mechanism", "sampler"), [(Laplace(0.7), FullBatch()), (Laplace(0.7), PoissonSampling(0.2))])
def test_exact_rates_of_laplace_noise_refute_no_less_than_it(
    make_plan: MakePlan, mechanism: Laplace, sampler: PoissonSampling | FullBatch
) -> None:
    """Rates by the formula, at thresholds over the whole range: never below the truth, and close to it somewhere."""
    q, law = sampler.sampling_prob, stats.laplace(scale=0.7)
    found = [
        NoiseFamily(make_plan(mechanism, sampler), 1).least_refuted(
            pair(law.sf(x), (1 - q) * law.cdf(x) + q * law.cdf(x - 1.0))
        )
        for x in (0.2, 0.5, 1.0)
    ]
    assert min(found) >= 1.0 - 1e-9
    assert min(found) < 1.03


@pytest.mark.parametrize("scale", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("width", [2, 4, 16])
def test_a_row_spread_over_coordinates_shows_less_than_one_in_one(scale: float, width: int) -> None:
    """Laplace: C/K in each of K coordinates is K releases at scale K·b; its curve lies below that of one at scale b."""
    spread, one = ComposedEvent(LaplaceEvent(scale * width), width), ComposedEvent(LaplaceEvent(scale), 1)
    relation = NeighboringRelation.ZERO_OUT
    for epsilon in np.linspace(0.0, 0.98 / scale, 12):
        assert curves.delta(spread, float(epsilon), relation) < curves.delta(one, float(epsilon), relation)
