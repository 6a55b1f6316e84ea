"""Public initial values of new parameters, addressed like directions and independent of all of them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from dpzo.zo.directions import check_seed
from dpzo.zo.kernels import reference, spec
from dpzo.zo.kernels.choose import Backend, kernels_for
from dpzo.zo.kernels.spec import Stream


def public_uniform(seed: int, name: str | int, size: int, low: float, high: float) -> Tensor:
    """A flat fp32 tensor of `size` public uniforms in [low, high], to initialise the new parameter `name`.

    Formula: fl(low + fl(fl32(high − low)·u)) with u = (⌊w / 2⁹⌋ + ½)·2⁻²³ ∈ (0, 1). A pure function of its arguments,
    bitwise equal everywhere, and independent of every direction. Raises DpzoError for a seed outside 0 … 2⁶⁴ − 1.
    """
    stream = _initial_stream(seed, name, "init_uniform")
    out = torch.empty(size, dtype=torch.float32)
    width, base = torch.tensor(high - low, dtype=torch.float32), torch.tensor(low, dtype=torch.float32)
    chunk = 1 << 18
    for at in range(0, size, chunk):
        words = reference.uniform_words(stream, at, min(chunk, size - at), torch.device("cpu"))
        unit = ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23
        out[at : at + chunk] = base + width * unit
    return out


def public_normal(seed: int, name: str | int, size: int, std: float, backend: Backend = "numba") -> Tensor:
    """A flat fp32 tensor of `size` public normals of deviation `std`, to initialise the new parameter `name`.

    Formula: fl(std·g). A pure function of its arguments, bitwise equal everywhere, and independent of every direction.
    Raises DpzoError for a seed outside 0 … 2⁶⁴ − 1.
    """
    out = torch.empty(size, dtype=torch.float32)
    kernels_for(backend, out.device).fill(_initial_stream(seed, name, "init_normal"), std, out, 0)
    return out


def _initial_stream(seed: int, name: str | int, purpose: str) -> Stream:
    """A stream addressed by 76 bits of a hash: a name and the index of the same spelling are different addresses."""
    check_seed(seed)
    label = f"index:{name}" if isinstance(name, int) else f"name:{name}"
    digest = int.from_bytes(hashlib.sha256(label.encode()).digest(), "little")
    return Stream(
        law=spec.NORMALS,
        key0=seed & 0xFFFFFFFF,
        key1=seed >> 32,
        parameter=digest & (spec.MAX_PARAMETERS - 1),
        c2=(digest >> 20) & 0xFFFFFFFF,
        c3=((digest >> 52) & 0xFFFFFF) | spec.PURPOSES[purpose] << 24,
    )
