"""Every kind of fault of a channel, planted, and the check that names it at the default size.

A fault that a check misses with more than negligible probability would make this table fail by chance: each is so gross
beside the number of draws that the p-value it causes is far below what is asked, as the last column of the table says
where it is not obvious.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from dpzo.audit.checking import CHECKS, check_channel
from dpzo.audit.draws import whole_run
from dpzo.audit.mechanism import CHANNEL_DRAWS, FOR_CHECKS
from dpzo.audit.report import FALSE_FLAG
from dpzo.privacy import (
    Laplace,
    PoissonSampling,
    PrivacyPlan,
    PrivateChannel,
    Release,
    SecretRandom,
    clip_rows,
)

MakePlan = Callable[..., PrivacyPlan]
LAW, INDEPENDENCE, ENTROPY, CLIP, BATCHES = CHECKS
Rows = np.ndarray[Any, Any]
SHARED: dict[str, Any] = {}


class Faulty(PrivateChannel):
    """A channel of which clip, sum, noise and batch can be exchanged one by one."""

    def __init__(self, plan: PrivacyPlan, **options: Any) -> None:
        super().__init__(plan, **options)
        self.last: list[int] = []
        self.begun = options.get("spent", 0)

    def clip(self, rows: Rows) -> Rows:
        return clip_rows(rows, self._lattice)

    def noise(self, rows: Rows) -> list[int]:
        return self.plan.mechanism.draw(self._lattice.bits, self.plan.num_directions, SecretRandom().words())

    def answer(self, total: Rows, noise: list[int], rows: Rows) -> list[Any]:
        return [int(value) + draw for value, draw in zip(total, noise, strict=True)]

    def release(self, rows: Rows) -> Release:
        step = super().release(rows).step
        noise = self.noise(rows)
        values = self.answer(self.clip(rows).sum(axis=0), noise, rows)
        self.last = noise
        return Release(step, tuple(values), self._lattice.unit)


def noisy(change: Callable[[Any, list[int], Rows], list[Any]]) -> type[Faulty]:
    """Whose noise is `change(channel, sound noise, rows)`."""

    class Mutant(Faulty):
        def noise(self, rows: Rows) -> list[int]:
            return change(self, super().noise(rows), rows)

    return Mutant


def answering(change: Callable[[Any, Rows, list[int], Rows], list[Any]]) -> type[Faulty]:
    """Whose release is `change(channel, clipped sum, noise, rows)`."""

    class Mutant(Faulty):
        def answer(self, total: Rows, noise: list[int], rows: Rows) -> list[Any]:
            return change(self, total, noise, rows)

    return Mutant


def clipping(change: Callable[[Any, Rows], Rows]) -> type[Faulty]:
    """Whose clipped rows are `change(channel, rows)`."""

    class Mutant(Faulty):
        def clip(self, rows: Rows) -> Rows:
            return np.asarray(change(self, rows))

    return Mutant


def batching(change: Callable[[Any, Rows, int], Any]) -> type[Faulty]:
    """Whose batch is `change(channel, sound batch, number of units)`."""

    class Mutant(Faulty):
        def draw_batch(self, num_units: int) -> Rows:
            batch = np.asarray(change(self, super().draw_batch(num_units), num_units))
            self._batch_size = len(batch)
            return batch

    return Mutant


def sound(channel: Any, rows: Rows) -> Rows:
    return clip_rows(rows, channel._lattice)


def none(channel: Any) -> list[int]:
    return [0] * channel.plan.num_directions


def scaled(noise: list[int], factor: float) -> list[int]:
    return [math.floor(value * factor) for value in noise]


def with_one(noise: list[int], column: int, value: int) -> list[int]:
    return [*noise[:column], value, *noise[column + 1 :]]


def raw(channel: Any, rows: Rows, which: Any) -> Rows:
    """Rows without a clip where `which` holds."""
    units = np.clip(np.nan_to_num(rows / channel._lattice.unit, nan=0.0, posinf=0.0, neginf=0.0), -(2.0**50), 2.0**50)
    return np.where(which, units, sound(channel, rows).astype(float)).astype(np.int64)


def normals(channel: Any, count: int, draw: Any) -> list[int]:
    return [math.floor(draw() * 2**channel._lattice.bits) for _ in range(count)]


def twice(noise: list[int]) -> list[int]:
    """Every second channel's noise is that of the channel before."""
    before = SHARED.pop("noise", None)
    if before is None:
        SHARED["noise"] = noise
    return noise if before is None else before


