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

from dpzo.zo.directions import DirectionScheme, StepDirections
from dpzo.zo.parameters import TrainableParameters


class _Shift:
    """The live state of one `shifted` block: who points at scratch, and how many running layers need it."""

    def __init__(self, parameters: TrainableParameters, directions: StepDirections, k: int, scale: float) -> None:
        self._directions, self._k, self._scale, self._scratch = directions, k, scale, parameters.scratch
        self._parameters = list(parameters)
        self._index = {id(p): i for i, p in enumerate(self._parameters)}
        self._live: dict[int, tuple[Tensor, Tensor]] = {}
        self._users: dict[int, int] = {}
        self._running: list[nn.Module] = []
        self.visited: set[int] = set()

    def owned(self, module: nn.Module) -> list[int]:
        """Indices of the trainable parameters that `module` reads in its own call, each once."""
        recurse = isinstance(module, nn.MultiheadAttention)  # it reads its output layer's weight without calling it
        own = (p for p in module.parameters(recurse=recurse) if id(p) in self._index)
        return [self._index[id(p)] for p in own]

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
        for index in self.owned(module):
            self.enter(index)

    def after(self, module: nn.Module, _arguments: Any, _output: Any) -> None:
        if self._running and self._running[-1] is module:
            self._running.pop()
            for index in self.owned(module):
                self.leave(index)

    def restore(self) -> None:
        """Point everything back, whatever has happened."""
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
    - `all` holds one copy of the trainable part. `layer` holds the parameters of the layers that are running; it serves
      a parameter only while a module that owns it directly is being called: see `check_shift`.
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
            for module in parameters.module.modules():
                if shift.owned(module):
                    hooks = (
                        module.register_forward_pre_hook(shift.before, prepend=True),
                        module.register_forward_hook(shift.after, always_call=True),
                    )
                    for hook in hooks:
                        stack.callback(hook.remove)
        yield shift.visited


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
