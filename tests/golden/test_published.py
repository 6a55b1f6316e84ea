"""Published settings, end to end through a plan: DP-ZO's Table 16, DPZero's multipliers, DP-AggZO's.

The published multipliers of DPZero and DP-AggZO come from Opacus's RDP accountant; beside each stands what the headline
accountant (PLD) gives for the same claim: the noise that the older accountant costs. Figures of `accounting.json` are
not repeated here.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dpzo.config.solve import solve_plan
from dpzo.experiments.recipes import conversions, theory
from dpzo.privacy import FullBatch, Gaussian, NeighboringRelation, PoissonSampling, PrivacyPlan, accounting
from dpzo.privacy.accounting import closed_form, second_opinion
from dpzo.privacy.accounting.query import flatten
from dpzo.privacy.accounting.renyi import curve
from dpzo.privacy.events import ComposedEvent, GaussianEvent, PoissonSampledEvent

DELTA = 1e-5
ZERO_OUT = NeighboringRelation.ZERO_OUT


def event(sampling_prob: float, steps: int, noise: float) -> ComposedEvent:
    return ComposedEvent(PoissonSampledEvent(sampling_prob, GaussianEvent(noise)), steps)


# --- DP-ZO (arXiv 2401.04343), Table 16: n = 1000, B = 16, T = 75 000, C = 0.05 on the loss difference, φ = 0.01


@pytest.mark.parametrize(
    ("multiplier", "stated", "prv_low", "prv_high"),
    [(30.9, 0.5, 0.4887, 0.5087), (16.4, 1.0, 0.9878, 1.0079), (4.8, 4.0, 3.9847, 4.0051)],
)
def test_dp_zo_table_16(multiplier: float, stated: float, prv_low: float, prv_high: float) -> None:
    plan = solve_plan(
        num_examples=1000,
        expected_batch_size=16,
        steps=75_000,
        delta=DELTA,
        noise_multiplier=multiplier,
        clip_norm=0.05 / (2 * 0.01),
    )
    assert plan.clip_norm == 2.5
    # The claim holds, and another accountant's bracket (prv-accountant 0.2.0, eps_error 0.01) has our figure inside.
    assert plan.epsilon <= stated
    assert prv_low < plan.epsilon < prv_high
    assert plan.noise_scale == pytest.approx(multiplier * 2.5)
    exchanged = PrivacyPlan(**{**vars_of(plan), "relation": NeighboringRelation.REPLACE_ONE})
    assert exchanged.epsilon > 2.1 * plan.epsilon  # the published claim is add/remove, and only that


def vars_of(plan: PrivacyPlan) -> dict[str, object]:
    return {name: getattr(plan, name) for name in PrivacyPlan.__dataclass_fields__}


@pytest.mark.parametrize(("multiplier", "mu", "exact"), [(30.9, 0.141842, 0.49876), (16.4, 0.26743, 0.9979)])
def test_dp_zo_in_the_limit_of_many_steps(multiplier: float, mu: float, exact: float) -> None:
    """μ = q√(T(e^{1/σ²} − 1)): the central limit, here within 1.5 % of the accountant's answer."""
    found = 0.016 * math.sqrt(75_000 * math.expm1(1 / multiplier**2))
    assert found == pytest.approx(mu, rel=1e-5)
    assert closed_form.gaussian_epsilon(DELTA, found) == pytest.approx(exact, rel=0.015)


def test_dp_zo_noise_of_the_mean_exceeds_the_largest_signal() -> None:
    assert conversions.mean_slope_noise(16.4, conversions.slope_clip(0.05, 0.01), 16) == 2.5625
    assert 0.016 * math.sqrt(75_000 * math.expm1(1 / 4.8**2)) == pytest.approx(0.922866, rel=1e-5)


def test_dp_zo_batches() -> None:
    """Empty batches are rare but come (0.74 % of runs); the largest batch of a run is 36, nearly never above 49."""
    sizes = stats.binom(1000, 0.016)
    assert sizes.pmf(0) == pytest.approx(9.88777e-08, rel=1e-4)
    assert 75_000 * sizes.pmf(0) == pytest.approx(0.0074158, rel=1e-3)
    assert sizes.ppf(0.5 ** (1 / 75_000)) == 36
    assert sizes.ppf(0.999999 ** (1 / 75_000)) == 49


