"""The lattice accountant against formulas, dp-accounting, quadrature and brute force; and what it refuses."""

from __future__ import annotations

import itertools
import math

import mpmath as mp
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from dpzo.errors import DpzoError
from dpzo.noise import families, lattice_pld, published
from dpzo.noise.search import certified_epsilon
from dpzo.noise.shape import Array, Shape
from dpzo.noise.tabulate import ScalarLaw
from dpzo.privacy.accounting import tilted
from dpzo.privacy.accounting.closed_form import gaussian_delta, laplace_pure_epsilon
from dpzo.privacy.events import NeighboringRelation

REPLACE = NeighboringRelation.REPLACE_ONE


def brute(shape: Shape, epsilon: float, sampling_prob: float, count: int) -> float:
    """δ by enumerating every combination of atoms: the larger direction, no grid, no Fourier transform."""
    found = []
    for one in lattice_pld.atoms(shape, sampling_prob):
        losses, masses = np.array([0.0]), np.array([1.0])
        for _ in range(count):
            losses = np.add.outer(losses, one.losses).ravel()
            masses = np.multiply.outer(masses, one.masses).ravel()
        above = losses > epsilon
        lost = -math.expm1(count * math.log1p(-one.infinite))
        found.append(lost + float(masses[above] @ -np.expm1(epsilon - losses[above])))
    return max(found)


def small(ratio: float = 0.5) -> Shape:
    """A law of a dozen cells with a kink, a flat part and a heavy tail."""
    return Shape.normalised(np.array([5.0, 5.0, 4.0, 2.5, 2.5, 1.0, 0.4, 0.3]), ratio, 3)


@pytest.mark.parametrize("count", [1, 10, 1000, 75_000])
@pytest.mark.parametrize("epsilon", [0.0, 1.0, 4.0])
def test_full_batch_gaussian_is_the_exact_curve(count: int, epsilon: float) -> None:
    noise = 1.3 * math.sqrt(count)
    exact = gaussian_delta(epsilon, math.sqrt(count) / noise)
    found = lattice_pld.delta(families.gaussian(noise).shape(64 if count < 100 else 8), epsilon, 1.0, count)
    # From below only the rounding to cells acts: variance 1/(12·cells²).
    assert exact * (1.0 - 1e-4) <= found <= exact * (1.0 + 5e-4)


@pytest.mark.parametrize("delta", [1e-5, 1e-10, 1e-20, 1e-40, 1e-90])
def test_a_tiny_delta_keeps_its_digits(delta: float) -> None:
    shape = families.gaussian(30.0).shape(8)
    epsilon = lattice_pld.epsilon(shape, delta, 1.0, 100)
    # The geometric tail of the table begins at 9.6 deviations of one release; below 1e-20 it is what counts.
    if delta >= 1e-20:
        assert gaussian_delta(epsilon, 10.0 / 30.0) == pytest.approx(delta, rel=1e-3)
    back = lattice_pld.certificates(shape, epsilon, 1.0, 100)
    assert max(one.delta for one in back) == pytest.approx(delta, rel=1e-4)
    assert all(one.reserve < 1e-6 * one.delta for one in back)


@pytest.mark.parametrize(
    ("mechanism", "noise", "sampling_prob", "count", "epsilon", "grid"),
    [
        ("gaussian", 3.0, 0.1, 100, 1.0, 2e-5),
        ("gaussian", 16.4, 0.016, 75_000, 1.0, 1e-5),
        ("gaussian", 1.5, 1.0, 1, 4.0, 1e-4),
        ("laplace", 5.0, 0.05, 200, 0.8, 2e-5),
        ("laplace", 3.0, 1.0, 30, 6.0, 1e-4),
    ],
)
def test_dp_accounting_agrees(
    mechanism: str, noise: float, sampling_prob: float, count: int, epsilon: float, grid: float
) -> None:
    make = theirs.from_gaussian_mechanism if mechanism == "gaussian" else theirs.from_laplace_mechanism
    one = make(noise, value_discretization_interval=grid, sampling_prob=sampling_prob)
    known = (one.self_compose(count) if count > 1 else one).get_delta_for_epsilon(epsilon)
    family = families.gaussian(noise) if mechanism == "gaussian" else families.laplace(noise)
    found = lattice_pld.delta(family.shape(128), epsilon, sampling_prob, count)
    assert found == pytest.approx(known, rel=5e-4)


