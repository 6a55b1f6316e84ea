"""What would make a run faster or smaller: each change alone, with the factor that the forecast gives for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from dpzo.config.schema import RunConfig, with_values
from dpzo.errors import DpzoError
from dpzo.forecast.machine import processors
from dpzo.forecast.memory import MemoryForecast
from dpzo.forecast.timing import Clock, DirectionCost, TimeForecast, passes_of, threads
from dpzo.models import RowShape
from dpzo.models.encoder import EncoderClassifier
from dpzo.models.shapes import HEAD_BLOCKS, keeps_features
from dpzo.models.skeleton import Skeleton
from dpzo.zo import evaluations

LEAST_FACTOR = 1.05
"""A change that gains less is not worth a line."""
_SHORTEST = 8


@dataclass(frozen=True)
class Suggestion:
    """One change, as it would be typed; the whole run's time and memory with it alone; what it costs in return."""

    change: str
    faster: float  # run now ÷ run with it; 1 where time is not the point
    smaller: float  # memory now ÷ memory with it
    run_seconds: float
    needed_bytes: int
    price: str


@dataclass(frozen=True)
class Situation:
    """A run as it is planned, all of it public."""

    config: RunConfig  # filled
    skeleton: Skeleton
    shape: RowShape
    num_examples: int
    microbatch_size: int  # of the token passes
    shared_layers: int  # lowest layers whose output is shared now
    time: TimeForecast
    memory: MemoryForecast
    clock: Clock
    cost: DirectionCost
    cost_of: Callable[[str], DirectionCost]  # of another kind of directions
    memory_of: Callable[[RunConfig, RowShape], MemoryForecast]  # of another config at a row shape

    @property
    def head_only(self) -> bool:
        """Whether only a head on kept features learns."""
        return keeps_features(self.skeleton.model)

    @property
    def shift(self) -> float:
        """Seconds of making the shifted weights of one evaluation, whatever the number of micro-batches."""
        return self.cost.shift * self.skeleton.dimension


def suggest(now: Situation) -> tuple[Suggestion, ...]:
    """Every change that applies and gains at least `LEAST_FACTOR`, the fastest first, then what saves memory alone."""
    found: list[Suggestion] = []
    for attempt in _CHANGES:
        try:
            found.extend(attempt(now))
        except DpzoError:  # it cannot be done with this model
            continue
    worth = [one for one in found if one.faster >= LEAST_FACTOR or one.smaller >= LEAST_FACTOR]
    return tuple(sorted(worth, key=lambda one: (one.faster < LEAST_FACTOR, -one.faster, -one.smaller)))


def _as_time(
    now: Situation, change: str, price: str, memory: MemoryForecast | None = None, **changed: float
) -> Suggestion:
    """`changed` fields of the forecast, and what that makes of the run."""
    then = replace(now.time, **changed)  # type: ignore[arg-type]
    needed = now.memory.needed if memory is None else memory.needed
    return Suggestion(change, now.time.run / then.run, now.memory.needed / needed, then.run, needed, price)


def _fewer_directions(now: Situation) -> Iterator[Suggestion]:
    privacy, training = now.config.privacy, now.config.training
    count = privacy.num_directions
    assert count is not None
    if count < 2:
        return
    half = count // 2
    together = evaluations(training.estimator, count) / now.time.evaluations
    fewer = max(1, math.ceil(evaluations(training.estimator, half) / together))
    yield _as_time(
        now,
        f"--num-directions {half}",
        "a step's direction is a worse estimate of the gradient",
        evaluations=fewer,
        directions=now.time.directions * half / count,
        update=now.time.update * half / count,
    )


def _forward_differences(now: Situation) -> Iterator[Suggestion]:
    count = now.config.privacy.num_directions
    assert count is not None
    if now.config.training.estimator != "central" or count < 2:
        return
    together = evaluations("central", count) / now.time.evaluations
    yield _as_time(
        now,
        "--set training.estimator=forward",
        "slopes are off by a term of order φ, so φ wants to be smaller (docs/estimators.md)",
        evaluations=max(1, math.ceil(evaluations("forward", count) / together)),
        directions=now.time.directions / 2,
    )


def _prefix_for_the_run(now: Situation) -> Iterator[Suggestion]:
    training = now.config.training
    if now.shared_layers == 0 or training.prefix == "run" or training.constant_time or now.head_only:
        return
    records = math.ceil(now.num_examples / now.microbatch_size)
    drawn = now.time.steps * now.time.passes  # a record's layers are run when it is first drawn
    config = _with(now.config, "training", prefix="run")
    yield _as_time(
        now,
        "--set training.prefix=run",
        "hidden states of the private records are kept till the end, on disk when they are large",
        memory=now.memory_of(config, now.shape),
        first=now.time.further,
        once=now.time.once + min(records, drawn) * max(0.0, now.time.first - now.time.further),
    )


