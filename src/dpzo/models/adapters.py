"""PEFT adapters on a frozen base (LoRA, IA³, a prefix, a soft prompt), initialised from the public seed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dpzo.errors import DpzoError
from dpzo.models.encoder import EncoderClassifier
from dpzo.models.frozen_cache import layer_stack
from dpzo.models.quiet import silent_libraries

AdapterKind = Literal["lora", "ia3", "prefix", "prompt"]
ADAPTERS: tuple[AdapterKind, ...] = ("lora", "ia3", "prefix", "prompt")

_QUERY_VALUE = (("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"), ("query_key_value",), ("c_attn",))
"""Names of query and value projections in families that PEFT's own table leaves out."""
ALL_LINEAR = "all-linear"
"""In `model.lora_targets`, every linear layer of the base, as PEFT spells it."""
_STATE_SPACE = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
_REFUSED_BY_PEFT = ("out_proj", "conv1d")
"""Layers of state-space models whose weights the fused kernels read past the layer's own call."""
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
            raise DpzoError(f"model.lora_rank is {self.rank}: it must be at least 1")
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
    with _as_user_error(kind):
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
    """Initialise one new parameter, which is fp32 for any base dtype."""
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
        import peft  # it imports every library it supports, so import it only where needed

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

    def low_rank(**targets: Any) -> nn.Module:
        config = peft.LoraConfig(
            task_type=task,
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=0.0,
            use_rslora=lora.scaling == "root-rank",
            bias="none",
            modules_to_save=saved,
            **targets,
            **_only_layers(model, lora.layers),
        )
        return _apply(model, config)

    adapted = _low_rank_at(model, lora.target, low_rank, saved or [])
    _require_untied(adapted)
    return adapted


def _low_rank_at(
    model: nn.Module, target: tuple[str, ...] | None, low_rank: Callable[..., nn.Module], saved: list[str]
) -> nn.Module:
    """LoRA at the named layers; by default at those of PEFT's table, at query and value, or at every linear layer."""
    if target == (ALL_LINEAR,):
        return low_rank(**_all_linear(model, saved))
    if target is not None:
        _require_layers(model, target)
        try:
            return low_rank(target_modules=list(target))
        except ValueError:
            raise _no_layer(model, f"LoRA cannot adapt {', '.join(target)}") from None
    with suppress(ValueError):  # PEFT has no entry for this family, or one that this model does not fit
        return low_rank(target_modules=None)
    present = _layer_names(model)
    known = next((list(names) for names in _QUERY_VALUE if present.issuperset(names)), None)
    return low_rank(**(_all_linear(model, saved) if known is None else {"target_modules": known}))


def _require_layers(model: nn.Module, target: tuple[str, ...]) -> None:
    """Every name is that of a layer, whole or from a dot on, as PEFT matches it; one that is none is named."""
    names = [name for name, _ in model.named_modules()]
    for wanted in target:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in names):
            raise _no_layer(model, f"no layer of the model is named {wanted}")
    if not target:
        raise _no_layer(model, "it names no layer")


def _no_layer(model: nn.Module, what: str) -> DpzoError:
    found = sorted({name.rsplit(".", 1)[-1] for name in _linear_layers(model)})
    return DpzoError(
        f"model.lora_targets: {what}. Name layers to adapt, as in --set model.lora_targets=[{','.join(found[:2])}], or "
        f"{ALL_LINEAR} for all; the model's linear layers are {', '.join(found) or 'none'}"
    )


def _linear_layers(model: nn.Module) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)]


def _own_name(name: str) -> str:
    """The last part of a layer's name; the last two where that is a mere number in a list."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def _all_linear(model: nn.Module, saved: list[str]) -> dict[str, Any]:
    """PEFT's targets for every linear layer of the base: no output layer, head or pooler, and none that it refuses.

    Names are the layers' own last parts; what bears the same name and is not meant is excluded in full.
    """
    whole: Any = model
    base: nn.Module = getattr(whole, "base_model", whole)
    inside = {id(layer) for layer in base.modules()}
    output = getattr(whole, "get_output_embeddings", lambda: None)()
    refused = _REFUSED_BY_PEFT if getattr(whole.config, "model_type", "") in _STATE_SPACE else ()
    layers, chosen = dict(model.named_modules()), []
    for name in _linear_layers(model):
        parts = name.split(".")
        if parts[-1] in refused or "pooler" in parts or set(parts) & set(saved):
            continue
        if id(layers[name]) in inside and layers[name] is not output:
            chosen.append(name)
    if not chosen:
        raise _no_layer(model, f"{ALL_LINEAR} finds no linear layer")
    names = sorted({_own_name(name) for name in chosen})
    others = [name for name in _linear_layers(model) if _own_name(name) in names and name not in chosen]
    return {"target_modules": names, "exclude_modules": others or None}


def _require_untied(adapted: nn.Module) -> None:
    """Refuse LoRA on a weight that two layers share: merged, the update of one would reach the other as well."""
    owners: dict[int, int] = {}
    for layer in adapted.modules():
        for parameter in layer.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for name, layer in adapted.named_modules():
        if not (hasattr(layer, "lora_A") or hasattr(layer, "lora_embedding_A")) or not hasattr(layer, "base_layer"):
            continue
        if any(owners[id(parameter)] > 1 for parameter in layer.base_layer.parameters(recurse=False)):
            short = name.removeprefix("base_model.model.")
            raise DpzoError(
                f"model.lora_targets: the weight of {short} is tied to another layer's (tie_word_embeddings), so that "
                "merging the adapter would change both; name other layers, or save the model with untied weights first"
            )


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


@contextmanager
def _as_user_error(kind: AdapterKind) -> Iterator[None]:
    """Turn errors of PEFT about a family into user errors."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DpzoError(
            f"--trainable {kind}: PEFT cannot build it for this model ({reason}); use full, head or a pattern over "
            "parameter names"
        ) from None


def _key_value_down(model: nn.Module) -> tuple[list[str], list[str]]:
    present = _layer_names(model)
    for attention, feed_forward in _KEY_VALUE_DOWN:
        last = [name for name in feed_forward if name.rsplit(".", 1)[-1] in present]
        if present.issuperset(attention) and last:
            return list(attention), last[:1]
    raise DpzoError("--trainable ia3: the model's key and value layers are not known by name; use lora or a pattern")


def _layer_names(model: nn.Module) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
