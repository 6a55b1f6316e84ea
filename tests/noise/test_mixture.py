"""Laplace of a random scale: closed forms against quadrature and sampling, figures of the reference, refusals."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest

from dpzo.errors import DpzoError
from dpzo.noise import families, lattice_pld
from dpzo.noise.mixture import LaplaceMixture
from dpzo.noise.published import DELTA, PUBLISHED, SAMPLING_PROB, STEPS, published

MIXED = LaplaceMixture(0.3, 2.5, 0.7, 0.2, 3.0, 0.4, 0.5, 2.0)
GAMMA = LaplaceMixture(1.0, 3.5, 0.5, 0.0, 1.0, 0.0, 0.0, 1.0)
UNIFORM = LaplaceMixture(0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 3.0)
LAWS = [MIXED, GAMMA, UNIFORM]


def quadrature_of_u(law: LaplaceMixture, function: object) -> float:
    """E g(u) over the three independent parts, by nested quadrature in 20 digits."""
    assert callable(function)

    def over_uniform(rest: mp.mpf) -> mp.mpf:
        if law.uniform_weight == 0.0:
            return function(rest)
        spread = law.high - law.low
        return mp.quad(lambda v: function(rest + law.uniform_weight * v), [law.low, law.high], maxdegree=4) / spread

    def over_exponential(rest: mp.mpf) -> mp.mpf:
        if law.exponential_weight == 0.0:
            return over_uniform(rest)
        rate = law.rate
        return mp.quad(
            lambda e: rate * mp.exp(-rate * e) * over_uniform(rest + law.exponential_weight * e),
            [0, 1 / rate, 5 / rate, 25 / rate],
            maxdegree=3,
        )

    if law.gamma_weight == 0.0:
        return float(over_exponential(mp.mpf(0)))
    k, theta = law.gamma_shape, law.gamma_scale

    def density(g: mp.mpf) -> mp.mpf:
        return g ** (k - 1) * mp.exp(-g / theta) / (mp.gamma(k) * mp.mpf(theta) ** k)

    return float(
        mp.quad(
            lambda g: density(g) * over_exponential(law.gamma_weight * g),
            [0, theta, 4 * theta, 12 * theta, 45 * theta],
            maxdegree=4,
        )
    )


@pytest.mark.parametrize("law", [GAMMA, UNIFORM], ids=["gamma", "uniform"])
def test_closed_forms_are_expectations_over_the_scale(law: LaplaceMixture) -> None:
    for x in (0.0, 0.4, 2.0):
        assert law.density(x) == pytest.approx(quadrature_of_u(law, lambda u, x=x: u * mp.exp(-u * x) / 2), rel=1e-7)
        assert law.density(-x) == law.density(x)
        assert law.survival(x) == pytest.approx(quadrature_of_u(law, lambda u, x=x: mp.exp(-u * x)), rel=1e-7)
        assert law.usefulness(x) == pytest.approx(1.0 - law.survival(x), abs=1e-12)
    assert math.exp(law.log_moment(0.3)) == pytest.approx(quadrature_of_u(law, lambda u: mp.exp(0.3 * u)), rel=1e-7)
    assert law.mean_absolute == pytest.approx(quadrature_of_u(law, lambda u: 1 / u), rel=1e-6)
    assert law.variance == pytest.approx(2 * quadrature_of_u(law, lambda u: 1 / u**2), rel=1e-4)


def test_parts_add_up() -> None:
    """ln M of independent parts is the sum of theirs; the derivatives follow by differences."""
    parts = [
        LaplaceMixture(0.3, 2.5, 0.7, 0.0, 1.0, 0.0, 0.0, 1.0),
        LaplaceMixture(0.0, 1.0, 1.0, 0.2, 3.0, 0.0, 0.0, 1.0),
        LaplaceMixture(0.0, 1.0, 1.0, 0.0, 1.0, 0.4, 0.5, 2.0),
    ]
    for t in (-30.0, -1.0, -1e-3, 0.0, 1e-7, 0.5, 3.0):
        assert MIXED.log_moment(t) == pytest.approx(sum(part.log_moment(t) for part in parts), rel=1e-13)
    with mp.workdps(40):

        def moment(t: mp.mpf) -> mp.mpf:
            uniform = (mp.exp(mp.mpf(0.4) * 2 * t) - mp.exp(mp.mpf(0.4) * mp.mpf(0.5) * t)) / (
                mp.mpf(0.4) * mp.mpf(1.5) * t
            )
            return (1 - mp.mpf(0.3) * mp.mpf(0.7) * t) ** mp.mpf(-2.5) * 3 / (3 - mp.mpf(0.2) * t) * uniform

        for t in (-40.0, -2.0, -0.2, -1e-3, 0.9):
            assert MIXED.tilted_mean(t) == pytest.approx(float(mp.diff(moment, t)), rel=1e-11)
            assert MIXED.tilted_square(t) == pytest.approx(float(mp.diff(moment, t, 2)), rel=1e-10)


@pytest.mark.parametrize("law", LAWS, ids=["mixed", "gamma", "uniform"])
def test_draws_of_the_two_stage_law_follow_survival(law: LaplaceMixture) -> None:
    """The definition itself, u first and then Laplace, against M(−x): 10⁶ draws from a public seed."""
    rng, size = np.random.default_rng(7), 1_000_000
    u = law.gamma_weight * rng.gamma(law.gamma_shape, law.gamma_scale, size)
    u += law.exponential_weight * rng.exponential(1.0 / law.rate, size)
    u += law.uniform_weight * rng.uniform(law.low, law.high, size)
    draws = np.abs(rng.laplace(0.0, 1.0 / u))
    for x in (0.05, 0.3, 1.0, 3.0, 8.0):
        expected = law.survival(x)
        assert abs(float((draws > x).mean()) - expected) < 6.0 * math.sqrt(expected / size)


def test_a_narrow_uniform_is_plain_laplace() -> None:
    law = LaplaceMixture(0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 2.0, 2.0 + 1e-9)
    assert law.variance == pytest.approx(0.5, rel=1e-6)
    assert law.mean_absolute == pytest.approx(0.5, rel=1e-6)
    assert law.pure_epsilon() == pytest.approx(2.0, rel=1e-8)
    assert law.log_lipschitz == pytest.approx(2.0, rel=1e-8)
    assert law.fisher_information == pytest.approx(4.0, rel=1e-6)
    for gamma, epsilon, usefulness in (
        (0.9, 0.3, 0.236621),
        (0.9, 1.0, 0.59343),
        (0.9, 2.0, 0.834701),
        (0.9, 4.0, 0.972676),
    ):
        plain = LaplaceMixture(0.0, 1.0, 1.0, 0.0, 1.0, 1.0, epsilon, epsilon + 1e-9)
        assert plain.usefulness(gamma) == pytest.approx(usefulness, rel=1e-5)


def test_a_gamma_alone_is_lomax() -> None:
    """Pure ε = (k+1)·ln(1 + θ·shift); infinite variance up to shape 2."""
    lomax = LaplaceMixture(1.0, 1.0, 0.5, 0.0, 1.0, 0.0, 0.0, 1.0)
    assert lomax.pure_epsilon() == pytest.approx(2.0 * math.log(1.5), rel=1e-12)
    assert lomax.variance == math.inf
    assert lomax.mean_absolute == math.inf
    with pytest.raises(DpzoError, match="infinite variance"):
        lomax.finite_variance()
    two = LaplaceMixture(1.0, 2.0, 0.5, 0.0, 1.0, 0.0, 0.0, 1.0)
    assert two.mean_absolute < math.inf
    assert two.variance == math.inf
    # Shape k, θ: E 1/u² = 1/(θ²(k−1)(k−2)).
    assert GAMMA.finite_variance() == pytest.approx(2.0 / (0.25 * 2.5 * 1.5), rel=1e-8)
    assert GAMMA.pure_epsilon(2.0) == pytest.approx(4.5 * math.log(2.0), rel=1e-12)


FIGURES = [  # label, as sampled?, pure ε, usefulness(.9), E|X|, std, Fisher information, log-Lipschitz constant
    ("0.3", False, 0.234704, 0.178415, 4.8741, 7.1239, 0.048603, 0.23697),
    ("0.3", True, 0.881817, 0.42319, 2.1534, 3.5934, 0.53865, 1.0619),
    ("0.7", False, 0.6240, 0.426799, 1.627, 2.31117, 0.3844, 0.6260),
    ("0.7", True, 1.1716, 0.597574, 1.057, 1.58009, 1.2334, 1.330),
    ("2", False, 1.7216, 0.785371, 0.5858, 0.8313, 2.9586, 1.7338),
    ("2", True, 2.18384, 0.849316, 0.47542, 0.68482, 4.8493, 2.3242),
    ("3", False, 2.4620, 0.88786, 0.4108, 0.5852, 6.1021, 2.506),
    ("3", True, 2.9017, 0.92127, 0.3508, 0.5038, 8.7120, 3.064),
]


@pytest.mark.parametrize("row", FIGURES, ids=lambda row: f"{row[0]} {'sampled' if row[1] else 'written'}")
def test_reference_figures(row: tuple[str, bool, float, float, float, float, float, float]) -> None:
    label, sampled, pure, useful, absolute, deviation, fisher, lipschitz = row
    law = published(label).mixture
    law = law.sampled_as_scale() if sampled else law
    assert law.pure_epsilon() == pytest.approx(pure, rel=1e-4)
    assert law.usefulness(0.9) == pytest.approx(useful, rel=1e-4)
    assert law.mean_absolute == pytest.approx(absolute, rel=1e-3)
    assert math.sqrt(law.variance) == pytest.approx(deviation, rel=1e-3)
    assert law.fisher_information == pytest.approx(fisher, rel=2e-3)
    assert law.log_lipschitz == pytest.approx(lipschitz, rel=1e-3)


RENYI = [  # label, order limit, ε at valid orders, its order, bounds at orders 2, 4, 8, 10
    ("0.3", 21.0, 1.3083, 20, (0.04738371, 0.08963568, 0.1506819, 0.1723355)),
    ("0.7", 21.0, 1.7083, 20, (0.2917812, 0.4427818, 0.546201, 0.570885)),
    ("2", 11.0, 4.17426, 10, (1.330079, 1.576856, 1.787219, 1.977033)),
    ("3", 11.0, 5.12718, 10, (2.109326, 2.417596, 2.712539, 2.929956)),
]


@pytest.mark.parametrize("row", RENYI, ids=lambda row: str(row[0]))
def test_renyi_bounds_and_their_end(row: tuple[str, float, float, int, tuple[float, ...]]) -> None:
    label, limit, epsilon, order, bounds = row
    law = published(label).mixture
    assert 1.0 + law.radius == pytest.approx(limit, rel=1e-12)
    for alpha, bound in zip((2, 4, 8, 10), bounds, strict=True):
        assert law.renyi_bound(alpha) == pytest.approx(bound, rel=1e-5)
    found = law.renyi_epsilon(1e-10)
    assert found == (pytest.approx(epsilon, rel=1e-4), order)
    for beyond in (limit, limit + 1.0, 49.0, 128.0):
        with pytest.raises(DpzoError, match="lower orders") as caught:
            law.renyi_bound(beyond)
        assert "\n" not in str(caught.value)
    with pytest.raises(DpzoError, match="infinite"):
        law.log_moment(law.radius)
    with pytest.raises(DpzoError, match="no Rényi order"):
        law.renyi_epsilon(1e-10, range(200, 300))
    with pytest.raises(DpzoError, match="above 1"):
        law.renyi_bound(1.0)


def test_the_renyi_bound_is_above_the_true_divergence() -> None:
    law = published("2").mixture
    for order in (2.0, 5.0, 9.0):
        true = mp.quad(
            lambda x, a=order: mp.mpf(law.density(float(x) - 1)) ** a * mp.mpf(law.density(float(x))) ** (1 - a),
            [-20, -4, -1, 0, 0.5, 1, 2, 5, 20],
            maxdegree=6,
        )
        assert float(mp.log(true)) / (order - 1.0) < law.renyi_bound(order) < 3.0


@pytest.mark.parametrize("law", [MIXED, UNIFORM, published("0.7").mixture], ids=["mixed", "uniform", "0.7"])
def test_the_exact_curve_and_the_table_agree(law: LaplaceMixture) -> None:
    """ε(δ) of one release: an interval by root finding on the density, against the atoms of the cells."""
    for delta in (1e-2, 1e-4):
        exact = law.epsilon(delta)
        assert lattice_pld.epsilon(law.shape(512), delta) == pytest.approx(exact, rel=1e-3)
    assert law.epsilon(1e-13) == pytest.approx(law.pure_epsilon(), rel=1e-3)
    assert law.epsilon(1e-13) <= law.pure_epsilon()
    assert lattice_pld.pure_epsilon(law.shape(512)) == pytest.approx(law.pure_epsilon(), rel=5e-3)
    assert law.shape(512).variance == pytest.approx(law.variance, rel=1e-3)


def test_scaling_scales() -> None:
    wide = MIXED.scaled(3.0)
    assert wide.variance == pytest.approx(9.0 * MIXED.variance, rel=1e-8)
    assert wide.survival(1.5) == pytest.approx(MIXED.survival(0.5), rel=1e-13)
    assert wide.pure_epsilon(3.0) == pytest.approx(MIXED.pure_epsilon(), rel=1e-12)


def test_published_labels_are_not_their_noise() -> None:
    assert len(PUBLISHED) == 18
    assert published("0.3").truth.pure < 0.3 < published("0.3").truth.composed < published("0.3").truth_as_sampled.pure
    assert published("useful 2").claimed_epsilon == 2.0
    assert published("2").truth.composed > 4.8
    with pytest.raises(DpzoError, match=r"use one of 0\.15"):
        published("0.35")


@pytest.mark.parametrize("label", PUBLISHED)
def test_published_truth_is_what_the_accountant_says(label: str) -> None:
    row = published(label)
    for law, truth in ((row.mixture, row.truth), (row.mixture.sampled_as_scale(), row.truth_as_sampled)):
        assert law.pure_epsilon() == pytest.approx(truth.pure, abs=6e-6)
        assert law.epsilon(DELTA) == pytest.approx(truth.once, abs=6e-6)
        assert lattice_pld.epsilon(law.shape(64), DELTA, SAMPLING_PROB, STEPS) == pytest.approx(
            truth.composed, rel=6e-4
        )


def test_mixtures_and_laplace_of_the_same_pure_epsilon() -> None:
    """Up to pure ε = 1 no mixture has less variance than 2/ε²; of the published sets one, at 5.9, gains 2 %."""
    ratios = {
        label: row.mixture.variance / families.laplace(1.0 / row.mixture.pure_epsilon()).variance
        for label, row in PUBLISHED.items()
    }
    assert all(ratio > 1.01 for label, ratio in ratios.items() if label != "5")
    assert ratios["5"] == pytest.approx(0.9806, abs=1e-4)
    rng = np.random.default_rng(11)
    for _ in range(200):
        a, b, c = rng.dirichlet(np.ones(3))
        law = LaplaceMixture(
            a, 3.0 + rng.exponential(5.0), 0.1, b, 1.0 + rng.exponential(), c, 0.2, 0.2 + rng.uniform()
        )
        law = law.scaled(max(1.0, law.pure_epsilon()))
        if law.pure_epsilon() <= 1.0:
            assert law.variance >= 2.0 / law.pure_epsilon() ** 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gamma_weight": -0.1}, "weights"),
        ({"exponential_weight": math.nan}, "weights"),
        ({"uniform_weight": math.inf}, "weights"),
        ({"gamma_weight": 0.0, "exponential_weight": 0.0, "uniform_weight": 0.0}, "positive"),
        ({"gamma_shape": 0.0}, "positive and finite"),
        ({"gamma_scale": -1.0}, "positive and finite"),
        ({"rate": 0.0}, "positive and finite"),
        ({"low": 2.0}, "low < high"),
        ({"low": -0.1}, "low < high"),
        ({"high": math.inf}, "low < high"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(change: dict[str, float], words: str) -> None:
    fields = {name: getattr(MIXED, name) for name in MIXED.__dataclass_fields__} | change
    with pytest.raises(DpzoError, match=words) as caught:
        LaplaceMixture(**fields)
    assert "\n" not in str(caught.value)


def test_a_tail_too_heavy_for_any_table_is_refused() -> None:
    heavy = LaplaceMixture(1.0, 1.1, 0.01, 0.0, 1.0, 0.0, 0.0, 1.0)
    with pytest.raises(DpzoError, match="beyond the largest table"):
        heavy.shape()
