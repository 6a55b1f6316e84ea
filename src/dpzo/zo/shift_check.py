"""Find which ways of holding shifted weights a model supports, on public input, without copying the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from dpzo.zo.directions import DirectionScheme
from dpzo.zo.parameters import Held, TrainableParameters
from dpzo.zo.shift import Shift, shifted


@dataclass(frozen=True)
class ShiftCheck:
    """What `check_shift` found, by the names of parameters.

    `missed`: read where they were not shifted. `unvisited`: no module that owns them was ever called. `other_bits`:
    wide matrices whose product made of slices is not that of the whole.
    """

    missed: tuple[str, ...]
    unvisited: tuple[str, ...]
    other_bits: tuple[str, ...]

    @property
    def layer_is_safe(self) -> bool:
        """Whether `materialise="layer"` may be used."""
        return not self.missed and not self.unvisited

    @property
    def held(self) -> Held:
        """The way that needs the least memory among those with the correct bits."""
        if not self.layer_is_safe:
            return "all"
        return "layer" if self.other_bits else "slice"


def check_shift(parameters: TrainableParameters, call: Callable[[], Any], scale: float = 1e-2) -> ShiftCheck:
    """Run `call()` once under a shift held in slices, and watch every operation on θ's own memory.

    `call` runs the module on public input of the run's shapes. If a model passes weights between modules, a parameter
    is read outside its owner's call; shifts must then be held whole, `materialise="all"`. Each product computed by
    slices is compared bit for bit with the whole product, so isolation found for one holds for the other.

    Memory: beside a step's own, the largest wide matrix. Reads that bypass torch's dispatcher (a compiled extension
    that receives an address) are not detected: a missed shift costs accuracy, never privacy.
    """
    directions = DirectionScheme("rademacher", 0, 1, parameters.sizes).at(0)
    thetas = [p.data for p in parameters]
    homes = {theta.untyped_storage().data_ptr(): index for index, theta in enumerate(thetas) if theta.numel()}
    other_bits: set[int] = set()

    def compare(index: int, x: Tensor, bias: Tensor | None, found: Tensor) -> None:
        theta = thetas[index]
        whole = torch.empty_like(theta)
        directions.shift(0, index, theta.view(-1), scale, whole.view(-1))
        wanted = functional.linear(x, whole, bias)
        if not torch.equal(found.view(torch.uint8), wanted.view(torch.uint8)):
            other_bits.add(index)

    with shifted(parameters, directions, 0, scale, "slice") as shift, _Watch(homes, shift) as watch:
        shift.on_product = compare
        call()
    parameters.scratch.clear()
    names = parameters.names
    return ShiftCheck(
        missed=tuple(names[index] for index in sorted(watch.missed)),
        unvisited=tuple(name for index, name in enumerate(names) if index not in shift.visited),
        other_bits=tuple(names[index] for index in sorted(other_bits)),
    )


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record each operation that receives a trainable parameter's own memory, except those that shift it."""

    def __init__(self, homes: Mapping[int, int], shift: Shift) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._homes, self._shift = homes, shift  # the parameter at each address
        self.missed: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        if not self._shift.is_at_work and function is not torch.ops.aten.detach.default:  # `.data`: reads nothing
            for tensor in _dense((arguments, tuple(options.values()))):
                place = self._homes.get(tensor.untyped_storage().data_ptr())
                if place is not None:
                    self.missed.add(place)
        return function(*arguments, **options)


def _dense(values: Any) -> Iterator[Tensor]:
    """The tensors among arguments that have plain memory, as trainable parameters do."""
    if isinstance(values, list | tuple):
        for value in values:
            yield from _dense(value)
    elif type(values) in (Tensor, nn.Parameter) and values.layout is torch.strided:
        yield values
