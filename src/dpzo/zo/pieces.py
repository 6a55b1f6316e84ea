"""Layers that need part of a large matrix at a time: a lookup needs rows, a wide product one slice after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dpzo.zo.parameters import Held

_SLICE_BYTES = 6 << 20
"""Of a wide matrix at a time: it stays in a CPU's cache from where it is shifted to where it is multiplied."""
_WIDE = 4
"""A matrix with at least this many slices is wide. Below, the product of the whole matrix is as fast."""
_ROWS = 64
"""Rows of a slice come in multiples of this, so that products are tiled as those of the whole are."""


class Source(Protocol):
    """The object that computes the requested shifted weights."""

    def is_parameter(self, tensor: Any, index: int) -> bool: ...
    def rows(self, index: int, chosen: Tensor) -> Tensor: ...
    def product(self, index: int, x: Tensor, bias: Tensor | None) -> Tensor: ...
    def enter(self, index: int) -> None: ...
    def leave(self, index: int) -> None: ...


class Pieces(TorchFunctionMode):
    """While a layer runs, shift only the part of its matrix that is read. Other readers get the whole matrix."""

    def __init__(self, source: Source, index: int, slices: bool) -> None:
        super().__init__()
        self._source, self._index, self._slices, self._is_whole = source, index, slices, False

    def open(self) -> None:
        """Start of the layer's call."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        reads = [place for place, value in enumerate(arguments) if self._source.is_parameter(value, self._index)]
        if reads == [1] and function is functional.embedding:
            chosen, places = torch.unique(arguments[0], return_inverse=True)
            return functional.embedding(places, self._source.rows(self._index, chosen))
        if self._slices and reads == [1] and function is functional.linear and not options:
            return self._source.product(self._index, arguments[0], arguments[2] if len(arguments) > 2 else None)
        if reads and function.__name__ != "__get__":  # not an access to its shape
            self._is_whole = True
            self._source.enter(self._index)
        return function(*arguments, **options)

    def close(self) -> None:
        """End of the layer's call."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if self._is_whole:
            self._source.leave(self._index)


def piecewise(module: nn.Module, parameters: Sequence[Tensor], owned: Sequence[int], held: Held) -> int | None:
    """The parameter of a module, not held otherwise, that it may read in pieces, if any.

    An embedding's table, unless the layer writes to it (`max_norm` rescales rows in place); with `slice` also the wide
    matrix of a linear layer.
    """
    if isinstance(module, nn.Embedding):
        reads = len(owned) <= 1 and module.max_norm is None and module.weight.dim() == 2
    else:
        reads = held == "slice" and isinstance(module, nn.Linear) and is_wide(module.weight)
    return next((i for i in owned if reads and parameters[i] is module.weight), None)


def is_wide(matrix: Tensor) -> bool:
    """Whether products with the matrix are computed slice by slice.

    Only on a CPU: there it saves a pass over memory, and products of slices have the bits of the whole product.
    On a GPU the result depends on the shape of the product.
    """
    return matrix.device.type in ("cpu", "meta") and matrix.numel() * matrix.element_size() >= _WIDE * _SLICE_BYTES


def slice_height(matrix: Tensor) -> int:
    """Rows of a slice."""
    row = matrix.shape[1] * matrix.element_size()
    return max(_ROWS, _SLICE_BYTES // row // _ROWS * _ROWS)
