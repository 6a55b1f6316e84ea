"""How much memory a run takes, from shapes alone, and alternatives if it does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dpzo.errors import DpzoError
from dpzo.forecast.machine import in_words
from dpzo.models import RowShape, evaluation_memory, kept_memory
from dpzo.models.encoder import EncoderClassifier
from dpzo.models.frozen_cache import Keep, layer_stack
from dpzo.models.shapes import FEATURES_ABOVE, HEAD_BLOCKS, Shapes, keeps_features
from dpzo.models.skeleton import Skeleton
from dpzo.zo import TrainableParameters, Update
from dpzo.zo.parameters import held_whole
from dpzo.zo.scratch import RING_BYTES

ALLOCATOR = 1.4
"""Memory that evaluations take from the system ÷ bytes of the tensors that live at their peak; docs/planner.md."""
FIRST_USE = 150 << 20
"""Bytes that libraries take when they are first used: compiled kernels, and buffers of the matrix products."""
PROGRAM = 520 << 20
"""Bytes that a process of dpzo holds once its libraries are imported: 515 or 516 MiB with torch 2.13 for CPUs.

A constant and not measured, so that a forecast is the same at each call; builds of torch for CUDA hold more."""
_LOGIT_BYTES = 8
_PROBE = 1024


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes. `peak_resident` is the process's peak resident size; `needed` must be free besides the program.

    `weights` as they are held, including `trainable`; `scratch` for shifted weights; `update_state` (momentum,
    averages, masters); `activations` of one micro-batch with its logits; `several`: at most what further settings
    evaluated in the same pass take (`training.eval_batch`); `kept`: cached output of frozen layers, or features;
    `loading`, `starting`: memory of those phases in addition to or instead of the rest. Saving takes no extra memory:
    files are written from the weights themselves.
    """

    weights: int
    trainable: int
    scratch: int
    update_state: int
    activations: int
    several: int
    kept: int
    loading: int  # in total
    starting: int  # besides weights and activations, while checking how to hold shifted weights
    mapped: int  # pages of the checkpoint's files, which the system reclaims when it needs them
    program: int  # the process before the model is loaded, and its libraries when first used

    @property
    def step(self) -> int:
        """Bytes during training."""
        return self.weights + self.scratch + self.update_state + self.activations + self.several + self.kept

    @property
    def phases(self) -> dict[str, int]:
        """Bytes in each phase."""
        return {
            "loading": self.loading,
            "starting": self.weights + self.starting + self.activations,
            "training": self.step,
        }

    @property
    def needed(self) -> int:
        """What must be free before the model is loaded."""
        return max(self.phases.values()) + FIRST_USE

    @property
    def peak_resident(self) -> int:
        """The peak that a task manager shows for a process of `dpzo train`: with the program, and files' pages."""
        phases = self.phases | {"loading": self.loading + self.mapped}
        return max(phases.values()) + self.program


def forecast_memory(
    skeleton: Skeleton,
    shape: RowShape,
    microbatch_size: int,
    *,
    update: Update,
    expected_batch_size: float,
    num_examples: int,
    keep: Keep = "none",
    together: int = 1,
) -> MemoryForecast:
    """The forecast of a run, from declared numbers and shapes. `together`: settings evaluated in one pass."""
    model = skeleton.model
    trainable = skeleton.trainable_bytes
    whole = held_whole(skeleton.dimension, skeleton.elements)
    turns = min(RING_BYTES, max(elements * dtype.itemsize for elements, dtype in skeleton.trainable))
    shifted = trainable if whole else max(skeleton.largest_shift, turns)
    activations = _activations(skeleton, shape, microbatch_size)
    state = int(sum(elements * state_bytes(update, dtype) for elements, dtype in skeleton.trainable))
    further = shifted + activations
    if isinstance(model.module, EncoderClassifier) and keeps_features(model):
        further = evaluation_memory(model, shape, Shapes(microbatch_size, HEAD_BLOCKS[0], 1))
        features = 4 * num_examples * model.module.head.in_features
        kept = features if features <= FEATURES_ABOVE else 0
    else:
        shapes = Shapes(microbatch_size, None, 1, frozen_layers(skeleton), keep)
        kept = kept_memory(model, shape, shapes, expected_batch_size, num_examples) if keep != "none" else 0
    same = skeleton.checkpoint.dtype in (None, model.storage.torch_dtype)
    files = skeleton.checkpoint.file_bytes
    return MemoryForecast(
        weights=skeleton.weights,
        trainable=trainable,
        scratch=shifted + skeleton.unpacked,
        update_state=state,
        activations=activations,
        several=(together - 1) * further,
        kept=kept,
        # Weights in the file's own dtype are memory-mapped; in another, all are created before any is packed.
        loading=skeleton.weights if same else max(skeleton.weights, skeleton.unquantised),
        starting=0 if whole else shifted + skeleton.largest_sliced,
        mapped=0 if files is None else files,
        program=PROGRAM + FIRST_USE,
    )


