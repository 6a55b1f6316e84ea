"""Faults of the door itself: known noise, wrong clips, the wrong amount of noise. Each check passes on dpzo's own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from dpzo.noise.families import laplace
from dpzo.noise.tabled import Tabled
from dpzo.noise.tabulate import table
from dpzo.privacy import (
    FullBatch,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampling,
    PrivacyPlan,
    PrivateChannel,
    Sampler,
    channel,
    mechanisms,
)

Plant = Callable[..., ModuleType]
CLIP = "clip_rows(rows, self._lattice).sum(axis=0, dtype=object)"
NOISE = "self.plan.mechanism.draw(self._lattice.bits, self.plan.num_directions, self._source.words())"
VALUES = "tuple(int(value) + draw for value, draw in zip(total, noise, strict=True))"
CASES = [(Gaussian(0.8), 4), (Laplace(0.8), 4), (Gaussian(3.0), 1), (Laplace(3.0), 1), (Gaussian(1.3), 64)]


def plan(
    mechanism: Mechanism | None = None, num_directions: int = 4, sampler: Sampler | None = None, steps: int = 3000
) -> PrivacyPlan:
    return PrivacyPlan(
        num_examples=60,
        sampler=FullBatch() if sampler is None else sampler,
        mechanism=Gaussian(1.0) if mechanism is None else mechanism,
        clip_norm=1.0,
        steps=steps,
        num_directions=num_directions,
        delta=1e-5,
    )


# --- noise and membership from the public world


class Seeded:
    """Words for noise and membership from some generator that is not secret."""

    def __init__(self, word: Callable[[], int]) -> None:
        self.word = word

    def words(self) -> Iterator[int]:
        while True:
            yield self.word()

    def word_array(self, size: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        return np.array([self.word() for _ in range(size)], dtype=np.uint64)


def _of_torch(draw: torch.Generator | None) -> Callable[[], int]:
    def word() -> int:
        high, low = torch.randint(0, 2**32, (2,), generator=draw).tolist()
        return (high << 32) | low

    return word


def _from_the_direction_seed() -> Seeded:
    return Seeded(_of_torch(torch.Generator().manual_seed(42)))


def _from_the_generator_just_reseeded() -> Seeded:
    return Seeded(_of_torch(None))


def _after_the_direction() -> Seeded:
    draw = torch.Generator().manual_seed(42)
    torch.randn(1000, generator=draw)
    return Seeded(_of_torch(draw))


def _from_numpys_global_generator() -> Seeded:
    return Seeded(lambda: int(np.random.randint(0, 2**63)) * 2)  # noqa: NPY002  the fault is its use


def _from_pythons_global_generator() -> Seeded:
    return Seeded(lambda: random.getrandbits(64))


PUBLIC = [
    _from_the_direction_seed,
    _from_the_generator_just_reseeded,
    _after_the_direction,
    _from_numpys_global_generator,
    _from_pythons_global_generator,
]


@pytest.mark.parametrize("source", PUBLIC, ids=lambda source: source.__name__.strip("_"))
def test_noise_from_the_direction_seed(checks: ModuleType, planted: Plant, source: Callable[[], Seeded]) -> None:
    checks.check_noise_is_secret(PrivateChannel, plan())
    mutant = planted(channel, SecretRandom=lambda *key: source())
    with pytest.raises(checks.Caught, match="can be subtracted"):
        checks.check_noise_is_secret(mutant.PrivateChannel, plan())


@pytest.mark.parametrize("source", PUBLIC, ids=lambda source: source.__name__.strip("_"))
def test_batches_from_a_fixed_seed(checks: ModuleType, planted: Plant, source: Callable[[], Seeded]) -> None:
    sampled = plan(sampler=PoissonSampling(0.25))
    checks.check_batches_are_secret(PrivateChannel, sampled, 200)
    mutant = planted(channel, SecretRandom=lambda *key: source())
    with pytest.raises(checks.Caught, match="sampling amplifies nothing"):
        checks.check_batches_are_secret(mutant.PrivateChannel, sampled, 200)
    with pytest.raises(ValueError, match="too few units"):
        checks.check_batches_are_secret(PrivateChannel, sampled, 3)


def test_the_global_generators_are_as_they_were(checks: ModuleType) -> None:
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002
    checks.check_noise_is_secret(PrivateChannel, plan())
    assert before == (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())  # noqa: NPY002


# --- clips that bound nothing


WRONG_CLIPS = {
    "the batch, after the sum": (CLIP, "clip_rows(rows.sum(axis=0, keepdims=True), self._lattice)[0]"),
    "the batch, after the mean": (
        CLIP,
        "clip_rows(rows.mean(axis=0, keepdims=True), self._lattice)[0] * max(1, len(rows))",
    ),
    "each direction alone": (
        CLIP,
        "np.concatenate([clip_rows(rows[:, [k]], self._lattice).sum(axis=0) for k in range(rows.shape[1])])",
    ),
}


@pytest.mark.parametrize(("mechanism", "width"), CASES, ids=str)
def test_no_row_moves_dpzos_release_by_more_than_the_bound(
    checks: ModuleType, mechanism: Mechanism, width: int
) -> None:
    checks.check_sensitivity_one_row(PrivateChannel, plan(mechanism, width))


@pytest.mark.parametrize("swap", WRONG_CLIPS.values(), ids=WRONG_CLIPS.keys())
@pytest.mark.parametrize("mechanism", [Gaussian(0.8), Laplace(0.8)], ids=str)
def test_clips_of_the_batch_and_of_the_mean(
    checks: ModuleType, planted: Plant, mechanism: Mechanism, swap: tuple[str, str]
) -> None:
    mutant = planted(channel, swap)
    with pytest.raises(checks.Caught, match="one unit moves the release by"):
        checks.check_sensitivity_one_row(mutant.PrivateChannel, plan(mechanism, 4))


def test_several_directions_accounted_as_one(checks: ModuleType, planted: Plant) -> None:
    """Scalars clipped one by one are a row of length √K·C (Gaussian) or K·C (Laplace), not of length C."""
    mutant = planted(channel, WRONG_CLIPS["each direction alone"])
    for mechanism, width, worst in ((Gaussian(1.0), 64, "8"), (Laplace(1.0), 16, "16")):
        checks.check_sensitivity_one_row(PrivateChannel, plan(mechanism, width))
        with pytest.raises(checks.Caught, match=rf"by {worst} bounds, at most 1|by {2 * int(worst)} bounds, at most 2"):
            checks.check_sensitivity_one_row(mutant.PrivateChannel, plan(mechanism, width))
        alone = plan(mechanism, 1)
        checks.check_sensitivity_one_row(mutant.PrivateChannel, alone)  # with one direction it is no fault


def test_a_sum_that_wraps(checks: ModuleType, planted: Plant) -> None:
    """Rows of a large bound in an accumulator of fixed width: one unit takes the sum to the other end of its range."""
    made = plan(Tabled(table(laplace(2.0), cells=1, block=2**30 - 1)), 1)
    checks.check_sensitivity_one_row(PrivateChannel, made)
    narrow = planted(channel, (CLIP, CLIP.replace("dtype=object", "dtype=np.int32")))
    with pytest.raises(checks.Caught, match="one unit moves the release by"):
        checks.check_sensitivity_one_row(narrow.PrivateChannel, made)
    # The limit on bounds lifted: sums of 64 bits wrap, sums without a size do not.
    huge = mechanisms.Lattice(2.0**-62, 0, 2**62, 1)
    lifted = {"lattice": lambda *_: huge, "clip_rows": lambda rows, _: np.full(rows.shape, 2**62, dtype=np.int64)}
    for swaps, wraps in (((), False), (((CLIP, CLIP.replace(", dtype=object", "")),), True)):
        module = planted(channel, *swaps, **lifted)
        channels = [module.PrivateChannel(made, nonprivate_randomness=checks.PublicWords) for _ in range(2)]
        few, more = (checks._values(one, np.ones((rows, 1)))[0] for one, rows in zip(channels, (1, 2), strict=True))
        assert (more - few != 2**62) is wraps


def test_rows_clipped_in_another_norm(checks: ModuleType, planted: Plant) -> None:
    swap = (CLIP, CLIP.replace("self._lattice)", "Lattice(**{**vars(self._lattice), 'order': 2}))"))
    mutant = planted(channel, swap)
    mutant.Lattice = mechanisms.Lattice
    with pytest.raises(checks.Caught, match="by 4 bounds, at most 2"):
        checks.check_sensitivity_one_row(mutant.PrivateChannel, plan(Laplace(0.8), 4))


def _float_clip(rows: np.ndarray[Any, Any], grid: mechanisms.Lattice) -> np.ndarray[Any, Any]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return rows * np.minimum(1.0, grid.bound * grid.unit / np.maximum(length, 1e-12)) / grid.unit


@pytest.mark.parametrize(("mechanism", "width"), CASES, ids=str)
def test_inf_becomes_nan(checks: ModuleType, planted: Plant, mechanism: Mechanism, width: int) -> None:
    checks.check_non_finite_rows_count_zero(PrivateChannel, plan(mechanism, width))
    swap = (VALUES, VALUES.replace("int(value)", "value"))
    spreads = planted(channel, swap, clip_rows=_float_clip)
    with pytest.raises(checks.Caught, match="makes the release"):
        checks.check_non_finite_rows_count_zero(spreads.PrivateChannel, plan(mechanism, width))
    stops = planted(channel, clip_rows=_float_clip)
    with pytest.raises(checks.Caught, match="failed because of its rows"):
        checks.check_non_finite_rows_count_zero(stops.PrivateChannel, plan(mechanism, width))
    unfiltered = planted(mechanisms, ("slopes[~np.isfinite(slopes).all(axis=1)] = 0.0", "pass"))
    uncaught = planted(channel, clip_rows=unfiltered.clip_rows)
    with pytest.raises(checks.Caught):
        checks.check_non_finite_rows_count_zero(uncaught.PrivateChannel, plan(mechanism, width))


# --- too little noise


WRONG_NOISE = {
    "half of it": (NOISE, NOISE.replace("self._lattice.bits", "self._lattice.bits - 1")),
    "half of it, rounded": (NOISE, f"[value // 2 for value in {NOISE}]"),
    "88 % of it": (NOISE, f"[value * 88 // 100 for value in {NOISE}]"),
    "the same for each direction": (NOISE, f"[{NOISE}[0]] * self.plan.num_directions"),
    "scaled by the realised batch": (NOISE, f"[value * min(20, len(rows)) // 20 for value in {NOISE}]"),
    "none for an empty batch": (NOISE, f"{NOISE} if len(rows) else [0] * self.plan.num_directions"),
}


@pytest.mark.parametrize("mechanism", [Gaussian(0.8), Laplace(0.8), Gaussian(20.0)], ids=str)
def test_dpzos_noise_is_what_its_event_says(checks: ModuleType, mechanism: Mechanism) -> None:
    checks.check_noise_matches_event(PrivateChannel, plan(mechanism, 8))


@pytest.mark.parametrize("name", WRONG_NOISE)
def test_half_the_noise_and_its_kin(checks: ModuleType, planted: Plant, name: str) -> None:
    mutant = planted(channel, WRONG_NOISE[name])
    with pytest.raises(checks.Caught, match="where the event says 1"):
        checks.check_noise_matches_event(mutant.PrivateChannel, plan(Gaussian(0.8), 8))


def test_half_the_laplace_noise(checks: ModuleType, planted: Plant) -> None:
    for name in ("half of it", "88 % of it", "none for an empty batch"):
        mutant = planted(channel, WRONG_NOISE[name])
        with pytest.raises(checks.Caught, match="where the event says 1"):
            checks.check_noise_matches_event(mutant.PrivateChannel, plan(Laplace(0.8), 8))


def test_noise_in_floating_point(checks: ModuleType, planted: Plant) -> None:
    checks.check_release_is_on_the_lattice(PrivateChannel, plan())
    swap = (VALUES, "tuple(float(value) + draw for value, draw in zip(total, noise, strict=True))")
    mutant = planted(channel, (NOISE, "np.random.Generator(np.random.PCG64()).normal(size=4) * 2**11"), swap)
    with pytest.raises(checks.Caught, match="low bits"):
        checks.check_release_is_on_the_lattice(mutant.PrivateChannel, plan())
