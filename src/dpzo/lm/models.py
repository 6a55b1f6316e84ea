"""Load a pretrained model with its tokenizer and choose what is trained."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from dpzo.errors import DpzoError
from dpzo.lm.encoder import EncoderClassifier
from dpzo.lm.fingerprint import fingerprint
from dpzo.lm.lora import LoraSettings, add_lora
from dpzo.lm.quiet import global_generators_kept, silent_libraries

Kind = Literal["completion", "classification"]
Architecture = Literal["causal", "sequence-classifier", "encoder"]

Initialiser = Callable[[str, tuple[int, ...]], Tensor]
"""(parameter name, shape) → fp32 tensor, uniform on [−1, 1), a pure function of the public seed, name and shape.

The loader scales it to the range that each layer wants, so one distribution serves all.
"""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "vocab.model")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A model in evaluation mode with nothing that asks for a gradient, and the names of what is trained."""

    module: nn.Module
    tokenizer: Any
    kind: Kind
    architecture: Architecture
    trainable: str
    trainable_names: tuple[str, ...]  # the module's own order, a tied weight once
    new_names: tuple[str, ...]  # parameters that no checkpoint holds: made by the initialiser, or zero
    base_name: str
    base_fingerprint: str  # of the checkpoint's tensors alone
    num_labels: int | None
    lora: LoraSettings | None = field(default=None)

    def __repr__(self) -> str:
        return f"LoadedModel({self.base_name!r}, {self.architecture}, trainable={self.trainable!r})"

    @property
    def device(self) -> torch.device:
        """Where the inputs have to go."""
        return next(self.module.parameters()).device

    @property
    def takes_options(self) -> bool:
        """True when classes are told apart by label words after a prompt."""
        return self.kind == "classification" and self.architecture == "causal"