def _activations(skeleton: Skeleton, shape: RowShape, microbatch_size: int) -> int:
    """Bytes of a micro-batch's evaluation: by running it on shapes, or by a formula if a model does not support that.

    The formula assumes a layer's peak: its input, three projections, attention's output and the wide inner vector.
    """
    try:
        return int(ALLOCATOR * skeleton.activations(shape, microbatch_size))
    except Exception:  # a model's own code may read a value, in any way
        config = skeleton.checkpoint.config.get_text_config()
        hidden = int(getattr(config, "hidden_size", 0))
        wide = getattr(config, "intermediate_size", None)
        inner = wide if isinstance(wide, int) else 4 * hidden
        rows = microbatch_size * (shape.num_classes if shape.form == "options" else 1)
        live = 4 * rows * shape.max_length * (6 * hidden + 2 * inner)
        scored = 0 if shape.form in ("classes", "mask") else rows * (shape.max_answer_tokens + 1) * shape.vocabulary
        return int(ALLOCATOR * (live + _LOGIT_BYTES * scored))


def state_bytes(update: Update, dtype: torch.dtype) -> float:
    """Bytes of an update's state per trained element, measured on the state of a small stand-in."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(_PROBE, dtype=dtype), requires_grad=False)
    state = update.init(TrainableParameters(module, ["weight"]))
    return sum(t.numel() * t.element_size() for t in state.values() if t.numel() >= _PROBE) / _PROBE


def frozen_layers(skeleton: Skeleton) -> int:
    """The number of lowest layers with no trainable parameter in them or before them, by parameter names."""
    module = skeleton.model.module
    stack = layer_stack(module)
    if stack is None or skeleton.model.trainable in ("prefix", "prompt"):  # virtual tokens pass through every layer
        return 0
    learning = {id(p) for name, p in module.named_parameters() if name in set(skeleton.model.trainable_names)}
    inside = [[id(p) for p in layer.parameters()] for layer in stack.layers]
    order = [id(p) for p in module.parameters()]
    first = next((place for place, own in enumerate(order) if own in learning), None)
    within = {own for layer in inside for own in layer}
    if first is None or (order[first] not in within and any(own in within for own in order[first + 1 :])):
        return 0
    return next((index for index, own in enumerate(inside) if learning & set(own)), len(inside))


@dataclass(frozen=True)
class Alternative:
    """Another way to hold a model, and the memory that it would need."""

    words: str
    needed: int


def what_fits(available: int, needed: int, elements: int, tried: Sequence[Callable[[], Alternative]]) -> str:
    """One sentence on what would fit in `available` bytes; the alternatives are tried in order, at most three named.

    An impossible alternative (a `DpzoError`) is skipped. If none fits, the size of a model that would.
    """
    fitting: list[Alternative] = []
    least: Alternative | None = None
    for attempt in tried:
        try:
            found = attempt()
        except DpzoError:
            continue
        if found.needed <= available:
            fitting.append(found)
        if least is None or found.needed < least.needed:
            least = found
    if fitting:
        return "what fits: " + ", or ".join(f"{one.words} ({in_words(one.needed)})" for one in fitting[:3])
    if least is None or least.needed > needed:
        least = Alternative("the same settings", needed)
    size = max(0, available - FIRST_USE) / max(1, least.needed - FIRST_USE) * elements
    return f"even {least.words} needs {in_words(least.needed)}; a model of about {_count(size)} would fit so"


def _count(elements: float) -> str:
    """A parameter count in readable form, never rounded up.

    >>> _count(1.29e10), _count(4.6e6)
    ('12 billion parameters', '4 million parameters')
    """
    if elements >= 1e10:
        return f"{math.floor(elements / 1e9)} billion parameters"
    if elements >= 1e9:
        return f"{math.floor(elements / 1e8) / 10} billion parameters"
    return f"{math.floor(elements / 1e6)} million parameters"
