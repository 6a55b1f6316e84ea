"""Every fault that changes what a channel's releases are distributed like is flagged; the channel itself is not.

A sound channel is flagged with a chance of at most `SOUND_FLAGGED` an audit. What is faulty is looked for with bounds
that err in one audit of a thousand, and with so many draws that it is found but for a chance of less.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from dpzo.audit.draws import ChannelFactory, DataSet, whole_run
from dpzo.privacy import (
    FullBatch,
    Gaussian,
    Laplace,
    Mechanism,
    NeighboringRelation,
    PoissonSampling,
    PrivacyPlan,
    PrivateChannel,
    SecretRandom,
    channel,
)
from dpzo.privacy import plan as plans

Plant = Callable[..., ModuleType]
MakePlan = Callable[..., PrivacyPlan]
Audited = Callable[..., dict[str, Any]]

CLIP = "clip_rows(rows, self._lattice).sum(axis=0, dtype=object)"
NOISE = "self.plan.mechanism.draw(self._lattice.bits, self.plan.num_directions, self._source.words())"
SECRET = "self._source: Randomness = SecretRandom()"
SOUND_FLAGGED = 1e-9


def flagged(reports: dict[str, Any]) -> bool:
    return any(report.flagged for report in reports.values())


def run_itself(make: ChannelFactory, plan: PrivacyPlan, data: DataSet) -> Sequence[Sequence[float]]:
    """`whole_run` by another name: the audit then measures through channels alone, as it does for a mutant."""
    return whole_run(make, plan, data)


SOUND = [
    (Gaussian(1.0), FullBatch(), {}),
    (Gaussian(3.0), FullBatch(), {"steps": 3, "num_directions": 4}),
    (Laplace(0.5), FullBatch(), {"num_directions": 3}),
    (Laplace(0.5), PoissonSampling(0.3), {"steps": 2}),
    (Gaussian(1.0), FullBatch(), {"relation": NeighboringRelation.REPLACE_ONE}),
    (Gaussian(1.0), FullBatch(), {"relation": NeighboringRelation.ADD_OR_REMOVE_ONE}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("mechanism", "sampler", "claims"), SOUND, ids=str)
def test_dpzos_channel_is_not_flagged(
    audited: Audited, make_plan: MakePlan, mechanism: Mechanism, sampler: Any, claims: dict[str, Any]
) -> None:
    reports = audited(make_plan(mechanism, sampler, **claims), 3000, SOUND_FLAGGED, run=run_itself)
    assert not reports.pop("checks").flagged
    assert len(reports) == 2
    for report in reports.values():
        assert 0.0 < report.epsilon_lower <= report.epsilon_claimed


# --- too little noise


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", [Gaussian(1.0), pytest.param(Laplace(0.5), marks=pytest.mark.slow)], ids=str)
def test_half_the_noise(audited: Audited, make_plan: MakePlan, planted: Plant, mechanism: Mechanism) -> None:
    mutant = planted(channel, (NOISE, f"[value // 2 for value in {NOISE}]"))
    assert flagged(audited(make_plan(mechanism), 3000, channel_factory=mutant.PrivateChannel))
    wide = make_plan(mechanism, num_directions=4)
    assert flagged(audited(wide, 3000, channel_factory=mutant.PrivateChannel))


@pytest.mark.slow
def test_a_mechanism_that_draws_a_quarter(
    audited: Audited, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is in the mechanism itself: both routes see it, through channels and past them."""
    own = Gaussian.draw
    monkeypatch.setattr(Gaussian, "draw", lambda self, bits, size, words: own(self, bits - 2, size, words))
    reports = audited(make_plan(Gaussian(1.0)), 20_000)
    assert reports["gaussian_dp"].note.startswith("through whole channels")
    assert reports["checks"].flagged
    assert reports["clopper_pearson"].note.startswith("through sampler and mechanism")
    assert reports["gaussian_dp"].flagged
    assert reports["clopper_pearson"].flagged


def test_one_noise_for_all_directions(audited: Audited, make_plan: MakePlan, planted: Plant) -> None:
    """What the coordinates without the canary tell of the noise is subtracted from the one with it."""
    mutant = planted(channel, (NOISE, f"[{NOISE}[0]] * self.plan.num_directions"))
    assert flagged(audited(make_plan(Gaussian(2.0), num_directions=4), channel_factory=mutant.PrivateChannel))