@pytest.mark.parametrize(
    ("family", "log_density"),
    [
        (families.Huber(0.7, 1.1), lambda y: -y * y / 2 if y <= 1.1 else mp.mpf(1.1) ** 2 / 2 - mp.mpf(1.1) * y),
        (families.GeneralisedNormal(0.9, 1.4), lambda y: -(y ** mp.mpf(1.4))),
        (families.GeneralisedNormal(2.0, 3.0), lambda y: -(y**3)),
    ],
    ids=["huber", "gennorm 1.4", "gennorm 3"],
)
@pytest.mark.parametrize("sampling_prob", [1.0, 0.1])
def test_quadrature_agrees(family: ScalarLaw, log_density: object, sampling_prob: float) -> None:
    assert callable(log_density)
    scale, q = getattr(family, "scale"), sampling_prob  # noqa: B009
    corner = getattr(family, "corner", 1.0) * scale
    kinks = sorted([-8 * scale, -corner, 0, corner, 1 - corner, 1, 1 + corner, 8 * scale])
    total = 2 * mp.quad(lambda x: mp.exp(log_density(x / scale)), [0, corner, 10 * scale, 40 * scale])

    def density(x: mp.mpf) -> mp.mpf:
        return mp.exp(log_density(abs(x) / scale)) / total

    def loss(x: mp.mpf) -> mp.mpf:
        return mp.log(1 - q + q * density(x - 1) / density(x))

    # These losses rise with x, so each direction's set is a half-line.
    epsilon, ends = 0.3 * q, [-40 * scale, 40 * scale]
    lower, upper = (
        float(brentq(lambda x, e=e: float(loss(x)) - e, -3.0, 6.0, xtol=1e-14)) for e in (-epsilon, epsilon)
    )

    def excess(x: mp.mpf, sign: int) -> mp.mpf:
        pair = (1 - q) * density(x) + q * density(x - 1), density(x)
        return pair[0] - mp.exp(epsilon) * pair[1] if sign > 0 else pair[1] - mp.exp(epsilon) * pair[0]

    remove = mp.quad(lambda x: excess(x, 1), [upper, *(k for k in kinks if k > upper), ends[1]])
    add = mp.quad(lambda x: excess(x, -1), [ends[0], *(k for k in kinks if k < lower), lower])
    found = [remove, add]
    answer = lattice_pld.delta(family.shape(512), epsilon, q, 1)
    assert answer == pytest.approx(float(max(found)), rel=5e-4)


@pytest.mark.parametrize("sampling_prob", [1.0, 0.3])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("ratio", [0.5, 0.0])
def test_brute_force_agrees_from_below(sampling_prob: float, count: int, ratio: float) -> None:
    shape = small(ratio)
    for epsilon in (0.0, 0.2, 0.9, 1.7):
        exact = brute(shape, epsilon, sampling_prob, count)
        found = lattice_pld.delta(shape, epsilon, sampling_prob, count)
        assert exact * (1.0 - 1e-12) <= found <= exact * (1.0 + 3e-4) + 1e-15
        if 1e-9 < found < 1.0 and lattice_pld.epsilon(shape, found, sampling_prob, count) < math.inf:
            assert lattice_pld.epsilon(shape, found, sampling_prob, count) <= epsilon + 1e-4
            level = lattice_pld.epsilon(shape, exact, sampling_prob, count)
            assert brute(shape, level, sampling_prob, count) <= exact * (1.0 + 1e-12)