ONE: dict[str, Any] = {}
WIDE: dict[str, Any] = {"num_directions": 6}
LONG: dict[str, Any] = {"steps": 12, "num_directions": 2}
SAMPLED: dict[str, Any] = {"sampler": PoissonSampling(0.1), "num_examples": 60, "steps": 3}
RARE: dict[str, Any] = {"sampler": PoissonSampling(0.002), "num_examples": 40, "steps": 2}


@dataclass(frozen=True)
class Fault:
    check: str
    mutant: type[Faulty]
    claims: dict[str, Any] = field(default_factory=dict)


def gauss() -> float:
    return random.SystemRandom().gauss(0.0, 1.0)


def uniform() -> float:
    return random.SystemRandom().uniform(-(3**0.5), 3**0.5)


def cut(at: float) -> Callable[[], float]:
    def draw() -> float:
        while abs(value := gauss()) > at:
            pass
        return value

    return draw


def few_states(bits: int) -> type[Faulty]:
    def noise(channel: Any, own: list[int], rows: Rows) -> list[int]:
        if not channel.last:
            channel.weak = np.random.default_rng(random.SystemRandom().getrandbits(bits))
        return normals(channel, len(own), channel.weak.standard_normal)

    return noisy(noise)


def blocks(channel: Any, batch: Rows, units: int) -> Rows:
    """Pairs of neighbours join together."""
    heads = np.flatnonzero(np.random.default_rng().random((units + 1) // 2) < channel.plan.sampler.sampling_prob)
    both = np.concatenate([2 * heads, 2 * heads + 1])
    return np.sort(both[both < units])


FAULTS: dict[str, Fault] = {
    # noise that returns
    "the noise of the step before": Fault(ENTROPY, noisy(lambda c, n, r: c.last or n), LONG),
    "the noise before, negated": Fault(INDEPENDENCE, noisy(lambda c, n, r: [-v for v in c.last] or n), LONG),
    "every other step the noise before": Fault(
        INDEPENDENCE, noisy(lambda c, n, r: c.last if c.spent % 2 == 0 and c.last else n), LONG
    ),
    "half of the noise before in the next": Fault(
        INDEPENDENCE,
        noisy(lambda c, n, r: [math.floor(0.8 * a + 0.6 * b) for a, b in zip(n, c.last or n, strict=True)]),
        LONG,
    ),
    "noise five steps ago": Fault(INDEPENDENCE, noisy(lambda c, n, r: _ago(c, n, 5)), LONG),
    "noise of another coordinate, a step ago": Fault(
        INDEPENDENCE, noisy(lambda c, n, r: with_one(n, 0, c.last[1]) if c.last else n), LONG
    ),
    "noise of the run before": Fault(INDEPENDENCE, noisy(lambda c, n, r: twice(n)), WIDE),
    "the first step's noise in the last": Fault(
        INDEPENDENCE, noisy(lambda c, n, r: _first(c, n) if c.spent == c.plan.steps else (_first(c, n), n)[1]), LONG
    ),
    # noise shared by coordinates
    "coordinates 3 and 4 alike": Fault(INDEPENDENCE, noisy(lambda c, n, r: with_one(n, 4, n[3])), WIDE),
    "the last the negative of the third": Fault(INDEPENDENCE, noisy(lambda c, n, r: with_one(n, 5, -n[2])), WIDE),
    "equal size, own sign": Fault(
        INDEPENDENCE, noisy(lambda c, n, r: with_one(n, 5, abs(n[1]) * random.SystemRandom().choice((1, -1)))), WIDE
    ),
    "a sum without noise": Fault(
        INDEPENDENCE,
        noisy(lambda c, n, r: [math.floor((v - sum(n) / len(n)) * (1 - 1 / len(n)) ** -0.5) for v in n]),
        {"num_directions": 24},
    ),
    "a combination without noise": Fault(INDEPENDENCE, noisy(lambda c, n, r: _flattened(n)), {"num_directions": 20}),
    # too little noise somewhere
    "one coordinate without noise": Fault(LAW, noisy(lambda c, n, r: with_one(n, 4, 0)), WIDE),
    "one coordinate with nine tenths": Fault(LAW, noisy(lambda c, n, r: with_one(n, 2, n[2] * 9 // 10)), WIDE),
    "nineteen twentieths everywhere": Fault(LAW, noisy(lambda c, n, r: normals(c, len(n), lambda: 0.95 * gauss()))),
    "none in the first step": Fault(LAW, noisy(lambda c, n, r: none(c) if c.spent == 1 else n), LONG),
    "none in the last step": Fault(LAW, noisy(lambda c, n, r: none(c) if c.spent == c.plan.steps else n), LONG),
    "half in every fifth step": Fault(LAW, noisy(lambda c, n, r: scaled(n, 0.5) if c.spent % 5 == 0 else n), LONG),
    "none in the last of many steps": Fault(
        LAW, noisy(lambda c, n, r: none(c) if c.spent == c.plan.steps else n), {"steps": 9000}
    ),
    "none after a resume": Fault(
        LAW, noisy(lambda c, n, r: none(c) if c.begun and c.spent == c.begun + 1 else n), {"steps": 6}
    ),
    # noise that follows the data
    "none for an empty batch": Fault(LAW, noisy(lambda c, n, r: n if len(r) else none(c))),
    "none for an empty batch, of rare units": Fault(LAW, noisy(lambda c, n, r: n if len(r) else none(c)), RARE),
    "none for a single unit": Fault(LAW, noisy(lambda c, n, r: none(c) if len(r) == 1 else n)),
    "less in larger batches": Fault(LAW, noisy(lambda c, n, r: scaled(n, 1 / max(1, len(r)) ** 0.5))),
    "none where the sum is zero": Fault(
        LAW, answering(lambda c, t, n, r: [int(v) + (d if t.any() else 0) for v, d in zip(t, n, strict=True)])
    ),
    "a NaN that zeroes the release": Fault(
        LAW,
        answering(lambda c, t, n, r: none(c) if np.isnan(r).any() else [int(v) + d for v, d in zip(t, n, strict=True)]),
    ),
    "a NaN that zeroes the sum": Fault(LAW, answering(lambda c, t, n, r: n if np.isnan(r).any() else list(t + n))),
    "an infinity that silences the noise": Fault(LAW, noisy(lambda c, n, r: none(c) if np.isinf(r).any() else n), WIDE),
    "none beside a large row": Fault(
        CLIP, noisy(lambda c, n, r: none(c) if (np.isfinite(r) & (np.abs(r) > 1e7)).any() else n)
    ),
    "an exception at infinity": Fault(
        "channel", answering(lambda c, t, n, r: [int(v) + int(r.sum()) * 0 for v in t + n])
    ),
    # the wrong law
    "uniform noise": Fault(LAW, noisy(lambda c, n, r: normals(c, len(n), uniform))),
    "Laplace noise of the same spread": Fault(
        LAW, noisy(lambda c, n, r: normals(c, len(n), lambda: np.random.default_rng().laplace(scale=0.5**0.5)))
    ),
    "cut at three": Fault(LAW, noisy(lambda c, n, r: normals(c, len(n), cut(3.0)))),
    "folded": Fault(LAW, noisy(lambda c, n, r: [abs(v) for v in n])),
    "too little for Laplace": Fault(
        LAW,
        noisy(lambda c, n, r: normals(c, len(n), lambda: np.random.default_rng().laplace(scale=0.9))),
        {"mechanism": Laplace(0.7)},
    ),
    "on multiples of 16": Fault(ENTROPY, noisy(lambda c, n, r: [v // 16 * 16 for v in n])),
    "on odd numbers": Fault(ENTROPY, noisy(lambda c, n, r: [v | 1 for v in n])),
    "on multiples of 97, shifted": Fault(ENTROPY, noisy(lambda c, n, r: [v // 97 * 97 + 13 for v in n])),
    "on half of the units": Fault("channel", answering(lambda c, t, n, r: [float(v) + 0.5 for v in t + n])),
    "not a number": Fault("channel", answering(lambda c, t, n, r: [float("nan")] * len(n))),
    # entropy
    "sixteen bits of entropy": Fault(ENTROPY, few_states(16), WIDE),
    "sixteen bits, one number a run": Fault(ENTROPY, few_states(14)),
    "the same generator in every run": Fault(LAW, few_states(1), WIDE),
    # clips
    "no clip beyond 1e9": Fault(CLIP, clipping(lambda c, r: raw(c, r, np.abs(r).max(axis=1, keepdims=True) > 1e9))),
    "no clip beyond 1e200": Fault(
        CLIP, clipping(lambda c, r: raw(c, r, np.abs(r).max(axis=1, keepdims=True, initial=0) > 1e200)), WIDE
    ),
    "no clip of negative rows": Fault(CLIP, clipping(lambda c, r: raw(c, r, (r < 0).all(axis=1, keepdims=True))), WIDE),
    "no clip of mixed signs": Fault(
        CLIP,
        clipping(lambda c, r: raw(c, r, (r < 0).any(axis=1, keepdims=True) & (r > 0).any(axis=1, keepdims=True))),
        WIDE,
    ),
    "no clip of one coordinate": Fault(
        CLIP, clipping(lambda c, r: raw(c, r, np.arange(r.shape[1])[None, :] == 4)), WIDE
    ),
    "clipped one by one": Fault(
        CLIP,
        clipping(lambda c, r: np.concatenate([sound(c, r[:, [k]]) for k in range(r.shape[1])], axis=1)),
        WIDE,
    ),
    "L2 for L1": Fault(
        CLIP,
        clipping(lambda c, r: clip_rows(r, type(c._lattice)(c._lattice.unit, c._lattice.bits, c._lattice.bound, 2))),
        {"mechanism": Laplace(0.8), "num_directions": 6},
    ),
    "a tenth too long": Fault(CLIP, clipping(lambda c, r: _longer(c, r, 1.1)), WIDE),
    "rounded away from zero": Fault(CLIP, clipping(lambda c, r: sound(c, r) + np.sign(sound(c, r)))),
    "an infinite row counts as the longest": Fault(
        LAW,
        clipping(lambda c, r: raw(c, np.where(np.isinf(r), np.sign(r) * 1e5, r), np.isinf(r).any(axis=1)[:, None])),
    ),
    "the sum is clipped, not the rows": Fault(CLIP, clipping(lambda c, r: _clip_of_sum(c, r)), {"num_directions": 2}),
    "the batch is scaled by its longest row": Fault(CLIP, clipping(lambda c, r: _by_longest(c, r)), WIDE),
    # batches
    "a unit twice": Fault("channel", batching(lambda c, b, u: np.append(b, b[:1]))),
    "without the last unit": Fault("channel", batching(lambda c, b, u: b[b < u - 1])),
    "the first unit always": Fault(
        BATCHES, batching(lambda c, b, u: np.union1d(b, [0])[: u or None] if u else b), SAMPLED
    ),
    "the last unit never": Fault(BATCHES, batching(lambda c, b, u: b[b < u - 1]), SAMPLED),
    "neighbours together": Fault(BATCHES, batching(blocks), SAMPLED),
    "the batch before again": Fault(BATCHES, batching(lambda c, b, u: _again(c, b)), SAMPLED),
    "a fifth too many": Fault(BATCHES, batching(lambda c, b, u: _more(b, u, 0.02)), SAMPLED),
    "twice as many, of rare units": Fault(BATCHES, batching(lambda c, b, u: _more(b, u, 0.002)), RARE),
    "of fixed size": Fault(
        BATCHES,
        batching(lambda c, b, u: np.sort(np.random.default_rng().permutation(u)[: round(0.1 * u)])),
        SAMPLED,
    ),
    "never empty": Fault(BATCHES, batching(lambda c, b, u: b if len(b) or not u else np.array([0])), SAMPLED),
}


def _ago(channel: Any, noise: list[int], steps: int) -> list[int]:
    kept = channel.__dict__.setdefault("kept", [])
    kept.append(noise)
    if len(kept) > steps:
        kept[-1] = kept[-1 - steps]
    return list(kept[-1])


def _first(channel: Any, noise: list[int]) -> list[int]:
    return list(channel.__dict__.setdefault("first", noise))


def _flattened(noise: list[int]) -> list[int]:
    """Less its part along one direction, scaled back to the same spread in each coordinate on the whole."""
    along = np.cos(np.arange(1, len(noise) + 1.0))
    along /= np.linalg.norm(along)
    rest = np.array(noise, dtype=float) - along * (along @ np.array(noise, dtype=float))
    return [math.floor(v / math.sqrt(max(1e-9, 1 - a * a))) for v, a in zip(rest, along, strict=True)]


def _longer(channel: Any, rows: Rows, factor: float) -> Rows:
    grid = channel._lattice
    return clip_rows(rows, type(grid)(grid.unit, grid.bits, int(grid.bound * factor), grid.order))


def _clip_of_sum(channel: Any, rows: Rows) -> Rows:
    """Long rows pull the sum up to the bound; of harmless rows beside them nothing is left."""
    finite = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
    if len(rows) == 0 or np.abs(finite).max() <= channel.plan.clip_norm:
        return sound(channel, rows)
    return clip_rows(np.clip(finite, -1e300, 1e300).sum(axis=0, keepdims=True), channel._lattice)


def _by_longest(channel: Any, rows: Rows) -> Rows:
    finite = np.clip(np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0), -1e150, 1e150)
    longest = max(channel.plan.clip_norm, float(np.linalg.norm(finite, axis=1).max(initial=0.0)))
    return sound(channel, finite * (channel.plan.clip_norm / longest))


def _again(channel: Any, batch: Rows) -> Rows:
    before = channel.__dict__.get("before")
    channel.before = batch
    return batch if before is None else before


def _more(batch: Rows, units: int, chance: float) -> Rows:
    return np.union1d(batch, np.flatnonzero(np.random.default_rng().random(units) < chance)).astype(np.int64)


def checked(plan: PrivacyPlan, mutant: Any, draws: int = CHANNEL_DRAWS) -> set[str]:
    found = check_channel(plan, mutant, whole_run, draws * plan.steps, FOR_CHECKS * FALSE_FLAG)
    return {finding.check.partition(",")[0] for finding in found.findings}


# What is nearly right needs many draws.
SLOW = {
    "sixteen bits, one number a run",
    "cut at three",
    "one coordinate with nine tenths",
    "none beside a large row",
    "nineteen twentieths everywhere",
    "rounded away from zero",
    "too little for Laplace",
}
EACH = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FAULTS]


@pytest.mark.parametrize("name", EACH)
def test_the_fault_is_flagged_and_named(make_plan: MakePlan, name: str) -> None:
    SHARED.clear()
    fault = FAULTS[name]
    found = checked(make_plan(**fault.claims), fault.mutant)
    assert fault.check in found, f"found by {found or 'nothing'}"
