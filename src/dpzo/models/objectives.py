"""Objectives: per-example losses of selected records at the module's current weights, for zeroth-order steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpzo.errors import DpzoError
from dpzo.models.batching import Encoded, MicroBatch, filling, microbatches
from dpzo.models.encoder import EncoderClassifier
from dpzo.models.eval_batch import num_settings, over_variants
from dpzo.models.frozen_cache import FrozenPrefix, Keep, SharedPrefix
from dpzo.models.losses import mean_answer_log_prob, mean_scored_log_prob
from dpzo.models.measures import Measure, answer_measure, check_measure, class_measure
from dpzo.models.quiet import silent_libraries
from dpzo.models.virtual_tokens import unwrapped, virtual_prompt
from dpzo.zo.stack import Weights

Losses = NDArray[np.float64]
Indices = NDArray[np.int64]


class RecordObjective(Protocol):
    """Any function from a model and records to one number a record, smaller being better.

    A zeroth-order step asks for values only, so the number may be an accuracy, an F1 score or the verdict of a program:
    nothing is differentiated. What an objective must keep: number i is a function of the weights and record i alone,
    bit for bit (no batch statistics, no padding to the longest record, no state), and has no side effect. NaN and ±inf
    are allowed, and count as a row of zeros. Clipping bounds a record's influence, so no bound on the number is
    needed.
    """

    def losses(self, records: Indices, /) -> Losses:
        """Loss of each named record, shape (B,), in nats; (0,) for none."""
        ...


class Predictor(Protocol):
    """Classes of records, for evaluation."""

    def predict(self, records: Indices) -> Indices:
        """Class or option of the highest score, shape (B,); −1 where the scores are not finite."""
        ...


class TokenObjective:
    """Runs the module on token rows, in micro-batches of one shape.

    With `prefix_layers` the lowest layers, where nothing learns, run once for the records of a step or (`keep` = run)
    once a record, and their output is shared by all evaluations: the same bits, in less time. With `variants` above 1
    an estimator hands over so many settings of the trainable part at a time, for one pass over a shared base.
    With `planned_passes` an evaluation takes at least so many micro-batches; those without records hold dummy rows.

    Guarantee: the loss of record i is a function of the weights and record i, bit for bit, on a shape that
    `isolation.check_isolation` has passed, for an unchanged thread count. An empty record's loss is 0 at every θ.
    """

    def __init__(
        self,
        module: nn.Module,
        encoded: Encoded,
        microbatch_size: int,
        measure: Measure = "loss",
        *,
        prefix_layers: int = 0,
        keep: Keep = "batch",
        variants: int = 1,
        planned_passes: int = 0,
    ) -> None:
        if microbatch_size < 1:
            raise DpzoError(f"microbatch_size is {microbatch_size}: it must be at least 1")
        self.module = module
        self.encoded = encoded
        self.microbatch_size = microbatch_size
        self.planned_passes = planned_passes
        self.variants = variants
        self.measure = check_measure(measure, encoded.form)
        if encoded.scored is not None and measure != "loss":
            raise DpzoError(f"--objective {measure}: is not for chats; leave it out")
        self._accepted = frozenset(inspect.signature(unwrapped(module).forward).parameters)
        self._shared: SharedPrefix | None = None
        if prefix_layers and keep != "none":
            frozen = FrozenPrefix(module, prefix_layers)
            self._shared = SharedPrefix(frozen, encoded, microbatch_size, self._device, planned_passes=planned_passes)
            if keep == "run":
                with silent_libraries(), torch.no_grad():
                    self._shared.keep_for_run(self.logits)

    def __repr__(self) -> str:
        return f"TokenObjective({self.encoded!r}, microbatch_size={self.microbatch_size})"

    def losses(self, records: Indices) -> Losses:
        """Loss of each record at the module's present weights, shape (B,), float64 holding fp32 or better."""
        result = np.zeros(len(records), dtype=np.float64)
        for batch, logits in self.run(records):
            values = self.record_losses(batch, logits)
            result[batch.start : batch.start + batch.count] = values[: batch.count].double().cpu().numpy()
        result[self.encoded.empty[np.asarray(records, dtype=np.int64)]] = 0.0
        return result

    def variant_losses(self, records: Indices, weights: Weights) -> Losses:
        """Loss of each record at each of V settings of the trainable part, shape (V, B); as `losses` up to rounding."""
        result = np.zeros((num_settings(weights), len(records)), dtype=np.float64)
        for batch, logits in self.run(records, weights):
            for own, table in zip(result, logits, strict=True):
                values = self.record_losses(batch, table)
                own[batch.start : batch.start + batch.count] = values[: batch.count].double().cpu().numpy()
        result[:, self.encoded.empty[np.asarray(records, dtype=np.int64)]] = 0.0
        return result

    def predict(self, records: Indices) -> Indices:
        """Class or option of the highest score, shape (B,); −1 where the scores are not finite."""
        if self.encoded.form == "completion":
            raise DpzoError("a completion task has no classes to predict; compare its losses")
        result = np.full(len(records), -1, dtype=np.int64)
        for batch, logits in self._run_whole(records, self.logits):
            table = logits if self.encoded.form in ("classes", "mask") else self._answer_scores(batch, logits)
            result[batch.start : batch.start + batch.count] = _argmax(table)[: batch.count]
        return result

    def run(self, records: Indices, weights: Weights | None = None) -> Iterator[tuple[MicroBatch, Tensor]]:
        """(micro-batch, logits) pairs; logits are (m, C), or (m · options, max_answer_tokens + 1, vocabulary).

        With `weights`, V settings of the trainable part, they are those of each setting, a dimension of V before all.
        """
        logits = self.logits if weights is None else partial(self._variant_logits, weights)
        if self._shared is None:
            yield from self._run_whole(records, logits)
            return
        with silent_libraries(), torch.no_grad():
            yield from self._shared.evaluate(records, logits)

    def forget(self) -> None:
        """Drop the frozen layers' output for the last requested records; output kept for the run stays."""
        if self._shared is not None:
            self._shared.forget()

    def evaluate_filling(self) -> None:
        """Evaluate a micro-batch that holds no record: shows whether the machine can evaluate any."""
        with silent_libraries(), torch.no_grad():
            batch = filling(self.encoded, self.microbatch_size, self._device)
            self.record_losses(batch, self.logits(batch))

    def _run_whole(
        self, records: Indices, logits: Callable[[MicroBatch], Tensor]
    ) -> Iterator[tuple[MicroBatch, Tensor]]:
        with silent_libraries(), torch.no_grad():
            size, device = self.microbatch_size, self._device
            for batch in microbatches(self.encoded, records, size, device, self.planned_passes):
                yield batch, logits(batch)

    def _variant_logits(self, weights: Weights, batch: MicroBatch) -> Tensor:
        return over_variants(self.module, partial(self.logits, batch), weights)

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device

    def logits(self, batch: MicroBatch) -> Tensor:
        """Logits of one micro-batch at the module's present weights, through all its layers, graph and all."""
        return self._mask_logits(batch) if self.encoded.form == "mask" else self._logits(batch)

    def _mask_logits(self, batch: MicroBatch) -> Tensor:
        """Logits of the label words at the mask, (m, C) fp32; the output layer sees the mask's column alone."""
        assert batch.mask_positions is not None
        places = batch.mask_positions
        rows = torch.arange(len(places), device=places.device)
        width = batch.input_ids.shape[1]

        def at_mask(_layer: nn.Module, arguments: tuple[Any, ...]) -> Any:
            hidden = arguments[0]
            return (hidden[rows, places][:, None], *arguments[1:]) if hidden.shape[:2] == (len(rows), width) else None

        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        output_layer: Any = unwrapped(self.module)
        hook = output_layer.get_output_embeddings().register_forward_pre_hook(at_mask)
        try:
            logits: Tensor = self.module(**inputs).logits
        finally:
            hook.remove()
        chosen = logits[:, 0] if logits.shape[1] == 1 else logits[rows, places]
        return chosen[:, list(self.encoded.word_ids)].float()

    def _logits(self, batch: MicroBatch) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        prompt = virtual_prompt(self.module)
        if batch.token_types is not None and "token_type_ids" in self._accepted:
            inputs["token_type_ids"] = batch.token_types
        if "use_cache" in self._accepted:
            inputs["use_cache"] = False
        if self.encoded.form == "classes":
            output: Any = self.module(**inputs)
            classes: Tensor = output if isinstance(output, Tensor) else output.logits
            return classes.float()
        if "position_ids" in self._accepted:
            inputs["position_ids"] = batch.position_ids
        needed = self.encoded.max_answer_tokens + 1
        if "logits_to_keep" in self._accepted:
            inputs["logits_to_keep"] = needed
        model: Any = self.module if prompt is None else prompt.model
        with ExitStack() as hooks:
            output_layer = getattr(unwrapped(self.module), "get_output_embeddings", lambda: None)()
            if output_layer is not None:
                hooks.callback(output_layer.register_forward_pre_hook(partial(_last_columns, needed)).remove)
            logits: Tensor = model(**(inputs if prompt is None else prompt.before(inputs, self._accepted))).logits
        return logits[:, -needed:, :]

    def record_losses(self, batch: MicroBatch, logits: Tensor) -> Tensor:
        """Losses (or what `measure` asks for) of a micro-batch's records, filling included, shape (m,)."""
        if batch.scored is not None:
            return -mean_scored_log_prob(logits, batch.input_ids, batch.scored)
        if self.encoded.form == "completion":
            return answer_measure(self.measure, logits, batch.input_ids, batch.answer_lengths)
        scores = self._answer_scores(batch, logits) if self.encoded.form == "options" else logits
        return class_measure(self.measure, scores, batch.targets)

    def _answer_scores(self, batch: MicroBatch, logits: Tensor) -> Tensor:
        """Mean log-probability of each option, shape (m, options)."""
        scores = mean_answer_log_prob(logits, batch.input_ids, batch.answer_lengths)
        return scores.reshape(-1, self.encoded.options)


