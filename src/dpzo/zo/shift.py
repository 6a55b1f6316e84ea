"""Evaluate a module at θ + s·z without writing θ and without a second copy of the model.

The shifted weights are computed into scratch memory and the parameter is pointed at it for as long as the layer that
owns it runs; then the parameter is pointed back. The `nn.Parameter` object stays the same, so whatever refers to it (a
tied head, the flat weight list of a recurrent layer) sees the shift too, and θ's own memory is only ever read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpzo.zo.directions import StepDirections
from dpzo.zo.parameters import Held, TrainableParameters
from dpzo.zo.pieces import Pieces, piecewise, slice_height


class Shift:
    """The live state of one `shifted` block: who points at scratch, and how many running layers need it."""

    def __init__(
        self, parameters: TrainableParameters, directions: StepDirections, k: int, scale: float, held: Held
    ) -> None:
        self._directions, self._k, self._scale, self._scratch = directions, k, scale, parameters.scratch
        self._parameters = list(parameters)
        self._together = parameters.together(held)
        apart = set(range(len(parameters))).difference(*self._together)
        self._pieces: dict[nn.Module, int | None] = {}
        self._owned: dict[nn.Module, tuple[int, ...]] = {}
        for module, owned in parameters.owners:
            own = tuple(index for index in owned if index in apart)
            self._pieces[module] = table = piecewise(module, self._parameters, own, held)
            self._owned[module] = tuple(index for index in own if index != table)
        self._live: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._shared: list[Tensor] = []
        self._users: dict[int, int] = {}
        self._running: list[nn.Module] = []
        self._reading: list[Pieces] = []
        self.visited: set[int] = set()
        self.is_at_work = False
        """Whether θ is read to be shifted, right now."""
        self.on_product: Callable[[int, Tensor, Tensor | None, Tensor], None] | None = None
        """Told of each product that was made of slices: (index, x, bias, product)."""

    @property
    def served(self) -> list[nn.Module]:
        """Modules whose parameters are shifted when they are called."""
        return [module for module, own in self._owned.items() if own or self._pieces[module] is not None]

    def is_parameter(self, tensor: Any, index: int) -> bool:
        """Whether `tensor` is trainable parameter `index` itself, and not yet shifted."""
        return tensor is self._parameters[index] and index not in self._live

    def rows(self, index: int, chosen: Tensor) -> Tensor:
        """Rows `chosen` of the shifted matrix."""
        theta = self._parameters[index].data
        with self._at_work():
            return self._directions.shift_rows(self._k, index, theta, self._scale, chosen)

    def product(self, index: int, x: Tensor, bias: Tensor | None) -> Tensor:
        """`linear(x, shifted matrix, bias)`, a slice of the matrix at a time through small buffers."""
        theta = self._parameters[index].data
        (rows, width), height = theta.shape, slice_height(theta)
        out = x.new_empty((*x.shape[:-1], rows))
        with self._at_work():
            for first in range(0, rows, height):
                part = theta[first : first + height]
                buffer = self._scratch.take(height * width, theta.device, theta.dtype)
                moved = buffer[: part.numel()].view_as(part)
                own_bias = None if bias is None else bias[first : first + height]
                self._directions.shift(self._k, index, part.view(-1), self._scale, moved.view(-1), first * width)
                out[..., first : first + height] = functional.linear(x, moved, own_bias)
                self._scratch.give(buffer)
            if self.on_product is not None:
                self.on_product(index, x, bias, out)
        return out

    def enter(self, index: int) -> None:
        self.visited.add(index)
        self._users[index] = self._users.get(index, 0) + 1
        if self._users[index] > 1:
            return
        parameter = self._parameters[index]
        theta = parameter.data
        buffer = self._scratch.take(theta.numel(), theta.device, theta.dtype)
        view = buffer[: theta.numel()]
        with self._at_work():
            self._directions.shift(self._k, index, theta.view(-1), self._scale, view)
        self._live[index] = (theta, buffer)
        parameter.data = view.view(theta.shape)

    def enter_together(self) -> None:
        """`enter` for the small parameters, in one call and one buffer for each dtype and device."""
        for group in self._together:
            homes = [self._parameters[index].data for index in group]
            sizes = [theta.numel() for theta in homes]
            buffer = self._scratch.take(sum(sizes), homes[0].device, homes[0].dtype)
            self._shared.append(buffer)
            views = torch.split(buffer[: sum(sizes)], sizes)
            with self._at_work():
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
        if index not in self._live:  # an error came before it was entered
            return
        self._users[index] -= 1
        if self._users[index] == 0:
            theta, buffer = self._live.pop(index)
            self._parameters[index].data = theta
            if buffer is not None:
                self._scratch.give(buffer)

    def before(self, module: nn.Module, _arguments: Any) -> None:
        self._running.append(module)
        table = self._pieces[module]
        if table is not None:
            self.visited.add(table)
            self._reading.append(Pieces(self, table))
            self._reading[-1].open()
        for index in self._owned[module]:
            self.enter(index)

    def after(self, module: nn.Module, _arguments: Any, _output: Any) -> None:
        if self._running and self._running[-1] is module:
            self._running.pop()
            if self._pieces[module] is not None:
                self._reading.pop().close()
            for index in self._owned[module]:
                self.leave(index)

    def restore(self) -> None:
        """Point everything back, whatever has happened."""
        while self._reading:
            self._reading.pop().close()
        for index in list(self._live):
            self._users[index] = 1
            self.leave(index)
        while self._shared:
            self._scratch.give(self._shared.pop())

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        self.is_at_work = True
        try:
            yield
        finally:
            self.is_at_work = False


@contextmanager
def shifted(
    parameters: TrainableParameters,
    directions: StepDirections,
    k: int,
    scale: float,
    materialise: Held | None = None,
) -> Iterator[Shift]:
    """Inside the block, calling `parameters.module` computes at θ + scale·z_k; yields who was `visited` so far.

    Formula: θ_j' = rn(fl(θ_j + fl(fl32(scale)·z_kj))), elementwise in fp32, then to nearest even in θ's own dtype.

    - θ's memory, version counter and parameter objects are the same before, during (memory) and after, also when the
      block or a layer raises. Nothing is ever subtracted back.
    - `all` holds one copy of the trainable part. `layer` holds the parameters of the layers that are running, and of an
      embedding's table only the rows looked up; it serves a parameter only while a module that owns it directly is
      being called. `slice` is `layer`, and of a linear layer's wide matrix it holds a slice of rows at a time, of which
      that part of the product is made. `check_shift` tells which of them serve a model.
    - All give the same bits. A weight tied between modules gets one z.

    Raises RuntimeError when blocks over the same parameters are nested: their shifts would add up unnoticed.
    """
    mode = parameters.effective_materialise() if materialise is None else materialise
    shift = Shift(parameters, directions, k, scale, mode)
    with parameters.scratch.lend(), ExitStack() as stack:
        stack.callback(shift.restore)
        shift.enter_together()
        if mode == "all":
            shift.enter_rest()
        else:
            for module in shift.served:
                hooks = (
                    module.register_forward_pre_hook(shift.before, prepend=True),
                    module.register_forward_hook(shift.after, always_call=True),
                )
                for hook in hooks:
                    stack.callback(hook.remove)
        yield shift
