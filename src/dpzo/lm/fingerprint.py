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
    """The same hash over tensors given by name."""
    digest = hashlib.sha256(b"dpzo-weights/v1\n")
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        header = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(header).encode() + b"\n")
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        for start in range(0, flat.numel(), _BLOCK):
            digest.update(flat[start : start + _BLOCK].cpu().numpy().data)
    return digest.hexdigest()