@pytest.mark.parametrize(
    ("steps", "sampling", "epsilon", "gaussian", "ratio"),
    [
        (75_000, 0.016, 4.0, 4.7949, 1.834),
        (1000, 0.125, 0.5, 27.85, 1.967),
        (1000, 0.125, 1.0, 14.809, 1.94),
        (1000, 0.125, 4.0, 4.3706, 1.791),
    ],
)
def test_laplace_needs_nearly_twice_the_variance(
    steps: int, sampling: float, epsilon: float, gaussian: float, ratio: float
) -> None:
    """At δ = 1e-5; through the plan, so that its noise multiplier is a standard deviation for both mechanisms."""

    def at(factor: float) -> float:
        return solve_plan(
            num_examples=1000,
            expected_batch_size=1000 * sampling,
            steps=steps,
            delta=DELTA,
            noise_multiplier=gaussian * math.sqrt(ratio) * factor,
            mechanism="laplace",
        ).epsilon

    assert at(1.006) < epsilon < at(0.994)


@pytest.mark.parametrize(("multiplier", "expected"), [(30.9, 0.722), (16.4, 1.438), (4.8, 5.626)])
def test_laplace_of_the_same_standard_deviation(multiplier: float, expected: float) -> None:
    """Laplace noise of the std that Table 16 gives its Gaussian: 1.44 times the ε."""
    plan = solve_plan(
        num_examples=1000,
        expected_batch_size=16,
        steps=75_000,
        delta=DELTA,
        noise_multiplier=multiplier,
        mechanism="laplace",
    )
    assert plan.mechanism.scale == pytest.approx(conversions.laplace_scale(multiplier))
    assert plan.epsilon == pytest.approx(expected, rel=0.003)


# --- DPZero (arXiv 2310.09639; public code 485f236), RoBERTa and OPT: (q, T), and per ε its m by RDP and ours by PLD


SETTINGS = {
    "sst2_rte": (64 / 1024, 10_000, {2.0: (13.468, 12.500), 6.0: (5.151, 4.838)}),
    "snli_mnli": (64 / 1536, 10_000, {2.0: (9.001, 8.355), 6.0: (3.479, 3.271)}),
    "sst5": (64 / 2560, 10_000, {2.0: (5.438, 5.051), 6.0: (2.166, 2.044)}),
    "trec, as published": (64 / 3072, 10_000, {2.0: (4.551, 4.230), 6.0: (1.847, 1.747)}),
    "trec, its true size": (64 / 2646, 10_000, {2.0: (5.264, 4.891), 6.0: (2.103, 1.986)}),
    "opt": (8 / 1000, 20_000, {2.0: (2.543, 2.373), 6.0: (1.146, 1.096)}),
}


@pytest.mark.parametrize("epsilon", [2.0, 6.0])
@pytest.mark.parametrize("name", SETTINGS)
def test_dpzero_multipliers_by_rdp_and_by_pld(name: str, epsilon: float) -> None:
    q, steps, rows = SETTINGS[name]
    by_rdp, by_pld = rows[epsilon]
    assert second_opinion.rdp_epsilon(event(q, steps, by_rdp * 1.003), DELTA, ZERO_OUT) <= epsilon
    assert second_opinion.rdp_epsilon(event(q, steps, by_rdp * 0.997), DELTA, ZERO_OUT) > epsilon
    assert accounting.epsilon(event(q, steps, by_pld * 1.002), DELTA, ZERO_OUT) <= epsilon
    assert accounting.epsilon(event(q, steps, by_pld * 0.998), DELTA, ZERO_OUT) > epsilon


def test_dpzero_adds_twice_the_noise_that_a_sound_version_needs() -> None:
    """Its code adds 2m·C/B to the mean. Poisson, zero-out and PLD need 12.50 where it has 26.94 (SST-2, ε = 2)."""
    sound = solve_plan(num_examples=1024, expected_batch_size=64, steps=10_000, delta=DELTA, epsilon=2.0)
    assert 2 * 13.468 / sound.noise_multiplier == pytest.approx(2.155, rel=0.005)
    on_the_mean = sound.noise_multiplier / sound.expected_batch_size
    assert on_the_mean == pytest.approx(0.4209 / 2.155, rel=0.005)  # 0.4209: std ÷ C of its mean, as run


