"""Cache the output of the frozen layers below the first trained layer, which is the same in every evaluation.

The module's own forward runs each time, with the frozen layers skipped. Masks, positions and computations between
layers remain the model's own, at little cost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpzo.data.spool import RowStore
from dpzo.models.batching import Encoded, MicroBatch, filling, microbatches

Keep = Literal["batch", "run", "none"]
"""How long the frozen layers' output is kept: for the records of a step, for the run, or not at all."""

HELD_AT_MOST = 1 << 30
"""Bytes of hidden states that are held for a step; the micro-batches beyond are run whole in every evaluation."""

STATES_ABOVE = 1 << 29
"""Bytes of hidden states that are kept in memory for a run; beyond, they are stored in an unnamed owner-only file."""

T = TypeVar("T")
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class LayerStack:
    """A model's layers from the lowest to the topmost, and the name of the list that holds them."""

    name: str
    layers: tuple[nn.Module, ...]


def layer_stack(module: nn.Module) -> LayerStack | None:
    """The longest `nn.ModuleList` that is not nested in another, the first of equals; None if there is none."""
    found: dict[str, nn.ModuleList] = {}
    for name, part in module.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = part
    if not found:
        return None
    longest = max(found, key=lambda name: len(found[name]))
    return LayerStack(longest, tuple(found[longest]))


def frozen_depth(module: nn.Module, trainable: Collection[str], run: Callable[[], object], rows: int) -> int:
    """How many of the lowest layers have nothing trainable in them or before them: the largest such number.

    0 where nothing can be shared: no list of layers, layers that `run()` (one evaluation of `rows` rows) does not call
    once each in their order or that give more than one tensor, states that are not (rows, …), a trainable parameter
    that is read before the first layer or outside a call of its owner.
    It is read off one evaluation; that the results agree bit for bit is for `prepare` to check.
    """
    stack = layer_stack(module)
    if stack is None:
        return 0
    learning = {id(parameter) for name, parameter in module.named_parameters() if name in trainable}
    inside = {id(part) for layer in stack.layers for part in layer.modules()}
    depth = len(stack.layers)
    for index in reversed(range(len(stack.layers))):
        if any(id(parameter) in learning for parameter in stack.layers[index].parameters()):
            depth = index
    owners = [
        part
        for part in module.modules()
        if id(part) not in inside and any(id(own) in learning for own in part.parameters(recurse=False))
    ]
    order: list[int] = []
    first_use: dict[int, int] = {}
    plain: list[bool] = []

    def passed(index: int) -> Callable[..., None]:
        def after(_layer: nn.Module, _arguments: Any, output: Any) -> None:
            order.append(index)
            plain.append(_is_plain(output, rows))

        return after

    def used(part: nn.Module, _arguments: Any) -> None:
        first_use.setdefault(id(part), len(order))

    with ExitStack() as hooks:
        for index, layer in enumerate(stack.layers):
            hooks.callback(layer.register_forward_hook(passed(index)).remove)
        for part in owners:
            hooks.callback(part.register_forward_pre_hook(used, prepend=True).remove)
        run()
    if order != list(range(len(stack.layers))) or not all(plain[:depth]):
        return 0
    return min([depth, *(first_use.get(id(part), 0) for part in owners)])


def _is_plain(output: Any, rows: int) -> bool:
    """Whether a layer's output is one tensor of so many rows, alone or before places that are empty."""
    states, *others = output if isinstance(output, tuple) and output else (output,)
    return isinstance(states, Tensor) and states.shape[:1] == (rows,) and all(item is None for item in others)


class _Reached(Exception):
    """Ends an evaluation whose hidden states are all that was wanted."""


class FrozenPrefix:
    """The lowest `depth` layers of a module, all frozen: recorded in one evaluation, skipped in others.

    Law: with states recorded for the same rows at the same shape, `resume` gives the bits that the whole evaluation
    gives. States are tensors of their own: no later layer writes to them.
    """

    def __init__(self, module: nn.Module, depth: int) -> None:
        stack = layer_stack(module)
        if stack is None or not 1 <= depth <= len(stack.layers):
            raise ValueError("there are not that many layers")
        self.depth = depth
        self._layers = stack.layers[:depth]
        self._items = [0] * depth  # of each layer's output, when it is a tuple; 0 for a bare tensor

    def record(self, run: Callable[[], T]) -> tuple[T, Tensor]:
        """`run()`, one whole evaluation, and the hidden states that leave the last of the layers."""
        found: list[Tensor] = []
        with ExitStack() as hooks:
            self._listen(hooks, found.append)
            result = run()
        (states,) = found
        return result, states

    def states(self, run: Callable[[], object]) -> Tensor:
        """The hidden states alone: `run()` is left as soon as they are there."""
        found: list[Tensor] = []

        def keep(states: Tensor) -> None:
            found.append(states)
            raise _Reached

        with ExitStack() as hooks, suppress(_Reached):
            self._listen(hooks, keep)
            run()
        (states,) = found
        return states

    def resume(self, run: Callable[[], T], states: Tensor) -> T:
        """`run()` with `states` in place of what the layers would compute; they are not called, and put back after."""
        with ExitStack() as undo:
            given = states.clone()
            for layer, items in zip(self._layers, self._items, strict=True):
                undo.callback(_put_back, layer, layer.__dict__.get("forward"))
                layer.__dict__["forward"] = _giving(given, items)
            return run()

    def _listen(self, hooks: ExitStack, keep: Callable[[Tensor], None]) -> None:
        def at(index: int) -> Callable[..., None]:
            def after(_layer: nn.Module, _arguments: Any, output: Any) -> None:
                self._items[index] = len(output) if isinstance(output, tuple) else 0
                if index == self.depth - 1:
                    keep((output[0] if isinstance(output, tuple) else output).clone())

            return after

        for index, layer in enumerate(self._layers):
            hooks.callback(layer.register_forward_hook(at(index)).remove)


