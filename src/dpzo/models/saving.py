"""Write a model so that it loads without dpzo, and read it back for evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dpzo.data.owned import make_folders, owner_only
from dpzo.errors import DpzoError
from dpzo.models.encoder import EncoderClassifier
from dpzo.models.models import LoadedModel, load_model, settle
from dpzo.models.quiet import global_generators_kept, silent_libraries
from dpzo.models.sources import Architecture, Kind, has_tokenizer
from dpzo.models.storage import Storage
from dpzo.models.trainable import Initialiser

_HEAD_WEIGHTS = "head.safetensors"
_HEAD_CARD = "head.json"
ADAPTER_CONFIG = "adapter_config.json"
ENCODER = "encoder"
"""Folder of an `EncoderClassifier`'s encoder. The folder above holds no config.json, so that transformers refuses it:
it would load the encoder as its own sequence classifier, with a head at random."""

_PLAIN = """# A text classifier: encoder, mean pooling, unit length, linear head

`{labels_file}` names the classes in the order of the head's rows.
These lines need torch, transformers{peft_word} and safetensors:

```python
import json
from pathlib import Path
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer
{peft_import}
folder = "."{refused_note}
encoder = {encoder}
tokenizer = AutoTokenizer.from_pretrained(folder)
head = load_file(f"{{folder}}/head.safetensors")
labels = json.loads(Path(folder, "head.json").read_text(encoding="utf-8"))["labels"]

def logits(texts):
    batch = tokenizer(texts, padding=True, truncation=True, max_length={max_length}, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    features = torch.nn.functional.normalize(mean, dim=-1)
    return features @ head["head.weight"].T + head["head.bias"]
```
"""


def save(
    loaded: LoadedModel,
    folder: str | Path,
    *,
    labels: tuple[str, ...] | None = None,
    max_length: int = 512,
    flat: bool = False,
) -> None:
    """Save the module at its present weights, and the tokenizer, in the libraries' own formats, safetensors only.

    LoRA: PEFT's adapter folder. Full or part of a causal model or sequence classifier: `save_pretrained`. An
    `EncoderClassifier`: the encoder (or its adapter) in a folder of its own, `head.safetensors`, `head.json` with the
    declared labels, and a README whose few lines load it. `max_length` is the number of tokens the model was trained
    to read. `flat`: the encoder beside its head, as version 0.1.0 wrote it. Files that are new are for the owner alone.
    """
    target = Path(folder)
    make_folders(target)
    module: Any = loaded.module
    with owner_only(), silent_libraries(), global_generators_kept():
        if isinstance(module, EncoderClassifier):
            encoder: Any = module.encoder
            encoder.save_pretrained(target if flat else target / ENCODER)
            _save_head(module, target, labels)
            (target / "README.md").write_text(_plain_lines(loaded, max_length, flat=flat), encoding="utf-8")
        else:
            module.save_pretrained(target)
        _save_tokenizer(loaded.tokenizer, target)
    for adapter in (target / ADAPTER_CONFIG, target / ENCODER / ADAPTER_CONFIG):
        if adapter.is_file():
            adapter.write_bytes(canonical_adapter_config(adapter.read_bytes()))


_SETS = ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save")
"""Fields that PEFT holds as sets of names and writes in the order of the process's hash seed."""


def canonical_adapter_config(content: bytes) -> bytes:
    """PEFT's adapter_config.json with its sets in the order of their names: the same bytes from every process.

    Raises ValueError for what is not a JSON object.
    """
    fields = json.loads(content)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    for name in _SETS:
        if isinstance(fields.get(name), list):
            fields[name] = sorted(fields[name])
    return json.dumps(fields, indent=2, sort_keys=True).encode()


