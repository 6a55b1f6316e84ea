"""Memory for shifted weights, allocated once and used by one layer after another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Scratch:
    """Flat fp32 buffers, handed out and taken back; as many as parameters are shifted at the same time."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []
        self._lent = False

    def take(self, size: int, device: torch.device) -> Tensor:
        """The smallest free buffer that fits, else a new one in place of the largest that does not."""
        fitting = [b for b in self._free if b.numel() >= size and b.device == device]
        if fitting:
            chosen = min(fitting, key=lambda b: b.numel())
        else:
            small = [b for b in self._free if b.device == device]
            if small:
                self._forget(max(small, key=lambda b: b.numel()))
            with torch.inference_mode(False):  # an inference tensor could not serve outside inference mode
                return torch.empty(size, dtype=torch.float32, device=device)
        self._forget(chosen)
        return chosen

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

    def _forget(self, buffer: Tensor) -> None:
        self._free = [b for b in self._free if b is not buffer]
