"""From a loaded model and encoded records to the objective of a run, with its isolation checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpzo.lm.batching import Encoded
from dpzo.lm.encoder import EncoderClassifier
from dpzo.lm.isolation import RowShape, choose_microbatch, lively, synthetic_rows
from dpzo.lm.measures import Measure
from dpzo.lm.models import LoadedModel
from dpzo.lm.objectives import (
    FeatureObjective,
    Indices,
    Losses,
    Objective,
    TokenObjective,
    compute_features,
)
from dpzo.spool import ArraySpool
from dpzo.zo.parameters import TrainableParameters
from dpzo.zo.shift import check_shift

FEATURES_ABOVE = 1 << 29
"""Bytes of features that are held in memory; beyond, they lie in an unlinked, owner-only temporary file."""

HEAD_BLOCKS = (256, 128, 512, 64, 32, 8, 1)
"""Records a block when only a head is evaluated; tried in this order."""


@dataclass(frozen=True)
class Shapes:
    """Sizes at which records are isolated from each other, for a number of threads. Public: no record decides them."""

    microbatch_size: int  # records in one pass through the whole module
    head_block: int | None  # records in one pass through the head, when features are kept
    num_threads: int  # the check holds for this many


def keeps_features(loaded: LoadedModel) -> bool:
    """Whether nothing but the head of an encoder learns, so that features are computed once and kept in memory."""
    return isinstance(loaded.module, EncoderClassifier) and all(n.startswith("head.") for n in loaded.trainable_names)


def isolated_shapes(loaded: LoadedModel, shape: RowShape, preferred: int | None = None) -> Shapes:
    """The first sizes that pass the isolation check on public synthetic tokens, the preferred one tried first.

    It depends on declarations only. Errors: `DpzoError` when no size passes.
    """
    module = loaded.module

    def make(rows: Encoded, size: int) -> Objective:
        if isinstance(module, EncoderClassifier) and keeps_features(loaded):
            return FeatureProbe(module, rows, size)
        return TokenProbe(module, rows, size)

    with lively(module, loaded.trainable_names):
        if loaded.has_experts:  # how many rows an expert multiplies at once hangs on what its neighbours say
            size = choose_microbatch(make, shape, candidates=(1,))
        else:
            size = choose_microbatch(make, shape, preferred)
    return Shapes(size, _head_block(loaded) if keeps_features(loaded) else None, torch.get_num_threads())


def settle_shift(parameters: TrainableParameters, synthetic: Objective, records: int) -> None:
    """Hold shifted weights whole where holding them a layer at a time would give other bits.

    Some families read a weight outside the call of the layer that owns it, and a shift held by layers would miss it.
    `synthetic` is the production objective over at least `records` public synthetic records.
    """
    if parameters.effective_materialise() == "all":
        parameters.materialise = "all"
        return
    units = np.arange(records, dtype=np.int64)
    parameters.materialise = (
        "layer" if check_shift(parameters, lambda: synthetic.losses(units)).layer_is_safe else "all"
    )


def make_objective(
    loaded: LoadedModel, encoded: Encoded, shapes: Shapes, measure: Measure = "loss"
) -> TokenObjective | FeatureObjective:
    """The objective over `encoded`; with a frozen encoder its features are computed here, once, and kept in memory."""
    if shapes.head_block is None:
        return TokenObjective(loaded.module, encoded, shapes.microbatch_size, measure)
    module = loaded.module
    assert isinstance(module, EncoderClassifier)
    features = kept_features(module, encoded, shapes.microbatch_size)
    return FeatureObjective(module, features, encoded.targets, encoded.empty, shapes.head_block, measure)


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
    if shapes.head_block is None:
        return TokenObjective(loaded.module, synthetic_rows(shape, shapes.microbatch_size), shapes.microbatch_size)
    return _synthetic_head(loaded, synthetic_rows(shape, shapes.head_block), shapes.head_block)


def _head_block(loaded: LoadedModel) -> int:
    """The first block size at which the head alone isolates records, tried on public random unit vectors."""
    assert isinstance(loaded.module, EncoderClassifier)
    shape = RowShape("classes", max_length=4, vocabulary=2, num_classes=loaded.module.head.out_features)
    with lively(loaded.module, loaded.trainable_names):
        return choose_microbatch(lambda rows, size: _synthetic_head(loaded, rows, size), shape, candidates=HEAD_BLOCKS)


def _synthetic_head(loaded: LoadedModel, rows: Encoded, block: int) -> FeatureObjective:
    assert isinstance(loaded.module, EncoderClassifier)
    draw = torch.Generator().manual_seed(len(rows))
    vectors = torch.rand((len(rows), loaded.module.head.in_features), generator=draw) - 0.5
    features = torch.nn.functional.normalize(vectors, dim=-1).to(loaded.device)
    return FeatureObjective(loaded.module, features, rows.targets, rows.empty, block)


class TokenProbe:
    """Stands in for an objective in the isolation check: its "loss" is a checksum over all bits that reach the loss.

    A change in the last bit of a logit is mostly rounded away in the loss of the day, and shows in that of another.
    """

    def __init__(self, module: nn.Module, encoded: Encoded, microbatch_size: int) -> None:
        self._objective = TokenObjective(module, encoded, microbatch_size)

    def losses(self, records: Indices) -> Losses:
        """One 64-bit checksum a record, worn as a float: only its bits have a meaning."""
        options = self._objective.encoded.options
        sums = np.zeros(len(records), dtype=np.int64)
        for batch, logits in self._objective.run(records):
            losses = self._objective.record_losses(batch, logits).double().cpu().numpy().view(np.int64)
            table = logits.float().cpu().numpy()
            for place in range(batch.count):
                total = int(losses[place])
                for row in range(place * options, (place + 1) * options):
                    scored = int(batch.answer_lengths[row])
                    used = table[row] if table.ndim == 2 else table[row, table.shape[1] - 1 - scored : -1]
                    total = 31 * total + int(_checksum(used.reshape(1, -1))[0])
                sums[batch.start + place] = (total + 2**63) % 2**64 - 2**63
        result: Losses = sums.view(np.float64)
        return result


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
