"""Build a run's objective from a loaded model and encoded records, at shapes that pass the isolation check."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpzo.data.spool import ArraySpool
from dpzo.errors import DpzoError
from dpzo.models.batching import Encoded, MicroBatch
from dpzo.models.encoder import EncoderClassifier
from dpzo.models.frozen_cache import FrozenPrefix, Keep, frozen_depth
from dpzo.models.isolation import RowShape, choose_microbatch, lively, moved, synthetic_rows
from dpzo.models.measures import Measure
from dpzo.models.models import LoadedModel
from dpzo.models.objectives import (
    FeatureObjective,
    Indices,
    Losses,
    RecordObjective,
    TokenObjective,
    compute_features,
)
from dpzo.zo.parameters import TrainableParameters
from dpzo.zo.shift_check import check_shift
from dpzo.zo.stack import Weights

FEATURES_ABOVE = 1 << 29
"""Bytes of features that are held in memory; beyond, they are stored in an unlinked, owner-only temporary file."""

HEAD_BLOCKS = (256, 128, 512, 64, 32, 8, 1)
"""Records a block when only a head is evaluated; tried in this order."""


@dataclass(frozen=True)
class Shapes:
    """Sizes at which records are isolated from each other, for a number of threads. Public: no record decides them."""

    microbatch_size: int  # records in one pass through the whole module
    head_block: int | None  # records in one pass through the head, when features are kept
    num_threads: int  # the check holds for this many
    prefix_layers: int = 0  # lowest layers whose output all evaluations share; 0: nothing to share, or not wanted
    keep: Keep = "none"  # how long that output is kept
    variants: int = 1  # settings of the trainable part that go through one pass together
    planned_passes: int = 0  # micro-batches that an evaluation takes at least; 0: as many as its records fill

    @property
    def rows(self) -> int:
        """Records in one pass of an evaluation."""
        return self.microbatch_size if self.head_block is None else self.head_block


def keeps_features(loaded: LoadedModel) -> bool:
    """Whether nothing but the head of an encoder learns, so that features are computed once and kept in memory."""
    return isinstance(loaded.module, EncoderClassifier) and all(n.startswith("head.") for n in loaded.trainable_names)


def isolated_shapes(loaded: LoadedModel, shape: RowShape, preferred: int | None = None, keep: Keep = "none") -> Shapes:
    """The first sizes that pass the isolation check on public synthetic tokens, the preferred one tried first.

    `keep` asks for the frozen lower layers' output to be shared; it is, where the losses keep their bits. What is kept
    for a run passes the isolation check itself. It depends on declarations only. Errors: `DpzoError` when no size
    passes, or when something is to be kept for the run and nothing can be.
    """
    module = loaded.module
    depth = 0 if keep == "none" or keeps_features(loaded) else _frozen_depth(loaded, shape)
    kept_for_run = depth if keep == "run" else 0

    def make(rows: Encoded, size: int) -> RecordObjective:
        if isinstance(module, EncoderClassifier) and keeps_features(loaded):
            return FeatureProbe(module, rows, size)
        return TokenProbe(module, rows, size, states_of=kept_for_run)

    with lively(module, loaded.trainable_names):
        if loaded.has_experts:  # an expert's number of rows depends on the other records
            size = choose_microbatch(make, shape, candidates=(1,))
        else:
            size = choose_microbatch(make, shape, preferred)
        if depth and not _shares_bits(loaded, shape, size, depth, keep):
            depth = 0
    if keep == "run" and depth == 0 and not keeps_features(loaded):
        raise DpzoError(
            "training.frozen_cache run: no layer lies wholly below what learns, so nothing can be kept; leave it out, "
            "or let upper layers alone learn (--set model.lora_layers=top:2)"
        )
    head_block = _head_block(loaded) if keeps_features(loaded) else None
    return Shapes(size, head_block, torch.get_num_threads(), depth, keep if depth else "none")


def _frozen_depth(loaded: LoadedModel, shape: RowShape) -> int:
    """`prefix.frozen_depth`, read off one synthetic record."""
    objective = TokenObjective(loaded.module, synthetic_rows(shape, 1), 1)
    one = np.zeros(1, dtype=np.int64)
    return frozen_depth(loaded.module, loaded.trainable_names, lambda: objective.losses(one), objective.encoded.options)


def _shares_bits(loaded: LoadedModel, shape: RowShape, size: int, depth: int, keep: Keep) -> bool:
    """Whether all bits that reach a loss are the same when the lowest layers ran before the weights moved.

    Checked on synthetic records; what is kept for the run meets other neighbours and dummy rows as well.
    """
    rows = synthetic_rows(shape, 2 * size)
    whole = TokenProbe(loaded.module, rows, size)
    shared = TokenProbe(loaded.module, rows, size, prefix_layers=depth, keep=keep)
    first = np.arange(2 * size - size // 2, dtype=np.int64)
    for records in (first, first[::-1]) if keep == "run" else (first,):
        shared.losses(records)
        with moved(loaded.module, loaded.trainable_names):
            if shared.losses(records).tobytes() != whole.losses(records).tobytes():
                return False
    return True


def settle_shift(parameters: TrainableParameters, synthetic: RecordObjective, records: int) -> None:
    """Hold shifted weights by layers or slices where that gives the right bits, else whole.

    Some families read a weight outside the call of the layer that owns it, and a shift held by layers would miss it.
    `synthetic` is the production objective over at least `records` public synthetic records.
    """
    if parameters.effective_materialise() == "all":
        parameters.materialise = "all"
        return
    units = np.arange(records, dtype=np.int64)
    parameters.materialise = check_shift(parameters, lambda: synthetic.losses(units)).held


def make_objective(
    loaded: LoadedModel, encoded: Encoded, shapes: Shapes, measure: Measure = "loss"
) -> TokenObjective | FeatureObjective:
    """The objective over `encoded`; with a frozen encoder its features are computed here, once, and kept in memory."""
    if shapes.head_block is None:
        return TokenObjective(
            loaded.module,
            encoded,
            shapes.microbatch_size,
            measure,
            prefix_layers=shapes.prefix_layers,
            keep=shapes.keep,
            variants=shapes.variants,
            planned_passes=shapes.planned_passes,
        )
    module = loaded.module
    assert isinstance(module, EncoderClassifier)
    features = kept_features(module, encoded, shapes.microbatch_size)
    return FeatureObjective(
        module,
        features,
        encoded.targets,
        encoded.empty,
        shapes.head_block,
        measure,
        variants=shapes.variants,
        planned_passes=shapes.planned_passes,
    )


def kept_features(
    module: EncoderClassifier, encoded: Encoded, microbatch_size: int, map_above: int = FEATURES_ABOVE
) -> torch.Tensor:
    """`compute_features` of all records, shape (N, D); beyond `map_above` bytes, on a CPU, in a mapped file.

    The same bits either way, as features of a record depend on it alone.
    """
    total = len(encoded) * module.head.in_features * 4
    if total <= map_above or next(module.parameters()).device.type != "cpu":
        return compute_features(module, encoded, microbatch_size)
    spool, block = ArraySpool(map_above=0), 64 * microbatch_size
    for start in range(0, len(encoded), block):
        part = np.arange(start, min(start + block, len(encoded)), dtype=np.int64)
        spool.append(compute_features(module, encoded, microbatch_size, part).numpy())
    return torch.from_numpy(spool.finish())


def synthetic_objective(loaded: LoadedModel, shape: RowShape, shapes: Shapes) -> TokenObjective | FeatureObjective:
    """The production objective over one pass of public synthetic records, to be timed: never the user's data."""
    module = loaded.module
    if shapes.head_block is None:
        rows, size = synthetic_rows(shape, shapes.microbatch_size), shapes.microbatch_size
        depth, variants = shapes.prefix_layers, shapes.variants
        return TokenObjective(module, rows, size, prefix_layers=depth, keep=shapes.keep, variants=variants)
    assert isinstance(module, EncoderClassifier)
    return synthetic_head(module, head_rows(module, shapes.head_block), shapes.head_block, shapes.variants)


