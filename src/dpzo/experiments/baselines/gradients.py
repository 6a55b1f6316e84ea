"""Sums of clipped per-unit gradients, with Opacus's hooks or its ghost norms; the clipping is dpzo's.

    G = Σ_i g_i · min(1, C/‖g_i‖),   g_i = ∇ℓ_i over all trainable elements jointly, ‖·‖ the L2 norm (or L1)

A unit whose gradient is not finite counts as 0: Opacus's own optimiser would pass a NaN on to the sum. A unit's
contribution is bounded by C in real arithmetic; in fp32 it may be longer by a few parts in 10⁷ (with ghost norms by
more, as they are differences of large sums).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpzo.errors import DpzoError
from dpzo.experiments.baselines.differentiable import GradientSource, Pass
from dpzo.models.quiet import silent_libraries
from dpzo.models.virtual_tokens import virtual_prompt
from dpzo.zo import TrainableParameters

Indices = NDArray[np.int64]
Clipping = Literal["hooks", "ghost"]
ClippedSum = Callable[[Indices], list[Tensor]]

_TOLERANCE = {"hooks": 0.01, "ghost": 0.05}
"""Largest difference between Opacus's and autograd's norm of one unit's gradient, as a share of it."""


@contextmanager
def trainable_by_autograd(parameters: TrainableParameters) -> Iterator[None]:
    """Enable autograd for the trainable part within a block; all gradients are dropped at its end."""
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


@contextmanager
def clipped_sums(
    parameters: TrainableParameters,
    source: GradientSource,
    clip_norm: float,
    clipping: Clipping = "hooks",
    order: int = 2,
) -> Iterator[ClippedSum]:
    """Within the block: units (B,) → Σ of their clipped gradients, one fp32 tensor per parameter, in header order.

    - `hooks` hold every unit's gradient, about twice `microbatch_size` · d numbers; they support tied weights, several
      records per unit and several rows per record. `ghost` holds none and runs backward twice; it supports none of
      these.
    - `order` 1 clips in L1, which needs the gradients themselves, so hooks.
    - An empty batch gives zeros. Micro-batches bound the memory, not the batch.
    - Two units of the first batch are recomputed by autograd alone, and a module where Opacus finds other norms (a
      weight used outside its layer, a layer whose batch is not the rows) is refused.

    Raises DpzoError if opacus is missing or does not support this module.
    """
    if clipping not in ("hooks", "ghost"):
        raise DpzoError(f"clipping: {clipping!r} is unknown; choose hooks or ghost")
    if clipping == "ghost" and order != 2:
        raise DpzoError("clipping ghost: gives L2 norms only; use hooks to clip in L1")
    prompt = virtual_prompt(parameters.module)
    if prompt is not None and not prompt.is_prefix:
        raise DpzoError("--trainable prompt: is looked up once for a whole batch, so Opacus has no gradient by record")
    library = _opacus()
    if clipping == "ghost":
        _refuse_what_ghosts_cannot(parameters, source)
    wrap = library.GradSampleModule if clipping == "hooks" else library.GradSampleModuleFastGradientClipping
    with trainable_by_autograd(parameters):
        with _served():
            hooks = wrap(parameters.module, batch_first=True, loss_reduction="sum")
        tape = _Tape(parameters, source, hooks, order)
        engine = _Hooks(tape) if clipping == "hooks" else _Ghost(tape)
        try:
            with _layers_in_training(tape):
                yield lambda units: _total(engine, tape, units, clip_norm, _TOLERANCE[clipping])
        finally:
            hooks.to_standard_module()


def _opacus() -> Any:
    try:
        with silent_libraries():
            from opacus import grad_sample
    except ImportError:
        raise DpzoError("opacus is missing; for DP-SGD and DP-Adam: pip install 'dpzo[baselines]'") from None
    return grad_sample


