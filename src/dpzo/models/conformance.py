"""Check that dpzo's losses and predictions equal those of the original libraries on one unpadded record at a time.

dpzo pads and batches rows; the libraries decide by defaults which token a classifier reads, where positions start and
what a mask hides. A default that differs shows as a different loss.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpzo.errors import DpzoError
from dpzo.models.batching import Encoded
from dpzo.models.encoder import EncoderClassifier
from dpzo.models.isolation import RowShape, lively, moved, synthetic_rows
from dpzo.models.models import LoadedModel
from dpzo.models.objectives import FeatureObjective, Losses, TokenObjective
from dpzo.models.quiet import silent_libraries
from dpzo.models.virtual_tokens import unwrapped

RECORDS = 6
"""Synthetic records that are compared: the longest, the shortest, and four between."""
ROUNDING: dict[torch.dtype, float] = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.1}
"""Largest difference of two losses that is put down to rounding, in nats; times the loss where that is above 1.

A padded row is multiplied in another order than an unpadded one. The largest seen in fp32: 2e-6, over 35 families.
"""


@dataclass(frozen=True, repr=False)
class Plain:
    """The library's result for one unpadded record: its loss, and its class or option (−1 for a completion)."""

    loss: float
    best: int
    scores: NDArray[np.float64]  # (classes,), or the log-probabilities of the answers' tokens


def plain_results(module: nn.Module, encoded: Encoded) -> list[Plain]:
    """Every record of `encoded` by the library's own forward, without padding, mask, positions or neighbours.

    Loss: −log softmax of the class; −(1/n) Σ log p(token) over the n scored tokens; for options the cross-entropy of
    their mean log-probabilities.
    """
    results = []
    with silent_libraries(), torch.no_grad():
        for record in range(len(encoded)):
            rows = range(record * encoded.options, (record + 1) * encoded.options)
            scores = [_row_scores(module, encoded, row) for row in rows]
            if encoded.form == "completion":
                mean = float(scores[0].mean()) if len(scores[0]) else 0.0
                results.append(Plain(-mean, -1, scores[0]))
                continue
            table = scores[0] if encoded.options == 1 else np.array([score.mean() for score in scores])
            shifted = table - table.max()
            loss = float(np.log(np.exp(shifted).sum()) - shifted[int(encoded.targets[record])])
            results.append(Plain(loss, int(table.argmax()), table))
    return results


def _row_scores(module: nn.Module, encoded: Encoded, row: int) -> NDArray[np.float64]:
    """Scores of one row: of the classes, of the label words at the mask, or log-probabilities of scored tokens."""
    length, width = int(encoded.lengths[row]), encoded.max_length
    first = width - length if encoded.left_padded else 0
    own = slice(first, first + length)
    device = next(module.parameters()).device
    ids = torch.from_numpy(encoded.tokens[row, own].astype(np.int64))[None].to(device)
    types = None
    if encoded.token_types is not None:
        types = torch.from_numpy(encoded.token_types[row, own].astype(np.int64))[None].to(device)
    logits = plain_logits(module, ids, types)[0]
    if encoded.form == "classes":
        return _numbers(logits)
    if encoded.form == "mask":
        assert encoded.mask_positions is not None
        return _numbers(logits[int(encoded.mask_positions[row])][list(encoded.word_ids)])
    scored = np.arange(length) >= length - int(encoded.answer_lengths[row])
    if encoded.scored is not None:
        scored = np.concatenate((np.zeros(width - encoded.max_answer_tokens, np.bool_), encoded.scored[row]))[own]
    chosen = torch.log_softmax(logits[:-1], dim=-1).gather(-1, ids[0, 1:, None])[:, 0]
    return _numbers(chosen)[scored[1:]]


def plain_logits(module: nn.Module, ids: Tensor, types: Tensor | None = None) -> Tensor:
    """fp32 logits of unpadded rows by the module's own forward: (1, C) of a classifier, else (1, L, vocabulary)."""
    inputs: dict[str, Any] = {"input_ids": ids}
    if isinstance(module, EncoderClassifier):
        accepts = _accepts(module.encoder, "token_type_ids")
        if types is not None and accepts:
            inputs["token_type_ids"] = types
        # Not by `pool`: the lines of the README that is saved beside the model.
        hidden: Tensor = module.encoder(**inputs).last_hidden_state.float()
        return torch.nn.functional.normalize(hidden.mean(dim=1), dim=-1) @ module.head.weight.T + module.head.bias
    if types is not None and _accepts(module, "token_type_ids"):
        inputs["token_type_ids"] = types
    logits: Tensor = module(**inputs).logits
    return logits.float()


def _accepts(module: nn.Module, name: str) -> bool:
    return name in inspect.signature(unwrapped(module).forward).parameters


def _numbers(values: Tensor) -> NDArray[np.float64]:
    result: NDArray[np.float64] = values.double().cpu().numpy()
    return result


