"""Load a base model from a folder or the hub: its configuration, tokenizer and weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils.hub import cached_file

from dpzo.errors import DpzoError
from dpzo.models.encoder import EncoderClassifier

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
_ADAPTER_FILE = "adapter_config.json"


def find_source(
    name: str,
    revision: str | None,
    *,
    with_model: bool = True,
    with_weights: bool = True,
    with_tokenizer: bool = True,
) -> dict[str, Any]:
    """Arguments common to every loader: where from, and what is never allowed.

    A folder has to hold what it is asked for: a model's configuration, its weights, and a tokenizer beside them.
    """
    common: dict[str, Any] = {"trust_remote_code": False}
    path = Path(name).expanduser()
    if path.is_dir() and not with_model:
        return common | {"pretrained_model_name_or_path": str(path), "local_files_only": True}
    if path.is_dir():
        if (path / _ADAPTER_FILE).is_file():
            raise _is_adapter(name, path / _ADAPTER_FILE, has_model=(path / "config.json").is_file())
        if not (path / "config.json").is_file():
            raise DpzoError(f"--model {name}: the folder holds no config.json; give a folder made by save_pretrained")
        if with_weights and not any(path.glob("*.safetensors")):
            pickled = any(any(path.glob(pattern)) for pattern in _PICKLED)
            mend = "its weights are pickled, which may run code: convert them" if pickled else "save the model"
            raise DpzoError(f"--model {name}: the folder holds no *.safetensors file; {mend} with safetensors")
        if with_weights and with_tokenizer and not has_tokenizer(path):
            raise DpzoError(f"--model {name}: the folder holds no tokenizer (tokenizer.json); save one into it")
        return common | {"pretrained_model_name_or_path": str(path), "local_files_only": True}
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise DpzoError(f"--model {name}: no such folder; give a folder or a hub name such as organisation/model")
    return common | {"pretrained_model_name_or_path": name, "revision": revision}


def _is_adapter(name: str, file: Path, *, has_model: bool) -> DpzoError:
    """The error, with its fix, for an adapter as base model, which transformers would silently attach to its base."""
    if has_model:
        return DpzoError(
            f"--model {name}: the folder holds a model and an adapter ({_ADAPTER_FILE}), and transformers would attach "
            "the adapter to the model. If the adapter is already merged into the weights, remove adapter_config.json "
            "and adapter_model.safetensors; otherwise merge it first (PEFT: merge_and_unload, then save_pretrained)"
        )
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    named = f" of {base}" if isinstance(base, str) and base else ""
    give = f"--model {base}" if named else "its base model"
    return DpzoError(
        f"--model {name}: is a PEFT adapter{named}, not a whole model. Give {give} to train from the base; to train "
        "on from the adapter, merge it first (PEFT: merge_and_unload, then save_pretrained with the tokenizer)"
    )


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
        adapter = _hub_adapter(source)
        if adapter is not None:
            raise _is_adapter(name, adapter, has_model=False) from None
        raise _unloadable(name, "configuration", error) from None


def _hub_adapter(source: dict[str, Any]) -> Path | None:
    """The adapter's configuration where a hub name holds one in place of a model's."""
    try:
        found = cached_file(source["pretrained_model_name_or_path"], _ADAPTER_FILE, revision=source.get("revision"))
    except Exception:  # no such repository, no such file, no network: there is no adapter to name
        return None
    return None if found is None else Path(found)


def choose_architecture(name: str, config: Any, kind: Kind, prompted: bool) -> Architecture:
    """What the checkpoint was saved as decides; for a checkpoint that does not say, its family (`model_type`).

    `prompted`: the task asks by label words at a mask, which a masked language model answers with its own head.
    Errors: `DpzoError` for an encoder–decoder model.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise DpzoError(f"--model {name}: an encoder–decoder model; use a causal or a masked language model")
    names = getattr(config, "architectures", None)
    saved_as = names[0] if names else ""
    if not saved_as.endswith(_TELLING):
        saved_as = _architecture_of_type(config)
    if saved_as.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal"
    if kind == "classification" and prompted and saved_as.endswith(("ForMaskedLM", "ForPreTraining")):
        return "masked"
    return "encoder" if saved_as.endswith("Model") else "sequence-classifier"


_TELLING = ("ForCausalLM", "LMHeadModel", "ForSequenceClassification", "ForMaskedLM", "ForPreTraining", "Model")
"""Endings of a class name that tell what a checkpoint answers; any other is decided by the family."""


def _architecture_of_type(config: Any) -> str:
    """The class that a checkpoint of the family most likely was saved from, where it does not say itself.

    A family that transformers knows as causal alone is causal. One that fills masks as well (BERT, RoBERTa) is a
    masked model unless its configuration says `is_decoder`.
    """
    masked = MODEL_FOR_MASKED_LM_MAPPING.get(type(config), None)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if causal is not None and (masked is None or getattr(config, "is_decoder", False)):
        return "ForCausalLM"
    return "" if masked is None else "ForMaskedLM"


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
    if getattr(module, "_hf_peft_config_loaded", False):
        raise _is_adapter(name, Path(_ADAPTER_FILE), has_model=True)
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


def fit_together(name: str, module: nn.Module, tokenizer: Any, architecture: Architecture) -> None:
    """Make model and tokenizer agree on the padding token. Errors: `DpzoError` where no such token exists.

    A sequence classifier over a decoder reads its answer at the last token that is not `config.pad_token_id`, so rows
    are padded with that token: the configuration is what plain transformers goes by, padded or not. Elsewhere the
    attention mask hides the padding, and the tokenizer's own token serves if the model has a row for it.
    """
    model: Any = module.encoder if isinstance(module, EncoderClassifier) else module
    rows = embedding_rows(module)
    config = model.config.get_text_config()
    named = getattr(config, "pad_token_id", None)
    usable = isinstance(named, int) and 0 <= named < min(rows, len(tokenizer))
    if usable and (architecture == "sequence-classifier" or tokenizer.pad_token_id >= rows):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(named)
    if tokenizer.pad_token_id >= rows:
        spare = next((t for t in (tokenizer.eos_token, tokenizer.unk_token) if _has_row(tokenizer, t, rows)), None)
        if spare is None:
            raise DpzoError(
                f"--model {name}: its tokenizer's padding token has number {tokenizer.pad_token_id}, but the model "
                f"embeds {rows} tokens, and there is no other token to pad with; resize the embedding"
            )
        tokenizer.pad_token = spare
    if not usable:
        config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id


def embedding_rows(module: nn.Module) -> int:
    """Tokens that the model has an embedding for."""
    model: Any = module.encoder if isinstance(module, EncoderClassifier) else module
    return int(model.get_input_embeddings().weight.shape[0])


def _has_row(tokenizer: Any, token: str | None, rows: int) -> bool:
    return token is not None and tokenizer.convert_tokens_to_ids(token) < rows
