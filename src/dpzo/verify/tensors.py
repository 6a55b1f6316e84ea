"""Two safetensors files compared whole: tensors bit for bit, and all that stands beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

_LARGEST_HEAD = 100_000_000
"""Bytes of a file's JSON head that the library reads."""
_UNREADABLE = "cannot be read as safetensors"


def files_differ(shipped: Path, rebuilt: Path, metadata: Mapping[str, str] | None = None) -> str | None:
    """Where a safetensors file first differs from the one that was rebuilt, in words; None when nothing does.

    Compared are the tensors' names, types, shapes and bits, the metadata, the order and place of the tensors, how the
    head is spelled, and the length: the file has no room for anything else. `metadata` stands for that of `rebuilt`.
    """
    try:
        with safetensors.safe_open(rebuilt, framework="pt") as file:
            bad = _tensors_differ(shipped, _Lazy(file, tuple(file.keys())))
        if bad is not None:
            return bad
        (one, ours), (two, theirs) = _head(shipped), _head(rebuilt)
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError):
        return f"{shipped.name}: {_UNREADABLE}"
    said, wanted = one.pop("__metadata__", None), two.pop("__metadata__", None)
    if said != (wanted if metadata is None else metadata):
        return f"{shipped.name}: its metadata differs from what a replay writes"
    if list(one.items()) != list(two.items()) or ours != theirs:
        return f"{shipped.name}: its tensors are in another order or at other offsets than in a replay"
    return None


def _head(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's JSON head, and the bytes after it. ValueError unless spelled as the library spells it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LARGEST_HEAD:
            raise ValueError("head too long")
        raw = file.read(length)
    head = json.loads(raw)
    spelled = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    # A second key of the same name, a space or an escape elsewhere would be read by one reader and not by another.
    if not isinstance(head, dict) or raw != spelled + b" " * (-len(spelled) % 8):
        raise ValueError("head spelled otherwise")
    return head, path.stat().st_size - 8 - length


@dataclass(frozen=True)
class _Lazy(Mapping[str, Tensor]):
    """The tensors of an open file, one in memory at a time."""

    file: Any
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self.file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _tensors_differ(path: Path, wanted: Mapping[str, Tensor]) -> str | None:
    """Where the tensors of a file first differ from `wanted`, in words; None when every bit is the same."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names | set(wanted)):
                if name not in names:
                    return f"{path.name}: tensor {name} is missing"
                if name not in wanted:
                    return f"{path.name}: tensor {name} is unexpected"
                bad = _differ(file.get_tensor(name), wanted[name].cpu())
                if bad is not None:
                    return f"{path.name}: tensor {name}, {bad}"
    except (OSError, safetensors.SafetensorError):
        return f"{path.name}: cannot be read as safetensors"
    return None


def _differ(shipped: Tensor, rebuilt: Tensor) -> str | None:
    if (shipped.dtype, shipped.shape) != (rebuilt.dtype, rebuilt.shape):
        return f"is {shipped.dtype} {tuple(shipped.shape)}, the journal gives {rebuilt.dtype} {tuple(rebuilt.shape)}"
    one, two = (tensor.contiguous().reshape(-1) for tensor in (shipped, rebuilt))
    size = one.element_size()
    other = (one.view(torch.uint8) != two.view(torch.uint8)).nonzero()
    if len(other) == 0:
        return None
    element = int(other[0]) // size
    return f"element {element} of {len(one)} is {one[element].item()!r}, the journal gives {two[element].item()!r}"
