"""Several shifted copies of the trainable part, stacked for an objective that evaluates them together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from dpzo.zo.directions import StepDirections
from dpzo.zo.parameters import TrainableParameters

Shift = tuple[int, float]
"""(k, scale): the weights θ + scale·z_k. A scale of 0 is θ itself, copied."""

Weights = Mapping[str, Tensor]
"""First name of each trainable parameter → (V, *shape): V settings of the trainable part, in θ's own dtype."""


@contextmanager
def stacked(
    parameters: TrainableParameters, directions: StepDirections, shifts: Sequence[Shift], count: int | None = None
) -> Iterator[Weights]:
    """The weights θ + scale·z_k of each shift, in scratch memory that is released when the block ends.

    Entry v of a stack has the bits that `shifted(parameters, directions, *shifts[v])` computes with. With `count` the
    stack is padded with θ itself to that many entries, so that its shape does not depend on the number of remaining
    shifts. θ's memory is only read.

    Args:
        parameters: The trainable part.
        directions: The step's directions.
        shifts: (k, scale) of each entry.
        count: V, the number of entries; by default that of `shifts`.

    Yields:
        Parameter name → (V, *shape), in θ's own dtype.

    Raises:
        RuntimeError: inside another block over the same parameters.
    """
    total = len(shifts) if count is None else count
    with parameters.scratch.lend():
        stacks, buffers = {}, []
        for index, (name, parameter) in enumerate(zip(parameters.names, parameters, strict=True)):
            theta = parameter.data
            size = theta.numel()
            buffer = parameters.scratch.take(total * size, theta.device, theta.dtype)
            buffers.append(buffer)
            rows = buffer[: total * size].view(total, size)
            for place, row in enumerate(rows):
                k, scale = shifts[place] if place < len(shifts) else (0, 0.0)
                if scale == 0:
                    row.copy_(theta.view(-1))
                else:
                    directions.shift(k, index, theta.view(-1), scale, row)
            stacks[name] = rows.view(total, *theta.shape)
        try:
            yield stacks
        finally:
            for buffer in buffers:
                parameters.scratch.give(buffer)