def _top_layers(now: Situation) -> Iterator[Suggestion]:
    layers = now.skeleton.checkpoint.num_layers
    model = now.config.model
    if model.trainable not in ("lora", "full") or model.lora_layers is not None or layers < 4 or now.shared_layers:
        return
    top = max(1, layers // 4)
    further = now.clock.seconds(now.shape, now.microbatch_size, layers - top)
    adapted = _with(now.config, "model", trainable="lora", lora_layers=f"top:{top}")
    lora = "" if model.trainable == "lora" else "--trainable lora "
    share = 1.0 if model.trainable == "lora" else 0.0  # adapters are small: their directions cost next to nothing
    rest = max(0.0, now.time.first - now.time.forward) * share * top / layers
    yield _as_time(
        now,
        f"{lora}--set model.lora_layers=top:{top}",
        f"the {layers - top} layers below stay as they are",
        memory=now.memory_of(adapted, now.shape),
        first=now.time.forward + rest,
        further=further + rest,
        directions=now.time.directions * share * top / layers,
        update=now.time.update * share * top / layers,
    )


def _head_alone(now: Situation) -> Iterator[Suggestion]:
    module = now.skeleton.model.module
    seconds = now.clock.head_seconds()
    if not isinstance(module, EncoderClassifier) or now.head_only or seconds is None:
        return
    yield _as_time(
        now,
        "--trainable head",
        "the encoder stays as it is; its features are computed once",
        memory=now.memory_of(_with(now.config, "model", trainable="head"), now.shape),
        forward=seconds,
        first=seconds,
        further=seconds,
        passes=passes_of(now.config, now.num_examples, HEAD_BLOCKS[0]),
        directions=0.0,
        update=0.0,
        once=math.ceil(now.num_examples / now.microbatch_size) * now.time.forward,
    )


def _shorter_rows(now: Situation) -> Iterator[Suggestion]:
    length = now.shape.max_length // 2
    if length < max(_SHORTEST, 2 * now.shape.max_answer_tokens):
        return
    shape = replace(now.shape, max_length=length)
    share = now.clock.seconds(shape, now.microbatch_size) / _pass_seconds(now)
    yield _scaled(now, f"--max-length {length}", "longer texts are cut", share, now.memory_of(now.config, shape))


def _other_microbatches(now: Situation) -> Iterator[Suggestion]:
    if now.head_only:
        return
    batch = now.config.privacy.expected_batch_size
    assert batch is not None
    for size in (2 * now.microbatch_size, now.microbatch_size // 2):
        if size < 1 or size > 2 * batch:
            continue
        share = now.clock.seconds(now.shape, size) / now.time.forward
        config = _with(now.config, "training", microbatch_size=size)
        memory = now.memory_of(config, now.shape)
        yield _as_time(
            now,
            f"--set training.microbatch_size={size}",
            "records must be isolated at that shape too: checked at start-up",
            memory=memory,
            forward=now.time.forward * share,
            first=max(0.0, now.time.first - now.time.forward) + now.time.forward * share,
            further=now.time.further * share,
            passes=passes_of(now.config, now.num_examples, size),
        )


def _plain_signs(now: Situation) -> Iterator[Suggestion]:
    kind = now.config.training.directions
    if kind in ("rademacher", "orthogonal"):
        return
    signs = now.cost_of("rademacher")
    saved = min(now.time.directions, now.time.directions * (1 - signs.shift / now.cost.shift))
    per_evaluation = saved / max(1.0, now.time.passes * now.time.evaluations)
    yield _as_time(
        now,
        "--set training.directions=rademacher",
        "another law of directions; none is known to learn better",
        first=max(0.0, now.time.first - per_evaluation),
        further=max(0.0, now.time.further - per_evaluation),
        directions=now.time.directions - saved,
        update=now.time.update * min(1.0, signs.update / now.cost.update),
    )


def _more_threads(now: Situation) -> Iterator[Suggestion]:
    count, used = processors(), torch.get_num_threads()
    if count <= used:
        return
    with threads(count):
        share = now.clock.seconds(now.shape, now.microbatch_size) / _pass_seconds(now)
    yield _scaled(now, f"OMP_NUM_THREADS={count}", "it gains less where others use the processors", share)


def _smaller_weights(now: Situation) -> Iterator[Suggestion]:
    model = now.config.model
    learns_base = model.trainable not in ("lora", "prefix", "prompt", "ia3", "head")
    if model.quantization != "none":
        return
    kinds = ["int8", "int4"] if not learns_base else []
    for kind in kinds:
        config = _with(now.config, "model", quantization=kind)
        yield _as_memory(
            now, config, f"--set model.quantization={kind}", "base weights are rounded; time not predicted"
        )
    if model.dtype == "float32":
        config = _with(now.config, "model", dtype="bfloat16")
        price = "16 bits; slower on processors without bf16 units"
        yield _as_memory(now, config, "--set model.dtype=bfloat16", price)


def _as_memory(now: Situation, config: RunConfig, change: str, price: str) -> Suggestion:
    needed = now.memory_of(config, now.shape).needed
    return Suggestion(change, 1.0, now.memory.needed / needed, now.time.run, needed, price)


def _scaled(now: Situation, change: str, price: str, share: float, memory: MemoryForecast | None = None) -> Suggestion:
    """All passes through the base take `share` of their time."""
    if now.head_only:
        return _as_time(now, change, price, memory, once=now.time.once * share)
    spent = max(0.0, now.time.first - now.time.forward)  # on shifted weights, which stays
    return _as_time(
        now,
        change,
        price,
        memory,
        forward=now.time.forward * share,
        first=spent + now.time.forward * share,
        further=now.time.further * share,
        once=now.time.once * share,
    )


def _pass_seconds(now: Situation) -> float:
    """A plain pass of one micro-batch through the whole model."""
    return now.clock.seconds(now.shape, now.microbatch_size) if now.head_only else now.time.forward


def _with(config: RunConfig, group: str, **values: object) -> RunConfig:
    return with_values(config, **{group: values})


_CHANGES: tuple[Callable[[Situation], Iterator[Suggestion]], ...] = (
    _fewer_directions,
    _forward_differences,
    _prefix_for_the_run,
    _top_layers,
    _head_alone,
    _shorter_rows,
    _other_microbatches,
    _plain_signs,
    _more_threads,
    _smaller_weights,
)
