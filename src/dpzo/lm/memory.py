"""How much memory a step is planned to take."""

from __future__ import annotations

from typing import Any

from dpzo.lm.encoder import EncoderClassifier
from dpzo.lm.fingerprint import plain_tensors
from dpzo.lm.isolation import RowShape
from dpzo.lm.models import LoadedModel


def planned_memory(loaded: LoadedModel, shape: RowShape, microbatch_size: int) -> int:
    """Bytes of weights, of the largest shifted layer and of one micro-batch's activations: an estimate from shapes.

    At a layer's peak its input, three projections, attention's output and the wide inner vector live, in fp32.
    """
    module = loaded.module
    parameters = dict(module.named_parameters())
    weights = sum(t.numel() * t.element_size() for t in plain_tensors(parameters).values())
    largest = max(parameters[name].numel() for name in loaded.trainable_names)
    model: Any = module.encoder if isinstance(module, EncoderClassifier) else module
    hidden = int(getattr(model.config, "hidden_size", 0))
    wide = getattr(model.config, "intermediate_size", None)
    inner = wide if isinstance(wide, int) else 4 * hidden
    rows = microbatch_size * (shape.num_classes if shape.form == "options" else 1)
    activations = 4 * rows * shape.max_length * (6 * hidden + 2 * inner)
    logits = 0 if shape.form in ("classes", "mask") else 8 * rows * (shape.max_answer_tokens + 1) * shape.vocabulary
    return weights + 4 * largest + activations + logits
