"""Faults between what is drawn and what is claimed: epochs under Poisson accounting, no sampling at all, a wrong q."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dpzo.privacy import (
    FullBatch,
    Gaussian,
    GaussianEvent,
    NeighboringRelation,
    PoissonSampledEvent,
    PoissonSampling,
    PrivacyPlan,
    PrivateChannel,
    SecretRandom,
    channel,
)
from dpzo.privacy import plan as plans

Plant = Callable[..., ModuleType]
Batch = np.ndarray[Any, np.dtype[np.int64]]
EVENT = GaussianEvent(1.0)
SECRET = SecretRandom()


def claim(probability: float) -> PoissonSampledEvent:
    return PoissonSampling(probability).event(EVENT)


@pytest.mark.parametrize(
    ("probability", "num_units"), [(0.125, 64), (0.02, 400), (0.5, 64), (0.97, 64), (1.0, 64), (1e-3, 100)]
)
def test_dpzos_batches_are_poisson(checks: ModuleType, probability: float, num_units: int) -> None:
    sampler = PoissonSampling(probability)
    checks.check_batches_match_event(lambda n: sampler.draw(n, SECRET), sampler.event(EVENT), num_units)
    everyone = FullBatch()
    checks.check_batches_match_event(lambda n: everyone.draw(n, SECRET), everyone.event(EVENT), num_units)


def test_the_channels_batches_are_those_of_its_plan(checks: ModuleType) -> None:
    plan = PrivacyPlan(64, PoissonSampling(0.125), Gaussian(1.0), 1.0, 600, 1, 1e-5)
    found = PrivateChannel(plan)

    def draw(num_units: int) -> Batch:
        batch = found.draw_batch(num_units)
        found.release(np.zeros((len(batch), 1)))
        return batch

    checks.check_batches_match_event(draw, plan.event.event, 64)


# --- epochs, fixed sizes and their kin


class Epochs:
    """A shuffled pass over everyone, then another: what most loaders do. What is left of a pass is dropped."""

    def __init__(self, size: Callable[[int], int]) -> None:
        self.size, self.queue = size, np.empty(0, dtype=np.int64)
        self.shuffle = np.random.Generator(np.random.PCG64(9))

    def __call__(self, num_units: int) -> Batch:
        size = self.size(num_units)
        if len(self.queue) < size:
            self.queue = self.shuffle.permutation(num_units)
        batch, self.queue = self.queue[:size], self.queue[size:]
        return batch


def _fixed_size(num_units: int) -> Batch:
    return _public.choice(num_units, num_units // 8, replace=False)


def _with_replacement(num_units: int) -> Batch:
    return _public.integers(0, num_units, num_units // 8)


def _a_walk(num_units: int) -> Batch:
    """Consecutive units: the right size on average, and neighbours always together."""
    start, size = _public.integers(num_units), _public.binomial(num_units, 0.125)
    return (start + np.arange(size)) % num_units


def _all_but_one(num_units: int) -> Batch:
    batch = PoissonSampling(0.125).draw(num_units, SECRET)
    return np.unique(np.append(batch, 17))


def _everyone(num_units: int) -> Batch:
    return np.arange(num_units, dtype=np.int64)


def _cut_at_the_expected_size(num_units: int) -> Batch:
    return PoissonSampling(0.125).draw(num_units, SECRET)[: num_units // 8]


_public = np.random.Generator(np.random.PCG64(10))


@pytest.fixture(autouse=True)
def _whatever_ran_before() -> None:
    _public.bit_generator.state = np.random.PCG64(10).state


@pytest.mark.parametrize(
    ("draw", "found"),
    [
        (Epochs(lambda n: n // 8), "though the event claims"),
        (_fixed_size, "sizes"),
        (_with_replacement, "twice"),
        (_a_walk, "pairs of units together"),
        (_all_but_one, "though the event claims"),
        (_everyone, "members altogether"),
        (_cut_at_the_expected_size, "though the event claims"),
    ],
    ids=["shuffled_epochs", "fixed_size", "with_replacement", "a_walk", "a_canary", "everyone", "truncated"],
)
def test_batches_that_are_not_poisson(checks: ModuleType, draw: Callable[[int], Batch], found: str) -> None:
    with pytest.raises(checks.Caught, match=found):
        checks.check_batches_match_event(draw, claim(0.125), 64)


def test_epochs_of_random_sizes_show_by_their_lack_of_repeats(checks: ModuleType) -> None:
    epochs = Epochs(lambda n: int(_public.binomial(n, 0.125)))
    with pytest.raises(checks.Caught, match="units in two batches running"):
        checks.check_batches_match_event(epochs, claim(0.125), 64)


def test_a_probability_from_the_wrong_number_of_examples(checks: ModuleType) -> None:
    """TREC has 2646 training questions at 512 a class, not 3072: the probability is 16 % above the one accounted."""
    true, accounted = 64 / 2646, 64 / 3072
    sampler = PoissonSampling(true)
    checks.check_batches_match_event(lambda n: sampler.draw(n, SECRET), claim(true), 400, draws=800)
    with pytest.raises(checks.Caught, match="members altogether"):
        checks.check_batches_match_event(lambda n: sampler.draw(n, SECRET), claim(accounted), 400, draws=800)


# --- plans that say less than is done


def everyone_every_step(relation: NeighboringRelation, steps: int = 20) -> dict[str, Any]:
    return {
        "num_examples": 40,
        "sampler": FullBatch(),
        "mechanism": Gaussian(4.0),
        "clip_norm": 1.0,
        "steps": steps,
        "num_directions": 4,
        "delta": 1e-5,
        "relation": relation,
    }


@pytest.mark.parametrize("relation", NeighboringRelation)
def test_dpzos_epsilon_covers_what_its_channel_does(checks: ModuleType, relation: NeighboringRelation) -> None:
    checks.check_epsilon_covers_the_acts(PrivateChannel, PrivacyPlan(**everyone_every_step(relation)))


def test_no_sampling_under_a_sampled_claim(checks: ModuleType, planted: Plant) -> None:
    sampled = PrivacyPlan(**{**everyone_every_step(NeighboringRelation.ZERO_OUT), "sampler": PoissonSampling(0.1)})
    checks.check_epsilon_covers_the_acts(PrivateChannel, sampled)
    lazy = planted(channel, ("self.plan.sampler.draw(num_units, self._source)", "np.arange(num_units)"))
    with pytest.raises(checks.Caught, match="already shows"):
        checks.check_epsilon_covers_the_acts(lazy.PrivateChannel, sampled)
    boastful = planted(plans, ("self.sampler.event(", "PoissonSampling(0.1).event("))
    full = boastful.PrivacyPlan(**everyone_every_step(NeighboringRelation.ZERO_OUT))
    with pytest.raises(checks.Caught, match="already shows"):
        checks.check_epsilon_covers_the_acts(PrivateChannel, full)


def test_replace_one_noise_with_an_add_or_remove_accountant(checks: ModuleType, planted: Plant) -> None:
    swap = ("(self.event, self.delta, self.relation)", "(self.event, self.delta, NeighboringRelation.ZERO_OUT)")
    source = "return accounting.epsilon" + swap[0]
    mutant = planted(plans, (source, "return accounting.epsilon" + swap[1]))
    claims = everyone_every_step(NeighboringRelation.REPLACE_ONE)
    with pytest.raises(checks.Caught, match="already shows"):
        checks.check_epsilon_covers_the_acts(PrivateChannel, mutant.PrivacyPlan(**claims))
    plain = mutant.PrivacyPlan(**everyone_every_step(NeighboringRelation.ZERO_OUT))
    checks.check_epsilon_covers_the_acts(PrivateChannel, plain)  # where it is the right accountant, it is no fault


def test_steps_accounted_as_one(checks: ModuleType, planted: Plant) -> None:
    mutant = planted(plans, (".event(self.num_directions)), self.steps)", ".event(self.num_directions)), 1)"))
    with pytest.raises(checks.Caught, match="already shows"):
        checks.check_epsilon_covers_the_acts(
            PrivateChannel, mutant.PrivacyPlan(**everyone_every_step(NeighboringRelation.ZERO_OUT))
        )


def test_noise_that_the_event_overstates(checks: ModuleType, planted: Plant) -> None:
    """The event names twice the noise that is drawn: the plan believes it, the measurement does not."""
    mutant = planted(plans, ("self.mechanism.event(", "type(self.mechanism)(2 * self.mechanism.scale).event("))
    claims = everyone_every_step(NeighboringRelation.ZERO_OUT, steps=3000)
    checks.check_noise_matches_event(PrivateChannel, PrivacyPlan(**claims))
    with pytest.raises(checks.Caught, match="where the event says 1"):
        checks.check_noise_matches_event(PrivateChannel, mutant.PrivacyPlan(**claims))


def test_the_floor_is_the_textbooks(checks: ModuleType) -> None:
    """At μ = 1 and ε = 1 the closed form is δ = Φ(−1/2) − e·Φ(−3/2)."""
    assert checks.gaussian_epsilon(stats.norm.cdf(-0.5) - math.e * stats.norm.cdf(-1.5), 1.0) == pytest.approx(
        1.0, abs=1e-9
    )
    assert checks.gaussian_epsilon(0.5, 0.1) == 0.0
