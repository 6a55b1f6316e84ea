"""Storage for private data too large for memory: an unnamed owner-only temporary file, mapped when complete."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from array import array
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from dpzo.errors import DpzoError

MAP_ABOVE = 1 << 25
"""Bytes of one column or array that are held in memory; beyond, it moves to a temporary file."""

_LITTLE_TEXT = 80
"""Approximate bytes that a Python string needs in addition to its characters."""


class Spool:
    """Bytes written one after the other, then read as one array: in memory when few, else in a mapped file.

    - The file has no name (`O_TMPFILE`, or removed as soon as it is made) and mode 0600: nobody else can open it, and
      nothing is left of it when the process ends, however it ends. It lies where `TMPDIR` says; where that is a file
      system in memory, nothing is saved.
    - It is written, not mapped, while it grows: pages of a mapping would count as the process's own memory.

    Errors: DpzoError when the temporary folder is full or cannot be written.
    """

    def __init__(self, map_above: int = MAP_ABOVE) -> None:
        self._map_above = map_above
        self._memory = bytearray()
        self._file: Any = None

    def __repr__(self) -> str:
        return "Spool(<private>)"

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""
        if self._file is None and len(self._memory) + len(data) <= self._map_above:
            self._memory += data
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="dpzo-")  # noqa: SIM115 -- outlives this call
                self._file.write(self._memory)
                self._memory = bytearray()
            self._file.write(data)
        except OSError as error:
            raise _no_room(error) from None

    def finish(self) -> NDArray[np.uint8]:
        """All bytes, shape (n,); the spool takes no more after this. Writes to the result never reach the file."""
        if self._file is None:
            return np.frombuffer(self._memory, dtype=np.uint8)
        try:
            self._file.flush()
            # Copy on write: PyTorch warns about memory that it may not write to, though nothing here writes to it.
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._file.close()
        except OSError as error:
            raise _no_room(error) from None
        return np.frombuffer(mapped, dtype=np.uint8)


class ArraySpool:
    """Rows of an array, appended in blocks; `finish` gives the whole, shape (n, …), of the blocks' type."""

    def __init__(self, map_above: int = MAP_ABOVE) -> None:
        self._spool = Spool(map_above)
        self._rows = 0
        self._kind: tuple[np.dtype[Any], tuple[int, ...]] | None = None

    def __repr__(self) -> str:
        return "ArraySpool(<private>)"

    def append(self, block: NDArray[Any]) -> None:
        """Append a block of rows. ValueError when its type or the shape of its rows is another than before."""
        kind = (block.dtype, block.shape[1:])
        if self._kind is not None and kind != self._kind:
            raise ValueError("blocks of an array must have one type and rows of one shape")
        self._kind = kind
        self._rows += len(block)
        if block.size:
            self._spool.write(np.ascontiguousarray(block).view(np.uint8).reshape(-1).data)

    def finish(self) -> NDArray[Any]:
        """The whole array. ValueError when there was no block."""
        if self._kind is None:
            raise ValueError("an array without a block has no type")
        dtype, row = self._kind
        return self._spool.finish().view(dtype).reshape(self._rows, *row)


class RowStore:
    """`rows` rows of `width` bytes, written in any order: in memory when few, else in a mapped file.

    The file is as a `Spool`'s: no name, mode 0600, nothing left of it when the process ends. Its room is taken at
    once, so that a full disk shows here and not in the middle of a run; it is written, not mapped, as it fills.

    Errors: DpzoError when the temporary folder is full or cannot be written.
    """

    def __init__(self, rows: int, width: int, map_above: int = MAP_ABOVE) -> None:
        self._width = width
        self._file: Any = None
        if rows * width <= map_above:
            self._rows = np.zeros((rows, width), dtype=np.uint8)
            return
        try:
            self._file = tempfile.TemporaryFile(prefix="dpzo-")  # noqa: SIM115 -- outlives this call
            weakref.finalize(self, self._file.close)
            os.ftruncate(self._file.fileno(), rows * width)
            reserve = getattr(os, "posix_fallocate", None)  # not on every system; there a full disk shows later
            if reserve is not None:
                reserve(self._file.fileno(), 0, rows * width)
            mapped = mmap.mmap(self._file.fileno(), rows * width, access=mmap.ACCESS_READ)
        except OSError as error:
            raise _no_room(error) from None
        self._rows = np.frombuffer(mapped, dtype=np.uint8).reshape(rows, width)

    def __repr__(self) -> str:
        return "RowStore(<private>)"

    def write(self, places: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        """Write one row, shape (width,), at each place. ValueError for rows of another width."""
        if rows.shape != (len(places), self._width):
            raise ValueError("a row of another width")
        if self._file is None:
            self._rows[places] = rows
            return
        try:
            for place, row in zip(places, np.ascontiguousarray(rows), strict=True):
                data, start = row.data, int(place) * self._width
                while len(data):
                    done = os.pwrite(self._file.fileno(), data, start)
                    data, start = data[done:], start + done
        except OSError as error:
            raise _no_room(error) from None

    def read(self, places: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The rows at `places`, shape (n, width), as a copy; zeros where nothing was written."""
        found: NDArray[np.uint8] = self._rows[places]
        return found


class TextSpool:
    """Texts appended one by one; `finish` gives them as a tuple when they are few, else as texts in a mapped file."""

    def __init__(self, map_above: int = MAP_ABOVE) -> None:
        self._map_above = map_above
        self._texts: list[str] = []
        self._weight = 0
        self._bytes: Spool | None = None
        self._ends = array("q")
        self._end = 0

    def __repr__(self) -> str:
        return "TextSpool(<private>)"

    def append(self, text: str) -> None:
        """Append a text; any code point, lone surrogates too."""
        self._texts.append(text)
        self._weight += len(text) + _LITTLE_TEXT
        if self._weight > self._map_above:
            self._spill()

    def finish(self) -> Sequence[str]:
        """The texts in order; read-only."""
        if self._bytes is None:
            return tuple(self._texts)
        self._spill()
        return _MappedTexts(self._bytes.finish(), np.frombuffer(self._ends, dtype=np.int64))

    def _spill(self) -> None:
        if self._bytes is None:
            self._bytes = Spool(map_above=0)
        for text in self._texts:
            data = text.encode("utf-8", "surrogatepass")
            self._end += len(data)
            self._ends.append(self._end)
            self._bytes.write(data)
        self._texts.clear()
        self._weight = 0


class _MappedTexts(Sequence[str]):
    """Texts one after the other in one buffer, decoded on access."""

    def __init__(self, data: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self._data = data
        self._ends = ends

    def __repr__(self) -> str:
        return "Texts(<private>)"

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        place = range(len(self))[index]
        start = 0 if place == 0 else int(self._ends[place - 1])
        return self._data[start : int(self._ends[place])].tobytes().decode("utf-8", "surrogatepass")


def _no_room(error: OSError) -> DpzoError:
    reason = os.strerror(error.errno) if error.errno is not None else type(error).__name__
    return DpzoError(
        f"{tempfile.gettempdir()}: the records do not fit in memory and cannot be set aside here ({reason}); "
        "point TMPDIR to a folder on a disk with room"
    )
