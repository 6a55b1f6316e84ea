"""Where a base model comes from: a folder or the hub; its configuration, tokenizer and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from dpzo.errors import DpzoError
from dpzo.lm.encoder import EncoderClassifier

Kind = Literal["completion", "classification"]
Architecture = Literal["causal", "masked", "sequence-classifier", "encoder"]

LOADERS: dict[Architecture, Any] = {
    "causal": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "sequence-classifier": AutoModelForSequenceClassification,
    "encoder": AutoModel,
}

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "vocab.model")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def find_source(name: str, revision: str | None, *, with_weights: bool = True) -> dict[str, Any]:
    """Arguments common to every loader: where from, and what is never allowed.

    Without weights a folder that holds a configuration will do.
    """
    common: dict[str, Any] = {"trust_remote_code": False}
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DpzoError(f"--model {name}: the folder holds no config.json; give a folder made by save_pretrained")
        if with_weights and not any(path.glob("*.safetensors")):
            pickled = any(any(path.glob(pattern)) for pattern in _PICKLED)
            mend = "its weights are pickled, which may run code: convert them" if pickled else "save the model"
            raise DpzoError(f"--model {name}: the folder holds no *.safetensors file; {mend} with safetensors")
        if with_weights and not has_tokenizer(path):
            raise DpzoError(f"--model {name}: the folder holds no tokenizer (tokenizer.json); save one into it")
        return common | {"pretrained_model_name_or_path": str(path), "local_files_only": True}
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise DpzoError(f"--model {name}: no such folder; give a folder or a hub name such as organisation/model")
    return common | {"pretrained_model_name_or_path": name, "revision": revision}


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a tokenizer in one of its usual forms."""
    return any((folder / file).is_file() for file in _TOKENIZER_FILES)


def _unloadable(name: str, part: str, error: Exception) -> DpzoError:
    """The library's error in one line; it can speak of public names only, as no data has been read yet."""
    text = " ".join(str(error).split())
    reason = text if len(text) <= 160 else text[:157] + "…"
    return DpzoError(f"--model {name}: cannot load the {part}; check the name, the files and the network ({reason})")


def load_config(name: str, source: dict[str, Any]) -> Any:
    """The library's configuration of the checkpoint. Errors: `DpzoError` when there is none to read."""
    try:
        return AutoConfig.from_pretrained(**source)
    except Exception as error:
        raise _unloadable(name, "configuration", error) from None


def choose_architecture(name: str, config: Any, kind: Kind, prompted: bool) -> Architecture:
    """What the checkpoint was saved as decides; a checkpoint that does not say is asked for what the task needs.

    `prompted`: the task asks by label words at a mask, which a masked language model answers with its own head.
    Errors: `DpzoError` for an encoder–decoder model.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise DpzoError(f"--model {name}: an encoder–decoder model; use a causal or a masked language model")
    names = getattr(config, "architectures", None)
    saved_as = names[0] if names else ""
    if kind == "completion" or saved_as.endswith(("ForCausalLM", "LMHeadModel")):
        is_other = saved_as.endswith(("ForSequenceClassification", "ForMaskedLM", "Model")) and not saved_as.endswith(
            "LMHeadModel"
        )
        return "sequence-classifier" if is_other else "causal"
    if prompted and saved_as.endswith(("ForMaskedLM", "ForPreTraining")):
        return "masked"
    return "encoder" if saved_as.endswith("Model") else "sequence-classifier"


def load_tokenizer(name: str, source: dict[str, Any]) -> Any:
    """The checkpoint's tokenizer, with a padding token. Errors: `DpzoError` when it has no words or cannot pad."""
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


def load_weights(
    name: str,
    source: dict[str, Any],
    architecture: Architecture,
    num_labels: int | None,
    labels: Sequence[str] | None,
    options: Mapping[str, Any],
) -> tuple[nn.Module, tuple[str, ...]]:
    """The module, loaded with `options` (dtype, quantiser), and the names of what the checkpoint does not hold."""
    loader = LOADERS[architecture]
    wanted: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True, **options}
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
    if architecture in ("causal", "masked"):
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


def fit_together(name: str, module: nn.Module, tokenizer: Any) -> None:
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
