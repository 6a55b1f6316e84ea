"""Evaluate a module at θ + s·z without writing θ and without a second copy of the model.

The shifted weights are computed into scratch memory and the parameter is pointed at it for as long as the layer that
owns it runs; then the parameter is pointed back. The `nn.Parameter` object stays the same, so whatever refers to it (a
tied head, the flat weight list of a recurrent layer) sees the shift too, and θ's own memory is only ever read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dpzo.zo.directions import DirectionScheme, StepDirections
from dpzo.zo.parameters import TrainableParameters


class _Gathered(TorchFunctionMode):
    """While an embedding layer runs: only the rows that it looks up are shifted, not its whole table."""

    def __init__(self, shift: _Shift, index: int) -> None:
        super().__init__()
        self._shift, self._index, self._is_whole = shift, index, False

    def open(self) -> None:
        """Start of the layer's call."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        reads = [place for place, value in enumerate(arguments) if self._shift.is_parameter(value, self._index)]
        if function is functional.embedding and reads == [1]:
            chosen, places = torch.unique(arguments[0], return_inverse=True)
            return functional.embedding(places, self._shift.rows(self._index, chosen))
        if reads and function.__name__ != "__get__" and not self._is_whole:  # not a lookup, nor a glance at its shape
            self._is_whole = True
            self._shift.enter(self._index)
        return function(*arguments, **options)

    def close(self) -> None:
        """End of the layer's call."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if self._is_whole:
            self._shift.leave(self._index)


class _Shift:
    """The live state of one `shifted` block: who points at scratch, and how many running layers need it."""

    def __init__(self, parameters: TrainableParameters, directions: StepDirections, k: int, scale: float) -> None:
        self._directions, self._k, self._scale, self._scratch = directions, k, scale, parameters.scratch
        self._parameters = list(parameters)
        self._owned = dict(parameters.owners)
        self._live: dict[int, tuple[Tensor, Tensor]] = {}
        self._users: dict[int, int] = {}
        self._running: list[nn.Module] = []
        self._gathered: list[_Gathered] = []
        self.visited: set[int] = set()

    def is_parameter(self, tensor: Any, index: int) -> bool:
        """Whether `tensor` is trainable parameter `index` itself."""
        return tensor is self._parameters[index]

    def rows(self, index: int, chosen: Tensor) -> Tensor:
        """Rows `chosen` of the shifted matrix."""
        theta = self._parameters[index].data
        return self._directions.shift_rows(self._k, index, theta, self._scale, chosen)

    def enter(self, index: int) -> None:
        self.visited.add(index)
        self._users[index] = self._users.get(index, 0) + 1
        if self._users[index] > 1:
            return
        parameter = self._parameters[index]
        theta = parameter.data
        buffer = self._scratch.take(theta.numel(), theta.device, theta.dtype)
        view = buffer[: theta.numel()]
        self._directions.shift(self._k, index, theta.view(-1), self._scale, view)
        self._live[index] = (theta, buffer)
        parameter.data = view.view(theta.shape)

    def leave(self, index: int) -> None:
        self._users[index] -= 1
        if self._users[index] == 0:
            theta, buffer = self._live.pop(index)
            self._parameters[index].data = theta
            self._scratch.give(buffer)

    def before(self, module: nn.Module, _arguments: Any) -> None:
        self._running.append(module)
        for index in self._owned[module]:
            self.enter(index)

    def after(self, module: nn.Module, _arguments: Any, _output: Any) -> None:
        if self._running and self._running[-1] is module:
            self._running.pop()
            for index in self._owned[module]:
                self.leave(index)

    def before_lookup(self, module: nn.Module, _arguments: Any) -> None:
        (index,) = self._owned[module]
        self.visited.add(index)
        self._gathered.append(_Gathered(self, index))
        self._gathered[-1].open()

    def after_lookup(self, _module: nn.Module, _arguments: Any, _output: Any) -> None:
        if self._gathered:
            self._gathered.pop().close()

    def restore(self) -> None:
        """Point everything back, whatever has happened."""
        while self._gathered:
            self._gathered.pop().close()
        for index in list(self._live):
            self._users[index] = 1
            self.leave(index)


@contextmanager
def shifted(
    parameters: TrainableParameters,
    directions: StepDirections,
    k: int,
    scale: float,
    materialise: Literal["all", "layer"] | None = None,
) -> Iterator[set[int]]:
    """Inside the block, calling `parameters.module` computes at θ + scale·z_k; yields the indices visited so far.

    Formula: θ_j' = rn(fl(θ_j + fl(fl32(scale)·z_kj))), elementwise in fp32, then to nearest even in θ's own dtype.

    - θ's memory, version counter and parameter objects are the same before, during (memory) and after, also when the
      block or a layer raises. Nothing is ever subtracted back.
    - `all` holds one copy of the trainable part. `layer` holds the parameters of the layers that are running, and of an
      embedding's table only the rows looked up; it serves a parameter only while a module that owns it directly is
      being called: see `check_shift`.
    - Both give the same bits. A weight tied between modules gets one z.

    Raises RuntimeError when blocks over the same parameters are nested: their shifts would add up unnoticed.
    """
    shift = _Shift(parameters, directions, k, scale)
    mode = parameters.effective_materialise() if materialise is None else materialise
    with parameters.scratch.lend(), ExitStack() as stack:
        stack.callback(shift.restore)
        if mode == "all":
            for index in range(len(parameters)):
                shift.enter(index)
        else:
            for module, owned in parameters.owners:
                looks_up = _is_lookup(module, len(owned))
                before, after = (shift.before_lookup, shift.after_lookup) if looks_up else (shift.before, shift.after)
                hooks = (
                    module.register_forward_pre_hook(before, prepend=True),
                    module.register_forward_hook(after, always_call=True),
                )
                for hook in hooks:
                    stack.callback(hook.remove)
        yield shift.visited


def _is_lookup(module: nn.Module, owned: int) -> bool:
    """Whether a layer only looks rows up in one table and never writes to it (`max_norm` rescales rows in place)."""
    return isinstance(module, nn.Embedding) and owned == 1 and module.max_norm is None and module.weight.dim() == 2


@dataclass(frozen=True)
class ShiftCheck:
    """What `check_shift` found: whether a layer at a time gives the same bits, and who was never served."""

    equal: bool
    unvisited: tuple[str, ...]

    @property
    def layer_is_safe(self) -> bool:
        """Whether `materialise="layer"` may be used."""
        return self.equal and not self.unvisited


def check_shift(
    parameters: TrainableParameters, call: Callable[[], Tensor | NDArray[Any]], scale: float = 1e-2
) -> ShiftCheck:
    """Compare `call()` under a shift held a layer at a time with the same shift held whole, bit for bit.

    `call` runs the module on public input. A parameter is read outside its owner's call (unvisited, or unequal bits)
    when a model passes weights around by hand; then set `parameters.materialise = "all"`.
    """
    directions = DirectionScheme("rademacher", 0, 1, parameters.sizes).at(0)
    with shifted(parameters, directions, 0, scale, "all"):
        whole = torch.as_tensor(call()).clone()
    parameters.scratch.clear()  # a whole copy of the trainable part must not outlive this check
    with shifted(parameters, directions, 0, scale, "layer") as visited:
        layered = torch.as_tensor(call()).clone()
    unvisited = tuple(name for index, name in enumerate(parameters.names) if index not in visited)
    if whole.shape != layered.shape:
        return ShiftCheck(False, unvisited)
    same = (whole == layered) | (whole.isnan() & layered.isnan())
    return ShiftCheck(bool(same.all()), unvisited)
