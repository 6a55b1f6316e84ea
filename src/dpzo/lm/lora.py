"""Low-rank adapters by PEFT, started from the public seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn

from dpzo.errors import DpzoError
from dpzo.lm.encoder import EncoderClassifier

_QUERY_VALUE = (("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"), ("query_key_value",), ("c_attn",))
"""Names of query and value projections in families that PEFT's own table leaves out."""


@dataclass(frozen=True)
class LoraSettings:
    """Shape of the adapters: ΔW = (alpha / rank) · B A, with A (rank, in) and B (out, rank). There is no dropout."""

    rank: int = 8
    alpha: int = 16
    target: tuple[str, ...] | None = None  # names of the layers to adapt; None: query and value projections

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise DpzoError(f"lora.rank is {self.rank}: it must be at least 1")


def add_lora(
    module: nn.Module,
    settings: LoraSettings,
    architecture: str,
    new_names: tuple[str, ...],
    initialiser: Callable[[str, tuple[int, ...]], Tensor],
) -> tuple[nn.Module, list[str], list[str]]:
    """Wrap `module` (the encoder of an `EncoderClassifier`) by PEFT; return it, the trained and the made-up names.

    A is uniform on ±1/√in (Kaiming's rule with slope √5, the library's own choice), B is zero: the start computes
    what the base computes. A classifier is trained with the adapters, and saved in the adapter's folder.
    """
    inner: nn.Module = module.encoder if isinstance(module, EncoderClassifier) else module
    task = {
        "causal": TaskType.CAUSAL_LM,
        "sequence-classifier": TaskType.SEQ_CLS,
        "encoder": TaskType.FEATURE_EXTRACTION,
    }
    fresh = sorted({name.split(".")[-3] for name in new_names if "pooler" in name}) if architecture != "encoder" else []
    try:
        adapted = _wrap(inner, settings, task[architecture], fresh, None)
    except ValueError:  # PEFT has no table entry for this family, or a target names no layer
        adapted = _wrap(inner, settings, task[architecture], fresh, _query_value(inner))
    if isinstance(module, EncoderClassifier):
        module.encoder = adapted
        whole: nn.Module = module
    else:
        whole = adapted
    made: list[str] = []
    trained: list[str] = []
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if ".lora_" in name:
                if ".lora_A." in name or ".lora_embedding_A." in name:
                    bound = 1.0 / math.sqrt(parameter.shape[1])
                    parameter.copy_(initialiser(name, tuple(parameter.shape)) * bound)
                else:
                    parameter.zero_()
                made.append(name)
                trained.append(name)
            elif name in ("head.weight", "head.bias"):
                trained.append(name)
            elif ".modules_to_save." in name:
                trained.append(name)
                if name.removeprefix("base_model.model.").replace(".modules_to_save.default", "") in new_names:
                    made.append(name)
    return whole, trained, made


def _wrap(
    model: nn.Module, settings: LoraSettings, task: TaskType, fresh: list[str], target: list[str] | None
) -> nn.Module:
    chosen = target if settings.target is None else list(settings.target)
    config = LoraConfig(
        task_type=task,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=chosen,
        modules_to_save=fresh if fresh else None,
    )
    try:
        wrapped: Any = get_peft_model(model, config)
    except ValueError:
        if settings.target is None and target is None:
            raise
        names = ", ".join(chosen) if chosen else "none"
        raise DpzoError(f"lora.target: no layer of the model is named {names}; name the layers to adapt") from None
    result: nn.Module = wrapped
    return result


def _query_value(model: nn.Module) -> list[str]:
    present = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    for names in _QUERY_VALUE:
        if present.issuperset(names):
            return list(names)
    raise DpzoError("lora.target: the model's query and value layers are not known by name; name the layers to adapt")
