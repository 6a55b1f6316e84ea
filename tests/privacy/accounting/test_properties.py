"""Laws that hold for every setting: monotone, bounded by Rényi, calibrated to the safe side."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpzo.errors import DpzoError
from dpzo.privacy import accounting
from dpzo.privacy.accounting import calibrate, closed_form, curves, second_opinion
from dpzo.privacy.events import (
    ComposedEvent,
    Event,
    GaussianEvent,
    LaplaceEvent,
    NeighboringRelation,
    PoissonSampledEvent,
)

ZERO, ADD, REPLACE = NeighboringRelation
few = settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
many = settings(max_examples=150, deadline=None, derandomize=True)
noises = st.floats(1.0, 40.0)
sampling_probs = st.floats(0.002, 0.5)
step_counts = st.integers(1, 5000)
deltas = st.sampled_from([1e-9, 1e-6, 1e-5, 1e-3])
kinds = st.sampled_from([GaussianEvent, LaplaceEvent])


def _event(kind: type, noise: float, sampling_prob: float, steps: int) -> Event:
    return ComposedEvent(PoissonSampledEvent(sampling_prob, kind(noise)), steps)


@few
@given(kinds, noises, sampling_probs, step_counts, deltas)
def test_more_steps_more_sampling_less_noise_less_delta_cost_more(
    kind: type, noise: float, sampling_prob: float, steps: int, delta: float
) -> None:
    base = accounting.epsilon(_event(kind, noise, sampling_prob, steps), delta, ZERO)
    # The grid moves with the setting: allow its 0.01 %.
    least = base * (1.0 - 1e-4)
    assert accounting.epsilon(_event(kind, noise, sampling_prob, 2 * steps), delta, ZERO) >= least
    assert accounting.epsilon(_event(kind, noise, min(1.0, 1.5 * sampling_prob), steps), delta, ZERO) >= least
    assert accounting.epsilon(_event(kind, noise / 1.2, sampling_prob, steps), delta, ZERO) >= least
    assert accounting.epsilon(_event(kind, noise, sampling_prob, steps), delta / 10.0, ZERO) >= base


@few
@given(noises, sampling_probs, step_counts, deltas, st.sampled_from([ADD, REPLACE]))
def test_pld_is_below_renyi_and_not_far(
    noise: float, sampling_prob: float, steps: int, delta: float, relation: NeighboringRelation
) -> None:
    event = _event(GaussianEvent, noise, sampling_prob, steps)
    bound = second_opinion.rdp_epsilon(event, delta, relation)
    found = accounting.epsilon(event, delta, relation)
    assert 0.0 <= found <= bound
    assert curves.delta(event, bound, relation) <= delta


@few
@given(kinds, sampling_probs, st.integers(1, 2000), st.floats(0.05, 20.0), deltas)
def test_calibration_round_trip(kind: type, sampling_prob: float, steps: int, epsilon: float, delta: float) -> None:
    noise = calibrate.noise(lambda x: _event(kind, x, sampling_prob, steps), epsilon, delta, ZERO)
    spent = accounting.epsilon(_event(kind, noise, sampling_prob, steps), delta, ZERO)
    assert epsilon * (1.0 - 1e-3) <= spent <= epsilon


@few
@given(noises, sampling_probs, step_counts, deltas, kinds)
def test_delta_inverts_epsilon(noise: float, sampling_prob: float, steps: int, delta: float, kind: type) -> None:
    event = _event(kind, noise, sampling_prob, steps)
    epsilon = accounting.epsilon(event, delta, ZERO)
    if epsilon > 0.0:
        assert curves.delta(event, epsilon, ZERO) == pytest.approx(delta, rel=1e-2)


@many
@given(st.floats(1e-3, 1e6), st.floats(1e-6, 1.0), st.integers(1, 10**6), st.sampled_from(list(NeighboringRelation)))
def test_pure_epsilon_and_its_inverse(
    scale: float, sampling_prob: float, steps: int, relation: NeighboringRelation
) -> None:
    epsilon = closed_form.laplace_pure_epsilon(scale, sampling_prob, steps, relation)
    assert math.isfinite(epsilon)
    assert epsilon > 0.0
    back = calibrate.laplace_pure_scale(epsilon, sampling_prob, steps, relation)
    assert back == pytest.approx(scale, rel=1e-9)
    assert closed_form.laplace_pure_epsilon(back, sampling_prob, steps, relation) <= epsilon


@many
@given(st.floats(1e-3, 50.0), st.floats(1e-15, 0.5))
def test_exact_gaussian_inverts_to_the_safe_side(mu: float, delta: float) -> None:
    epsilon = closed_form.gaussian_epsilon(delta, mu)
    assert closed_form.gaussian_delta(epsilon, mu) <= delta
    if epsilon > 0.0:
        assert closed_form.gaussian_delta(epsilon * (1.0 - 1e-6), mu) > delta


@pytest.mark.parametrize(
    ("kind", "sampling_prob", "steps", "epsilon", "delta", "relation"),
    [
        (GaussianEvent, 1.0, 1, 0.01, 1e-12, ZERO),
        (GaussianEvent, 1.0, 1_000_000, 50.0, 0.1, REPLACE),
        (GaussianEvent, 0.016, 1_000_000, 1.0, 1e-12, ZERO),
        (GaussianEvent, 0.5, 1, 0.01, 0.1, ZERO),
        (GaussianEvent, 0.01, 1, 0.5, 1e-4, REPLACE),
        (GaussianEvent, 0.999, 100, 8.0, 1e-5, ZERO),
        (LaplaceEvent, 1.0, 10, 10.0, 1e-10, ZERO),
        (LaplaceEvent, 1.0, 1, 1.0, 1e-5, REPLACE),
        (LaplaceEvent, 0.016, 100, 1.0, 0.0, REPLACE),
        (lambda x: LaplaceEvent(x, 64), 0.016, 75_000, 1.0, 1e-5, ZERO),
    ],
)
def test_calibration_at_the_edges(
    kind: type, sampling_prob: float, steps: int, epsilon: float, delta: float, relation: NeighboringRelation
) -> None:
    noise = calibrate.noise(lambda x: _event(kind, x, sampling_prob, steps), epsilon, delta, relation)
    spent = accounting.epsilon(_event(kind, noise, sampling_prob, steps), delta, relation)
    assert epsilon * (1.0 - 1e-3) <= spent <= epsilon


def test_calibration_takes_few_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    from dpzo.privacy.accounting import headline

    calls: list[float] = []
    true_bound = headline.bound

    def counted(event: Event, delta: float, relation: NeighboringRelation) -> float:
        calls.append(delta)
        return true_bound(event, delta, relation)

    monkeypatch.setattr(headline, "bound", counted)
    calibrate.noise(lambda x: _event(GaussianEvent, x, 0.016, 75_000), 1.0, 1e-5, ZERO)
    assert len(calls) <= 5


def test_a_budget_that_no_noise_can_exceed_is_refused() -> None:
    # A unit joins with probability 1e-6, so δ = 1e-5 already allows to publish it: every ε would be a false comfort.
    with pytest.raises(DpzoError, match="`delta`"):
        calibrate.noise(lambda x: _event(GaussianEvent, x, 1e-6, 1), 1.0, 1e-5, ZERO)


@pytest.mark.parametrize(
    ("event", "delta", "words"),
    [
        (GaussianEvent(0.0), 1e-5, "`noise_multiplier`"),
        (GaussianEvent(math.nan), 1e-5, "`noise_multiplier`"),
        (LaplaceEvent(math.inf), 1e-5, "`noise_multiplier`"),
        (LaplaceEvent(1.0, 0), 1e-5, "`num_directions`"),
        (PoissonSampledEvent(0.0, GaussianEvent(1.0)), 1e-5, "`expected_batch_size`"),
        (PoissonSampledEvent(1.5, GaussianEvent(1.0)), 1e-5, "`expected_batch_size`"),
        (PoissonSampledEvent(math.nan, GaussianEvent(1.0)), 1e-5, "`expected_batch_size`"),
        (ComposedEvent(GaussianEvent(1.0), 0), 1e-5, "`steps`"),
        (GaussianEvent(1.0), 1.0, "`delta`"),
        (GaussianEvent(1.0), -1e-9, "`delta`"),
        (GaussianEvent(1.0), math.nan, "`delta`"),
    ],
)
def test_numbers_out_of_range_name_the_option(event: Event, delta: float, words: str) -> None:
    with pytest.raises(DpzoError, match=words) as error:
        accounting.epsilon(event, delta, ZERO)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_epsilon_out_of_range_is_refused(epsilon: float) -> None:
    with pytest.raises(DpzoError, match="`epsilon`"):
        calibrate.noise(GaussianEvent, epsilon, 1e-5, ZERO)