def synthetic_head(module: EncoderClassifier, rows: Encoded, block: int, variants: int = 1) -> FeatureObjective:
    """The production objective of a head over public random unit vectors, with the targets of `rows`."""
    draw = torch.Generator().manual_seed(len(rows))
    vectors = torch.rand((len(rows), module.head.in_features), generator=draw) - 0.5
    features = torch.nn.functional.normalize(vectors, dim=-1).to(next(module.parameters()).device)
    return FeatureObjective(module, features, rows.targets, rows.empty, block, variants=variants)


def head_rows(module: EncoderClassifier, records: int) -> Encoded:
    """Synthetic records for a head: their classes count, their tokens do not."""
    shape = RowShape("classes", max_length=4, vocabulary=2, num_classes=module.head.out_features)
    return synthetic_rows(shape, records)


def _head_block(loaded: LoadedModel) -> int:
    """The first block size at which the head alone isolates records, tried on public random unit vectors."""
    module = loaded.module
    assert isinstance(module, EncoderClassifier)
    shape = RowShape("classes", max_length=4, vocabulary=2, num_classes=module.head.out_features)
    with lively(module, loaded.trainable_names):
        return choose_microbatch(lambda rows, size: synthetic_head(module, rows, size), shape, candidates=HEAD_BLOCKS)