@pytest.mark.parametrize(("sampling_prob", "count"), [(1.0, 3), (0.3, 3), (0.05, 500), (1.0, 200)])
def test_refinement_only_lowers(sampling_prob: float, count: int) -> None:
    shape = small()
    levels = [
        lattice_pld.delta(shape, 0.5 * math.sqrt(count) * sampling_prob, sampling_prob, count, tolerance=tolerance)
        for tolerance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
    ]
    assert all(coarse >= fine * (1.0 - 1e-9) for coarse, fine in itertools.pairwise(levels))
    assert levels[0] <= levels[-1] * 1.15
    epsilons = [
        lattice_pld.epsilon(shape, 1e-6, sampling_prob, count, tolerance=tolerance) for tolerance in (1e-1, 1e-3, 1e-5)
    ]
    assert all(coarse >= fine * (1.0 - 1e-9) for coarse, fine in itertools.pairwise(epsilons))


@st.composite
def unimodal(draw: st.DrawFn) -> Shape:
    drops = draw(st.lists(st.floats(0.0, 3.0), min_size=9, max_size=14))
    shift = draw(st.integers(2, 6))
    return Shape.normalised(np.exp(-np.cumsum([0.0, *drops])), draw(st.sampled_from([0.0, 0.2, 0.9])), shift)


def shifted(shape: Shape, shift: int) -> Shape:
    return Shape(shape.masses, shape.ratio, shift)


@settings(deadline=None, max_examples=150)
@given(unimodal(), st.floats(0.0, 2.0), st.sampled_from([1.0, 0.4, 0.01]))
def test_the_largest_shift_is_the_worst(shape: Shape, epsilon: float, sampling_prob: float) -> None:
    found = [brute(shifted(shape, s), epsilon, sampling_prob, 1) for s in range(1, shape.shift + 1)]
    assert all(near <= far * (1.0 + 1e-9) + 1e-15 for near, far in itertools.pairwise(found))


def test_a_comb_hides_its_own_period_only_and_is_refused() -> None:
    """Spikes 3 cells apart: a shift of 3 leaks less than a shift of 1, so bounding the shift of 3 proves nothing."""
    comb = np.array([9.0, 1.0, 1.0, 6.0, 1.0, 1.0, 4.0, 1.0, 1.0])
    with pytest.raises(DpzoError, match="not unimodal"):
        Shape.normalised(comb, 0.5, 3)
    p = np.concatenate([comb[:0:-1], comb]) / (2 * comb.sum() - comb[0])

    def leak(shift: int) -> float:
        long = np.concatenate([np.zeros(shift), p]), np.concatenate([p, np.zeros(shift)])
        return float(np.maximum(long[0] - math.e**0.5 * long[1], 0.0).sum())

    assert leak(1) > 1.5 * leak(3)


def test_tails_that_rise_again_are_refused() -> None:
    with pytest.raises(DpzoError, match="not unimodal"):
        Shape(np.array([0.3, 0.2, 0.15, 0.0]), 0.9, 2, period=2)
    for weights, ratio, shift in ((np.array([1.0, math.nan]), 0.1, 1), (np.array([1.0, 0.5]), 1.0, 1)):
        with pytest.raises(DpzoError):
            Shape.normalised(weights, min(ratio, 1.0 - 1e-9), shift) if ratio < 1 else Shape(weights, ratio, shift)
    with pytest.raises(DpzoError, match="whole number of cells"):
        Shape.normalised(np.array([1.0, 0.5, 0.4]), 0.1, 3, period=2)


def test_pure_epsilon_is_exact() -> None:
    shape = families.laplace(2.0).shape(16)
    for sampling_prob, count in ((1.0, 1), (1.0, 7), (0.02, 500)):
        exact = laplace_pure_epsilon(2.0, sampling_prob, count)
        assert lattice_pld.pure_epsilon(shape, sampling_prob, count) == pytest.approx(exact, rel=1e-12)
        assert lattice_pld.epsilon(shape, 0.0, sampling_prob, count) == pytest.approx(exact, rel=1e-12)
        assert lattice_pld.delta(shape, exact * (1 + 1e-9), sampling_prob, count) == 0.0
        # Just below the corner δ is positive, and ε(δ) never exceeds the corner.
        assert 0.0 < lattice_pld.epsilon(shape, 1e-12, sampling_prob, count) <= exact * (1.0 + 1e-9)


