"""A pretrained model with its tokenizer, ready for forward passes, and the part of it that is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpzo.errors import DpzoError
from dpzo.models.adapters import ADAPTERS, LoraSettings, add_adapter
from dpzo.models.encoder import EncoderClassifier
from dpzo.models.fingerprint import fingerprint
from dpzo.models.quiet import global_generators_kept, silent_libraries
from dpzo.models.sources import (
    Architecture,
    Kind,
    choose_architecture,
    embedding_rows,
    find_source,
    fit_together,
    load_config,
    load_tokenizer,
    load_weights,
)
from dpzo.models.storage import Storage, is_quantised, quantise
from dpzo.models.trainable import Initialiser, initialise, require_trainable, trainable_names

_FULL_PRECISION = Storage()


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A model in evaluation mode with nothing that asks for a gradient, and the names of what is trained."""

    module: nn.Module
    tokenizer: Any
    kind: Kind
    architecture: Architecture
    trainable: str
    trainable_names: tuple[str, ...]  # the module's own order, a tied weight once
    new_names: tuple[str, ...]  # parameters that no checkpoint holds: made by the initialiser, or constant
    base_name: str
    base_fingerprint: str  # of the checkpoint's tensors, and of how they are quantised
    num_labels: int | None
    storage: Storage = field(default=_FULL_PRECISION)
    revision: str | None = None  # of a hub name

    def __repr__(self) -> str:
        return f"LoadedModel({self.base_name!r}, {self.architecture}, trainable={self.trainable!r})"

    @property
    def device(self) -> torch.device:
        """Where the inputs have to go."""
        return next(self.module.parameters()).device

    @property
    def vocabulary(self) -> int:
        """Tokens that both the tokenizer and the model know: a text may hold no number from there on."""
        return min(len(self.tokenizer), embedding_rows(self.module))

    @property
    def stand_in_token(self) -> int:
        """The replacement for a token without an embedding in the model."""
        names = ("unk_token_id", "eos_token_id", "bos_token_id", "pad_token_id")
        ids = (getattr(self.tokenizer, name, None) for name in names)
        return next((int(token) for token in ids if token is not None and token < self.vocabulary), 0)

    @property
    def takes_options(self) -> bool:
        """True if classes are distinguished by label words after a prompt."""
        return self.kind == "classification" and self.architecture == "causal"

    @property
    def takes_masks(self) -> bool:
        """True if classes are distinguished by one word at the mask of a prompt."""
        return self.architecture == "masked"

    @property
    def has_adapter(self) -> bool:
        """True when PEFT holds the trained part, so that an adapter's folder is saved and not a model's."""
        return self.trainable in ADAPTERS

    @property
    def has_experts(self) -> bool:
        """True for a mixture of experts, where records in one pass share the experts' matrix products."""
        return any(_counts_experts(getattr(layer, "config", None)) for layer in self.module.modules())


