"""A model's shapes without its weights: the facts about a checkpoint that are known before its weights are read.

The library builds the module of a configuration from tensors with a shape and a dtype but no memory, so inspecting a
model of any size takes a second. One evaluation of such a module shows how much memory a real one takes.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpzo.errors import DpzoError
from dpzo.models.adapters import LoraSettings
from dpzo.models.batching import microbatches
from dpzo.models.encoder import EncoderClassifier
from dpzo.models.isolation import RowShape, synthetic_rows
from dpzo.models.models import LoadedModel, base_of, choose_part
from dpzo.models.objectives import TokenObjective
from dpzo.models.quiet import global_generators_kept, silent_libraries
from dpzo.models.sources import (
    LOADERS,
    Architecture,
    Kind,
    choose_architecture,
    find_source,
    has_tokenizer,
    load_config,
    load_tokenizer,
)
from dpzo.models.storage import Storage, packed_weights
from dpzo.models.trainable import quantised_is_frozen
from dpzo.zo.pieces import is_wide, slice_height

_FULL_PRECISION = Storage()
_MADE_UP = 0.01
"""What a stand-in's weights are: any number that is neither zero nor tiny takes a processor the same time."""


@dataclass(frozen=True)
class Checkpoint:
    """The facts about a model in a folder, on a hub or in a config.json, without its weights."""

    name: str
    config: Any  # the library's
    kind: Kind
    architecture: Architecture
    tokenizer: Any | None  # None where there is a configuration alone
    file_bytes: int | None  # of the weights' files, None if none are on this machine

    @property
    def is_here(self) -> bool:
        """Whether weights and tokenizer are on this machine."""
        return self.file_bytes is not None and self.tokenizer is not None

    @property
    def vocabulary(self) -> int:
        """Token numbers are below it."""
        return int(getattr(self.config.get_text_config(), "vocab_size", 0))

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the saved weights, by the configuration; None where it does not say."""
        found = getattr(self.config, "dtype", None)
        return getattr(torch, found, None) if isinstance(found, str) else found

    @property
    def num_layers(self) -> int:
        """Layers of the stack by the configuration; 0 where it does not say."""
        count = getattr(self.config.get_text_config(), "num_hidden_layers", None)
        return count if isinstance(count, int) else 0


def find_checkpoint(
    name_or_folder: str | Path, kind: Kind, *, prompted: bool = False, revision: str | None = None
) -> Checkpoint:
    """Read a configuration, and a tokenizer where there is one; a folder or a config.json without weights will do.

    Nothing but the configuration and the tokenizer is asked of the hub. Errors: `DpzoError` for what cannot be read.
    """
    name = str(name_or_folder)
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".json":
        source: dict[str, Any] = {"pretrained_model_name_or_path": str(path), "trust_remote_code": False}
        folder: Path | None = None
    else:
        source = find_source(name, revision, with_weights=False)
        folder = path if path.is_dir() else None
    with silent_libraries():
        config = load_config(name, source)
        architecture = choose_architecture(name, config, kind, prompted)
        readable = folder is None or has_tokenizer(folder)
        tokenizer = load_tokenizer(name, source) if readable and not path.is_file() else None
    return Checkpoint(name, config, kind, architecture, tokenizer, _weight_bytes(name, folder, revision, path))


def _weight_bytes(name: str, folder: Path | None, revision: str | None, path: Path) -> int | None:
    """Bytes of the safetensors files in the folder or in the hub's cache; None where they are not here."""
    if folder is None and not path.is_file():
        import huggingface_hub as hub

        for file in ("model.safetensors", "model.safetensors.index.json"):
            found = hub.try_to_load_from_cache(name, file, revision=revision)
            if isinstance(found, str):
                folder = Path(found).parent
    if folder is None:
        return None
    sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
    return sum(sizes) if sizes else None


