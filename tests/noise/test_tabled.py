"""A table as a mechanism: plan, channel and accountant speak of the same integers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from dpzo.config.solve import plan_summary
from dpzo.errors import DpzoError
from dpzo.noise import families, lattice_pld
from dpzo.noise.table import LARGEST_BOUND, LatticeNoise
from dpzo.noise.tabled import Tabled
from dpzo.noise.tabulate import table
from dpzo.privacy import (
    ComposedEvent,
    FullBatch,
    Gaussian,
    Laplace,
    LatticeEvent,
    NeighboringRelation,
    PoissonSampledEvent,
    PoissonSampling,
    PrivacyPlan,
    PrivateChannel,
    Sampler,
    SecretRandom,
    accounting,
    clip_rows,
    lattice,
)
from dpzo.privacy.accounting import calibrate, curves, second_opinion

ZERO_OUT, REPLACE = NeighboringRelation.ZERO_OUT, NeighboringRelation.REPLACE_ONE
HUBER = table(families.Huber(0.8, 1.0))


def plan(
    mechanism: Tabled | None = None,
    sampler: Sampler | None = None,
    steps: int = 100,
    num_directions: int = 1,
    delta: float = 1e-5,
    relation: NeighboringRelation = ZERO_OUT,
) -> PrivacyPlan:
    mechanism = Tabled(HUBER) if mechanism is None else mechanism
    sampler = PoissonSampling(0.05) if sampler is None else sampler
    return PrivacyPlan(1000, sampler, mechanism, 20.0, steps, num_directions, delta, relation)


def test_the_plan_accounts_for_the_table_that_the_channel_draws() -> None:
    made = plan()
    assert made.event == ComposedEvent(PoissonSampledEvent(0.05, LatticeEvent(HUBER)), 100)
    assert made.epsilon == lattice_pld.epsilon(HUBER.shape, 1e-5, 0.05, 100)
    assert HUBER.fingerprint[:12] in made.accountant
    assert made.noise_multiplier == HUBER.noise_multiplier
    assert made.noise_scale == pytest.approx(20.0 * HUBER.noise_multiplier)
    assert curves.delta(made.event, made.epsilon, ZERO_OUT) == pytest.approx(1e-5, rel=1e-3)


def test_the_plan_survives_json() -> None:
    made = plan()
    again = PrivacyPlan.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made
    assert again.epsilon == made.epsilon
    assert plan_summary(made)["epsilon"] == made.epsilon
    broken = made.to_dict()
    broken["noise"]["ratio"] = "nonsense"
    with pytest.raises(DpzoError, match="unreadable"):
        PrivacyPlan.from_dict(broken)
    with pytest.raises(DpzoError, match="gaussian, laplace, lattice"):
        PrivacyPlan.from_dict({**made.to_dict(), "mechanism": "cauchy"})
    assert "noise" not in PrivacyPlan.from_dict({**made.to_dict(), "mechanism": "laplace"}).to_dict()


def test_rows_are_clipped_to_the_bound_of_the_table() -> None:
    grid = lattice(Tabled(HUBER), 20.0, 1)
    assert (grid.bound, grid.order, grid.unit) == (HUBER.bound, 1, 20.0 / HUBER.bound)
    rows = np.array([[1e300], [-20.0], [10.0], [np.nan], [0.0], [-1e-9]])
    assert clip_rows(rows, grid).ravel().tolist() == [HUBER.bound, -HUBER.bound, HUBER.bound // 2, 0, 0, 0]


def test_releases_are_sum_plus_noise_of_the_table() -> None:
    steps, noise = 20_000, table(families.Huber(0.8, 1.0), cells=8)
    channel = PrivateChannel(plan(Tabled(noise), FullBatch(), steps))
    rows = np.full((1000, 1), 20.0 / 1000)
    expected = 1000 * (noise.bound // 1000)
    errors = []
    for _ in range(steps):
        channel.draw_batch(1000)
        errors.append(channel.release(rows).values[0] - expected)
    cells = np.floor_divide(np.array(errors) + noise.block // 2, noise.block)
    most = 20
    counts = [int((np.abs(cells) == c).sum()) for c in range(most)] + [int((np.abs(cells) >= most).sum())]
    masses = [float(noise.mass(c)) * (1 if c == 0 else 2) for c in range(most)]
    assert stats.chisquare(counts, np.array([*masses, 1.0 - sum(masses)]) * steps).pvalue > 1e-7


def test_an_empty_batch_releases_noise_alone() -> None:
    channel = PrivateChannel(plan(sampler=PoissonSampling(1e-12)))
    assert len(channel.draw_batch(1000)) == 0
    release = channel.release(np.zeros((0, 1)))
    assert abs(release.values[0]) < 50 * HUBER.bound


@pytest.mark.parametrize(("sampling_prob", "count"), [(1.0, 1), (1.0, 30), (0.05, 100), (0.01, 2000)])
def test_the_renyi_bound_stands_above(sampling_prob: float, count: int) -> None:
    event = ComposedEvent(PoissonSampledEvent(sampling_prob, LatticeEvent(HUBER)), count)
    bound = second_opinion.rdp_epsilon(event, 1e-6, ZERO_OUT)
    found = accounting.epsilon(event, 1e-6, ZERO_OUT)
    assert found <= bound <= 1.6 * found + 0.05


def test_renyi_of_a_gaussian_table_is_the_gaussian_line() -> None:
    from dpzo.privacy.accounting.query import flatten
    from dpzo.privacy.accounting.renyi import curve

    orders, bounds = curve(flatten(LatticeEvent(table(families.gaussian(2.0)))), ZERO_OUT)
    low = orders <= 16
    np.testing.assert_allclose(bounds[low], orders[low] / 8.0, rtol=1e-3)
    doubled = curve(flatten(LatticeEvent(table(families.gaussian(2.0)))), REPLACE)[1]
    np.testing.assert_allclose(doubled[orders <= 6], orders[orders <= 6] / 2.0, rtol=1e-3)


def test_pure_epsilon_of_a_plan() -> None:
    made = plan(Tabled(table(families.Staircase.best(0.5))), FullBatch(), 4, delta=0.0)
    assert made.epsilon == pytest.approx(2.0, rel=1e-12)
    cut = plan(Tabled(table(families.TruncatedLaplace(1.0, 4.0))), FullBatch(), 4, delta=0.0)
    with pytest.raises(DpzoError, match="raise `delta`"):
        _ = cut.epsilon


def test_calibration_finds_the_scale_of_a_family() -> None:
    def event(scale: float) -> ComposedEvent:
        return ComposedEvent(LatticeEvent(table(families.laplace(scale), cells=16)), 3)

    scale = calibrate.noise(event, 1.5, 1e-10, ZERO_OUT)
    assert scale == pytest.approx(2.0, rel=2e-3)
    assert 1.5 * (1 - 1e-3) <= accounting.epsilon(event(scale), 1e-10, ZERO_OUT) <= 1.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_directions": 2}, "`num_directions` 1"),
        ({"relation": REPLACE}, "replace_one"),
    ],
)
def test_what_is_not_proved_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(DpzoError, match=words) as caught:
        plan(**change)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    full = plan(sampler=FullBatch(), steps=3, relation=REPLACE)
    assert full.epsilon == lattice_pld.epsilon(HUBER.shape, 1e-5, 1.0, 3, REPLACE)
    assert full.epsilon > plan(sampler=FullBatch(), steps=3).epsilon


def test_a_table_is_drawn_from_the_words_it_is_given() -> None:
    words = SecretRandom().word_array(400).tolist()
    mechanism = Tabled(HUBER)
    assert mechanism.draw(0, 5, iter(words)) == mechanism.draw(7, 5, iter(words))
    assert math.isfinite(mechanism.scale)
    assert repr(mechanism) == f"Tabled({HUBER.origin!r}, {HUBER.fingerprint[:12]})"


@pytest.mark.parametrize("block", [(1 << 62) + 1, (1 << 31) + 1, (1 << 30) + 1])
def test_a_table_of_huge_bound_is_refused(block: int) -> None:
    """Its rows would overflow 64 bits: at 2⁶² one added unit wrapped the sum, a log-ratio of 1.29 at ε = 0.5."""
    with pytest.raises(DpzoError, match="lattice units, at most 1073741824"):
        table(families.laplace(2.0), cells=1, block=block)
    fields = {**table(families.laplace(2.0), cells=1, block=1001).to_dict(), "block": block, "bound": block}
    with pytest.raises(DpzoError, match="at most 1073741824"):
        LatticeNoise.from_dict(fields)


def test_the_largest_bound_is_one_for_all() -> None:
    made = plan(Tabled(table(families.laplace(2.0), cells=1, block=(1 << 30) - 1)))
    assert lattice(made.mechanism, 1.0, 1).bound == (1 << 30) - 1
    for mechanism in (Gaussian(1e-4), Laplace(1e-4), Gaussian(1e4)):
        assert lattice(mechanism, 1.0, 1).bound <= LARGEST_BOUND
    with pytest.raises(DpzoError, match="outside what the lattice can hold"):
        lattice(Gaussian(1e-4), 1.0, 10**13)