def load_model(
    name_or_folder: str | Path,
    kind: Kind,
    *,
    initialiser: Initialiser,
    num_labels: int | None = None,
    labels: Sequence[str] | None = None,
    trainable: str = "lora",
    lora: LoraSettings | None = None,
    virtual_tokens: int = 10,
    architecture: Architecture | None = None,
    prompted: bool = False,
    revision: str | None = None,
    storage: Storage = _FULL_PRECISION,
    tokenizer_folder: Path | None = None,
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """Load model and tokenizer from a local folder or the hub, ready for forward passes.

    A causal checkpoint serves completion, and classification by label words; a masked language model serves
    classification by a word at the mask when `prompted`; else it and a sequence classifier load as the library's
    sequence classifier; a bare encoder (`…Model`) becomes an `EncoderClassifier`. `architecture` overrides that choice.
    `trainable` is `head`, `full`, one of `ADAPTERS`, or a regular expression searched in the parameter names. `labels`
    (declared, public) are written into the saved configuration. `tokenizer_folder` holds the tokenizer where it lies
    apart from the model. Adapters are fp32 whatever `storage` says.

    Guarantee: the result is a function of the checkpoint, `storage` and `initialiser`, bit for bit; torch's, numpy's
    and Python's global generators are left as they were; safetensors only, no remote code, no network for a folder.
    Errors: `DpzoError` for a user error.
    """
    if labels is not None:
        if num_labels is not None and num_labels != len(labels):
            raise DpzoError(f"--labels names {len(labels)} classes but num_labels is {num_labels}: give one of them")
        num_labels = len(labels)
    if kind == "classification" and (num_labels is None or num_labels < 2):
        raise DpzoError("--labels: a classification task needs at least two declared classes")
    name = str(name_or_folder)
    source = find_source(name, revision, with_tokenizer=tokenizer_folder is None)
    words = source if tokenizer_folder is None else find_source(str(tokenizer_folder), None, with_model=False)
    with silent_libraries(), global_generators_kept():
        config = load_config(name, source)
        chosen = architecture if architecture is not None else choose_architecture(name, config, kind, prompted)
        if kind == "completion" and chosen != "causal":
            raise DpzoError(
                f"model {name!r} is not a causal language model: a completion task needs one (…ForCausalLM)"
            )
        tokenizer = load_tokenizer(name, words)
        module, new_names = load_weights(name, source, chosen, num_labels, labels, storage.loader_options(device))
        fit_together(name, module, tokenizer, chosen)
        initialise(module, new_names, initialiser)
        base = _fingerprint(module, new_names, storage)
        quantise(base_of(module), storage)
        module, names, new_names = choose_part(
            module, chosen, new_names, initialiser, trainable=trainable, lora=lora, virtual_tokens=virtual_tokens
        )
        require_trainable(module, names)
    settle(module, device)
    return LoadedModel(
        module=module,
        tokenizer=tokenizer,
        kind=kind,
        architecture=chosen,
        trainable=trainable,
        trainable_names=names,
        new_names=new_names,
        base_name=name,
        base_fingerprint=base,
        num_labels=num_labels,
        storage=storage,
        revision=revision,
    )


def choose_part(
    module: nn.Module,
    architecture: Architecture,
    new_names: tuple[str, ...],
    initialiser: Initialiser,
    *,
    trainable: str,
    lora: LoraSettings | None,
    virtual_tokens: int,
) -> tuple[nn.Module, tuple[str, ...], tuple[str, ...]]:
    """(module with its adapter, names of what is trained, names of what no checkpoint holds). Errors: `DpzoError`."""
    adapter = next((known for known in ADAPTERS if known == trainable), None)
    if adapter is not None:
        settings = lora if lora is not None else LoraSettings()
        module, names, made = add_adapter(
            adapter, module, architecture, new_names, initialiser, settings, virtual_tokens
        )
        new_names = tuple(made)
    else:
        names = trainable_names(module, trainable, architecture, new_names)
    if isinstance(module, EncoderClassifier):
        new_names = (*new_names, "head.weight", "head.bias")
    _widen_heads(module, names, architecture, trainable)
    return module, tuple(names), new_names


def peek_architecture(
    name_or_folder: str | Path, kind: Kind, *, prompted: bool = False, revision: str | None = None
) -> Architecture:
    """Which architecture `load_model` would choose, from the configuration alone: no weights are read."""
    name = str(name_or_folder)
    with silent_libraries():
        return choose_architecture(name, load_config(name, find_source(name, revision)), kind, prompted)


def settle(module: nn.Module, device: str | torch.device) -> None:
    """Evaluation mode, no gradients, on `device`, every tensor in memory of its own.

    A loader maps the file into memory, so a weight's alignment depends on the file's header, and matrix products round
    differently at another alignment: the same weights from two files gave losses 1e-8 apart. Torch's own memory is
    aligned alike for all, and so is what a quantiser has just made.
    """
    module.eval().requires_grad_(False)
    if not getattr(unwrap(module), "is_quantized", False):  # bitsandbytes has placed it, and refuses to be moved
        module.to(device)
    for tensor in (*module.parameters(), *module.buffers()):
        if not is_quantised(tensor) or type(tensor.data) is torch.Tensor:
            tensor.data = tensor.data.clone()


def unwrap(module: nn.Module) -> nn.Module:
    """The library's model inside an `EncoderClassifier`, else the module itself."""
    return module.encoder if isinstance(module, EncoderClassifier) else module


def base_of(module: nn.Module) -> nn.Module:
    """The module without its heads: what a quantiser may touch."""
    model: Any = unwrap(module)
    result: nn.Module = getattr(model, "base_model", model)
    return result


def _fingerprint(module: nn.Module, new_names: Sequence[str], storage: Storage) -> str:
    """The checkpoint's hash; a quantised base is a function of it and of the quantiser, whose name is mixed in.

    The packed bytes depend on the width of the CPU's registers, so they would identify a machine, not a model.
    """
    plain = fingerprint(unwrap(module), new_names)
    how = storage.describe()
    return plain if not how else hashlib.sha256(f"{plain}/{how}".encode()).hexdigest()


def _widen_heads(module: nn.Module, names: Sequence[str], architecture: Architecture, trainable: str) -> None:
    """A classifier that is trained beside a 16-bit base is held in fp32; its layer casts what it is given."""
    if architecture != "sequence-classifier" or trainable not in ("head", *ADAPTERS):
        return
    parameters = dict(module.named_parameters())
    trained = {id(parameters[name]) for name in names}
    for layer in module.modules():
        own = list(layer.parameters(recurse=False))
        if isinstance(layer, nn.Linear) and own[0].dtype != torch.float32 and all(id(p) in trained for p in own):
            layer.float()
            layer.register_forward_pre_hook(_in_fp32)


def _in_fp32(_layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (arguments[0].float(), *arguments[1:])


def _counts_experts(config: Any) -> bool:
    counts = (getattr(config, key, None) for key in ("num_local_experts", "num_experts", "n_routed_experts"))
    return any(isinstance(count, int) and count > 1 for count in counts)
