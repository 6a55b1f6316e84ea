"""The sequence of operators that a model executes, and their shapes. If it depends on values, records may interact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_BY_VALUES = ("grouped_mm",)
"""Operations of one shape that cut their work by the values of an argument: a mixture of experts in one call."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record each operator with the shapes of its tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[Any, ...]] = []
        self.cuts_by_values = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record the operator and run it."""
        name = str(func)
        self.cuts_by_values |= any(part in name for part in _BY_VALUES)
        self.seen.append((name, *(tuple(tensor.shape) for tensor in _tensors((args, kwargs or {})))))
        return func(*args, **(kwargs or {}))


def same_course(runs: list[Callable[[], object]]) -> bool:
    """Whether all of `runs` carry out the same operations on the same shapes, none of which cuts its work by values.

    Holds for a model that treats every row alike; a mixture of experts, a batch without padding that takes another
    path, or an early exit show here whatever their rounding is on this machine.
    """
    first: list[tuple[Any, ...]] | None = None
    for run in runs:
        with _Watch() as watch:
            run()
        if watch.cuts_by_values or (first is not None and watch.seen != first):
            return False
        first = watch.seen
    return True


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