def test_pinned_budgets_are_not_overshot() -> None:
    """Few releases at a tiny δ: ε stands at the corner T·ε₀, where a grid of its own would round it up."""
    shape = families.laplace(3.0).shape(64)
    assert lattice_pld.epsilon(shape, 1e-10, 1.0, 3) == pytest.approx(1.0, abs=1e-6)
    assert lattice_pld.epsilon(shape, 1e-10, 1.0, 3) <= 1.0 + 1e-12


def test_a_law_that_is_cut_off_pays_in_delta() -> None:
    family = families.TruncatedLaplace.of(1.0, 1e-4)
    shape = family.shape(256)
    assert lattice_pld.delta(shape, 1.0) == pytest.approx(1e-4, rel=0.02)  # the reach is whole cells
    assert lattice_pld.pure_epsilon(shape) == math.inf
    assert lattice_pld.epsilon(shape, 1e-5) == math.inf
    lost = next(lattice_pld.atoms(shape)).infinite
    assert lattice_pld.delta(shape, 50.0, 1.0, 10) == pytest.approx(1.0 - (1.0 - lost) ** 10, rel=1e-9)
    assert lattice_pld.epsilon(shape, 1e-3 + 10 * lost, 1.0, 10) < 10.0


def test_replaced_units_move_twice_as_far() -> None:
    shape = families.gaussian(2.0).shape(32)
    assert lattice_pld.delta(shape, 1.0, 1.0, 5, REPLACE) == pytest.approx(gaussian_delta(1.0, math.sqrt(5)), rel=5e-4)
    with pytest.raises(DpzoError, match="replace_one"):
        lattice_pld.delta(shape, 1.0, 0.5, 5, REPLACE)


def test_zero_out_has_the_numbers_of_add_or_remove() -> None:
    for relation in (NeighboringRelation.ZERO_OUT, NeighboringRelation.ADD_OR_REMOVE_ONE):
        assert lattice_pld.epsilon(small(), 1e-5, 0.1, 20, relation) == lattice_pld.epsilon(small(), 1e-5, 0.1, 20)


def test_more_of_anything_costs_more() -> None:
    shape = families.Huber(1.0, 1.0).shape(16)
    for axis in (
        [lattice_pld.epsilon(shape, 1e-6, 0.05, count) for count in (1, 2, 10, 100, 1000)],
        [lattice_pld.epsilon(shape, 1e-6, q, 50) for q in (0.001, 0.01, 0.1, 0.9, 1.0)],
        [lattice_pld.epsilon(shape, delta, 0.05, 50) for delta in (1e-2, 1e-4, 1e-8, 1e-16, 0.0)],
        [lattice_pld.epsilon(families.Huber(s, 1.0).shape(16), 1e-6, 0.05, 50) for s in (4.0, 2.0, 1.0, 0.5)],
    ):
        assert axis == sorted(axis)
        assert axis[0] < axis[-1]