class TokenProbe:
    """Stands in for an objective in the isolation check: its "loss" is a checksum over all bits that reach the loss.

    A change in the last bit of a logit is mostly rounded away in the loss of the day, and shows in that of another.
    With `states_of` the bits that leave that many lowest layers count as well: they are what is kept for a run. With
    `weights` those of a record at all the settings in it, which are evaluated together.
    """

    def __init__(
        self,
        module: nn.Module,
        encoded: Encoded,
        microbatch_size: int,
        *,
        prefix_layers: int = 0,
        keep: Keep = "none",
        states_of: int = 0,
        weights: Weights | None = None,
    ) -> None:
        self._objective = TokenObjective(module, encoded, microbatch_size, prefix_layers=prefix_layers, keep=keep)
        self._frozen = FrozenPrefix(module, states_of) if states_of else None
        self._weights = weights

    def losses(self, records: Indices) -> Losses:
        """One 64-bit checksum a record, worn as a float: only its bits have a meaning."""
        sums = np.zeros(len(records), dtype=np.int64)
        for batch, logits in self._objective.run(records, self._weights):
            states = self._states(batch)
            place = slice(batch.start, batch.start + batch.count)
            for own in (logits,) if self._weights is None else logits:
                sums[place] = 31 * sums[place] + self._sums(batch, own, states)[: batch.count]
        result: Losses = sums.view(np.float64)
        return result

    def _sums(self, batch: MicroBatch, logits: torch.Tensor, states: NDArray[np.int64]) -> NDArray[np.int64]:
        """Checksums of the micro-batch's records at one setting of the weights."""
        options = self._objective.encoded.options
        losses = self._objective.record_losses(batch, logits).double().cpu().numpy().view(np.int64)
        table = logits.float().cpu().numpy()
        result = np.zeros(len(losses), dtype=np.int64)
        for place in range(batch.count):
            total = int(losses[place])
            for row in range(place * options, (place + 1) * options):
                scored = int(batch.answer_lengths[row])
                used = table[row] if table.ndim == 2 else table[row, table.shape[1] - 1 - scored : -1]
                total = 31 * total + int(_checksum(used.reshape(1, -1))[0]) + int(states[row])
            result[place] = (total + 2**63) % 2**64 - 2**63
        return result

    def _states(self, batch: MicroBatch) -> NDArray[np.int64]:
        """Checksums of the hidden states of each row, zeros where they are not kept."""
        rows = len(batch.input_ids)
        if self._frozen is None:
            return np.zeros(rows, dtype=np.int64)
        states = self._frozen.states(lambda: self._objective.logits(batch))
        return _checksum(states.reshape(rows, -1).float().cpu().numpy())


class FeatureProbe:
    """The like for an encoder whose features are kept: a checksum over all bits of a record's features."""

    def __init__(self, module: EncoderClassifier, encoded: Encoded, microbatch_size: int) -> None:
        self._module, self._encoded, self._size = module, encoded, microbatch_size

    def losses(self, records: Indices) -> Losses:
        """One 64-bit checksum a record, worn as a float: only its bits have a meaning."""
        features = compute_features(self._module, self._encoded, self._size, records)
        result: Losses = _checksum(features.cpu().numpy()).view(np.float64)
        return result


def _checksum(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Σ_j (2j + 1)² · bits(v_j) modulo 2⁶⁴ for each row: one changed bit always shows, as the weights are odd."""
    odd = 2 * np.arange(values.shape[1], dtype=np.int64) + 1
    result: NDArray[np.int64] = (np.ascontiguousarray(values).view(np.int32) * (odd * odd)).sum(axis=1)
    return result
