"""Memory for shifted weights, allocated once and used by one layer after another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

RING_BYTES = 48 << 20
"""Of buffers that take turns, at most."""
_TURNS = 4
"""Buffers of about one size that take turns."""
_CLOSE = 4


class Scratch:
    """Flat buffers, handed out and taken back; as many as parameters are shifted at the same time.

    On a CPU of several cores a buffer that a product has just read lies in all their caches, and to write to it takes
    twice as long as to write elsewhere. So buffers take turns, as many as `ring_bytes` hold.
    """

    def __init__(self, ring_bytes: int = 0) -> None:
        self._ring_bytes = ring_bytes
        self._free: list[Tensor] = []  # the one that has rested longest comes first
        self._held = 0
        self._lent = False

    @property
    def held(self) -> int:
        """Bytes of all buffers, handed out or not."""
        return self._held

    def take(self, size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """A buffer of at least `size` elements.

        A new one as long as there is room for one more to take turns; else of those that fit the one that has rested
        longest, or the smallest if all are far too large; else a new one in place of as many as make room for it.
        """
        needed = size * dtype.itemsize
        room = device.type == "cpu" and self._held + needed <= self._ring_bytes
        first, fitting, larger = (
            -1,
            0,
            (0, -1),
        )  # places in the list, and the size of the smallest that is far too large
        for place, buffer in enumerate(self._free):
            held = buffer.numel()
            if held < size or buffer.dtype != dtype or buffer.device != device:
                continue
            if held <= _CLOSE * size:
                first, fitting = place if first < 0 else first, fitting + 1
                if (
                    not room or fitting == _TURNS
                ):  # a layer asks between two products, when all is slow: look no further
                    return self._free.pop(first)
            elif larger[1] < 0 or held < larger[0]:
                larger = held, place
        if larger[1] >= 0 and not room:
            return self._free.pop(larger[1])
        while self._free and self._held + needed > self._ring_bytes:
            self._held -= _bytes(self._free.pop(0))
        self._held += needed
        with torch.inference_mode(False):  # an inference tensor could not serve outside inference mode
            return torch.empty(size, dtype=dtype, device=device)

    def give(self, buffer: Tensor) -> None:
        """Take a buffer back."""
        self._free.append(buffer)

    @contextmanager
    def lent(self, size: int, device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
        """A buffer as `take` gives it, taken back when the block ends."""
        buffer = self.take(size, device, dtype)
        try:
            yield buffer
        finally:
            self.give(buffer)

    def clear(self) -> None:
        """Let go of all memory that is not handed out."""
        self._held -= sum(_bytes(buffer) for buffer in self._free)
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


def _bytes(buffer: Tensor) -> int:
    return buffer.numel() * buffer.element_size()
