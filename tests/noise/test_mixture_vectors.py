"""Vectors under mixture noise: what is proved, at what price, and what is refused and why."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad

from dpzo.errors import DpzoError
from dpzo.noise.mixture import LaplaceMixture
from dpzo.noise.mixture_vectors import vector_epsilon
from dpzo.noise.published import published
from dpzo.privacy.accounting.closed_form import gaussian_delta, laplace_pure_epsilon
from dpzo.privacy.accounting.second_opinion import rdp_epsilon
from dpzo.privacy.events import ComposedEvent, LaplaceEvent, NeighboringRelation, PoissonSampledEvent


def plain(scale: float) -> LaplaceMixture:
    """Laplace noise of that scale, as the narrowest of mixtures."""
    return LaplaceMixture(0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0 / scale, (1.0 + 1e-9) / scale)


def test_the_zcdp_line_of_the_reference() -> None:
    law = published("0.3").mixture
    rho = law.zcdp()
    assert rho == pytest.approx(0.0281, rel=2e-3)
    assert rho + 2.0 * math.sqrt(rho * math.log(1e10)) == pytest.approx(1.6362, rel=1e-3)
    # The Rényi conversion is a little better than that formula.
    assert 1.3 < vector_epsilon(law, "l2", 1e-10).epsilon < 1.6362


@pytest.mark.parametrize("dimension", [1, 10, 1000])
def test_zcdp_bounds_the_true_divergence_in_any_dimension(dimension: int) -> None:
    """i.i.d. Laplace of scale 1.7 moved by a spread shift of L2 norm 1: D_α ≤ α/(2·1.7²)."""
    scale, shift = 1.7, 1.0 / math.sqrt(dimension)
    for order in (1.5, 2.0, 4.0, 8.0, 32.0):
        gap = shift / scale
        rising = math.log(order / (2 * order - 1)) + (order - 1) * gap
        falling = math.log((order - 1) / (2 * order - 1)) - order * gap
        true = dimension * float(np.logaddexp(rising, falling)) / (order - 1)
        assert true <= order * plain(scale).zcdp()


def test_laplace_pays_twice_the_variance_and_mixtures_more() -> None:
    assert vector_epsilon(plain(1.7), "l2", 1e-5).price == pytest.approx(2.0, rel=1e-6)
    for label in ("0.3", "0.7", "2", "3"):
        assert vector_epsilon(published(label).mixture, "l2", 1e-5).price > 2.0
    assert "2.85 × the variance" in str(vector_epsilon(published("0.3").mixture, "l2", 1e-10))


@pytest.mark.parametrize(("sampling_prob", "count"), [(1.0, 1), (1.0, 20), (0.05, 300)])
def test_l1_rows_of_plain_laplace_have_its_bounds(sampling_prob: float, count: int) -> None:
    law = plain(3.0)
    pure = vector_epsilon(law, "l1", 0.0, sampling_prob, count)
    assert pure.epsilon == pytest.approx(laplace_pure_epsilon(3.0, sampling_prob, count), rel=1e-7)
    assert pure.order == math.inf
    event = ComposedEvent(PoissonSampledEvent(sampling_prob, LaplaceEvent(3.0, 50)), count)
    known = rdp_epsilon(event, 1e-6, NeighboringRelation.ZERO_OUT)
    found = vector_epsilon(law, "l1", 1e-6, sampling_prob, count).epsilon
    assert known * 0.999 <= found <= known * 1.05  # whole orders only


def test_the_l1_bound_holds_however_the_row_is_spread() -> None:
    """κ(s) = (α−1)·D_α is superadditive: a shift split over two coordinates loses less than on one."""
    law = published("2").mixture
    for order in (2, 6, 10):
        whole = law.renyi_bound(order)
        for part in (0.1, 0.35, 0.5):
            assert law.renyi_bound(order, part) + law.renyi_bound(order, 1.0 - part) <= whole * (1.0 + 1e-12)


def test_the_scalar_epsilon_fails_on_l2_rows() -> None:
    """Why that route is refused: at d = 4 the row (½, ½, ½, ½) spends δ = 0.0093 at the labelled ε = 0.3."""
    law = published("0.3").mixture
    # One coordinate: nothing is spent at 0.3, which is above its pure ε.
    assert law.pure_epsilon() < 0.3
    rng = np.random.default_rng(3)
    size, dimension = 400_000, 4
    u = 0.1 * (rng.gamma(1.0, 0.5, (size, dimension)) + rng.exponential(0.2, (size, dimension)))
    u += 0.1 * rng.uniform(1.0, 2.0, (size, dimension))
    draws = rng.laplace(0.0, 1.0 / u)
    grid = np.linspace(0.0, 400.0, 400_001)
    log_density = np.log([law.density(x) for x in grid[::200]])

    def log_f(x: np.ndarray) -> np.ndarray:
        return np.interp(np.abs(x), grid[::200], log_density)

    loss = (log_f(draws) - log_f(draws + 0.5)).sum(axis=1)
    spent = float(np.maximum(0.0, -np.expm1(0.3 - loss)).mean())
    assert spent == pytest.approx(0.009285, rel=0.03)
    # The limit of many coordinates is Gaussian, of variance 1/(Fisher information).
    assert gaussian_delta(0.3, math.sqrt(law.fisher_information)) == pytest.approx(0.01019, rel=5e-3)
    fisher = 2.0 * quad(lambda x: (law.tilted_square(-x) / 2) ** 2 / law.density(x), 0.0, 200.0, limit=200)[0]
    assert fisher == pytest.approx(law.fisher_information, rel=1e-6)


@pytest.mark.parametrize(
    ("route", "words"),
    [
        ("l2_scalar", "Fisher information"),
        ("equivalent_gaussian", "nothing after composition"),
        ("l3", "use l1 or l2"),
    ],
)
def test_routes_without_a_proof_are_refused(route: str, words: str) -> None:
    with pytest.raises(DpzoError, match=words) as caught:
        vector_epsilon(published("0.3").mixture, route, 1e-10)
    assert "\n" not in str(caught.value)


def test_other_refusals() -> None:
    lomax = LaplaceMixture(1.0, 1.5, 0.5, 0.0, 1.0, 0.0, 0.0, 1.0)
    with pytest.raises(DpzoError, match="infinite variance"):
        vector_epsilon(lomax, "l1", 1e-5)
    with pytest.raises(DpzoError, match="no pure"):
        vector_epsilon(plain(1.0), "l2", 0.0)
    with pytest.raises(DpzoError, match="sampling probability"):
        vector_epsilon(plain(1.0), "l1", 1e-5, 0.0)
    with pytest.raises(DpzoError, match="`delta`"):
        vector_epsilon(plain(1.0), "l1", 2.0)
