"""Several settings of the trainable part in one forward pass over a shared base, by `torch.func`.

The layers below the first trained layer run once. From there, each product with the base's weights has V times the
rows, and only the trained part itself needs V products. This is faster if the base's weights are read for few rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dpzo.zo.stack import Weights


class _Through(nn.Module):
    """Lets `functional_call` replace the parameters of a module while something other than its forward runs."""

    def __init__(self, module: nn.Module, run: Callable[[], Tensor]) -> None:
        super().__init__()
        self.module = module
        self._run = run

    def forward(self) -> Tensor:
        """The result of `run`."""
        return self._run()


def over_variants(module: nn.Module, run: Callable[[], Tensor], weights: Weights) -> Tensor:
    """`run()` with the named parameters of `module` replaced by each of V settings: shape (V, …), in one pass.

    `weights`: name → (V, *shape), a tied parameter under its first name. The module's own parameters are neither read
    nor written. Entry v equals `run()` at setting v up to rounding: products of V times the rows may be cut otherwise.

    Errors: RuntimeError or similar for a module whose operators depend on values, which `torch.func.vmap` cannot trace.
    """
    through = _Through(module, run)

    def at(own: dict[str, Tensor]) -> Tensor:
        result: Tensor = torch.func.functional_call(through, own, ())
        return result

    stacks = {f"module.{name}": stack for name, stack in weights.items()}
    together: Tensor = torch.func.vmap(at, randomness="error")(stacks)
    return together


def num_settings(weights: Weights) -> int:
    """V of a stack of weights."""
    return len(next(iter(weights.values())))
