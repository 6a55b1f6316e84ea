"""Losses with an autograd graph, which first-order methods need from an objective and zeroth-order ones do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpzo.errors import DpzoError
from dpzo.models import FeatureObjective, TokenObjective, UnitObjective
from dpzo.models.batching import MicroBatch, microbatches
from dpzo.models.losses import class_cross_entropy
from dpzo.zo import Objective

Indices = NDArray[np.int64]


@dataclass(frozen=True, repr=False)
class Pass:
    """One pass through the module: `count` records, each `rows_per_record` of the `rows` that its layers process.

    `losses()` runs it and gives (count,) fp32 or float64 losses that can be differentiated; row i of a layer's batch
    belongs to record i // rows_per_record, and rows beyond count · rows_per_record are padding.
    """

    count: int
    rows_per_record: int
    rows: int
    losses: Callable[[], Tensor]


@runtime_checkable
class DifferentiableObjective(Protocol):
    """An objective whose losses have gradients. Loss i depends on the weights and record i alone."""

    def passes(self, records: Indices, microbatch_size: int, /) -> Iterator[Pass]:
        """The records in order, at most `microbatch_size` per pass; no pass for no records."""
        ...


@dataclass(frozen=True, repr=False)
class GradientSource:
    """A differentiable objective per record, and the records of each unit (None: unit i is record i)."""

    objective: DifferentiableObjective
    members: Callable[[int], Indices] | None
    microbatch_size: int

    def owned(self, units: Indices) -> tuple[Indices, Indices, NDArray[np.float64]]:
        """Records of `units`; for each its unit's place in `units`, and its weight 1/n of that unit's n records."""
        if self.members is None:
            return units, np.arange(len(units), dtype=np.int64), np.ones(len(units))
        held = [np.asarray(self.members(int(unit)), dtype=np.int64) for unit in units]
        counts = np.array([len(own) for own in held], dtype=np.int64)
        places = np.repeat(np.arange(len(units), dtype=np.int64), counts)
        return np.concatenate([np.zeros(0, dtype=np.int64), *held]), places, 1.0 / counts[places]


def differentiable(objective: Objective, microbatch_size: int | None = None) -> GradientSource:
    """The gradient source of an objective. Raises DpzoError if there is none."""
    members: Callable[[int], Indices] | None = None
    inner: object = objective
    if isinstance(inner, UnitObjective):
        members, inner = inner.unit_records.__getitem__, inner.objective
    if isinstance(inner, TokenObjective | FeatureObjective):
        if inner.measure != "loss":
            raise DpzoError(f"--objective {inner.measure}: has no gradient; first-order methods need the loss")
        own = inner.microbatch_size
        by_record = _Tokens(inner) if isinstance(inner, TokenObjective) else _Features(inner)
        return GradientSource(by_record, members, own if microbatch_size is None else microbatch_size)
    if isinstance(inner, DifferentiableObjective):
        return GradientSource(inner, members, 32 if microbatch_size is None else microbatch_size)
    raise DpzoError("objective: gives values and no gradients; first-order methods need a differentiable loss")


@dataclass(frozen=True, repr=False)
class _Tokens:
    """The whole module on token rows, as in `TokenObjective.losses`, without its `no_grad`."""

    objective: TokenObjective

    def passes(self, records: Indices, microbatch_size: int, /) -> Iterator[Pass]:
        encoded, device = self.objective.encoded, next(self.objective.module.parameters()).device
        for batch in microbatches(encoded, records, microbatch_size, device):
            blank = encoded.empty[records[batch.start : batch.start + batch.count]]
            yield Pass(batch.count, encoded.options, len(batch.input_ids), partial(self._losses, batch, blank))

    def _losses(self, batch: MicroBatch, blank: NDArray[np.bool_]) -> Tensor:
        return _without(self.objective.record_losses(batch, self.objective.logits(batch))[: batch.count], blank)


@dataclass(frozen=True, repr=False)
class _Features:
    """The head on cached features, as in `FeatureObjective.losses`."""

    objective: FeatureObjective

    def passes(self, records: Indices, microbatch_size: int, /) -> Iterator[Pass]:
        for start in range(0, len(records), microbatch_size):
            chosen = np.ascontiguousarray(records[start : start + microbatch_size])
            yield Pass(len(chosen), 1, len(chosen), partial(self._losses, chosen))

    def _losses(self, chosen: Indices) -> Tensor:
        objective = self.objective
        rows = torch.from_numpy(chosen).to(objective.features.device)
        losses = class_cross_entropy(objective.module.head(objective.features[rows]), objective.targets[rows])
        return _without(losses, objective.empty[chosen])


def _without(losses: Tensor, blank: NDArray[np.bool_]) -> Tensor:
    """Losses set to zero, with a zero gradient, for rows without a training target."""
    keep = torch.from_numpy(~blank).to(losses.device)
    return torch.where(keep, losses, torch.zeros((), dtype=losses.dtype, device=losses.device))
