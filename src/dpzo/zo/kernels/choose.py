"""Select the kernels for a tensor. All give the same bits, so the choice affects only the speed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Literal, cast

import torch
from torch import Tensor

from dpzo.errors import DpzoError
from dpzo.zo.kernels import mask, reference, rounding
from dpzo.zo.kernels.spec import Kernels, Stream

Backend = Literal["numba", "triton", "reference"]
"""`numba`: the fast kernels of the device, numba on the CPU, Triton on CUDA where it serves, else the reference.
`triton`: Triton or an error. `reference`: plain torch."""


@cache
def _serving(backend: Backend, device: torch.device) -> Backend:
    if backend == "reference":
        return "reference"
    if backend == "triton":
        if find_spec("triton") is None:
            raise DpzoError("backend: triton is not installed; install it, or choose numba or reference")
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise DpzoError(f"backend: triton serves CUDA tensors, not {device.type}; choose numba or reference")
        return "triton"
    if backend != "numba":
        raise DpzoError(f"backend: {backend!r} is unknown; choose numba, triton or reference")
    if device.type == "cpu":
        return "numba"
    if device.type == "cuda" and find_spec("triton") is not None:
        from dpzo.zo.kernels import cuda  # triton takes a quarter of a second to import

        if cuda.serves(device):
            return "triton"
    return "reference"


@cache
def kernels_for(backend: Backend, device: torch.device) -> Kernels:
    """The kernels for tensors on `device`. Raises DpzoError for a backend that is unknown or does not support it."""
    serving = _serving(backend, device)
    if serving == "numba":
        from dpzo.zo.kernels import cpu  # numba takes half a second to import

        return cast(Kernels, cpu)
    if serving == "triton":
        from dpzo.zo.kernels import cuda

        return cast(Kernels, cuda)
    return cast(Kernels, reference)


def round_into(backend: Backend, stream: Stream, wide: Tensor, out: Tensor, start: int) -> None:
    """out_j ← wide_j rounded by the bits of element start + j; see `rounding`."""
    serving = _serving(backend, wide.device)
    if serving == "numba":
        from dpzo.zo.kernels import rounding_cpu

        rounding_cpu.round_into(stream, wide, out, start)
    elif serving == "triton":
        from dpzo.zo.kernels import cuda_words

        cuda_words.round_into(stream, wide, out, start)
    else:
        rounding.round_into(stream, wide, out, start)


def keep(backend: Backend, stream: Stream, threshold: int, out: Tensor, start: int) -> None:
    """out_j ← out_j where word start + j is below `threshold`, else +0; see `mask`."""
    serving = _serving(backend, out.device)
    if serving == "numba":
        from dpzo.zo.kernels import mask_cpu

        mask_cpu.keep(stream, threshold, out, start)
    elif serving == "triton":
        from dpzo.zo.kernels import cuda_words

        cuda_words.keep(stream, threshold, out, start)
    else:
        mask.keep(stream, threshold, out, start)


def add_each(
    backend: Backend,
    streams: Sequence[Stream],
    factor: float,
    bases: Sequence[Tensor],
    scale: float,
    outs: Sequence[Tensor],
) -> None:
    """`Kernels.add` of many small bases of one device, law and dtype: in one call where call overhead dominates."""
    if _serving(backend, outs[0].device) == "numba":
        from dpzo.zo.kernels import small_cpu

        small_cpu.add_each(streams, factor, bases, scale, outs)
        return
    kernels = kernels_for(backend, outs[0].device)
    for stream, base, out in zip(streams, bases, outs, strict=True):
        kernels.add(stream, factor, base, scale, out, 0)


def step_each(
    backend: Backend,
    streams: Sequence[Sequence[Stream]],
    factors: Sequence[float],
    coefficients: Sequence[float],
    thetas: Sequence[Tensor],
) -> None:
    """`Kernels.step` of many small fp32 thetas on one device, with the streams of each."""
    if _serving(backend, thetas[0].device) == "numba":
        from dpzo.zo.kernels import small_cpu

        thirds = [stream.c3 for stream in streams[0]]
        small_cpu.step_each([own[0] for own in streams], thirds, factors, coefficients, thetas)
        return
    kernels = kernels_for(backend, thetas[0].device)
    for own, theta in zip(streams, thetas, strict=True):
        kernels.step(own, factors, coefficients, theta, 0)


def fuses_rounding(backend: Backend, device: torch.device) -> bool:
    """Whether `step_rounded` supports the device."""
    return _serving(backend, device) == "triton"


def step_rounded(
    streams: Sequence[Stream],
    factors: Sequence[float],
    coefficients: Sequence[float],
    theta: Tensor,
    start: int,
    bits: Stream,
) -> None:
    """A 16-bit θ_j ← fl(θ_j + g_j), rounded by `bits`, in one pass over memory; see `cuda.step_rounded`."""
    from dpzo.zo.kernels import cuda

    cuda.step_rounded(streams, factors, coefficients, theta, start, bits)


def block_elements(device: torch.device) -> int:
    """Elements per block of a pass: as many as a CPU's cache holds, or enough to amortise a kernel launch on a GPU.

    The bits do not depend on it.
    """
    return 1 << 16 if device.type == "cpu" else 1 << 24
