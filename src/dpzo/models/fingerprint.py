"""One hash that names the base weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

_BLOCK = 1 << 24
"""Bytes copied off the model at a time."""


def fingerprint(module: nn.Module, exclude: Collection[str] = ()) -> str:
    """SHA-256 over name, dtype, shape and bytes of every stored tensor of `module`, in the order of their names.

    Reads the state dict (parameters and persistent buffers), a block at a time, without a second copy of the model.
    `exclude` names tensors that are not part of the base, such as a freshly made classifier. A tied weight appears
    under each of its names. Equal fingerprints mean equal bits; the host must be little-endian, as every supported
    one is. Not for private data: the hash of a private file is a leak.
    """
    return fingerprint_tensors({name: t for name, t in module.state_dict().items() if name not in exclude})


def fingerprint_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The same hash over tensors given by name; a quantised one counts as the plain tensors that it is made of."""
    digest = hashlib.sha256(b"dpzo-weights/v1\n")
    plain = plain_tensors(tensors)
    for name in sorted(plain):
        tensor = plain[name]
        header = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(header).encode() + b"\n")
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        for start in range(0, flat.numel(), _BLOCK):
            digest.update(flat[start : start + _BLOCK].cpu().numpy().data)
    return digest.hexdigest()


def plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The plain tensors that `tensors` are made of, by name: a quantised weight is its codes and its scales."""
    plain: dict[str, Tensor] = {}
    for name, value in tensors.items():
        plain.update(_parts(name, value.detach()))
    return plain


def _parts(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The plain tensors inside a tensor of a library's own kind, by name; any other tensor is its own part."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if type(tensor) is Tensor or flatten is None:
        return {name: tensor}
    found: dict[str, Tensor] = {}
    for inner in flatten()[0]:
        found.update(_parts(f"{name}.{inner}", getattr(tensor, inner)))
    return found