def load_model(
    name_or_folder: str | Path,
    kind: Kind,
    *,
    initialiser: Initialiser,
    num_labels: int | None = None,
    labels: Sequence[str] | None = None,
    trainable: str = "lora",
    lora: LoraSettings | None = None,
    architecture: Architecture | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """Load model and tokenizer from a local folder or the hub, ready for forward passes in fp32.

    A causal checkpoint serves completion, and classification by label words; a sequence classifier and a masked
    language model load as the library's sequence classifier; a bare encoder (`…Model`) becomes an
    `EncoderClassifier`. `architecture` overrides that choice. `trainable` is `head`, `lora`, `full`, or a regular
    expression searched in the parameter names. `labels` (declared, public) are written into the saved configuration.

    Guarantee: the result is a function of the checkpoint and `initialiser`, bit for bit; torch's, numpy's and
    Python's global generators are left as they were; safetensors only, no remote code, and no network for a folder.
    Errors: `DpzoError` for whatever the user can mend.
    """
    if labels is not None:
        if num_labels is not None and num_labels != len(labels):
            raise DpzoError(f"--labels names {len(labels)} classes but num_labels is {num_labels}: give one of them")
        num_labels = len(labels)
    if kind == "classification" and (num_labels is None or num_labels < 2):
        raise DpzoError("--labels: a classification task needs at least two declared classes")
    name = str(name_or_folder)
    source = _source(name, revision)
    with silent_libraries(), global_generators_kept():
        config = _load_config(name, source)
        chosen = architecture if architecture is not None else _architecture(config, kind)
        if kind == "completion" and chosen != "causal":
            raise DpzoError(
                f"model {name!r} is not a causal language model: a completion task needs one (…ForCausalLM)"
            )
        tokenizer = _load_tokenizer(name, source)
        module, new_names = _load_module(name, source, chosen, num_labels, labels)
        _fit_together(name, module, tokenizer)
        _initialise(module, new_names, initialiser)
        base = fingerprint(module.encoder if isinstance(module, EncoderClassifier) else module, new_names)
        if trainable == "lora":
            lora = lora if lora is not None else LoraSettings()
            module, names, made = add_lora(module, lora, chosen, new_names, initialiser)
            new_names = tuple(made)
        else:
            lora = None
            names = _trainable_names(module, trainable, chosen, new_names)
        if isinstance(module, EncoderClassifier):
            new_names = (*new_names, "head.weight", "head.bias")
    settle(module, device)
    _require_fp32(module, names)
    return LoadedModel(
        module=module,
        tokenizer=tokenizer,
        kind=kind,
        architecture=chosen,
        trainable=trainable,
        trainable_names=tuple(names),
        new_names=new_names,
        base_name=name,
        base_fingerprint=base,
        num_labels=num_labels,
        lora=lora,
    )


def peek_architecture(name_or_folder: str | Path, kind: Kind, *, revision: str | None = None) -> Architecture:
    """Which architecture `load_model` would choose, from the configuration alone: no weights are read."""
    name = str(name_or_folder)
    with silent_libraries():
        return _architecture(_load_config(name, _source(name, revision)), kind)


def _source(name: str, revision: str | None) -> dict[str, Any]:
    """Arguments common to every loader: where from, and what is never allowed."""
    common: dict[str, Any] = {"trust_remote_code": False}
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DpzoError(f"--model {name}: the folder holds no config.json; give a folder made by save_pretrained")
        if not any(path.glob("*.safetensors")):
            pickled = any(any(path.glob(pattern)) for pattern in _PICKLED)
            mend = "its weights are pickled, which may run code: convert them" if pickled else "save the model"
            raise DpzoError(f"--model {name}: the folder holds no *.safetensors file; {mend} with safetensors")
        if not any((path / file).is_file() for file in _TOKENIZER_FILES):
            raise DpzoError(f"--model {name}: the folder holds no tokenizer (tokenizer.json); save one into it")
        return common | {"pretrained_model_name_or_path": str(path), "local_files_only": True}
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise DpzoError(f"--model {name}: no such folder; give a folder or a hub name such as organisation/model")
    return common | {"pretrained_model_name_or_path": name, "revision": revision}


def _unloadable(name: str, part: str, error: Exception) -> DpzoError:
    """The library's error in one line; it can speak of public names only, as no data has been read yet."""
    text = " ".join(str(error).split())
    reason = text if len(text) <= 160 else text[:157] + "…"
    return DpzoError(f"--model {name}: cannot load the {part}; check the name, the files and the network ({reason})")


def _load_config(name: str, source: dict[str, Any]) -> Any:
    try:
        return AutoConfig.from_pretrained(**source)
    except Exception as error:
        raise _unloadable(name, "configuration", error) from None


def _architecture(config: Any, kind: Kind) -> Architecture:
    """What the checkpoint was saved as decides; a checkpoint that does not say is asked for what the task needs."""
    names = getattr(config, "architectures", None)
    saved_as = names[0] if names else ""
    if kind == "completion" or saved_as.endswith(("ForCausalLM", "LMHeadModel")):
        is_other = saved_as.endswith(("ForSequenceClassification", "ForMaskedLM", "Model")) and not saved_as.endswith(
            "LMHeadModel"
        )
        return "sequence-classifier" if is_other else "causal"
    return "encoder" if saved_as.endswith("Model") else "sequence-classifier"


def _load_tokenizer(name: str, source: dict[str, Any]) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except Exception as error:
        raise _unloadable(name, "tokenizer", error) from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise DpzoError(f"--model {name}: its tokenizer knows no words; save a tokenizer into the folder")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise DpzoError(
                f"--model {name}: its tokenizer has neither a padding nor an end token; set tokenizer.pad_token"
            )
        # The attention mask hides padding, so which token fills it has no bearing on any loss.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_module(
    name: str, source: dict[str, Any], architecture: Architecture, num_labels: int | None, labels: Sequence[str] | None
) -> tuple[nn.Module, tuple[str, ...]]:
    """The module in fp32, and the names of parameters that the checkpoint does not hold."""
    loader = {
        "causal": AutoModelForCausalLM,
        "sequence-classifier": AutoModelForSequenceClassification,
        "encoder": AutoModel,
    }[architecture]
    wanted: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    if architecture == "sequence-classifier":
        wanted |= {"num_labels": num_labels, "ignore_mismatched_sizes": True}
        if labels is not None:
            wanted |= {"id2label": dict(enumerate(labels)), "label2id": {text: i for i, text in enumerate(labels)}}
            del wanted["num_labels"]
    try:
        try:
            module, info = loader.from_pretrained(**source, **wanted, attn_implementation="sdpa")
        except (ValueError, ImportError):  # an architecture without it: the plain attention is isolated as well
            module, info = loader.from_pretrained(**source, **wanted, attn_implementation="eager")
    except Exception as error:
        raise _unloadable(name, "weights", error) from None
    missing = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
    prefix = "" if architecture == "encoder" else f"{module.base_model_prefix}."
    lost = sorted(key for key in missing if key.startswith(prefix) and "pooler" not in key)
    if architecture == "causal":
        lost = sorted(missing)
    if lost:
        raise DpzoError(f"--model {name}: the checkpoint lacks {len(lost)} weights, {lost[0]} first; use a whole one")
    new_names = tuple(key for key, _ in module.named_parameters() if key in missing)
    if architecture == "encoder":
        hidden_size = getattr(module.config, "hidden_size", None)
        if hidden_size is None or num_labels is None:
            raise DpzoError(f"--model {name}: its configuration has no hidden_size; use a sequence classifier instead")
        module.eval()
        return EncoderClassifier(module, hidden_size, num_labels), tuple(f"encoder.{key}" for key in new_names)
    return module, new_names


def _fit_together(name: str, module: nn.Module, tokenizer: Any) -> None:
    """Refuse a tokenizer whose tokens the model does not know; name the padding token for models that look for it."""
    model: Any = module.encoder if isinstance(module, EncoderClassifier) else module
    embedding = model.get_input_embeddings()
    if len(tokenizer) > embedding.weight.shape[0]:
        raise DpzoError(
            f"--model {name}: its tokenizer has {len(tokenizer)} tokens but the model embeds "
            f"{embedding.weight.shape[0]}; resize the embedding or use the tokenizer that belongs to it"
        )
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def _initialise(module: nn.Module, names: Iterable[str], initialiser: Initialiser) -> None:
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


def _trainable_names(
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
        raise DpzoError(f"--trainable: neither head, lora, full nor a regular expression ({error})") from None
    found = [key for key in parameters if pattern.search(key) and key not in unused]
    if not found:
        example = next(iter(parameters))
        raise DpzoError(f"--trainable {trainable}: no parameter's name matches; names look like {example}")
    return found


def settle(module: nn.Module, device: str | torch.device) -> None:
    """Evaluation mode, no gradients, on `device`, every tensor in memory of its own.

    A loader maps the file into memory, so a weight lies wherever the file's header leaves it, and matrix products
    round otherwise at another alignment: the same weights from two files gave losses 1e-8 apart. Torch's own memory
    is aligned alike for all.
    """
    module.eval().requires_grad_(False).to(device)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()


def _require_fp32(module: nn.Module, names: Iterable[str]) -> None:
    parameters = dict(module.named_parameters())
    for name in names:
        if parameters[name].dtype != torch.float32:
            raise DpzoError(f"--trainable: {name} is {parameters[name].dtype}, trained parameters must be float32")
