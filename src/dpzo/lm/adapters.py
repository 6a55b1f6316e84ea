"""PEFT's small parts beside a frozen base (LoRA, IA³, a prefix, a soft prompt), started from the public seed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dpzo.errors import DpzoError
from dpzo.lm.encoder import EncoderClassifier
from dpzo.lm.prefix import layer_stack
from dpzo.lm.quiet import silent_libraries

AdapterKind = Literal["lora", "ia3", "prefix", "prompt"]
ADAPTERS: tuple[AdapterKind, ...] = ("lora", "ia3", "prefix", "prompt")

_QUERY_VALUE = (("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"), ("query_key_value",), ("c_attn",))
"""Names of query and value projections in families that PEFT's own table leaves out."""
_KEY_VALUE_DOWN = (
    (("k_proj", "v_proj"), ("down_proj", "fc2", "dense_4h_to_h")),
    (("key", "value"), ("output.dense",)),
    (("key_proj", "value_proj"), ("output.dense",)),
    (("query_key_value",), ("dense_4h_to_h",)),
)
"""The same for IA³: keys and values, and the feed-forward's last layer under one of its names."""
_PREFIX_STD = 0.02


@dataclass(frozen=True)
class LoraSettings:
    """Shape of the adapters: ΔW = s · B A, with A (rank, in) and B (out, rank). There is no dropout.

    s = alpha / rank, or alpha / √rank for `root-rank` (rsLoRA), under which a larger rank does not shrink the update.
    """

    rank: int = 8
    alpha: int = 16
    target: tuple[str, ...] | None = None  # names of the layers to adapt; None: query and value projections
    scaling: Literal["rank", "root-rank"] = "rank"
    layers: str | None = None  # "top:2": the two topmost layers alone; None: all

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise DpzoError(f"lora.rank is {self.rank}: it must be at least 1")
        if self.layers is not None and re.fullmatch(r"top:[1-9][0-9]{0,5}", self.layers) is None:
            raise DpzoError("model.lora_layers: must be top:N with a whole number N, as in top:2 for the two topmost")


def add_adapter(
    kind: AdapterKind,
    module: nn.Module,
    architecture: str,
    new_names: tuple[str, ...],
    initialiser: Callable[[str, tuple[int, ...]], Tensor],
    lora: LoraSettings,
    virtual_tokens: int,
) -> tuple[nn.Module, list[str], list[str]]:
    """Wrap `module` (the encoder of an `EncoderClassifier`) by PEFT; return it, the trained and the made-up names.

    - `lora`: A uniform on ±1/√in (Kaiming's rule with slope √5, the library's own choice), B zero. `ia3`: ones. Both
      start as the base. A classifier's head is trained with them, and saved in the adapter's folder.
    - `prefix`: keys and values of `virtual_tokens` made-up tokens in every layer, of standard deviation 0.02. `prompt`:
      their embeddings, copied from words of the vocabulary that the public seed picks. For causal models.

    Errors: `DpzoError` when a target names no layer, the family's layers are unknown, or the model takes no prompt.
    """
    if kind in ("prefix", "prompt") and architecture != "causal":
        raise DpzoError(f"--trainable {kind}: is for causal language models; use lora, ia3, full or head")
    inner: nn.Module = module.encoder if isinstance(module, EncoderClassifier) else module
    fresh = sorted({name.split(".")[-3] for name in new_names if "pooler" in name}) if architecture != "encoder" else []
    adapted = _wrapped(kind, inner, architecture, fresh, lora, virtual_tokens)
    if isinstance(module, EncoderClassifier):
        module.encoder = adapted
        whole: nn.Module = module
    else:
        whole = adapted
    made: list[str] = []
    trained: list[str] = []
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if ".lora_" in name or ".ia3_" in name or name.startswith("prompt_encoder."):
                _start(kind, name, parameter, inner, initialiser)
                made.append(name)
                trained.append(name)
            elif name in ("head.weight", "head.bias"):
                trained.append(name)
            elif ".modules_to_save." in name:
                trained.append(name)
                if name.removeprefix("base_model.model.").replace(".modules_to_save.default", "") in new_names:
                    made.append(name)
    return whole, trained, made