class FeatureObjective:
    """A frozen encoder's features, computed once and kept in memory, and the linear head on top of them.

    Features too large for memory are stored in an unlinked, owner-only file (`prepare.kept_features`). Guarantee, empty
    records and `planned_passes` (of the head) as in `TokenObjective`.
    """

    def __init__(
        self,
        module: EncoderClassifier,
        features: Tensor,
        targets: Indices,
        empty: NDArray[np.bool_],
        microbatch_size: int,
        measure: Measure = "loss",
        *,
        variants: int = 1,
        planned_passes: int = 0,
    ) -> None:
        if microbatch_size < 1:
            raise DpzoError(f"microbatch_size is {microbatch_size}: it must be at least 1")
        self.module = module
        self.microbatch_size = microbatch_size
        self.planned_passes = planned_passes
        self.variants = variants
        self.measure = check_measure(measure, "classes")
        self.features = features
        self.targets = torch.from_numpy(np.array(targets, dtype=np.int64)).to(features.device)
        self.empty = empty
        self._kept: tuple[bytes | None, list[tuple[Tensor, Tensor]]] = (None, [])

    def __repr__(self) -> str:
        return f"FeatureObjective(microbatch_size={self.microbatch_size})"

    def losses(self, records: Indices) -> Losses:
        """Loss of each record at the head's present weights, shape (B,), float64 holding fp32."""
        result = np.zeros(len(records), dtype=np.float64)
        with torch.no_grad():
            for start, (features, targets) in enumerate(self._blocks(records)):
                values = class_measure(self.measure, self.module.head(features), targets).cpu().numpy()
                place = slice(start * self.microbatch_size, (start + 1) * self.microbatch_size)
                result[place] = values[: len(result[place])]
        result[self.empty[np.asarray(records, dtype=np.int64)]] = 0.0
        return result

    def variant_losses(self, records: Indices, weights: Weights) -> Losses:
        """Loss of each record at each of V settings of the head, shape (V, B): one product a block for all of them."""
        head = self.module.head
        count, classes = num_settings(weights), head.out_features
        matrix = weights.get("head.weight", head.weight.expand(count, -1, -1)).reshape(count * classes, -1)
        offset = weights.get("head.bias", head.bias.expand(count, -1)).reshape(-1)
        result = np.zeros((count, len(records)), dtype=np.float64)
        with torch.no_grad():
            for block, (features, targets) in enumerate(self._blocks(records)):
                logits = nn.functional.linear(features, matrix, offset).reshape(-1, classes)  # a row's settings in turn
                values = class_measure(self.measure, logits, targets.repeat_interleave(count)).cpu()
                place = slice(block * self.microbatch_size, (block + 1) * self.microbatch_size)
                table = values.reshape(-1, count).T.numpy()
                result[:, place] = table[:, : result[:, place].shape[1]]
        result[:, self.empty[np.asarray(records, dtype=np.int64)]] = 0.0
        return result

    def predict(self, records: Indices) -> Indices:
        """Class of the highest logit, shape (B,); −1 where the logits are not finite."""
        result = np.full(len(records), -1, dtype=np.int64)
        with torch.no_grad():
            for start, (features, _) in enumerate(self._blocks(records)):
                place = slice(start * self.microbatch_size, (start + 1) * self.microbatch_size)
                result[place] = _argmax(self.module.head(features))[: len(result[place])]
        return result

    def forget(self) -> None:
        """Drop the blocks of the last requested records; the features stay."""
        self._kept = (None, [])

    def evaluate_filling(self) -> None:
        """Evaluate a block that holds no record: shows whether the machine can evaluate any."""
        with torch.no_grad():
            features = self.features.new_zeros((self.microbatch_size, self.features.shape[1]))
            class_measure(self.measure, self.module.head(features), self.targets.new_zeros(self.microbatch_size))

    def _blocks(self, records: Indices) -> list[tuple[Tensor, Tensor]]:
        """The records' features in blocks of one shape, zeros after the last; the latest request is remembered.

        A step asks for the same records 2K times.
        """
        chosen = np.ascontiguousarray(records, dtype=np.int64)
        key = chosen.tobytes()
        if self._kept[0] != key:
            size = self.microbatch_size
            blocks = []
            for start in range(0, max(len(chosen), self.planned_passes * size), size):
                rows = torch.from_numpy(chosen[start : start + size]).to(self.features.device)
                features = self.features.new_zeros((size, self.features.shape[1]))
                features[: len(rows)] = self.features[rows]
                targets = self.targets.new_zeros(size)
                targets[: len(rows)] = self.targets[rows]
                blocks.append((features, targets))
            self._kept = (key, blocks)
        return self._kept[1]