def _giving(states: Tensor, items: int) -> Callable[..., Any]:
    output = states if items == 0 else (states, *[None] * (items - 1))
    return lambda *_arguments, **_options: output


def _put_back(layer: nn.Module, forward: Callable[..., Any] | None) -> None:
    if forward is None:
        del layer.__dict__["forward"]
    else:
        layer.__dict__["forward"] = forward


class SharedPrefix:
    """Evaluates micro-batches, each through the frozen layers once: a step, or (`run`) a run.

    - `batch`: states of the last requested records are held, up to `HELD_AT_MOST` bytes, until others are requested.
    - `run`: states of a record are computed when it is first asked for and kept till the process ends, in memory or in
      a nameless owner-only file (`spool.RowStore`).

    Law: the same bits as without, for records that are isolated at this shape; dummy rows fill the last micro-batch in
    either case. What is held is private: it is never shown, hashed or saved.
    """

    def __init__(
        self,
        frozen: FrozenPrefix,
        encoded: Encoded,
        microbatch_size: int,
        device: torch.device,
        held_at_most: int = HELD_AT_MOST,
        planned_passes: int = 0,
    ) -> None:
        self._frozen, self._encoded, self._size, self._device = frozen, encoded, microbatch_size, device
        self._held_at_most, self._planned_passes = held_at_most, planned_passes
        self._key, self._held = b"", list[Tensor]()
        self._store: RowStore | None = None
        self._known = np.zeros(0, dtype=np.bool_)
        self._blank = torch.zeros(0)

    def __repr__(self) -> str:
        return f"SharedPrefix(depth={self._frozen.depth})"

    def keep_for_run(self, run: Callable[[MicroBatch], Tensor], map_above: int = STATES_ABOVE) -> None:
        """Make room for all records' states, after one look at dummy rows. DpzoError when the disk has none."""
        batch = filling(self._encoded, self._size, self._device)
        self._blank = self._frozen.states(partial(run, batch))
        rows = self._blank[: self._encoded.options]
        self._store = RowStore(len(self._encoded), rows.numel() * rows.element_size(), map_above)
        self._known = np.zeros(len(self._encoded), dtype=np.bool_)

    def forget(self) -> None:
        """Drop what is held for the present records; what is kept for the run stays."""
        self._key, self._held = b"", []

    def evaluate(self, records: Indices, run: Callable[[MicroBatch], Tensor]) -> Iterator[tuple[MicroBatch, Tensor]]:
        """(micro-batch, `run(micro-batch)`) for the records in order, with the frozen layers passed by where known."""
        chosen = np.ascontiguousarray(records, dtype=np.int64)
        key = chosen.tobytes()
        if self._key != key:
            self._key, self._held = key, []
        held = self._held
        if self._store is not None:
            self._learn(self._store, chosen, run)
        parts = microbatches(self._encoded, chosen, self._size, self._device, self._planned_passes)
        for place, batch in enumerate(parts):
            if place < len(held):
                yield batch, self._frozen.resume(partial(run, batch), held[place])
                continue
            has_room = not held or (place + 1) * held[0].nbytes <= self._held_at_most
            if self._store is not None:
                states = self._read(self._store, chosen[batch.start : batch.start + batch.count])
                result = self._frozen.resume(partial(run, batch), states)
            elif has_room:
                result, states = self._frozen.record(partial(run, batch))
            else:
                yield batch, run(batch)
                continue
            if has_room and len(held) == place:
                held.append(states)
            yield batch, result

    def _learn(self, store: RowStore, chosen: Indices, run: Callable[[MicroBatch], Tensor]) -> None:
        """States of the records that are requested for the first time, in micro-batches of the same shape."""
        missing = np.unique(chosen[~self._known[chosen]])
        for batch in microbatches(self._encoded, missing, self._size, self._device):
            states = self._frozen.states(partial(run, batch))
            rows = states[: batch.count * self._encoded.options].contiguous().cpu().view(torch.uint8)
            own = missing[batch.start : batch.start + batch.count]
            store.write(own, rows.reshape(batch.count, -1).numpy())
            self._known[own] = True

    def _read(self, store: RowStore, chosen: Indices) -> Tensor:
        """A micro-batch's states, with those of dummy rows after the last record."""
        states = self._blank.clone()
        count = len(chosen) * self._encoded.options
        rows = torch.from_numpy(store.read(chosen)).view(states.dtype)
        states[:count] = rows.reshape(count, *states.shape[1:]).to(states.device)
        return states
