"""An auditor's observations of channels on its own synthetic rows: each step's batch, rows and release.

An auditor that synthesises the rows and receives the batches knows the clipped sum of every release. The rest of a
release is the noise alone, one exact draw per coordinate, for any sampler and any choice of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from dpzo.audit.draws import ChannelFactory, DataSet, Run
from dpzo.privacy import FullBatch, PrivacyPlan, clip_rows, lattice

Numbers = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
RowsAt = Callable[[int, int], Numbers]
"""From the step's number and the size of its batch to its rows (batch, K), in slope units."""
AT_ONCE = 300_000  # numbers in rows, held before they are clipped and summed
LARGEST = 2**62  # larger released numbers are clamped to it, so that floats can represent them


class Watched(DataSet):
    """A synthetic data set of `num_units` units whose rows are generated on request; it records batches and rows."""

    def __init__(self, num_units: int, rows_at: RowsAt) -> None:
        self._count = num_units
        self._rows_at = rows_at
        self.batches: list[npt.NDArray[Any]] = []
        self.given: list[Numbers] = []

    @property
    def num_units(self) -> int:
        """Units of this data set."""
        return self._count

    def rows(self, units: npt.NDArray[np.int64]) -> Numbers:
        """Rows (batch, K) of this batch; its units are recorded."""
        batch = np.array(units).ravel()
        self.batches.append(batch)
        self.given.append(self._rows_at(len(self.batches) - 1, len(batch)))
        return self.given[-1].copy()


@dataclass(eq=False)
class Observed:
    """Releases in the order in which they were made; what is certain to be wrong is in `faults`.

    `values` (n, K) released integers, `sums` (n, K) of the rows clipped as dpzo clips them, `runs` and `steps` (n,)
    which run and step, `batches` n arrays of units, `units` (n,) units of the data set, `kinds` (n,) of rows.
    """

    plan: PrivacyPlan
    values: Numbers
    sums: Numbers
    runs: Integers
    steps: Integers
    units: Integers
    kinds: Integers
    batches: list[npt.NDArray[Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @cached_property
    def noise(self) -> Numbers:
        """Releases less the known sums, (n, K): exact draws of the plan's noise, if the channel is correct."""
        return self.values - self.sums

    @cached_property
    def sizes(self) -> Integers:
        """Units in each batch, (n,)."""
        return np.array([len(batch) for batch in self.batches], dtype=np.int64)


@dataclass
class Observer:
    """Runs channels on synthetic rows and collects. Call `observe` once per run, `collected` at the end."""

    make: ChannelFactory
    run: Run
    plan: PrivacyPlan

    def __post_init__(self) -> None:
        self._grid = lattice(self.plan.mechanism, self.plan.clip_norm, self.plan.num_directions)
        self._values: list[list[int]] = []
        self._waiting: list[Numbers] = []
        self._held = 0
        self._sums: list[Numbers] = []
        self._labels: list[tuple[int, int, int, int]] = []
        self._batches: list[npt.NDArray[Any]] = []
        self._faults: dict[str, None] = {}
        self._runs = 0

    def observe(self, num_units: int, rows_at: RowsAt, kind_at: Callable[[int], int], hostile: str) -> None:
        """One run on `num_units` units. An exception on these rows (`hostile`: their description) is a fault."""
        data = Watched(num_units, rows_at)
        try:
            seen = list(self.run(self.make, self.plan, data))
        except Exception as error:
            if not data.given:
                raise  # no rows were requested yet, so they are not the cause
            self._faults.setdefault(f"a run stopped with {type(error).__name__} because of its rows ({hostile})")
            return
        if len(seen) > self.plan.steps:
            self._faults[f"a run released {len(seen)} times, {self.plan.steps} are accounted"] = None
        if len(seen) == len(data.batches):  # otherwise which rows a release is of is not known
            for step, values in enumerate(seen):
                self._collect(step, values, data, kind_at(step))
        self._runs += 1

    def _collect(self, step: int, values: Any, data: Watched, kind: int) -> None:
        batch, full = data.batches[step], isinstance(self.plan.sampler, FullBatch)
        if not _is_batch(batch, data.num_units):
            self._faults["a batch holds a unit twice, or one that is not there"] = None
        elif (full or self.plan.sampler.sampling_prob >= 1.0) and len(batch) < data.num_units:
            self._faults["a batch lacks units, and the plan says that every batch holds all"] = None
        numbers = list(values)
        if len(numbers) != self.plan.num_directions:
            self._faults[f"{len(numbers)} numbers are released a step, the plan says {self.plan.num_directions}"] = None
            return
        if not all(type(value) is int or _is_integer(value) for value in numbers):
            self._faults["a released number is not an integer of the lattice"] = None
            return
        self._values.append([max(-LARGEST, min(LARGEST, int(value))) for value in numbers])
        self._waiting.append(data.given[step])
        self._held += data.given[step].size
        self._labels.append((self._runs, step, data.num_units, kind))
        self._batches.append(batch)
        if self._held > AT_ONCE:
            self._sum_up()

    def _sum_up(self) -> None:
        """Clip and sum the pending rows, all at once."""
        sizes = np.array([len(rows) for rows in self._waiting])
        if len(sizes) == 0:
            return
        clipped = clip_rows(np.concatenate(self._waiting), self._grid)
        summed = np.concatenate([np.zeros((1, clipped.shape[1]), dtype=np.int64), clipped.cumsum(axis=0)])
        ends = sizes.cumsum()
        self._sums.append((summed[ends] - summed[ends - sizes]).astype(np.float64))
        self._waiting, self._held = [], 0

    def collected(self) -> Observed:
        """All observations so far."""
        self._sum_up()
        shape = (len(self._values), self.plan.num_directions)
        labels = np.array(self._labels, dtype=np.int64).reshape(len(self._labels), 4)
        return Observed(
            self.plan,
            np.array(self._values, dtype=np.float64).reshape(shape),
            np.concatenate([np.zeros((0, shape[1])), *self._sums]),
            labels[:, 0],
            labels[:, 1],
            labels[:, 2],
            labels[:, 3],
            batches=self._batches,
            faults=list(self._faults),
        )


def _is_integer(value: Any) -> bool:
    if isinstance(value, float | np.floating):
        return abs(float(value)) < math.inf and float(value).is_integer()
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_)


def _is_batch(batch: npt.NDArray[Any], num_units: int) -> bool:
    if len(batch) == 0:
        return True
    if batch.dtype.kind not in "iu":
        return False
    ordered = np.sort(batch)
    return bool(ordered[0] >= 0 and ordered[-1] < num_units and (ordered[1:] > ordered[:-1]).all())