def compute_features(
    module: EncoderClassifier, encoded: Encoded, microbatch_size: int, records: Indices | None = None
) -> Tensor:
    """Features of `records` (all of them unless named), shape (B, D), fp32, on the module's device.

    In micro-batches of one shape.

    Law: row i depends on record i alone, on a shape that the isolation check has passed.
    """
    device = next(module.parameters()).device
    width = module.head.in_features
    chosen = np.arange(len(encoded), dtype=np.int64) if records is None else records
    features = torch.zeros((len(chosen), width), dtype=torch.float32, device=device)
    with silent_libraries(), torch.no_grad():
        for batch in microbatches(encoded, chosen, microbatch_size, device):
            extra = {} if batch.token_types is None else {"token_type_ids": batch.token_types}
            found = module.features(batch.input_ids, batch.attention_mask, **extra)
            features[batch.start : batch.start + batch.count] = found[: batch.count]
    return features


def _last_columns(needed: int, _layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The columns whose logits are requested, in contiguous memory.

    A slice would be multiplied row by row, with the whole vocabulary read from memory for each; and `contiguous` does
    not see the variants that lie between two rows.
    """
    hidden: Tensor = arguments[0]
    columns = hidden[:, -needed:] if hidden.ndim == 3 else hidden
    return (columns.clone(memory_format=torch.contiguous_format), *arguments[1:])


def _argmax(scores: Tensor) -> Indices:
    best = torch.where(torch.isfinite(scores).all(dim=-1), scores.argmax(dim=-1), -1)
    result: Indices = best.cpu().numpy()
    return result
