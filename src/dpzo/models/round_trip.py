"""Check that a model folder written by `save` gives the same outputs when the original libraries load it.

transformers and PEFT decide by defaults what a folder holds (leftover adapters, tied weights, fields of config.json),
so the folder is read back before any privacy budget is spent.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dpzo.data.owned import owner_only
from dpzo.errors import DpzoError
from dpzo.models.conformance import plain_logits, tolerance
from dpzo.models.encoder import EncoderClassifier
from dpzo.models.isolation import moved
from dpzo.models.models import LoadedModel
from dpzo.models.quiet import global_generators_kept, silent_libraries
from dpzo.models.saving import ENCODER, save
from dpzo.models.sources import LOADERS

LARGEST = 1 << 29
"""Bytes of weights up to which a model is written and read back at start-up; a larger one would take its memory twice.

Above, the folder still follows the same code; `python -m dpzo.models.families` reads back every family.
"""
_LENGTHS = (7, 2, 12)
_SEED = 20_240_607
_passed: set[tuple[object, ...]] = set()
"""What has passed in this process: a function of the checkpoint, of what is trained, and of code alone."""


def check_round_trip(loaded: LoadedModel, labels: tuple[str, ...] | None) -> None:
    """Write the model with everything trained moved, read it by the plain libraries, compare logits; also merged.

    Models above `LARGEST` and quantised bases are not read back. Needs the disk of model/ in the system's temporary
    folder. Errors: `DpzoError` naming what differs.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in loaded.module.parameters())
    if size > LARGEST or loaded.storage.quantization != "none":
        return
    key = (loaded.base_fingerprint, loaded.base_name, loaded.trainable, loaded.trainable_names, loaded.storage, labels)
    if key in _passed:
        return
    with tempfile.TemporaryDirectory() as folder, moved(loaded.module, loaded.trainable_names):
        save(loaded, folder, labels=labels)
        with silent_libraries(), global_generators_kept(), owner_only(), torch.no_grad():
            try:
                read = _plainly(loaded, Path(folder))
                forms = {"": read, " (once merged)": _merged(read) if loaded.has_adapter else read}
                texts = _texts(loaded)
                wanted = [plain_logits(loaded.module, ids) for ids in texts]
            except Exception as error:
                reason = " ".join(str(error).split())[:160]
                raise _lost(loaded, f"cannot be read ({reason})") from None
            for how, module in forms.items():
                _require_equal(loaded, how, wanted, [plain_logits(module, ids) for ids in texts])
    _passed.add(key)


def _plainly(loaded: LoadedModel, folder: Path) -> nn.Module:
    """The folder by `from_pretrained` alone, as a user would write it."""
    loader: Any = LOADERS[loaded.architecture]
    encodes = isinstance(loaded.module, EncoderClassifier)
    inner = folder / ENCODER if encodes else folder
    options: dict[str, Any] = {"dtype": loaded.storage.torch_dtype, "use_safetensors": True, "trust_remote_code": False}
    if loaded.has_adapter:
        from peft import PeftModel

        if loaded.architecture == "sequence-classifier":
            options |= {"num_labels": loaded.num_labels, "ignore_mismatched_sizes": True}
        base = loader.from_pretrained(loaded.base_name, revision=loaded.revision, **options)
        model: Any = PeftModel.from_pretrained(base, str(inner), use_safetensors=True)
    else:
        model = loader.from_pretrained(str(inner), **options)
    if encodes:
        weights = load_file(folder / "head.safetensors")
        whole = EncoderClassifier(model, *reversed(weights["head.weight"].shape))
        whole.load_state_dict(weights, strict=False)
        model = whole
    result: nn.Module = model.to(loaded.device).eval()
    return result


def _merged(module: nn.Module) -> nn.Module:
    """A copy of it as PEFT's `merge_and_unload` leaves it; an adapter that cannot be merged stays as it is."""
    whole: Any = copy.deepcopy(module)
    peft: Any = whole.encoder if isinstance(whole, EncoderClassifier) else whole
    if peft.active_peft_config.is_prompt_learning:
        return module
    plain = peft.merge_and_unload()
    if isinstance(whole, EncoderClassifier):
        whole.encoder = plain
        return whole
    result: nn.Module = plain
    return result


def _texts(loaded: LoadedModel) -> list[Tensor]:
    """Public random tokens, one row each, none of them padding."""
    pad = int(loaded.tokenizer.pad_token_id)
    draw = np.random.Generator(np.random.PCG64(_SEED))
    rows = [draw.integers(0, loaded.vocabulary, size=(1, length)) for length in _LENGTHS]
    known = [np.where(row == pad, (pad + 1) % loaded.vocabulary, row) for row in rows]
    return [torch.from_numpy(row.astype(np.int64)).to(loaded.device) for row in known]


def _require_equal(loaded: LoadedModel, how: str, wanted: list[Tensor], found: list[Tensor]) -> None:
    for ours, theirs in zip(wanted, found, strict=True):
        if ours.shape != theirs.shape:
            raise _lost(loaded, f"gives{how} logits of shape {tuple(theirs.shape)}, not {tuple(ours.shape)}")
        apart = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1.0))
        if not apart <= 10 * tolerance(loaded):
            raise _lost(loaded, f"gives{how} logits that differ by {apart:.2g} of their size")


def _lost(loaded: LoadedModel, what: str) -> DpzoError:
    return DpzoError(
        f"--model {loaded.base_name}: what would be saved, read back by plain transformers or PEFT, {what}; "
        "nothing is trained. Choose another part to train (--trainable) or another form of the model"
    )