MakeObjective = Callable[[Encoded], TokenObjective | FeatureObjective]


def check_conformance(loaded: LoadedModel, make: MakeObjective, shape: RowShape, examples: Encoded) -> None:
    """Refuse a model whose losses are not finite, blind to the input or the weights, or not those of the plain library.

    `make(encoded)` is the production objective; `examples` the task's public examples. Everything is compared at
    weights where nothing trained is zero, on synthetic tokens and on the examples. Public, on this machine's kernels.
    Errors: `DpzoError` naming the cause and the fix.
    """
    for encoded in (synthetic_rows(shape, RECORDS), examples):
        objective = make(encoded)
        units = np.arange(len(encoded), dtype=np.int64)
        _require_finite(loaded, objective.losses(units))
        with lively(loaded.module, loaded.trainable_names):
            ours = objective.losses(units)
            plain = plain_results(loaded.module, encoded)
            _require_same(loaded, encoded, ours, plain)
            if encoded is not examples:
                _require_sight(loaded, encoded, plain)
            if encoded.form != "completion":
                _require_same_classes(loaded, encoded, objective, plain)
            with moved(loaded.module, loaded.trainable_names):
                if np.array_equal(objective.losses(units), ours):
                    raise DpzoError(
                        f"--trainable {loaded.trainable}: moving what it names changes no loss on synthetic records, "
                        "so training would spend the privacy budget on nothing; choose another part of the model"
                    )


def _require_finite(loaded: LoadedModel, losses: Losses) -> None:
    if np.isfinite(losses).all():
        return
    narrow = loaded.storage.dtype == "float16"
    mend = (
        "activations overflow in float16; use --set model.dtype=bfloat16 or float32"
        if narrow
        else "its weights or its configuration are damaged; use another copy of the model"
    )
    raise DpzoError(
        f"--model {loaded.base_name}: its losses on synthetic records are not finite (NaN or infinite) before any "
        f"training: {mend}"
    )


def _require_same(loaded: LoadedModel, encoded: Encoded, ours: Losses, plain: list[Plain]) -> None:
    theirs = np.array([result.loss for result in plain])
    theirs[encoded.empty] = 0.0
    apart = np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs))
    if np.isfinite(theirs).all() and bool((apart <= tolerance(loaded)).all()):
        return
    worst = int(np.nanargmax(np.where(np.isfinite(apart), apart, np.inf)))
    raise _other_than_plain(
        loaded, f"the loss of a public record is {ours[worst]:.6g} in a padded batch and {theirs[worst]:.6g} alone"
    )


def _require_same_classes(
    loaded: LoadedModel, encoded: Encoded, objective: TokenObjective | FeatureObjective, plain: list[Plain]
) -> None:
    found = objective.predict(np.arange(len(encoded), dtype=np.int64))
    for ours, result in zip(found, plain, strict=True):
        top = np.sort(result.scores)
        clear = top[-1] - top[-2] > 2 * tolerance(loaded) * max(1.0, abs(float(top[-1])))
        if clear and int(ours) != result.best:
            raise _other_than_plain(loaded, f"a public record is class {int(ours)} here and {result.best} alone")


def _require_sight(loaded: LoadedModel, encoded: Encoded, plain: list[Plain]) -> None:
    """Scores of different records differ, whatever the head; else it reads a place that no record reaches."""
    if encoded.form not in ("classes", "mask"):
        return
    table = np.array([result.scores for result in plain])
    if len(table) > 1 and bool((np.ptp(table, axis=0) <= 1e-7 * np.abs(table).max()).all()):
        raise DpzoError(
            f"--model {loaded.base_name}: its output is the same for every synthetic record, so the head cannot see "
            "its input and nothing can be learned; check the model's weights and its padding token"
        )


def _other_than_plain(loaded: LoadedModel, what: str) -> DpzoError:
    config = getattr(unwrapped(getattr(loaded.module, "encoder", loaded.module)), "config", None)
    family = getattr(config, "model_type", "model")
    mend = "Use another model, or a tokenizer whose padding token ends no text"
    if loaded.trainable in ("prefix", "prompt"):
        mend = "Train lora instead: this family does not take virtual tokens before padded rows"
    return DpzoError(
        f"--model {loaded.base_name}: {family} does not conform to the plain library ({what}); it reads the padding, "
        f"its positions or a padding token other than declared. {mend}"
    )


def tolerance(loaded: LoadedModel) -> float:
    """The difference that rounding may cause, given how the model is held."""
    dtypes = {parameter.dtype for parameter in loaded.module.parameters() if parameter.dtype in ROUNDING}
    held = max((ROUNDING[dtype] for dtype in dtypes), default=ROUNDING[torch.float32])
    return held if loaded.storage.quantization == "none" else max(held, ROUNDING[torch.bfloat16])
