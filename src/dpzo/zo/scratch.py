"""Memory for shifted weights, allocated once and used by one layer after another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Scratch:
    """Flat buffers, handed out and taken back; as many as parameters are shifted at the same time."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []
        self._lent = False

    def take(self, size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """A free buffer of this very size, else the smallest that fits, else a new one in place of the largest."""
        own = [(i, b.numel()) for i, b in enumerate(self._free) if b.device == device and b.dtype == dtype]
        chosen = next((i for i, held in own if held == size), None)
        if chosen is None:
            chosen = min(((held, i) for i, held in own if held > size), default=(0, None))[1]
        if chosen is not None:
            return self._free.pop(chosen)
        if own:
            self._free.pop(max((held, i) for i, held in own)[1])
        with torch.inference_mode(False):  # an inference tensor could not serve outside inference mode
            return torch.empty(size, dtype=dtype, device=device)

    def give(self, buffer: Tensor) -> None:
        """Take a buffer back."""
        self._free.append(buffer)

    def clear(self) -> None:
        """Let go of all memory."""
        self._free = []

    @contextmanager
    def lend(self) -> Iterator[None]:
        """Mark the scratch as in use; RuntimeError if it already is."""
        if self._lent:
            raise RuntimeError("these parameters are already shifted; shifts do not nest")
        self._lent = True
        try:
            yield
        finally:
            self._lent = False
