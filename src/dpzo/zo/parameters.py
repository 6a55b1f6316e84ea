"""The trainable part of a module: which parameters, in which order, and how their shifted copies are held."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dpzo.errors import DpzoError
from dpzo.zo.scratch import RING_BYTES, Scratch

Held = Literal["all", "layer", "slice"]
"""How `shift.shifted` holds shifted weights: all at once, a layer's at a time, or of its wide matrices slices only."""
Materialise = Literal["auto", "all", "layer", "slice"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The trainable dtypes; the update decides how a 16-bit parameter takes a step."""

_SMALL_BYTES = 4 << 20
_SMALL_SHARE = 8
_SMALL_ELEMENTS = 1 << 14


class TrainableParameters:
    """The named parameters of `module`, each once, in the module's own `named_parameters()` order.

    - A tied weight has one entry, under its first name; any of its names may be given.
    - Every parameter of the module loses its gradient and `requires_grad`: nothing here uses autograd.
    - `materialise`: how `shift.shifted` holds shifted weights, see `Held`; `auto`: `all` when the trainable part is
      under 1/8 of the module's elements or under 4 MiB, else `slice`. The bits are the same.

    Raises DpzoError if a name is unknown, no name is given, or a parameter is not contiguous, not of one of
    `DTYPES`, or shares memory with another one without being the same parameter.
    """

    def __init__(self, module: nn.Module, names: Collection[str], materialise: Materialise = "auto") -> None:
        aliases = dict(module.named_parameters(remove_duplicate=False))
        unknown = sorted(set(names) - aliases.keys())
        if unknown:
            raise DpzoError(f"trainable: the model has no parameter {unknown[0]!r}; choose names it has")
        wanted = {id(aliases[name]) for name in names}
        chosen = [(name, p) for name, p in module.named_parameters() if id(p) in wanted]
        if not any(p.numel() for _, p in chosen):
            raise DpzoError("trainable: no parameter is chosen; choose at least one")
        for name, p in chosen:
            if p.dtype not in DTYPES or type(p.data) is not Tensor:
                raise DpzoError(
                    f"trainable: {name!r} is {p.dtype}; only float32, bfloat16 and float16 can be trained: load the "
                    "model in one of them, or train adapters beside it"
                )
            if not p.is_contiguous():
                raise DpzoError(f"trainable: {name!r} is not contiguous in memory; make it contiguous or leave it out")
        places = [p.data_ptr() for _, p in chosen if p.numel()]
        if len(set(places)) != len(places):
            raise DpzoError("trainable: two parameters share memory without being tied; tie them or choose one")
        if materialise not in ("auto", "all", "layer", "slice"):
            raise DpzoError(f"materialise: {materialise!r} is unknown; choose auto, all, layer or slice")
        for p in module.parameters():
            p.requires_grad_(False)
            p.grad = None
        self.module = module
        self.materialise: Materialise = materialise
        largest = max(p.numel() * p.element_size() for _, p in chosen)
        self.scratch = Scratch(min(RING_BYTES, largest))  # a layer's memory is the bound
        self.layouts: dict[Held, Any] = {}  # cache of `shift`
        self._named: dict[str, nn.Parameter] = dict(chosen)
        self._ordered = tuple(self._named.values())

    @property
    def names(self) -> tuple[str, ...]:
        """First names, in header order."""
        return tuple(self._named)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes, in header order."""
        return tuple(tuple(p.shape) for p in self._named.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Their dtypes as torch spells them, in header order."""
        return tuple(str(p.dtype).removeprefix("torch.") for p in self._named.values())

    @property
    def sizes(self) -> tuple[int, ...]:
        """Element counts, in header order: what `DirectionScheme` takes."""
        return tuple(p.numel() for p in self._named.values())

    @property
    def dimension(self) -> int:
        """d, the number of trainable elements."""
        return sum(self.sizes)

    def __len__(self) -> int:
        return len(self._named)

    def __iter__(self) -> Iterator[nn.Parameter]:
        """The parameters themselves, in header order."""
        return iter(self._named.values())

    @cached_property
    def owners(self) -> tuple[tuple[nn.Module, tuple[int, ...]], ...]:
        """Modules that read trainable parameters in their own call, each with the indices of those, each index once."""
        places = {id(p): index for index, p in enumerate(self._ordered)}
        found = []
        for module in self.module.modules():
            recurse = isinstance(module, nn.MultiheadAttention)  # it reads its output layer's weight without calling it
            owned = tuple(places[id(p)] for p in module.parameters(recurse=recurse) if id(p) in places)
            if owned:
                found.append((module, owned))
        return tuple(found)

    def flat(self, index: int) -> Tensor:
        """Parameter `index` as a flat view of its own memory."""
        return self._ordered[index].detach().view(-1)

    def together(self, held: Held) -> tuple[tuple[int, ...], ...]:
        """Indices of small parameters (biases, norms) to process in one call, by dtype and device.

        Unless all are held anyway, none if together they exceed the largest parameter: memory is bounded by that of one
        layer.
        """
        if held != "all" and sum(self.sizes[index] for group in self._small for index in group) > max(self.sizes):
            return ()
        return self._small

    @cached_property
    def _small(self) -> tuple[tuple[int, ...], ...]:
        groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for index, parameter in enumerate(self._ordered):
            if 0 < parameter.numel() <= _SMALL_ELEMENTS:
                groups.setdefault((parameter.dtype, parameter.device), []).append(index)
        return tuple(tuple(group) for group in groups.values())

    def effective_materialise(self) -> Held:
        """`materialise` with `auto` resolved."""
        if self.materialise != "auto":
            return self.materialise
        return "all" if self._is_held_whole else "slice"

    @cached_property
    def _is_held_whole(self) -> bool:
        return held_whole(self.dimension, sum(p.numel() for p in self.module.parameters()))

    def tensors(self) -> dict[str, Tensor]:
        """The trainable part itself, by first name: views of its memory, to be read."""
        return {name: p.detach() for name, p in self._named.items()}

    def state(self) -> dict[str, Tensor]:
        """A copy of the trainable part, by first name."""
        return {name: p.detach().clone() for name, p in self._named.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Write a state into the parameters. Raises DpzoError unless names, shapes and dtypes agree exactly."""
        if state.keys() != self._named.keys():
            raise DpzoError("trainable: the saved parameters are not the ones chosen; choose the same as in that run")
        for name, p in self._named.items():
            if state[name].shape != p.shape or state[name].dtype != p.dtype:
                raise DpzoError(f"trainable: the saved {name!r} has another shape or dtype; load the same base model")
        with torch.no_grad():
            for name, p in self._named.items():
                p.copy_(state[name])


def held_whole(dimension: int, elements: int) -> bool:
    """Whether `auto` holds all shifted weights at once: the trainable part is small, or small beside the module."""
    return 4 * dimension < _SMALL_BYTES or _SMALL_SHARE * dimension < elements
