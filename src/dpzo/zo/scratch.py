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

    The last one given back lies in the cache, and to take it again is best, unless what read it was a product of many
    rows: after those a buffer took up to twice as long to overwrite as one at rest, on a CPU of two cores. For them
    buffers take turns, as many as `ring_bytes` hold.
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

    def take(
        self, size: int, device: torch.device, dtype: torch.dtype = torch.float32, *, rested: bool = False
    ) -> Tensor:
        """A buffer of at least `size` elements: the last one given back that holds them, or a new one.

        `rested`: a new one as long as there is room for one more to take turns; else of those that fit the one that has
        rested longest, or the smallest if all are far too large. New ones replace as many as make room for them.
        """
        place = self._longest_rested(size, device, dtype) if rested else self._latest(size, device, dtype)
        if place is not None:
            return self._free.pop(place)
        needed = size * dtype.itemsize
        while self._free and self._held + needed > self._ring_bytes:
            self._held -= _bytes(self._free.pop(0))
        self._held += needed
        with torch.inference_mode(False):  # an inference tensor could not serve outside inference mode
            return torch.empty(size, dtype=dtype, device=device)

    def _latest(self, size: int, device: torch.device, dtype: torch.dtype) -> int | None:
        for place in reversed(range(len(self._free))):
            buffer = self._free[place]
            if buffer.numel() >= size and buffer.dtype == dtype and buffer.device == device:
                return place
        return None

    def _longest_rested(self, size: int, device: torch.device, dtype: torch.dtype) -> int | None:
        room = device.type == "cpu" and self._held + size * dtype.itemsize <= self._ring_bytes
        first, fitting, larger, least = None, 0, None, 0
        for place, buffer in enumerate(self._free):
            held = buffer.numel()
            if held < size or buffer.dtype != dtype or buffer.device != device:
                continue
            if held <= _CLOSE * size:
                first, fitting = place if first is None else first, fitting + 1
                if not room or fitting == _TURNS:  # a layer asks between two products: look no further
                    return first
            elif larger is None or held < least:
                larger, least = place, held
        return None if room else larger

    def give(self, buffer: Tensor) -> None:
        """Take a buffer back."""
        self._free.append(buffer)

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