def test_dpzero_on_trec_as_it_ran() -> None:
    """2646 = 41·64 + 22: each 42nd batch is short, and divided by 22 under noise for 64 (multiplier 0.34375·m)."""
    q, steps = 64 / 2646, 10_000
    short = steps // 42
    assert 22 / 64 == 0.34375
    for multiplier, nominal, true_q, ragged in ((4.5511, 2.0, 2.36, 2.37), (1.8467, 6.0, 7.143, 7.87)):
        alone = second_opinion.rdp_epsilon(event(q, steps, multiplier), DELTA, ZERO_OUT)
        assert alone == pytest.approx(true_q, rel=0.005)
        orders, whole = curve(flatten(event(q, 1, multiplier)), ZERO_OUT)
        same_orders, torn = curve(flatten(event(22 / 2646, 1, 0.34375 * multiplier)), ZERO_OUT)
        assert np.array_equal(orders, same_orders)
        total = (steps - short) * whole + short * torn
        converted = total + np.log1p(-1 / orders) - (math.log(DELTA) + np.log(orders)) / (orders - 1)
        assert nominal < alone < converted.min() == pytest.approx(ragged, rel=0.01)


def test_dpzero_full_batch_theory() -> None:
    """σ = 4C√(2T ln(e + ε/δ))/(nε): 0.31249 at C = 1, T = n = 1000, ε = 2; as noise of the sum under replace-one."""
    steps = number = 1000
    sigma = theory.mean_noise_std(1.0, steps, number, 2.0, DELTA)
    assert sigma == pytest.approx(0.3124879, rel=1e-6)
    plan = PrivacyPlan(
        number, FullBatch(), Gaussian(sigma * number), 1.0, steps, 1, DELTA, NeighboringRelation.REPLACE_ONE
    )
    assert plan.epsilon < 2.0  # the theorem's constant is not tight; the exact curve says how much is given away
    mu, found = 2 * math.sqrt(steps) / (sigma * number), plan.epsilon
    spent = stats.norm.cdf(mu / 2 - found / mu) - math.exp(found) * stats.norm.cdf(-mu / 2 - found / mu)
    assert spent == pytest.approx(DELTA, rel=1e-6)  # Balle and Wang 2018, theorem 8
    assert found == pytest.approx(0.7350, rel=1e-3)


# --- DP-AggZO (USENIX Security 2025; public code 8662f09), MNLI: q = 64/1536, one K-vector a step


AGGZO = [
    (1000, 0.5, 10.19, 9.345),
    (1000, 1.0, 5.437, 5.017),
    (1000, 2.0, 2.975, 2.768),
    (1000, 6.0, 1.314, 1.246),
    (500, 0.95 * 0.5, 7.607, 6.976),
    (500, 0.95 * 1.0, 4.096, 3.781),
    (1000, 0.95 * 0.5, 10.676, 9.790),
    (1000, 0.95 * 1.0, 5.692, 5.250),
    (1000, 0.95 * 2.0, 3.1056, 2.888),
    (1000, 0.95 * 6.0, 1.357, 1.286),
]


@pytest.mark.parametrize(("steps", "epsilon", "by_rdp", "by_pld"), AGGZO)
def test_dp_aggzo_multipliers_by_rdp_and_by_pld(steps: int, epsilon: float, by_rdp: float, by_pld: float) -> None:
    """5 % of ε pays for a private N in its runs: the rows at 0.95·ε."""
    q = 64 / 1536
    assert second_opinion.rdp_epsilon(event(q, steps, by_rdp * 1.003), DELTA, ZERO_OUT) <= epsilon
    assert second_opinion.rdp_epsilon(event(q, steps, by_rdp * 0.997), DELTA, ZERO_OUT) > epsilon
    assert accounting.epsilon(event(q, steps, by_pld * 1.002), DELTA, ZERO_OUT) <= epsilon
    assert accounting.epsilon(event(q, steps, by_pld * 0.998), DELTA, ZERO_OUT) > epsilon


@pytest.mark.parametrize(("directions", "mean_row_clip"), [(64, 5.0), (64, 1.0), (256, 2.5), (16, 7.5), (1, 200.0)])
def test_dp_aggzo_directions_cost_nothing(directions: int, mean_row_clip: float) -> None:
    """Rows are not divided by K here: its c is clip_norm = K·c, and K appears nowhere in the account."""
    fields = {
        "num_examples": 1536,
        "sampler": PoissonSampling(64 / 1536),
        "mechanism": Gaussian(2.768),
        "steps": 1000,
        "delta": DELTA,
    }
    plan = PrivacyPlan(clip_norm=directions * mean_row_clip, num_directions=directions, **fields)
    one = PrivacyPlan(clip_norm=1.0, num_directions=1, **fields)
    assert plan.event == one.event
    assert plan.epsilon == one.epsilon == pytest.approx(2.0, rel=0.002)