def test_a_mixture_composes_to_its_scalar_truth() -> None:
    row = published.published("0.7")
    found = lattice_pld.epsilon(row.mixture.shape(128), 1e-10, 2048 / 392703, 1146)
    assert found == pytest.approx(0.60, abs=0.005)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"delta": 1e-120}, "least that the arithmetic certifies"),
        ({"delta": 1.0}, "`delta`"),
        ({"delta": math.nan}, "`delta`"),
        ({"delta": 1e-5, "sampling_prob": 0.0}, "sampling probability"),
        ({"delta": 1e-5, "sampling_prob": 1.5}, "sampling probability"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(DpzoError, match=words) as caught:
        lattice_pld.epsilon(small(), **arguments)
    assert "\n" not in str(caught.value)


def test_an_epsilon_whose_delta_is_lost_is_refused() -> None:
    shape = families.gaussian(100.0).shape(4)
    with pytest.raises(DpzoError, match="least that is certified"):
        lattice_pld.delta(shape, 60.0, 1.0, 1000)
    with pytest.raises(DpzoError, match="`epsilon`"):
        lattice_pld.delta(shape, -1.0)


def test_rounding_is_booked_at_the_longest_runs() -> None:
    found = lattice_pld.certificates(families.gaussian(16.4).shape(16), 1.0, 0.016, 75_000)
    assert len(found) == 2
    for one in found:
        assert 0.0 < one.reserve < 1e-6 * one.delta
        assert one.cells < 2**20


def test_the_booked_error_covers_the_true_one() -> None:
    """The bound on the transform's rounding against a sum in 50 digits, cell by cell."""
    masses: Array = np.exp(-0.5 * ((np.arange(64) - 9.0) / 3.0) ** 2) + 1e-9
    masses /= masses.sum()
    spectrum = np.fft.rfft(masses)
    total = np.fft.irfft(tilted._power(spectrum, 13), 64)
    with mp.workdps(50):
        exact = [mp.mpf(1)] + [mp.mpf(0)] * 63
        for _ in range(13):
            exact = [mp.fsum(exact[j] * mp.mpf(float(masses[(k - j) % 64])) for j in range(64)) for k in range(64)]
        error = max(abs(mp.mpf(float(a)) - b) for a, b in zip(total, exact, strict=True))
    assert float(error) <= tilted._rounding(masses, np.abs(spectrum), total, 13)


@pytest.mark.parametrize(
    ("family", "sampling_prob", "count", "delta"),
    [
        (families.Huber(0.05, 1.0), 2e-4, 2600, 1e-21),
        (families.GeneralisedNormal(1.3, 2.0), 0.34, 33_000, 5e-8),
        (families.Staircase(0.14, 0.49), 1e-4, 900_000, 0.05),
        (families.Staircase(13.0, 0.01), 1e-4, 100_000, 1e-45),
        (families.laplace(0.15), 2e-6, 1000, 1e-9),
        (families.laplace(74.0), 1.0, 118, 1e-66),
    ],
    ids=["huge losses", "huge epsilon", "delta above the variation", "tiny delta", "rare losses", "pinned"],
)
def test_far_corners_are_answered(family: ScalarLaw, sampling_prob: float, count: int, delta: float) -> None:
    shape = family.shape(16)
    found = lattice_pld.epsilon(shape, delta, sampling_prob, count, tolerance=1e-3)
    assert 0.0 <= found <= lattice_pld.pure_epsilon(shape, sampling_prob, count)
    if found > 1e-6:
        # Slightly less ε costs more δ than was asked for: the answer is not far above the least one.
        below = lattice_pld.delta(shape, found * (1.0 - 1e-3), sampling_prob, count, tolerance=1e-3)
        assert below > delta


@pytest.mark.parametrize("masses", [[0.5, 0.25], [0.2, 0.2, 0.2], [0.9, 0.05], [0.4, 0.3, 0.0]])
@pytest.mark.parametrize("shift", [1, 3, 4, 5, 40])
@pytest.mark.parametrize("sampling_prob", [1.0, 0.3])
@pytest.mark.parametrize("count", [1, 3])
def test_a_law_narrower_than_its_shift_is_answered(
    masses: list[float], shift: int, sampling_prob: float, count: int
) -> None:
    """Cut off within the shift the two laws may share no cell: δ = 1 without sampling, 1 − (1−q)^T with it."""
    shape = Shape(np.array(masses) / (2 * sum(masses) - masses[0]), 0.0, shift)
    found = lattice_pld.delta(shape, 0.5, sampling_prob, count)
    assert 0.0 < found <= 1.0
    if 2 * (len(masses) - 1 - (masses[-1] == 0.0)) < shift:
        assert found == pytest.approx(1.0 - (1.0 - sampling_prob) ** count, rel=1e-9)
        assert lattice_pld.delta(shape, 1e6, sampling_prob, count) >= 1.0 - (1.0 - sampling_prob) ** count
    else:
        assert found >= brute(shape, 0.5, sampling_prob, count) * (1.0 - 1e-12)
    assert lattice_pld.epsilon(shape, 1e-9, sampling_prob, count) == math.inf
    assert lattice_pld.pure_epsilon(shape, sampling_prob, count) == math.inf
    assert certified_epsilon(shape, 1e-9, sampling_prob, count) == math.inf
