"""The three neighbouring relations, the support matrix and its page."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpzo.errors import DpzoError
from dpzo.noise import families
from dpzo.noise.tabulate import table
from dpzo.privacy import accounting
from dpzo.privacy.accounting import calibrate, closed_form, curves, pld, second_opinion, support_page
from dpzo.privacy.accounting.query import Query
from dpzo.privacy.events import (
    ComposedEvent,
    Event,
    GaussianEvent,
    LaplaceEvent,
    LatticeEvent,
    MechanismEvent,
    NeighboringRelation,
    PoissonSampledEvent,
)

ZERO, ADD, REPLACE = NeighboringRelation


def _composed(mechanism: MechanismEvent, sampling_prob: float, steps: int) -> Event:
    return ComposedEvent(PoissonSampledEvent(sampling_prob, mechanism), steps)


@pytest.mark.parametrize("mechanism", [GaussianEvent(2.0), LaplaceEvent(3.0), LaplaceEvent(3.0, 5)])
def test_zero_out_equals_add_or_remove(mechanism: GaussianEvent | LaplaceEvent) -> None:
    event = _composed(mechanism, 0.05, 40)
    assert accounting.epsilon(event, 1e-6, ZERO) == accounting.epsilon(event, 1e-6, ADD)
    assert curves.delta(event, 1.0, ZERO) == curves.delta(event, 1.0, ADD)


@pytest.mark.parametrize("theirs", ["REPLACE_SPECIAL", "ADD_OR_REMOVE_ONE", "REPLACE_ONE"])
@pytest.mark.parametrize("count", [1, 200])
def test_dp_accounting_agrees_on_each_relation(theirs: str, count: int) -> None:
    from dp_accounting import NeighboringRelation as Theirs
    from dp_accounting.pld import privacy_loss_distribution as losses

    one = losses.from_gaussian_mechanism(
        2.0, value_discretization_interval=2e-5, sampling_prob=0.05, neighboring_relation=Theirs[theirs]
    )
    known = (one if count == 1 else one.self_compose(count)).get_epsilon_for_delta(1e-4)
    event = _composed(GaussianEvent(2.0), 0.05, count)
    relation = REPLACE if theirs == "REPLACE_ONE" else ZERO
    assert accounting.epsilon(event, 1e-4, relation) == pytest.approx(known, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 30])
def test_full_batch_replacing_is_half_the_noise(steps: int) -> None:
    gaussian = [ComposedEvent(GaussianEvent(x), steps) for x in (4.0, 2.0)]
    assert accounting.epsilon(gaussian[0], 1e-5, REPLACE) == accounting.epsilon(gaussian[1], 1e-5, ADD)
    for delta in (1e-5, 0.0):
        laplace = [ComposedEvent(LaplaceEvent(x), steps) for x in (4.0, 2.0)]
        assert accounting.epsilon(laplace[0], delta, REPLACE) == pytest.approx(
            accounting.epsilon(laplace[1], delta, ADD), rel=1e-12
        )


@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_pld_agrees_with_the_exact_gaussian_when_nearly_all_are_sampled(relation: NeighboringRelation) -> None:
    query = Query("gaussian", 8.0, 1, 1.0, 25)
    exact = closed_form.gaussian_epsilon(1e-6, closed_form.gaussian_mu(query, relation))
    by_pld = pld.epsilon(query, 1e-6, relation)
    assert exact <= by_pld <= exact * 1.00001


def test_replacing_costs_more_than_removing_and_less_than_two_removals_of_pure_budget() -> None:
    event = _composed(LaplaceEvent(5.0), 0.1, 20)
    one, two = (accounting.epsilon(event, 0.0, relation) for relation in (ADD, REPLACE))
    assert one < two < 2.0 * one


def test_matrix_is_total_and_epsilon_follows_it() -> None:
    rows = list(support_page.support_matrix())
    assert len(rows) == len(set(rows)) == 72
    noise = table(families.Huber(3.0, 1.0), cells=8)
    for row in rows:
        mechanism = {
            "gaussian": GaussianEvent(3.0),
            "laplace": LaplaceEvent(3.0, row.dimension),
            "lattice": LatticeEvent(noise, row.dimension),
        }[row.mechanism]
        event = _composed(mechanism, 0.1 if row.sampling == "poisson" else 1.0, 3)
        delta = 0.0 if row.pure else 1e-5
        assert "\n" not in row.support.reason
        if row.support.supported:
            assert 0.0 < accounting.epsilon(event, delta, row.relation) < 10.0
            assert accounting.accountant(event, delta, row.relation).startswith(row.support.accountant[:3])
        else:
            with pytest.raises(DpzoError, match="use"):
                accounting.epsilon(event, delta, row.relation)


def test_refusals_give_the_reason() -> None:
    with pytest.raises(DpzoError, match="no pure"):
        accounting.epsilon(GaussianEvent(1.0), 0.0, ZERO)
    with pytest.raises(DpzoError, match="log-concave"):
        accounting.epsilon(_composed(LatticeEvent(table(families.Huber(3.0, 1.0), cells=8)), 0.5, 2), 1e-5, REPLACE)
    with pytest.raises(DpzoError, match="no pure"):
        calibrate.noise(GaussianEvent, 1.0, 0.0, ZERO)


def test_page_is_current() -> None:
    page = Path(__file__).parents[3] / "docs" / "support.md"
    told = "run: python -m dpzo.privacy.accounting docs/support.md"
    text = page.read_text(encoding="utf-8")
    assert support_page.table() in text, told
    assert text == support_page.updated(text), told


def test_a_contradiction_between_accountants_is_loud() -> None:
    event = _composed(GaussianEvent(10.0), 0.01, 10)
    second_opinion.check_epsilon(event, 1e-5, ZERO, accounting.epsilon(event, 1e-5, ZERO))
    with pytest.raises(second_opinion.AccountantDisagreement):
        second_opinion.check_epsilon(event, 1e-5, ZERO, 5.0)


def test_a_delta_beyond_floats_is_refused() -> None:
    event = _composed(GaussianEvent(60.0), 0.016, 10)
    assert accounting.epsilon(event, 1e-240, ZERO) < second_opinion.rdp_epsilon(event, 1e-240, ZERO)
    with pytest.raises(DpzoError, match="`delta` 1e-260 is below 1e-250"):
        accounting.epsilon(event, 1e-260, ZERO)


def test_noise_that_hides_nothing_is_refused() -> None:
    with pytest.raises(DpzoError, match="`noise_multiplier` is too small"):
        accounting.epsilon(_composed(GaussianEvent(1e-3), 0.5, 2), 1e-5, ZERO)


@pytest.mark.parametrize("relation", [ZERO, REPLACE])
@pytest.mark.parametrize("sampling_prob", [1.0, 0.05])
def test_coordinates_do_not_enter(sampling_prob: float, relation: NeighboringRelation) -> None:
    for mechanism in (LaplaceEvent(6.0, 1), LaplaceEvent(6.0, 2), LaplaceEvent(6.0, 512)):
        event = _composed(mechanism, sampling_prob, 100)
        assert accounting.epsilon(event, 1e-5, relation) == accounting.epsilon(
            _composed(LaplaceEvent(6.0), sampling_prob, 100), 1e-5, relation
        )
        assert accounting.epsilon(event, 1e-5, relation) < 0.97 * second_opinion.rdp_epsilon(event, 1e-5, relation)