@dataclass(frozen=True, repr=False)
class Skeleton:
    """A `LoadedModel` whose tensors have no memory, and the bytes that its weights take once they have some."""

    checkpoint: Checkpoint
    model: LoadedModel
    weights: int  # bytes of base and adapters as they are held, the trainable ones among them
    unquantised: int  # bytes of the base before it is quantised, in its dtype
    unpacked: int  # bytes, in that dtype, of the largest weight that a quantised layer unpacks to multiply; 0 for none
    trainable: tuple[tuple[int, torch.dtype], ...]  # elements and dtype of each trained parameter
    largest_shift: int  # bytes of the trained parameters that one layer owns, at most; of a wide matrix, of a slice
    largest_sliced: int  # bytes of the largest trained matrix that is shifted by slices
    elements: int  # of the whole module
    _memory: FakeTensorMode
    _known: dict[tuple[RowShape, int], int] = field(default_factory=dict)  # what `activations` has found

    @property
    def dimension(self) -> int:
        """d, the trainable elements."""
        return sum(elements for elements, _ in self.trainable)

    @property
    def trainable_bytes(self) -> int:
        """Bytes of one copy of the trainable part."""
        return sum(elements * dtype.itemsize for elements, dtype in self.trainable)

    def activations(self, shape: RowShape, microbatch_size: int) -> int:
        """Bytes that live beside the weights at the peak of one evaluation of a micro-batch, by running it on shapes.

        Tensors of the evaluation are counted from their making to their end; what a kernel takes for itself is not.
        """
        if (shape, microbatch_size) not in self._known:
            self._known[shape, microbatch_size] = self._live_bytes(shape, microbatch_size)
        return self._known[shape, microbatch_size]

    def _live_bytes(self, shape: RowShape, microbatch_size: int) -> int:
        rows = synthetic_rows(shape, microbatch_size)
        objective = TokenObjective(self.model.module, rows, microbatch_size)
        units = np.arange(microbatch_size, dtype=np.int64)
        (real,) = microbatches(rows, units, microbatch_size, torch.device("cpu"))
        given = {item.name: getattr(real, item.name) for item in fields(real)}
        twins: dict[str, Any] = {n: self._memory.from_tensor(t) for n, t in given.items() if isinstance(t, Tensor)}
        batch = replace(real, **twins)
        known = [*self.model.module.parameters(), *self.model.module.buffers()]
        with silent_libraries(), self._memory, _LiveBytes(known) as live, torch.no_grad():
            logits = objective.logits(batch)
            objective.record_losses(batch, logits)
        return int(live.peak)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors made inside the block that are alive, `known` ones not counted; `peak` is their most."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: dict[str, Any] | None = None
    ) -> Any:
        output = function(*arguments, **(options or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return output

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place not in self._seen:
            self._seen.add(place)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, place, size)

    def _gone(self, place: int, size: int) -> None:
        self._seen.discard(place)
        self.now -= size


def build_skeleton(
    checkpoint: Checkpoint,
    *,
    labels: Sequence[str] | None = None,
    trainable: str = "lora",
    lora: LoraSettings | None = None,
    virtual_tokens: int = 10,
    storage: Storage = _FULL_PRECISION,
) -> Skeleton:
    """The shapes of what `load_model` would give, without its weights; no file but the configuration is asked for.

    What a checkpoint lacks is not known yet: it is taken to be all that lies outside the base model.
    Errors: `DpzoError` as `load_model`, for what shapes can tell.
    """
    with silent_libraries(), global_generators_kept(), torch.device("meta"):
        module = _module(checkpoint, labels, storage)
        unquantised = sum(p.numel() * p.element_size() for p in module.parameters())
        packed = packed_weights(base_of(module), storage)
        unpacked = max((p.numel() * p.element_size() for p in module.parameters() if id(p) in packed), default=0)
        module, names, new_names = choose_part(
            module,
            checkpoint.architecture,
            _outside_base(module, checkpoint.architecture),
            _unfilled,
            trainable=trainable,
            lora=lora,
            virtual_tokens=virtual_tokens,
        )
    parameters = dict(module.named_parameters())
    for name in names:
        if id(parameters[name]) in packed:
            raise quantised_is_frozen(name)
    learning = {id(parameters[name]) for name in names}
    weights = sum(packed.get(id(p), p.numel() * p.element_size()) for p in parameters.values())
    trained = [p for p in parameters.values() if id(p) in learning]
    sliced = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear) and is_wide(m.weight)} & learning
    largest_shift = max(
        sum(_shifted_bytes(p, id(p) in sliced) for p in part.parameters(recurse=False) if id(p) in learning)
        for part in module.modules()
        if not isinstance(part, nn.Embedding)  # of a table only the rows that are looked up are shifted
    )
    largest_sliced = max((p.numel() * p.element_size() for p in trained if id(p) in sliced), default=0)
    memory = FakeTensorMode()
    _without_memory(module.eval(), memory)
    model = LoadedModel(
        module=module,
        tokenizer=checkpoint.tokenizer,
        kind=checkpoint.kind,
        architecture=checkpoint.architecture,
        trainable=trainable,
        trainable_names=names,
        new_names=new_names,
        base_name=checkpoint.name,
        base_fingerprint="",
        num_labels=None if labels is None else len(labels),
        storage=storage,
    )
    return Skeleton(
        checkpoint=checkpoint,
        model=model,
        weights=weights + sum(b.numel() * b.element_size() for b in module.buffers()),
        unquantised=unquantised,
        unpacked=unpacked,
        trainable=tuple((parameters[name].numel(), parameters[name].dtype) for name in names),
        largest_shift=largest_shift,
        largest_sliced=largest_sliced,
        elements=sum(p.numel() for p in parameters.values()),
        _memory=memory,
    )


