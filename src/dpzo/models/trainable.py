"""The trainable part: new parameters, initialised from the public seed, and the names that the user selects."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dpzo.errors import DpzoError
from dpzo.models.encoder import EncoderClassifier
from dpzo.models.sources import Architecture
from dpzo.models.storage import is_quantised

Initialiser = Callable[[str, tuple[int, ...]], Tensor]
"""(parameter name, shape) → fp32 tensor, uniform on [−1, 1), a pure function of the public seed, name and shape.

The loader scales it to the range that each layer wants, so one distribution serves all.
"""


def initialise(module: nn.Module, names: Iterable[str], initialiser: Initialiser) -> None:
    """Fill fresh parameters: matrices uniform with the configuration's standard deviation, norms 1, the rest 0."""
    owner: Any = module.encoder if isinstance(module, EncoderClassifier) else module
    spread = getattr(owner.config, "initializer_range", None)
    bound = math.sqrt(3.0) * (0.02 if spread is None else spread)  # uniform on ±√3·s has standard deviation s
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name in names:
            parameter = parameters[name]
            if parameter.ndim >= 2:
                parameter.copy_(initialiser(name, tuple(parameter.shape)) * bound)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def trainable_names(
    module: nn.Module, trainable: str, architecture: Architecture, new_names: tuple[str, ...]
) -> list[str]:
    """Names of what is trained, in the module's own order; `named_parameters` lists a tied weight once."""
    parameters = dict(module.named_parameters())
    # Mean pooling passes the encoder's own pooler by: training it would only spend directions.
    unused = {key for key in parameters if isinstance(module, EncoderClassifier) and key.startswith("encoder.pooler.")}
    if trainable == "full":
        return [key for key in parameters if key not in unused]
    if trainable == "head":
        if isinstance(module, EncoderClassifier):
            return ["head.weight", "head.bias"]
        model: Any = module
        if architecture == "causal":
            head = {id(parameter) for parameter in model.get_output_embeddings().parameters()}
            return [key for key, parameter in parameters.items() if id(parameter) in head]
        prefix = f"{model.base_model_prefix}."
        return [key for key in parameters if not key.startswith(prefix) or key in new_names]
    try:
        pattern = re.compile(trainable)
    except re.error as error:
        raise DpzoError(
            f"--trainable: neither head, full, lora, prefix, prompt, ia3 nor a regular expression ({error})"
        ) from None
    found = [key for key in parameters if pattern.search(key) and key not in unused]
    if not found:
        example = next(iter(parameters))
        raise DpzoError(f"--trainable {trainable}: no parameter's name matches; names look like {example}")
    return found


def require_trainable(module: nn.Module, names: Iterable[str]) -> None:
    """Reject training a quantised weight: a step cannot move it on its grid."""
    parameters = dict(module.named_parameters())
    for name in names:
        if is_quantised(parameters[name]):
            raise quantised_is_frozen(name)


def quantised_is_frozen(name: str) -> DpzoError:
    """The error for training a quantised parameter, with the fix."""
    return DpzoError(
        f"--trainable: {name} is quantised, and quantised weights stay as they are; train lora, prefix or head"
    )
