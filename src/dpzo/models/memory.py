"""How much memory a step is planned to take."""

from __future__ import annotations

import math
from typing import Any

import torch

from dpzo.models.frozen_cache import HELD_AT_MOST, STATES_ABOVE
from dpzo.models.isolation import RowShape
from dpzo.models.models import LoadedModel, unwrap
from dpzo.models.shapes import Shapes


def evaluation_memory(loaded: LoadedModel, shape: RowShape, shapes: Shapes) -> int:
    """Bytes that each further setting of the trainable part takes when several go through one pass together."""
    parameters = dict(loaded.module.named_parameters())
    trained = sum(parameters[name].numel() for name in loaded.trainable_names)
    if shapes.head_block is not None:
        return 4 * trained + 12 * shapes.head_block * (1 if loaded.num_labels is None else loaded.num_labels)
    return 4 * trained + _activations(loaded, shape, shapes.microbatch_size)


def _activations(loaded: LoadedModel, shape: RowShape, microbatch_size: int) -> int:
    """Bytes of a micro-batch's activations and logits.

    At a layer's peak its input, three projections, attention's output and the wide inner vector live, in fp32.
    """
    model: Any = unwrap(loaded.module)
    hidden = int(getattr(model.config, "hidden_size", 0))
    wide = getattr(model.config, "intermediate_size", None)
    inner = wide if isinstance(wide, int) else 4 * hidden
    rows = microbatch_size * (shape.num_classes if shape.form == "options" else 1)
    activations = 4 * rows * shape.max_length * (6 * hidden + 2 * inner)
    return activations + (
        0 if shape.form in ("classes", "mask") else 8 * rows * (shape.max_answer_tokens + 1) * shape.vocabulary
    )


def kept_memory(
    loaded: LoadedModel, shape: RowShape, shapes: Shapes, expected_batch_size: float, num_examples: int
) -> int:
    """Bytes of the frozen layers' output that are held: of a step's records, and of the run's while they fit in memory.

    None where nothing is shared; a kept head's features are not counted here.
    """
    if shapes.prefix_layers == 0:
        return 0
    model: Any = unwrap(loaded.module)
    width: int = torch.finfo(loaded.storage.torch_dtype).bits // 8 * int(getattr(model.config, "hidden_size", 0))
    record = (shape.num_classes if shape.form == "options" else 1) * shape.max_length * width
    batch = math.ceil(expected_batch_size / shapes.microbatch_size) * shapes.microbatch_size * record
    run = num_examples * record if shapes.keep == "run" else 0
    return min(batch, HELD_AT_MOST) + (run if run <= STATES_ABOVE else 0)