def _shifted_bytes(parameter: nn.Parameter, sliced: bool) -> int:
    """The part of it that is held while its layer runs."""
    elements = slice_height(parameter) * parameter.shape[1] if sliced else parameter.numel()
    return elements * parameter.element_size()


def _module(checkpoint: Checkpoint, labels: Sequence[str] | None, storage: Storage) -> nn.Module:
    """The library's module of the configuration, on whatever device or in whatever mode is set."""
    config, architecture = copy.deepcopy(checkpoint.config), checkpoint.architecture
    if architecture == "sequence-classifier" and labels is not None:
        config.num_labels = len(labels)
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0 if checkpoint.tokenizer is None else checkpoint.tokenizer.pad_token_id
    loader = LOADERS[architecture]
    try:
        try:
            module = loader.from_config(config, dtype=storage.torch_dtype, attn_implementation="sdpa")
        except (ValueError, ImportError):
            module = loader.from_config(config, dtype=storage.torch_dtype, attn_implementation="eager")
    except Exception as error:
        raise DpzoError(
            f"--model {checkpoint.name}: its configuration makes no model ({type(error).__name__}); check config.json"
        ) from None
    if architecture == "encoder":
        hidden = getattr(module.config, "hidden_size", None)
        if hidden is None or labels is None:
            raise DpzoError(
                f"--model {checkpoint.name}: its configuration has no hidden_size; use a sequence classifier instead"
            )
        return EncoderClassifier(module, hidden, len(labels))
    result: nn.Module = module
    return result


def _without_memory(module: nn.Module, memory: FakeTensorMode) -> None:
    """Put tensors that pass for a CPU's, and have no memory, in place of all that the module holds; ties stay."""
    made: dict[int, Tensor] = {}

    def twin(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with memory:
                plain = torch.empty(tensor.shape, dtype=tensor.dtype)
            made[id(tensor)] = nn.Parameter(plain, requires_grad=False) if isinstance(tensor, nn.Parameter) else plain
        return made[id(tensor)]

    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = twin(tensor)  # type: ignore[assignment]
        loose = getattr(part, "prompt_tokens", None)  # PEFT holds the numbers of its virtual tokens in a plain dict
        if isinstance(loose, dict):
            loose.update({name: twin(tensor) for name, tensor in loose.items()})


def _outside_base(module: nn.Module, architecture: Architecture) -> tuple[str, ...]:
    """Names of a sequence classifier's parameters outside its base model, which a checkpoint most often lacks."""
    if architecture != "sequence-classifier":
        return ()
    model: Any = module
    prefix = f"{model.base_model_prefix}."
    return tuple(name for name, _ in module.named_parameters() if not name.startswith(prefix))


def _unfilled(_name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape)
