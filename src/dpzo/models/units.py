"""Units that own several records (a person, a patient): one loss a unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpzo.models.objectives import Indices, Losses, RecordObjective
from dpzo.zo.estimators import PaddedObjective, VariantObjective
from dpzo.zo.exceptions import FillableObjective, ForgetfulObjective
from dpzo.zo.stack import Weights


@dataclass(frozen=True, repr=False)
class UnitObjective:
    """Loss of a unit (a person): the mean over the records that are theirs, in float64, correctly rounded.

    ℓ_u = (1/n_u) Σ_{i ∈ u} ℓ_i. The sum is exact (`math.fsum`), so it depends neither on the order of the records
    nor on where they stood in a batch. A unit without records has loss 0; one non-finite record makes its unit NaN.
    """

    objective: RecordObjective
    unit_records: Sequence[Indices]  # records of unit u

    def losses(self, records: Indices) -> Losses:
        """Loss of each named *unit*, shape (B,)."""
        members = self._members(records)
        return _means(self.objective.losses(_joined(members)), members)

    @property
    def variants(self) -> int:
        """The number of settings of the trainable part that the objective over records evaluates at a time."""
        return self.objective.variants if isinstance(self.objective, VariantObjective) else 1

    @property
    def planned_passes(self) -> int:
        """How many micro-batches the objective over records evaluates at least."""
        return self.objective.planned_passes if isinstance(self.objective, PaddedObjective) else 0

    def variant_losses(self, records: Indices, weights: Weights) -> Losses:
        """Loss of each given unit at each of V settings, shape (V, B). TypeError if the objective takes only one."""
        if not isinstance(self.objective, VariantObjective):
            raise TypeError("this objective takes one setting at a time")
        members = self._members(records)
        values = self.objective.variant_losses(_joined(members), weights)
        return np.stack([_means(np.asarray(own, dtype=np.float64), members) for own in values])

    def forget(self) -> None:
        """Drop what the objective over records holds for the last requested records."""
        if isinstance(self.objective, ForgetfulObjective):
            self.objective.forget()

    def evaluate_filling(self) -> None:
        """Evaluate a micro-batch that holds no record, where the objective over records can."""
        if isinstance(self.objective, FillableObjective):
            self.objective.evaluate_filling()

    def _members(self, records: Indices) -> list[Indices]:
        return [np.asarray(self.unit_records[int(unit)], dtype=np.int64) for unit in records]


def _joined(members: Sequence[Indices]) -> Indices:
    return np.concatenate(members) if members else np.zeros(0, dtype=np.int64)


def _means(values: Losses, members: Sequence[Indices]) -> Losses:
    result = np.zeros(len(members), dtype=np.float64)
    start = 0
    for place, own in enumerate(members):
        part = values[start : start + len(own)]
        start += len(own)
        if len(own):
            result[place] = math.fsum(part) / len(own) if np.isfinite(part).all() else math.nan
    return result


def group_units(unit_of_record: Indices, num_units: int, most: int | None = None) -> tuple[Indices, ...]:
    """Records of each unit, ascending, from each record's unit number in 0 … num_units − 1; ValueError outside it.

    At most the first `most` of each: which of a unit's records are used depends on that unit alone, so data sets that
    differ in one unit still do.
    """
    numbers = np.asarray(unit_of_record, dtype=np.int64)
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= num_units):
        raise ValueError("units are numbered 0 … num_units − 1")  # no figure: a count of the file's is private
    order = np.argsort(numbers, kind="stable")
    bounds = np.searchsorted(numbers[order], np.arange(num_units + 1))
    return tuple(order[bounds[unit] : bounds[unit + 1]][:most] for unit in range(num_units))
