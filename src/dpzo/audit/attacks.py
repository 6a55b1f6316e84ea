"""Attacks of the audit: neighbouring synthetic data sets, and the score of a transcript.

The unit that is present or absent (the canary) has a row far beyond the clip norm: a correct clip makes it a row of
length C exactly, and an incorrect clip is detected. The attacker knows the public directions, and the data enter only
through rows, so rows can be synthesised directly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from dpzo.noise.tabled import Tabled
from dpzo.privacy import (
    FullBatch,
    Gaussian,
    Laplace,
    Lattice,
    Mechanism,
    NeighboringRelation,
    PrivacyPlan,
    clip_rows,
    lattice,
)

Numbers = npt.NDArray[np.float64]
BEYOND = 1e6  # length of the canary's row ÷ clip norm
CROWD = 8.0  # units expected in a batch, where the plan's N and MOST_UNITS allow
MOST_UNITS = 1000
SMALLEST_MASS = 1e-300


@dataclass(frozen=True)
class Attack:
    """A canary, the other units ("bystanders"), and the attacker's knowledge besides the releases.

    `canary` and `bystander`: rows (K,) in clip norms, the same for every bystander. `knows`: only the
    `releases`; or the `noise`, or the `batches`, of a second run of the same program with the same public seed.
    `score_by`: the `likelihood` that the plan claims; the plain `sum`, if a fault would move the sum far from the
    claim; the `contrast` of the first coordinate to the second, which the canary does not change.
    """

    name: str
    plan: PrivacyPlan
    canary: tuple[float, ...]
    bystander: tuple[float, ...]
    knows: Literal["releases", "noise", "batches"] = "releases"
    score_by: Literal["likelihood", "sum", "contrast"] = "likelihood"

    @property
    def num_units(self) -> int:
        """Units of the data set with the canary, which is the last one."""
        wanted = math.ceil(CROWD / self.plan.sampler.sampling_prob)
        return max(1, min(self.plan.num_examples, wanted, MOST_UNITS))

    @cached_property
    def grid(self) -> Lattice:
        """The plan's lattice."""
        return lattice(self.plan.mechanism, self.plan.clip_norm, self.plan.num_directions)

    @cached_property
    def shift(self) -> npt.NDArray[np.int64]:
        """The integers (K,) by which a sound channel's sum moves when the canary joins."""
        return self._clipped(self.canary)

    @cached_property
    def touched(self) -> npt.NDArray[np.int64]:
        """The coordinates that the canary changes, ascending; a likelihood ratio depends on no other."""
        return np.flatnonzero(self.shift)

    @cached_property
    def baseline(self) -> npt.NDArray[np.int64]:
        """The bystanders' sum in a correct channel, (K,); their rows are zeros unless every unit is in every batch."""
        return self._clipped(self.bystander) * (self.num_units - 1)

    def _clipped(self, row: tuple[float, ...]) -> npt.NDArray[np.int64]:
        return np.asarray(clip_rows(np.array([row]) * self.plan.clip_norm, self.grid)[0])

    def data(self, present: bool) -> Numbers:
        """Rows (N, K) of one of the two neighbours, in slope units, before any clipping."""
        rows = np.array([*[self.bystander] * (self.num_units - 1), self.canary]) * self.plan.clip_norm
        if not present:
            if self.plan.relation is NeighboringRelation.ADD_OR_REMOVE_ONE:
                return np.asarray(rows[:-1])
            rows[-1] *= -1.0 if self.plan.relation is NeighboringRelation.REPLACE_ONE else 0.0
        return np.asarray(rows)

    def score(self, values: Numbers, sampling_prob: float | None = None) -> Numbers:
        """Log-likelihood ratio of releases (n, K) in lattice units, present against absent, as the plan claims: (n,).

        Formula: ln((1−q) + q·f(v−c)/f(v)); under replace-one less ln((1−q) + q·f(v+c)/f(v)). Rounded to nine digits,
        so that ties are ties.
        """
        if self.score_by == "sum":
            return np.asarray((values @ self.shift) / self.grid.bound)
        if self.score_by == "contrast":
            values = values - values[:, [1]]
        return self.likelihood(values[:, self.touched], sampling_prob)

    def likelihood(self, values: Numbers, sampling_prob: float | None = None) -> Numbers:
        """`score` by the likelihood, of the coordinates `touched` alone: (n, touched) → (n,)."""
        q = self.plan.sampler.sampling_prob if sampling_prob is None else sampling_prob
        v, c = values - self.baseline[self.touched], self.shift[self.touched].astype(np.float64)
        ratio = _mixed(self._gain(v, c), q)
        if self.plan.relation is NeighboringRelation.REPLACE_ONE:
            ratio = ratio - _mixed(self._gain(v, -c), q)
        return np.asarray(np.round(ratio, 9))

    def _gain(self, values: Numbers, shift: Numbers) -> Numbers:
        """ln f(v − c) − ln f(v), (n,): coordinates that the canary does not touch cancel."""
        mechanism, bits = self.plan.mechanism, self.grid.bits
        moved, still = log_density(mechanism, values - shift, bits), log_density(mechanism, values, bits)
        return np.asarray((moved - still).sum(axis=1))