def _save_tokenizer(tokenizer: Any, target: Path) -> None:
    """Without the cutting and filling of the last call, which the library keeps as if it were the tokenizer's own."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        fast.no_truncation()
        fast.no_padding()
    tokenizer.save_pretrained(target)


def _save_head(module: EncoderClassifier, target: Path, labels: tuple[str, ...] | None) -> None:
    state = {"head.weight": module.head.weight, "head.bias": module.head.bias}
    save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, target / _HEAD_WEIGHTS)
    card = {
        "pooling": "mean over the attention mask",
        "normalised": True,
        "labels": list(labels) if labels is not None else [str(i) for i in range(module.head.out_features)],
    }
    (target / _HEAD_CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _plain_lines(loaded: LoadedModel, max_length: int, *, flat: bool) -> str:
    base, place = repr(loaded.base_name), "folder" if flat else f'f"{{folder}}/{ENCODER}"'
    adapter = f"PeftModel.from_pretrained(AutoModel.from_pretrained({base}), {place}).eval()"
    whole = f"AutoModel.from_pretrained({place}).eval()"
    return _PLAIN.format(
        refused_note="" if flat else "  # transformers.pipeline refuses it: pooling and head are not the library's",
        labels_file=_HEAD_CARD,
        peft_word=", peft" if loaded.has_adapter else "",
        peft_import="from peft import PeftModel\n" if loaded.has_adapter else "",
        encoder=adapter if loaded.has_adapter else whole,
        max_length=max_length,
    )


def load_saved(
    folder: str | Path,
    kind: Kind,
    *,
    base: str | Path | None = None,
    num_labels: int | None = None,
    architecture: Architecture | None = None,
    storage: Storage | None = None,
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """Load what `save` wrote, for evaluation: nothing in it is trainable.

    `base` overrides the base model that an adapter names. A masked language model that answers by label words has to
    be named by `architecture`; `storage` is how the base was held in training.

    Errors: `DpzoError` when the folder is not one of ours.
    """
    path, head = Path(folder), Path(folder) / _HEAD_WEIGHTS
    tokenizer = path
    if (path / ENCODER).is_dir() and head.is_file():
        path = path / ENCODER
    adapter = path / ADAPTER_CONFIG
    if not path.is_dir() or not (adapter.is_file() or (path / "config.json").is_file()):
        raise DpzoError(
            f"{folder}: holds no saved model (config.json or adapter_config.json); give a run's model folder"
        )
    weights = load_file(head) if head.is_file() else None
    if weights is not None:
        num_labels = int(weights["head.weight"].shape[0])
    if adapter.is_file():
        source = (
            base if base is not None else json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        )
    else:
        source = path
        if num_labels is None and kind == "classification":
            num_labels = _saved_labels(path)
    loaded = load_model(
        source,
        kind,
        initialiser=_unused,
        num_labels=num_labels,
        trainable="head",
        architecture="encoder" if weights is not None else architecture,
        tokenizer_folder=tokenizer if has_tokenizer(tokenizer) else None,
        storage=Storage() if storage is None else storage,
    )
    module: nn.Module = loaded.module
    with silent_libraries(), global_generators_kept():
        if adapter.is_file():
            from peft import PeftModel

            inner: Any = module.encoder if isinstance(module, EncoderClassifier) else module
            adapted: Any = PeftModel.from_pretrained(inner, str(path), use_safetensors=True)
            if isinstance(module, EncoderClassifier):
                module.encoder = adapted
            else:
                module = adapted
        if weights is not None:
            state = dict(module.named_parameters())
            with torch.no_grad():
                for key in ("head.weight", "head.bias"):
                    state[key].copy_(weights[key])
    settle(module, device)
    return replace(loaded, module=module, trainable="nothing", trainable_names=(), new_names=())


def _saved_labels(path: Path) -> int | None:
    """Number of classes in a saved configuration, by the library's two ways of writing it."""
    card = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if "id2label" in card:
        return len(card["id2label"])
    found = card.get("num_labels", 2)
    return found if isinstance(found, int) else None


_unused: Initialiser = lambda name, shape: torch.zeros(shape)  # noqa: E731  every value is overwritten by the folder's
