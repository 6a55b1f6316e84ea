"""From a loaded model and encoded records to the objective of a run, with its isolation checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpzo.lm.batching import Encoded
from dpzo.lm.encoder import EncoderClassifier
from dpzo.lm.isolation import RowShape, choose_microbatch, lively
from dpzo.lm.models import LoadedModel
from dpzo.lm.objectives import (
    FeatureObjective,
    Indices,
    Losses,
    Objective,
    TokenObjective,
    compute_features,
)

HEAD_BLOCKS = (256, 128, 512, 64, 32, 8, 1)
"""Records a block when only a head is evaluated; tried in this order."""


@dataclass(frozen=True)
class PreparedObjective:
    """The objective of a run and the public facts of its shape; fit for a log, as it shows no record."""

    objective: TokenObjective | FeatureObjective
    microbatch_size: int  # records in one pass through the whole module
    head_block: int | None  # records in one pass through the head, when features are kept
    num_threads: int  # the isolation check holds for this many


def prepare_objective(
    loaded: LoadedModel, encoded: Encoded, *, microbatch_size: int | None = None
) -> PreparedObjective:
    """Choose a micro-batch shape that isolates records, then build the objective over `encoded`.

    With a frozen encoder and a linear head the features are computed here, once, and kept in memory. The check runs
    on public synthetic tokens and depends on declarations only. Errors: `DpzoError` when no shape passes.
    """
    module = loaded.module
    shape = RowShape.of(encoded, _vocabulary(module), _num_classes(loaded, encoded))
    keeps_features = isinstance(module, EncoderClassifier) and loaded.trainable == "head"
    make: Callable[[Encoded, int], Objective]
    if isinstance(module, EncoderClassifier) and keeps_features:
        encoder = module

        def make(rows: Encoded, size: int) -> Objective:
            return FeatureProbe(encoder, rows, size)

    else:

        def make(rows: Encoded, size: int) -> Objective:
            return TokenProbe(module, rows, size)

    with lively(module, loaded.trainable_names):
        size = choose_microbatch(make, shape, microbatch_size)
    threads = torch.get_num_threads()
    if not (isinstance(module, EncoderClassifier) and keeps_features):
        return PreparedObjective(TokenObjective(module, encoded, size), size, None, threads)
    block = choose_head_block(module, loaded)
    features = compute_features(module, encoded, size)
    objective = FeatureObjective(module, features, encoded.targets, encoded.empty, block)
    return PreparedObjective(objective, size, block, threads)


def choose_head_block(module: EncoderClassifier, loaded: LoadedModel) -> int:
    """The first block size at which the head alone isolates records, tried on public random unit vectors."""
    width = module.head.in_features
    classes = module.head.out_features
    shape = RowShape("classes", max_length=4, vocabulary=2, num_classes=classes)

    def make(rows: Encoded, size: int) -> Objective:
        draw = torch.Generator().manual_seed(len(rows))
        vectors = torch.rand((len(rows), width), generator=draw) - 0.5
        features = torch.nn.functional.normalize(vectors, dim=-1).to(loaded.device)
        return FeatureObjective(module, features, rows.targets, rows.empty, size)

    with lively(module, loaded.trainable_names):
        return choose_microbatch(make, shape, candidates=HEAD_BLOCKS)


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
        features = compute_features(self._module, _select(self._encoded, records), self._size)
        result: Losses = _checksum(features.cpu().numpy()).view(np.float64)
        return result


def _checksum(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Σ_j (2j + 1)² · bits(v_j) modulo 2⁶⁴ for each row: one changed bit always shows, as the weights are odd."""
    odd = 2 * np.arange(values.shape[1], dtype=np.int64) + 1
    result: NDArray[np.int64] = (np.ascontiguousarray(values).view(np.int32) * (odd * odd)).sum(axis=1)
    return result


def _select(encoded: Encoded, records: Indices) -> Encoded:
    """The named records of class form, in that order."""
    types: Any = encoded.token_types
    return Encoded(
        form="classes",
        tokens=encoded.tokens[records],
        token_types=None if types is None else types[records],
        lengths=encoded.lengths[records],
        answer_lengths=encoded.answer_lengths[records],
        targets=encoded.targets[records],
        empty=encoded.empty[records],
        options=1,
        max_answer_tokens=0,
        left_padded=False,
        pad_token_id=encoded.pad_token_id,
    )


def _vocabulary(module: nn.Module) -> int:
    model: Any = module.encoder if isinstance(module, EncoderClassifier) else module
    return int(model.get_input_embeddings().weight.shape[0])


def _num_classes(loaded: LoadedModel, encoded: Encoded) -> int:
    if encoded.form == "completion":
        return 1
    if encoded.form == "options":
        return encoded.options
    return 2 if loaded.num_labels is None else loaded.num_labels
