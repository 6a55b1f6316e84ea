"""From a filled config and a checkpoint's shapes to the run's memory; runs that do not fit are refused."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dpzo.config.reading import with_values
from dpzo.config.resolve import ResolvedConfig, resolve, resolve_model
from dpzo.config.schema import RunConfig
from dpzo.data.tasks import Task
from dpzo.errors import DpzoError
from dpzo.forecast.machine import available_memory, in_words
from dpzo.forecast.memory import Alternative, MemoryForecast, forecast_memory, what_fits
from dpzo.forecast.timing import passes_of
from dpzo.models import ADAPTERS, RowShape, Work
from dpzo.models.chat_tokens import chat_answer_tokens
from dpzo.models.eval_batch_choice import most_together
from dpzo.models.shapes import HEAD_BLOCKS, Shapes, keeps_features
from dpzo.models.skeleton import Checkpoint, Skeleton, build_skeleton, find_checkpoint
from dpzo.run.subject import lora_of, require_label_words, row_shape, storage_of, update_of
from dpzo.zo import evaluations
from dpzo.zo.parameters import held_whole

GUESSED_ANSWER_TOKENS = 2
"""Tokens of a label word where no tokenizer tells."""
ANY_RATE = 1e-3
"""A learning rate where the config leaves it open: no size depends on it."""


@dataclass(frozen=True)
class Sized:
    """A run's shapes and memory, before anything is loaded. All of it is public."""

    config: ResolvedConfig  # with an arbitrary learning rate if that is open
    task: Task
    num_examples: int
    skeleton: Skeleton
    shape: RowShape
    microbatch_size: int
    memory: MemoryForecast
    guessed: tuple[str, ...]  # what had to be estimated, in words

    @property
    def shifts_whole(self) -> bool:
        """Whether shifted weights are held all at once, and so computed once for all micro-batches of an evaluation."""
        return held_whole(self.skeleton.dimension, self.skeleton.elements)


def look_up(config: RunConfig, task: Task, base: str | None = None) -> Checkpoint:
    """The checkpoint of a config, by its configuration and tokenizer alone. Errors: `DpzoError`."""
    name = config.model.name if base is None else base
    prompted = task.mask_template is not None
    return find_checkpoint(name, task.kind, prompted=prompted, revision=config.model.revision)


def size_up(config: RunConfig, task: Task, checkpoint: Checkpoint, num_examples: int) -> Sized:
    """Shapes and memory of a run, from its model's configuration. Errors: `DpzoError` for errors visible in shapes."""
    skeleton = _skeleton(config, task, checkpoint)
    resolved = resolve(config, task, checkpoint.architecture, num_examples, learning_rate=ANY_RATE)
    require_label_words(task, skeleton.model)
    guessed: tuple[str, ...] = ()
    if checkpoint.tokenizer is None:
        shape, guessed = _guessed_shape(resolved, task, skeleton), ("tokens of the labels and of the vocabulary",)
    else:
        shape = row_shape(resolved, task, skeleton.model)
    size = resolved.training.microbatch_size
    sized = Sized(resolved, task, num_examples, skeleton, shape, size, _nothing(), guessed)
    return replace(sized, memory=memory_at(sized))


_SKELETONS: dict[Hashable, Skeleton] = {}
_SKELETONS_AT_MOST = 8


def _skeleton(config: RunConfig, task: Task, checkpoint: Checkpoint) -> Skeleton:
    """The model's shapes; a few are cached, as they are a function of the key and hold no weights."""
    model = resolve_model(config.model, checkpoint.architecture)
    lora, storage = lora_of(model), storage_of(model)
    settings = (task.labels, model.trainable, lora, model.virtual_tokens, storage)
    padding = None if checkpoint.tokenizer is None else checkpoint.tokenizer.pad_token_id
    key = (checkpoint.config.to_json_string(), checkpoint.kind, checkpoint.architecture, padding, settings)
    if key not in _SKELETONS:
        while len(_SKELETONS) >= _SKELETONS_AT_MOST:
            _SKELETONS.pop(next(iter(_SKELETONS)))
        _SKELETONS[key] = build_skeleton(
            checkpoint,
            labels=task.labels,
            trainable=model.trainable,
            lora=lora,
            virtual_tokens=model.virtual_tokens,
            storage=storage,
        )
    found = _SKELETONS[key]
    named = replace(found.model, tokenizer=checkpoint.tokenizer, base_name=checkpoint.name)
    return replace(found, checkpoint=checkpoint, model=named)


def memory_at(sized: Sized, shape: RowShape | None = None) -> MemoryForecast:
    """The memory of a sized run, or of the same at another row shape. A function of declarations and shapes alone."""
    config = sized.config
    batch = config.privacy.expected_batch_size
    if config.training.constant_time:
        batch = sized.microbatch_size * passes_of(config, sized.num_examples, sized.microbatch_size)
    shape = sized.shape if shape is None else shape
    return forecast_memory(
        sized.skeleton,
        shape,
        sized.microbatch_size,
        update=update_of(
            config.training, steps=config.privacy.steps, expected_batch_size=config.privacy.expected_batch_size
        ),
        expected_batch_size=batch,
        num_examples=sized.num_examples,
        keep=config.training.frozen_cache,
        together=_settings_together(sized, shape),
    )