def log_density(mechanism: Mechanism, values: Numbers, bits: int) -> Numbers:
    """ln of the noise's density at lattice values, elementwise, up to a constant: of a cell's centre, or a table's."""
    if isinstance(mechanism, Tabled):
        return _log_mass(mechanism, values)
    x = (values + 0.5) / 2.0**bits
    if isinstance(mechanism, Gaussian):
        return np.asarray(-0.5 * x * x)
    assert isinstance(mechanism, Laplace)
    return -np.abs(x)


def _log_mass(mechanism: Tabled, values: Numbers) -> Numbers:
    shape, block = mechanism.noise.shape, mechanism.noise.block
    cells = np.abs(np.rint(values / block)).astype(np.int64)
    inner = len(shape.masses) - shape.period
    beyond = np.maximum(cells - inner, 0)
    times, place = beyond // shape.period, beyond % shape.period
    tail = np.log(np.maximum(shape.masses[inner + place], SMALLEST_MASS))
    tail = tail + times * math.log(max(shape.ratio, SMALLEST_MASS))
    near = np.log(np.maximum(shape.masses[np.minimum(cells, inner)], SMALLEST_MASS))
    return np.asarray(np.where(cells < inner, near, tail))


def _mixed(gain: Numbers, sampling_prob: float) -> Numbers:
    if sampling_prob >= 1.0:
        return gain
    return np.asarray(np.logaddexp(math.log1p(-sampling_prob), math.log(sampling_prob) + gain))


def attacks(plan: PrivacyPlan) -> tuple[Attack, ...]:
    """The attacks on a channel: each row shape that some known fault fails to bound, and the public seed.

    - one coordinate: all of the canary's length in one direction, bystanders zero;
    - all coordinates: alike in each (directions clipped one by one);
    - between coordinates: one less another (noise that directions share);
    - far sums: by the sum alone, which a faulty clip moves further than any likelihood expects; if all units are in
      every batch, the bystanders' rows have the opposite sign (batches clipped after their sum);
    - known noise, known batches: the draws of a second run of the program with the same public seed are subtracted,
      or used as the batches.
    """
    width = plan.num_directions
    one, zero = (BEYOND, *[0.0] * (width - 1)), (0.0,) * width
    found = [Attack("one coordinate", plan, one, zero)]
    if width > 1:
        found.append(Attack("all coordinates", plan, (BEYOND,) * width, zero))
        found.append(Attack("between coordinates", plan, one, zero, score_by="contrast"))
    everyone = isinstance(plan.sampler, FullBatch) or plan.sampler.sampling_prob == 1.0
    others = -BEYOND / 2.0 / max(1, found[0].num_units - 1) if everyone else 0.0
    found.append(Attack("far sums", plan, one, (others, *zero[1:]), score_by="sum"))
    found.append(Attack("known noise", plan, one, zero, "noise"))
    if not everyone:
        found.append(Attack("known batches", plan, one, zero, "batches"))
    return tuple(found)
