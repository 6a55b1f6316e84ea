"""Evaluate a module at θ + s·z without writing θ and without a second copy of the model.

The shifted weights are computed into scratch memory. The parameter points to that memory while the layer that owns it
runs, and then to θ again. The `nn.Parameter` object stays the same, so every reference to it (a tied head, the flat
weight list of a recurrent layer) also sees the shift. θ's own memory is only read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpzo.zo.directions import StepDirections
from dpzo.zo.parameters import Held, TrainableParameters
from dpzo.zo.pieces import Pieces, piecewise, slice_height

_MANY_ROWS = 256
"""Rows of a product after which its matrix is slow to overwrite; measured, see docs/decisions.md."""


@dataclass(frozen=True)
class WeightLayout:
    """Which parameters are shifted when, for one way of holding.

    `together`: small parameters, in groups, for as long as the block lasts. `served`: modules whose call needs more,
    with the parameter that they read in pieces, if any, and those that are held while they run.
    """

    together: tuple[tuple[int, ...], ...]
    served: dict[nn.Module, tuple[int | None, tuple[int, ...]]]


def _layout(parameters: TrainableParameters, held: Held) -> WeightLayout:
    """Computed once per way of holding; a step uses it twice per direction."""
    known: WeightLayout | None = parameters.layouts.get(held)
    if known is None:
        together, tensors = parameters.together(held), list(parameters)
        apart, served = set(range(len(parameters))).difference(*together), {}
        for module, owned in parameters.owners:
            own = tuple(index for index in owned if index in apart)
            table = piecewise(module, tensors, own, held)
            if own:
                served[module] = table, tuple(index for index in own if index != table)
        known = parameters.layouts[held] = WeightLayout(together, served)
    return known


class _Work:
    """Whether θ is being read to compute a shift. A class: a generator takes six times as long to enter."""

    is_on = False

    def __enter__(self) -> None:
        self.is_on = True

    def __exit__(self, *_: object) -> None:
        self.is_on = False


class Shift:
    """The state of one `shifted` block: the parameters that point to scratch, and how many running layers use them."""

    def __init__(
        self, parameters: TrainableParameters, directions: StepDirections, k: int, scale: float, held: Held
    ) -> None:
        self._directions, self._k, self._scale, self._scratch = directions, k, scale, parameters.scratch
        self._parameters = list(parameters)
        self.layout = _layout(parameters, held)
        self._live: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._shared: list[Tensor] = []
        self._users: dict[int, int] = {}
        self._running: list[nn.Module] = []
        self._reading: list[Pieces] = []
        self.visited: set[int] = set()
        self._at_work = _Work()
        self.on_product: Callable[[int, Tensor, Tensor | None, Tensor], None] | None = None
        """Called with each product computed by slices: (index, x, bias, product)."""

    @property
    def is_at_work(self) -> bool:
        """Whether θ is currently being read to compute a shift."""
        return self._at_work.is_on

    def is_parameter(self, tensor: Any, index: int) -> bool:
        """Whether `tensor` is trainable parameter `index` itself, and not yet shifted."""
        return tensor is self._parameters[index] and index not in self._live

    def rows(self, index: int, chosen: Tensor) -> Tensor:
        """Rows `chosen` of the shifted matrix."""
        theta = self._parameters[index].data
        with self._at_work:
            return self._directions.shift_rows(self._k, index, theta, self._scale, chosen)

    def product(self, index: int, x: Tensor, bias: Tensor | None) -> Tensor:
        """`linear(x, shifted matrix, bias)`, a slice of the matrix at a time through one small buffer."""
        theta = self._parameters[index].data
        (rows, width), height = theta.shape, slice_height(theta)
        out = x.new_empty((*x.shape[:-1], rows))
        buffer = self._scratch.take(height * width, theta.device, theta.dtype)
        try:
            with self._at_work:
                for first in range(0, rows, height):
                    part = theta[first : first + height]
                    own_bias = None if bias is None else bias[first : first + height]
                    moved = buffer[: part.numel()].view_as(part)
                    self._directions.shift(self._k, index, part.view(-1), self._scale, moved.view(-1), first * width)
                    out[..., first : first + height] = functional.linear(x, moved, own_bias)
                if self.on_product is not None:
                    self.on_product(index, x, bias, out)
        finally:
            self._scratch.give(buffer)
        return out

    def enter(self, index: int, rows: int = 0) -> None:
        """Point parameter `index` to its shifted weights, for a layer that multiplies `rows` rows by them."""
        self.visited.add(index)
        self._users[index] = self._users.get(index, 0) + 1
        if self._users[index] > 1:
            return
        parameter = self._parameters[index]
        theta = parameter.data
        size = theta.numel()
        buffer = self._scratch.take(size, theta.device, theta.dtype, rested=rows >= _MANY_ROWS)
        view = buffer if buffer.numel() == size else buffer[:size]
        self._live[index] = (theta, buffer)
        with self._at_work:
            self._directions.shift(self._k, index, theta.view(-1), self._scale, view)
        parameter.data = view.view(theta.shape)

    def enter_together(self) -> None:
        """`enter` for the small parameters, in one call and one buffer for each dtype and device."""
        for group in self.layout.together:
            homes = [self._parameters[index].data for index in group]
            sizes = [theta.numel() for theta in homes]
            buffer = self._scratch.take(sum(sizes), homes[0].device, homes[0].dtype)
            self._shared.append(buffer)
            views = torch.split(buffer[: sum(sizes)], sizes)
            with self._at_work:
                self._directions.shift_each(self._k, group, [theta.view(-1) for theta in homes], self._scale, views)
            for index, theta, view in zip(group, homes, views, strict=True):
                self._users[index] = 1
                self._live[index] = (theta, None)
                self._parameters[index].data = view.view(theta.shape)
            self.visited.update(group)

    def enter_rest(self) -> None:
        """`enter` for all parameters that are not yet shifted."""
        for index in range(len(self._parameters)):
            if index not in self._live:
                self.enter(index)

    def leave(self, index: int) -> None:
        if index not in self._live:  # an error occurred before it was entered
            return
        self._users[index] -= 1
        if self._users[index] == 0:
            theta, buffer = self._live.pop(index)
            self._parameters[index].data = theta
            if buffer is not None:
                self._scratch.give(buffer)

    def before(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._running.append(module)
        table, owned = self.layout.served[module]
        if table is not None:
            self.visited.add(table)
            self._reading.append(Pieces(self, table, slices=isinstance(module, nn.Linear)))
            self._reading[-1].open()
        rows = _rows(arguments)
        for index in owned:
            self.enter(index, rows)

    def after(self, module: nn.Module, _arguments: Any, _output: Any) -> None:
        if self._running and self._running[-1] is module:
            self._running.pop()
            table, owned = self.layout.served[module]
            if table is not None:
                self._reading.pop().close()
            for index in owned:
                self.leave(index)

    def restore(self) -> None:
        """Point all parameters back to θ, also after an error."""
        while self._reading:
            self._reading.pop().close()
        for index in list(self._live):
            self._users[index] = 1
            self.leave(index)
        while self._shared:
            self._scratch.give(self._shared.pop())


def _rows(arguments: tuple[Any, ...]) -> int:
    """Rows of a layer's first input: the product of all dimensions but the last; 0 without an input."""
    x = arguments[0] if arguments else None
    return x.numel() // x.shape[-1] if isinstance(x, Tensor) and x.dim() > 1 and x.shape[-1] else 0