def _refuse_what_ghosts_cannot(parameters: TrainableParameters, source: GradientSource) -> None:
    if source.members is not None:
        raise DpzoError("clipping ghost: sees one row a unit, and units hold several records here; use hooks")
    uses: dict[int, int] = {}
    for module in parameters.module.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    for name, parameter in zip(parameters.names, parameters, strict=True):
        if uses[id(parameter)] > 1:
            raise DpzoError(f"clipping ghost: {name!r} is tied, and the norms of its uses do not add up; use hooks")


@contextmanager
def _served() -> Iterator[None]:
    """Convert Opacus's errors to DpzoError; silence the libraries."""
    try:
        with silent_libraries():
            yield
    except (NotImplementedError, AttributeError) as error:
        raise DpzoError("--trainable: Opacus does not serve one of the trained layers; choose lora or head") from error


@dataclass
class _Tape:
    """The module as Opacus records it, and the number of rows that its layers currently process."""

    parameters: TrainableParameters
    source: GradientSource
    hooks: Any
    order: int
    rows: int = 1
    compared: bool = False

    def run(self, part: Pass) -> Tensor:
        """The losses of one pass, recorded if hooks are enabled."""
        self.rows = part.rows
        return part.losses()

    def clear(self) -> None:
        """Clear all gradients, norms and activations of the previous pass."""
        for parameter in self.parameters:
            recorded: Any = parameter
            parameter.grad, recorded.grad_sample, recorded._norm_sample = None, None, None

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Plain autograd within a block."""
        self.hooks.disable_hooks()
        try:
            yield
        finally:
            self.hooks.enable_hooks()


@contextmanager
def _layers_in_training(tape: _Tape) -> Iterator[None]:
    """Opacus records layers in training mode only: only those that own a trained weight get it, so dropout stays off.

    A look-up of one row of positions for the whole batch is expanded to its rows, so that each has its own gradient.
    """

    def spread(_layer: nn.Module, arguments: tuple[Any, ...]) -> Any:
        indices = arguments[0]
        if indices.dim() == 2 and len(indices) == 1:
            indices = indices.expand(tape.rows, -1)
        return (indices.contiguous(), *arguments[1:])  # ghost norms view them flat

    layers = list(tape.parameters.module.modules())
    modes = [layer.training for layer in layers]
    handles = []
    try:
        for layer in layers:
            layer.training = any(p.requires_grad for p in layer.parameters(recurse=False))
            if layer.training and type(layer) is nn.Embedding:
                handles.append(layer.register_forward_pre_hook(spread))
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.training = mode
        for handle in handles:
            handle.remove()


class _Engine(Protocol):
    """Gradients of a group of units that fits in memory: first their norms, then a weighted sum."""

    def norms(self, group: Indices) -> Tensor:
        """‖g_i‖, (G,) float64; NaN or ±inf where a gradient is not finite."""
        ...

    def weighted_sum(self, group: Indices, factors: Tensor, finite: Tensor) -> list[Tensor]:
        """Σ_i f_i·g_i over the units whose norm is finite, of the group last passed to `norms`."""
        ...


def _total(engine: _Engine, tape: _Tape, units: Indices, clip_norm: float, tolerance: float) -> list[Tensor]:
    total = [torch.zeros_like(parameter) for parameter in tape.parameters]
    size = tape.source.microbatch_size
    with _served():
        for start in range(0, len(units), size):
            group = units[start : start + size]
            norms = engine.norms(group)
            finite = torch.isfinite(norms)
            factors = torch.where(finite, (clip_norm / norms).clamp(max=1.0), torch.zeros_like(norms))
            for whole, part in zip(total, engine.weighted_sum(group, factors, finite), strict=True):
                whole += part
            if not tape.compared and len(group) > 1:  # a single unit's gradient would be right by accident
                tape.compared = True
                for place in (0, len(group) - 1):
                    _compare(float(norms[place]), _norm_by_autograd(tape, group[place : place + 1]), tolerance)
            tape.clear()
    return total


def _compare(found: float, truth: float, tolerance: float) -> None:
    if np.isfinite(truth) and not abs(found - truth) <= tolerance * truth + 1e-5:
        raise DpzoError("--trainable: Opacus finds other gradients than autograd here; choose lora or head")


def _norm_by_autograd(tape: _Tape, unit: Indices) -> float:
    tape.clear()
    records, _, weights = tape.source.owned(unit)
    with tape.unrecorded():
        for record, weight in zip(records, weights, strict=True):
            for part in tape.source.objective.passes(np.array([record]), 1):
                (tape.run(part).sum() * weight).backward()
    powers = [float(p.grad.double().abs().pow(tape.order).sum()) for p in tape.parameters if p.grad is not None]
    return float(sum(powers) ** (1.0 / tape.order))


def _named_rows(samples: Tensor | None, name: str, rows: int) -> Tensor:
    if samples is None or len(samples) != rows:
        raise DpzoError(f"--trainable: Opacus has no gradient by record of {name!r}; leave it out")
    return samples


@dataclass
class _Hooks:
    """Holds every gradient of the group in memory."""

    tape: _Tape
    held: list[Tensor] = field(default_factory=list)

    def norms(self, group: Indices) -> Tensor:
        tape, names = self.tape, self.tape.parameters.names
        records, places, weights = tape.source.owned(group)
        self.held = [p.new_zeros((len(group), *p.shape)) for p in tape.parameters]
        start = 0
        for part in tape.source.objective.passes(records, tape.source.microbatch_size):
            tape.clear()
            losses = tape.run(part)
            own = slice(start, start + part.count)
            start += part.count
            scale = torch.from_numpy(weights[own]).to(losses)
            (losses * scale).sum().backward()  # type: ignore[no-untyped-call]
            for name, parameter, whole in zip(names, tape.parameters, self.held, strict=True):
                recorded: Any = parameter
                if parameter.grad is None:
                    continue  # this pass does not use it
                samples = _named_rows(recorded.grad_sample, name, part.rows)
                real = samples[: part.count * part.rows_per_record]
                by_record = real.view(part.count, part.rows_per_record, *parameter.shape).sum(dim=1)
                whole.index_add_(0, torch.from_numpy(places[own]).to(whole.device), by_record)
        tape.clear()
        order = tape.order
        lengths = [torch.linalg.vector_norm(g.flatten(1), order, dim=1, dtype=torch.float64).cpu() for g in self.held]
        joint: Tensor = torch.linalg.vector_norm(torch.stack(lengths), order, dim=0)
        return joint

    def weighted_sum(self, group: Indices, factors: Tensor, finite: Tensor) -> list[Tensor]:
        sums = []
        for whole in self.held:
            whole[~finite.to(whole.device)] = 0.0
            sums.append(torch.tensordot(factors.to(whole), whole, dims=1))
        self.held = []
        return sums


@dataclass
class _Ghost:
    """Computes norms from activations and backward signals, then runs backward again through the weighted losses."""

    tape: _Tape
    losses: Tensor | None = None

    def norms(self, group: Indices) -> Tensor:
        tape = self.tape
        tape.clear()
        (part,) = tape.source.objective.passes(group, tape.source.microbatch_size)
        if part.rows_per_record != 1:
            raise DpzoError("clipping ghost: sees one row a record, and options are several; use hooks")
        self.losses = tape.run(part)
        self.losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        squares = torch.zeros(part.count, dtype=torch.float64)
        for name, parameter in zip(tape.parameters.names, tape.parameters, strict=True):
            recorded: Any = parameter
            if parameter.grad is not None:
                squares += _named_rows(recorded._norm_sample, name, part.rows)[: part.count].double().cpu().square()
        return squares.sqrt()

    def weighted_sum(self, group: Indices, factors: Tensor, finite: Tensor) -> list[Tensor]:
        tape, losses = self.tape, self.losses
        self.losses = None
        tape.clear()
        assert losses is not None
        if not finite.any():
            return [torch.zeros_like(p) for p in tape.parameters]
        with tape.unrecorded():
            if not finite.all():  # 0 · NaN is NaN: run the others again in a separate graph
                (part,) = tape.source.objective.passes(group[finite.numpy()], len(group))
                losses, factors = tape.run(part), factors[finite]
            (losses * factors.to(losses)).sum().backward()  # type: ignore[no-untyped-call]
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in tape.parameters]
