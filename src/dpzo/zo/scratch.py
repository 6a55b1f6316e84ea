"""Memory for shifted weights, allocated once and reused by one layer after another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

RING_BYTES = 48 << 20
"""Maximum bytes of the buffers used in rotation."""
_TURNS = 4
"""Number of buffers of similar size used in rotation."""
_CLOSE = 4


class Scratch:
    """A pool of flat buffers, as many as parameters are shifted at the same time.

    The last buffer returned is still in the CPU cache and is reused first, except after a product of many rows:
    overwriting such a buffer took up to twice as long as an idle one, on a CPU of two cores. For these products buffers
    are used in rotation, as many as fit in `ring_bytes`.
    """

    def __init__(self, ring_bytes: int = 0) -> None:
        self._ring_bytes = ring_bytes
        self._free: list[Tensor] = []  # the longest idle buffer comes first
        self._held = 0
        self._lent = False

    @property
    def held(self) -> int:
        """Bytes of all buffers, handed out or not."""
        return self._held

    def take(
        self, size: int, device: torch.device, dtype: torch.dtype = torch.float32, *, rested: bool = False
    ) -> Tensor:
        """Take a buffer of at least `size` elements: the last returned one that is large enough, or a new one.

        `rested`: a new buffer while the rotation has room for one more; else the longest idle one that fits, or the
        smallest if all are far too large. A new buffer replaces as many old ones as it needs room for.
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
                if not room or fitting == _TURNS:  # called between two products: stop searching
                    return first
            elif larger is None or held < least:
                larger, least = place, held
        return None if room else larger

    def give(self, buffer: Tensor) -> None:
        """Return a buffer to the pool."""
        self._free.append(buffer)

    def clear(self) -> None:
        """Free all buffers that are not in use."""
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