@contextmanager
def shifted(
    parameters: TrainableParameters,
    directions: StepDirections,
    k: int,
    scale: float,
    materialise: Held | None = None,
) -> Iterator[Shift]:
    """Inside the block, calling `parameters.module` computes at θ + scale·z_k; yields the modules `visited` so far.

    Formula: θ_j' = rn(fl(θ_j + fl(fl32(scale)·z_kj))), elementwise in fp32, then to nearest even in θ's own dtype.

    - θ's memory, version counter and parameter objects are the same before, during (memory) and after, also when the
      block or a layer raises. Nothing is ever subtracted back.
    - `all` holds one copy of the trainable part. `layer` holds the parameters of the layers that are running, and of an
      embedding's table only the rows looked up; it serves a parameter only while a module that owns it directly is
      being called. `slice` is `layer`, and of a linear layer's wide matrix it holds a slice of rows at a time, of which
      that part of the product is made. `check_shift` tells which of them serve a model.
    - All give the same bits. A weight tied between modules gets one z.

    Args:
        parameters: The trainable part.
        directions: The step's directions.
        k: The direction, 0 … K − 1.
        scale: s, in parameter units.
        materialise: How shifted weights are held; by default as `parameters` decides.

    Raises:
        RuntimeError: if blocks over the same parameters are nested: their shifts would add up.
    """
    mode = parameters.effective_materialise() if materialise is None else materialise
    shift = Shift(parameters, directions, k, scale, mode)
    with parameters.scratch.lend(), ExitStack() as stack:
        stack.callback(shift.restore)
        shift.enter_together()
        if mode == "all":
            shift.enter_rest()
        else:
            for module in shift.layout.served:
                hooks = (
                    module.register_forward_pre_hook(shift.before, prepend=True),
                    module.register_forward_hook(shift.after, always_call=True),
                )
                for hook in hooks:
                    stack.callback(hook.remove)
        yield shift