def _start(
    kind: AdapterKind,
    name: str,
    parameter: nn.Parameter,
    base: nn.Module,
    initialiser: Callable[[str, tuple[int, ...]], Tensor],
) -> None:
    """Fill one new parameter, which is kept in fp32 whatever the base is held in."""
    parameter.data = parameter.data.float()
    shape = tuple(parameter.shape)
    if kind == "ia3":
        parameter.fill_(1.0)
    elif kind == "prefix":
        parameter.copy_(initialiser(name, shape) * (math.sqrt(3.0) * _PREFIX_STD))
    elif kind == "prompt":
        model: Any = base
        words = model.get_input_embeddings().weight
        picks = ((initialiser(f"{name}/words", (shape[0],)) + 1.0) / 2.0 * len(words)).long().clamp(0, len(words) - 1)
        parameter.copy_(words[picks.to(words.device)].float())
    elif ".lora_A." in name or ".lora_embedding_A." in name:
        parameter.copy_(initialiser(name, shape) * (1.0 / math.sqrt(shape[1])))
    else:
        parameter.zero_()


def _wrapped(
    kind: AdapterKind, model: nn.Module, architecture: str, fresh: list[str], lora: LoraSettings, virtual_tokens: int
) -> nn.Module:
    with silent_libraries():
        import peft  # it brings in every library it could serve, so only what needs it pays

    task: Any = {
        "causal": peft.TaskType.CAUSAL_LM,
        "masked": None,
        "sequence-classifier": peft.TaskType.SEQ_CLS,
        "encoder": peft.TaskType.FEATURE_EXTRACTION,
    }[architecture]
    saved = fresh if fresh else None
    if kind == "prefix":
        return _apply(model, peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=virtual_tokens))
    if kind == "prompt":
        return _apply(model, peft.PromptTuningConfig(task_type=task, num_virtual_tokens=virtual_tokens))
    if kind == "ia3":

        def scaled(layers: tuple[list[str], list[str]] | None) -> nn.Module:
            targets: dict[str, Any] = {}
            if layers is not None:
                targets = {"target_modules": [*layers[0], *layers[1]], "feedforward_modules": layers[1]}
            return _apply(model, peft.IA3Config(task_type=task, modules_to_save=saved, **targets))

        try:
            return scaled(None)
        except ValueError:  # PEFT has no table entry for this family
            return scaled(_key_value_down(model))

    def low_rank(target: list[str] | None) -> nn.Module:
        config = peft.LoraConfig(
            task_type=task,
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=0.0,
            use_rslora=lora.scaling == "root-rank",
            bias="none",
            target_modules=target,
            modules_to_save=saved,
            **_only_layers(model, lora.layers),
        )
        return _apply(model, config)

    if lora.target is not None:
        try:
            return low_rank(list(lora.target))
        except ValueError:
            names = ", ".join(lora.target) if lora.target else "none"
            raise DpzoError(f"lora.target: no layer of the model is named {names}; name the layers to adapt") from None
    try:
        return low_rank(None)
    except ValueError:
        return low_rank(_query_value(model))


def _only_layers(model: nn.Module, chosen: str | None) -> dict[str, Any]:
    """PEFT's words for `top:N`: the numbers of the N topmost layers, and the name of the list that they stand in."""
    if chosen is None:
        return {}
    count, stack = int(chosen.removeprefix("top:")), layer_stack(model)
    found = 0 if stack is None else len(stack.layers)
    if stack is None or count > found:
        raise DpzoError(f"model.lora_layers {chosen}: the model has {found} layers in a list; choose at most that many")
    return {
        "layers_to_transform": list(range(found - count, found)),
        "layers_pattern": stack.name.rsplit(".", 1)[-1],
    }


def _apply(model: nn.Module, config: Any) -> nn.Module:
    import peft

    return cast(nn.Module, peft.get_peft_model(cast(Any, model), config))


def _query_value(model: nn.Module) -> list[str]:
    present = _layer_names(model)
    for names in _QUERY_VALUE:
        if present.issuperset(names):
            return list(names)
    raise DpzoError("lora.target: the model's query and value layers are not known by name; name the layers to adapt")


def _key_value_down(model: nn.Module) -> tuple[list[str], list[str]]:
    present = _layer_names(model)
    for attention, feed_forward in _KEY_VALUE_DOWN:
        last = [name for name in feed_forward if name.rsplit(".", 1)[-1] in present]
        if present.issuperset(attention) and last:
            return list(attention), last[:1]
    raise DpzoError("--trainable ia3: the model's key and value layers are not known by name; use lora or a pattern")


def _layer_names(model: nn.Module) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