def _settings_together(sized: Sized, shape: RowShape) -> int:
    """The most settings per pass that the start of the run may try; the number used depends on a measurement."""
    config, model = sized.config, sized.skeleton.model
    privacy, training = config.privacy, config.training
    frozen = model.storage.quantization == "none" and not model.has_experts
    if not frozen or model.trainable == "full" or not sized.shifts_whole:
        return 1
    shapes = Shapes(sized.microbatch_size, HEAD_BLOCKS[0] if keeps_features(model) else None, 1)
    rounds = math.ceil(privacy.expected_batch_size / shapes.rows)
    if training.constant_time:
        rounds = int(passes_of(config, sized.num_examples, shapes.rows))
    passes = privacy.steps * rounds
    work = Work(evaluations(training.estimator, privacy.num_directions), training.smoothing, passes)
    return max(1, most_together(model, shape, shapes, work, training.eval_batch))


def require_memory(sized: Sized, available: int | None = None) -> None:
    """Refuse a run that needs more memory than is available, and say what would fit; nothing has been loaded yet.

    `available`: bytes, by default as the machine reports; if it reports nothing, no run is refused.
    """
    free = available_memory() if available is None else available
    needed = sized.memory.needed
    if free is None or needed <= free:
        return
    tried = [partial(_alternative, sized, words, changes) for words, changes in _ways_out(sized.config)]
    fits = what_fits(free, needed, sized.skeleton.elements, tried)
    raise DpzoError(
        f"--model {sized.skeleton.checkpoint.name}: needs {in_words(needed)} of memory (its weights "
        f"{in_words(sized.memory.weights)}) and {in_words(free)} are free; {fits}"
    )


def size_up_if_possible(config: RunConfig, task: Task, num_examples: int, base: str | None = None) -> Sized | None:
    """`size_up`, or None for a model that cannot be read or built without weights: loading then reports the error."""
    try:
        return size_up(config, task, look_up(config, task, base), num_examples)
    except Exception:  # a model's own code may fail in any way without weights
        return None


def _ways_out(config: ResolvedConfig) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """Changes that save memory, the least intrusive first: a description, and values by group."""
    learns_base = config.model.trainable not in (*ADAPTERS, "head")
    ways: list[tuple[str, dict[str, dict[str, Any]]]] = []
    if config.training.microbatch_size > 1:
        ways.append(("--set training.microbatch_size=1", {"training": {"microbatch_size": 1}}))
    part: dict[str, Any] = {"trainable": "lora"} if learns_base else {}
    words = "--trainable lora"
    if learns_base:
        ways.append((words, {"model": part}))
    beside = f" {words}" if learns_base else ""
    if config.model.dtype == "float32" and config.model.quantization == "none":
        ways.append(("--set model.dtype=bfloat16", {"model": {"dtype": "bfloat16"}}))
        if learns_base:
            ways.append((f"--set model.dtype=bfloat16{beside}", {"model": part | {"dtype": "bfloat16"}}))
    for kind in ("int8", "int4"):
        if config.model.quantization in ("none", "int8") and config.model.quantization != kind:
            ways.append(
                (
                    f"--set model.dtype=bfloat16 --set model.quantization={kind}{beside}",
                    {"model": part | {"dtype": "bfloat16", "quantization": kind}},
                )
            )
    last = {"model": part | {"dtype": "bfloat16", "quantization": "int4"}, "training": {"microbatch_size": 1}}
    smallest = f"--set model.dtype=bfloat16 --set model.quantization=int4{beside} --set training.microbatch_size=1"
    return [*ways, (smallest, last)]


def _alternative(sized: Sized, words: str, changes: dict[str, dict[str, Any]]) -> Alternative:
    config = with_values(sized.config, **changes)
    return Alternative(words, size_up(config, sized.task, sized.skeleton.checkpoint, sized.num_examples).memory.needed)


def _guessed_shape(config: ResolvedConfig, task: Task, skeleton: Skeleton) -> RowShape:
    """`row_shape` for a configuration without a tokenizer."""
    data, model = config.data, skeleton.model
    classes = 1 if task.labels is None else len(task.labels)
    form, answers = "classes", 0
    if data.kind == "chat":
        form, answers = "completion", chat_answer_tokens(data.max_length)
    elif task.kind == "completion":
        form, answers = "completion", data.max_answer_tokens
    elif model.takes_options:
        form = "options"
        answers = data.max_answer_tokens if task.option_fields is not None else GUESSED_ANSWER_TOKENS
    elif model.takes_masks:
        form = "mask"
    return RowShape(
        form=form,  # type: ignore[arg-type]
        max_length=data.max_length,
        vocabulary=skeleton.checkpoint.vocabulary,
        num_classes=classes,
        max_answer_tokens=answers,
        left_padded=form in ("completion", "options"),
        with_token_types=form == "classes" and len(task.inputs) == 2,
        word_ids=tuple(range(classes)) if form == "mask" else (),
    )


def _nothing() -> MemoryForecast:
    return MemoryForecast(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