# --- noise and batches that the public seed tells


class Seeded:
    """Words from some generator that is not secret."""

    def __init__(self, word: Callable[[], int]) -> None:
        self.word = word
        self.array = lambda size: np.array([word() for _ in range(size)], dtype=np.uint64)

    def words(self) -> Iterator[int]:
        while True:
            yield self.word()

    def word_array(self, size: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        return self.array(size)


def _of_torch(draw: torch.Generator | None) -> Callable[[], int]:
    def word() -> int:
        high, low = torch.randint(0, 2**32, (2,), generator=draw).tolist()
        return (high << 32) | low

    return word


def _from_the_direction_seed() -> Seeded:
    return Seeded(_of_torch(torch.Generator().manual_seed(42)))


def _from_torchs_global_generator() -> Seeded:
    return Seeded(_of_torch(None))


def _from_numpys_global_generator() -> Seeded:
    return Seeded(lambda: int(np.random.randint(0, 2**63)) * 2)  # noqa: NPY002  the fault is its use


PUBLIC = [_from_the_direction_seed, _from_torchs_global_generator, _from_numpys_global_generator]


@pytest.mark.parametrize("source", PUBLIC, ids=lambda source: source.__name__.strip("_"))
def test_noise_from_the_public_seed(
    audited: Audited, make_plan: MakePlan, planted: Plant, source: Callable[[], Seeded]
) -> None:
    mutant = planted(channel, SecretRandom=lambda *key: source())
    reports = audited(make_plan(Gaussian(4.0)), 400, channel_factory=mutant.PrivateChannel)
    assert flagged(reports)
    if source is not _from_the_direction_seed:  # that one shows by itself: every run has the same noise
        assert "known noise" in reports["gaussian_dp"].note


class SeededBatches(Seeded):
    """Membership from NumPy's global generator."""

    def __init__(self) -> None:
        self.array = lambda size: np.random.randint(0, 2**64, size, dtype=np.uint64)  # noqa: NPY002


@pytest.mark.slow
def test_batches_from_the_public_seed(audited: Audited, make_plan: MakePlan, planted: Plant) -> None:
    """Secret noise, public membership: sampling amplifies nothing."""
    draw = "self.plan.sampler.draw(num_units, self._source)"
    mutant = planted(channel, (draw, draw.replace("self._source", "Seeded()")), SecretRandom=SecretRandom)
    mutant.Seeded = SeededBatches
    sampled = make_plan(Laplace(0.6), PoissonSampling(0.1), steps=3)
    reports = audited(sampled, 3000, channel_factory=mutant.PrivateChannel)
    assert "known batches" in reports["f_dp"].note
    assert flagged(reports)


# --- clips that bound nothing


WRONG_CLIPS = {
    "the batch, after the sum": (CLIP, "clip_rows(rows.sum(axis=0, keepdims=True), self._lattice)[0]"),
    "the batch, after the mean": (
        CLIP,
        "clip_rows(rows.sum(axis=0, keepdims=True) / max(1, len(rows)), self._lattice)[0] * max(1, len(rows))",
    ),
    "each direction alone": (
        CLIP,
        "np.concatenate([clip_rows(rows[:, [k]], self._lattice).sum(axis=0) for k in range(rows.shape[1])])",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("swap", WRONG_CLIPS.values(), ids=WRONG_CLIPS.keys())
@pytest.mark.parametrize("mechanism", [Gaussian(1.5), pytest.param(Laplace(1.0), marks=pytest.mark.slow)], ids=str)
def test_clips_that_bound_nothing(
    audited: Audited, make_plan: MakePlan, planted: Plant, mechanism: Mechanism, swap: tuple[str, str]
) -> None:
    mutant = planted(channel, swap)
    assert flagged(audited(make_plan(mechanism, num_directions=4), 8000, channel_factory=mutant.PrivateChannel))


@pytest.mark.slow
def test_a_clip_after_the_mean_of_a_sampled_batch(audited: Audited, make_plan: MakePlan, planted: Plant) -> None:
    mutant = planted(channel, WRONG_CLIPS["the batch, after the mean"])
    sampled = make_plan(Laplace(1.0), PoissonSampling(0.2))
    assert flagged(audited(sampled, 3000, channel_factory=mutant.PrivateChannel))


# --- sampling and steps


@pytest.mark.slow
def test_no_sampling_under_a_sampled_claim(audited: Audited, make_plan: MakePlan, planted: Plant) -> None:
    mutant = planted(channel, ("self.plan.sampler.draw(num_units, self._source)", "np.arange(num_units)"))
    sampled = make_plan(Gaussian(1.0), PoissonSampling(0.1), steps=2)
    assert flagged(audited(sampled, 3000, channel_factory=mutant.PrivateChannel))


@pytest.mark.slow
def test_a_plan_that_claims_sampling_that_it_does_not_do(audited: Audited, make_plan: MakePlan, planted: Plant) -> None:
    boastful = planted(plans, ("self.sampler.event(", "PoissonSampling(0.1).event("))
    claims = {name: getattr(make_plan(), name) for name in make_plan().__dataclass_fields__}
    assert flagged(audited(boastful.PrivacyPlan(**claims), 20_000))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])
def test_a_step_more_than_accounted(audited: Audited, make_plan: MakePlan, planted: Plant, steps: int) -> None:
    mutant = planted(channel, ("if self._step >= self.plan.steps:", "if self._step > self.plan.steps:"))
    plan = make_plan(Gaussian(steps**0.5), steps=steps)
    assert flagged(audited(plan, 8000 * steps, channel_factory=mutant.PrivateChannel))


class Killed:
    """A run that dies between the draw and the line of its last step, and is taken up again with `spent` steps.

    Each step has a key. With it the resumed process makes the same release, which is published once; without it the
    step is drawn a second time, and both releases are taken for seen.
    """

    def __init__(self, *, keeps_keys: bool) -> None:
        self.keeps_keys = keeps_keys

    def __call__(self, make: Callable[..., Any], plan: PrivacyPlan, data: DataSet) -> list[Sequence[float]]:
        keys = [os.urandom(32) for _ in range(plan.steps)]
        first, seen = make(plan, step_key=keys.__getitem__), []
        for _ in range(plan.steps):
            rows = data.rows(first.draw_batch(data.num_units))
            seen.append(first.release(rows).values)
        again = keys.__getitem__ if self.keeps_keys else (lambda step: os.urandom(32))
        resumed = make(plan, spent=plan.steps - 1, step_key=again)
        rows = data.rows(resumed.draw_batch(data.num_units))
        redone = resumed.release(rows).values
        return [*(seen[:-1] if self.keeps_keys else seen), redone]


@pytest.mark.slow
def test_a_second_draw_after_a_kill(audited: Audited, make_plan: MakePlan) -> None:
    plan = make_plan(Gaussian(2**0.5), steps=2)
    assert not flagged(audited(plan, 5000, SOUND_FLAGGED, run=Killed(keeps_keys=True)))
    assert flagged(audited(plan, 40_000, run=Killed(keeps_keys=False)))


@pytest.mark.slow
def test_two_answers_to_one_question(audited: Audited, make_plan: MakePlan, planted: Plant) -> None:
    """The same batch, released twice: sampling amplifies the first answer and not the second."""
    count = "step, self._step, self._batch_size = self._step, self._step + 1, None"
    mutant = planted(channel, (count, "step, self._step = self._step, self._step + 1"))

    def twice(make: ChannelFactory, plan: PrivacyPlan, data: DataSet) -> list[Sequence[float]]:
        door, seen = make(plan), []
        rows = data.rows(door.draw_batch(data.num_units))
        seen.append(door.release(rows).values)
        door._step = 0
        seen.append(door.release(rows).values)
        return seen

    for sampler in (FullBatch(), PoissonSampling(0.5)):
        plan = make_plan(Laplace(0.5), sampler)
        assert flagged(audited(plan, 15_000, channel_factory=mutant.PrivateChannel, run=twice))


@pytest.mark.slow
def test_a_relation_that_is_not_doubled(audited: Audited, make_plan: MakePlan, planted: Plant) -> None:
    source = "return accounting.epsilon(self.event, self.delta, self.relation)"
    mutant = planted(plans, (source, source.replace("self.relation", "NeighboringRelation.ZERO_OUT")))
    sound = make_plan(Gaussian(1.0), relation=NeighboringRelation.REPLACE_ONE)
    claims = {name: getattr(sound, name) for name in sound.__dataclass_fields__}
    assert flagged(audited(mutant.PrivacyPlan(**claims), run=run_itself, channel_factory=PrivateChannel))
