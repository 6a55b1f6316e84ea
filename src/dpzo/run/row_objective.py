"""A user's per-example loss over rows of tensors in micro-batches, and the check that rows are isolated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dpzo.errors import DpzoError
from dpzo.models.isolation import check_isolation, keeps_bits
from dpzo.run.examples import Examples
from dpzo.zo import (
    DirectionScheme,
    Estimator,
    ExceptionSafeEstimator,
    TrainableParameters,
    is_own,
    public_normal,
    shifted,
)

Loss = Callable[[nn.Module, dict[str, Tensor]], Tensor]
Units = npt.NDArray[np.int64]
Losses = npt.NDArray[np.float64]


class RowObjective:
    """Losses of rows in micro-batches of one size, the last one padded with zero rows; at least `planned_passes`.

    The model's buffers are restored after each micro-batch, also after an exception, so no buffer carries information
    from one unit to another.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, examples: Examples, microbatch_size: int, planned_passes: int = 0
    ) -> None:
        self.planned_passes = planned_passes
        (self._length,) = {len(tensor) for tensor in examples.values()}
        self._model, self._loss, self._examples, self._size = model, loss, dict(examples), microbatch_size
        self._buffers = _Buffers(model)

    def __len__(self) -> int:
        return self._length

    @property
    def changed_buffers(self) -> list[str]:
        """Names of the buffers that an evaluation has written to so far, sorted."""
        return sorted(self._buffers.changed)

    def losses(self, units: Units, /) -> Losses:
        """(B,) float64 losses of the units at the model's present weights."""
        found = np.zeros(len(units))
        for start in range(0, len(units), self._size):
            chosen = units[start : start + self._size]
            found[start : start + len(chosen)] = self._evaluate(chosen)[: len(chosen)]
        for _ in range(-(-len(units) // self._size), self.planned_passes):
            with suppress(Exception):  # a loss that fails on zero rows alone affects no unit's row
                self.evaluate_filling()
        return found

    def evaluate_filling(self) -> None:
        """Evaluate a micro-batch of padding, which shows whether the machine can evaluate any."""
        self._evaluate(np.zeros(0, dtype=np.int64))

    def _evaluate(self, chosen: Units) -> Losses:
        batch = {name: self._filled(tensor, torch.from_numpy(chosen.copy())) for name, tensor in self._examples.items()}
        try:
            with torch.no_grad():
                values = self._loss(self._model, batch)
        finally:
            self._buffers.restore()
        if not isinstance(values, Tensor) or values.shape != (self._size,):
            raise DpzoError(
                "loss: must return one number a row, a tensor of shape (microbatch_size,), not a mean over the batch"
            )
        losses: Losses = values.detach().double().cpu().numpy()
        return losses

    def _filled(self, tensor: Tensor, chosen: Tensor) -> Tensor:
        rows = tensor.new_zeros((self._size, *tensor.shape[1:]))
        rows[: len(chosen)] = tensor[chosen]
        return rows


class _Buffers:
    """A copy of a module's buffers, to restore them; `changed` lists the buffers that were restored."""

    def __init__(self, model: nn.Module) -> None:
        self._owners = [(name, module, dict(module._buffers)) for name, module in model.named_modules()]
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}
        for owner, _, buffers in self._owners:
            for name, buffer in buffers.items():
                if buffer is not None:
                    self._kept[f"{owner}.{name}".lstrip(".")] = (buffer, buffer.detach().clone())
        self._versions = {name: buffer._version for name, (buffer, _) in self._kept.items()}
        self.changed: set[str] = set()

    def restore(self) -> None:
        """Restore buffers that were written to or replaced, detected by tensor versions instead of comparing values."""
        for owner, module, buffers in self._owners:
            if len(module._buffers) != len(buffers) or any(
                module._buffers.get(name) is not kept for name, kept in buffers.items()
            ):
                self.changed.add(owner or type(module).__name__)
                module._buffers.clear()
                module._buffers.update(buffers)
        for name, (buffer, before) in self._kept.items():
            if buffer._version != self._versions[name]:
                self.changed.add(name)
                with torch.no_grad():
                    buffer.copy_(before)
                self._versions[name] = buffer._version


@dataclass(frozen=True)
class IsolationCheck:
    """Check on public rows, through the run's estimator, that each row depends on its own unit alone.

    Tests three kinds of rows, each in batches with many other rows: as given (or synthetic), at scales up to 10⁶, and
    with NaN and infinities; on a CPU also integers up to 10⁶. Rows that raise an exception count as they do in
    training. A loss that passes may still fail on other rows, at other weights or after more calls: the card says
    *assumed*.
    """

    model: nn.Module
    loss: Loss
    parameters: TrainableParameters
    scheme: DirectionScheme
    estimator: Estimator
    smoothing: float
    microbatch_size: int

    def require(self, examples: Examples) -> None:
        """Raise DpzoError, naming the cause, unless rows of the public `examples` are isolated."""
        plain = self._objective(examples)
        self._require_one_loss_a_row(plain)
        before = dict(_state(self.model))
        at_shift = _Shifted(plain, self.parameters, self.scheme, self.smoothing)
        isolated = check_isolation(at_shift, min(self.microbatch_size, len(plain)), len(plain))
        written = set(plain.changed_buffers)
        if not is_own(self.estimator):
            isolated = isolated and self._keeps_rows(self._objective(examples), written, None)
        for rows in _hostile(examples):
            isolated = isolated and self._keeps_rows(self._objective(rows), written, _FEW)
        changed = [name for name, value in _state(self.model) if before.get(name) != value]
        if changed := sorted({*changed, *written}):
            raise DpzoError(
                f"loss: {changed[0]!r} of the model changes while it is evaluated, so one unit could show in another; "
                "an evaluation must leave the model as it was"
            )
        if not isolated:
            raise DpzoError(
                "loss: a row's loss changes with its neighbours in the batch, so one unit could show in another; make "
                "it per-row (no batch norm, no mean or maximum over the batch) or try another microbatch_size or a "
                "single thread"
            )

    def _objective(self, examples: Examples) -> RowObjective:
        return RowObjective(self.model, self.loss, examples, self.microbatch_size)

    def _require_one_loss_a_row(self, objective: RowObjective) -> None:
        """Raise DpzoError if the loss itself is invalid, quoting its error, because the rows are public."""
        try:
            objective.losses(np.arange(len(objective), dtype=np.int64))
        except DpzoError:
            raise
        except Exception as error:
            raise DpzoError(
                f"loss: raises {type(error).__name__} on public rows of the shapes and types of the examples: {error}; "
                "if only such rows are at fault, give public_examples"
            ) from error

    def _keeps_rows(self, objective: RowObjective, written: set[str], most: int | None) -> bool:
        # One direction is enough to test a loss; a user's estimator may depend on the number of directions.
        scheme, safe = self.scheme, ExceptionSafeEstimator(self.estimator, stop=_Never)
        if is_own(self.estimator):
            scheme = DirectionScheme(scheme.kind, scheme.seed, 1, self.parameters.sizes)

        def rows(units: Units) -> Losses:
            with torch.no_grad():
                found = safe(objective, self.parameters, units, scheme.at(0), self.smoothing)
            return np.where(np.isfinite(found).all(axis=1, keepdims=True), found, np.nan)  # all such rows count as 0

        kept = keeps_bits(rows, min(self.microbatch_size, len(objective)), len(objective), most)
        written.update(objective.changed_buffers)
        return kept


_FEW = 6
"""Number of arrangements of extreme rows: those that differ in kind, without the random ones."""


class _Never(Exception):
    """An exception type that is never raised: no exception on public rows is re-raised."""


@dataclass(frozen=True)
class _Shifted:
    """An objective at weights near θ_0, so that weights that start at zero cannot hide a dependence."""

    rows: RowObjective
    parameters: TrainableParameters
    scheme: DirectionScheme
    smoothing: float

    def losses(self, units: Units, /) -> Losses:
        with shifted(self.parameters, self.scheme.at(0), 0, self.smoothing):
            return self.rows.losses(units)


def synthetic_examples(like: Examples, size: int) -> Examples:
    """`size` public rows of the same shapes and types: normal floats, zeros and ones for integers."""

    def rows(name: str, tensor: Tensor) -> Tensor:
        shape = (size, *tensor.shape[1:])
        values = public_normal(0, f"isolation/{name}", int(np.prod(shape)), 1.0).reshape(shape)
        if tensor.is_floating_point():
            return values.to(tensor.dtype).to(tensor.device)
        return (values > 0).to(tensor.dtype).to(tensor.device)

    return {name: rows(name, tensor) for name, tensor in like.items()}


_DECADES = 7
"""Scales 10⁰ to 10⁶, in rotation."""


def _hostile(examples: Examples) -> Iterator[Examples]:
    """The same rows at many scales, then some non-finite rows, and large integers where they cannot crash a device."""
    if any(tensor.is_floating_point() for tensor in examples.values()):
        yield {name: _scaled(tensor) if tensor.is_floating_point() else tensor for name, tensor in examples.items()}
        yield {name: _not_finite(tensor) for name, tensor in examples.items()}
    wide = {name for name, tensor in examples.items() if tensor.dtype in (torch.int32, torch.int64)}
    # An index out of range ends a CUDA context; on a CPU it is an exception.
    cuda: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if wide and not cuda and all(examples[name].device.type == "cpu" for name in wide):
        yield {name: _scaled(tensor) if name in wide else tensor for name, tensor in examples.items()}


def _scaled(tensor: Tensor) -> Tensor:
    powers = torch.tensor([10.0 ** (row % _DECADES) for row in range(len(tensor))], dtype=torch.float64)
    scales = powers.reshape(-1, *[1] * (tensor.ndim - 1)).to(tensor.device)
    return (tensor.double() * scales).to(tensor.dtype)


def _not_finite(tensor: Tensor) -> Tensor:
    rows = tensor.clone()
    if tensor.is_floating_point():
        for start, value in enumerate((float("nan"), float("inf"), float("-inf"))):
            rows[start + 1 :: 5] = value
    return rows


def _state(model: nn.Module) -> Iterator[tuple[str, object]]:
    """The model state that an evaluation could change: buffers by content, weights by version, plain attributes."""
    for name, buffer in model.named_buffers():
        yield name, _digest(buffer)
    for name, parameter in model.named_parameters():
        yield name, parameter._version
    for owner, module in model.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_"):
                yield f"{owner}.{name}".lstrip("."), _plain(value)


def _plain(value: object, depth: int = 3) -> object:
    """A value that equals another if and only if both are the same plain data; all other values compare equal."""
    if isinstance(value, Tensor):
        return _digest(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return (value.dtype.str, value.shape, value.tobytes())
    if depth and isinstance(value, list | tuple):
        return [_plain(part, depth - 1) for part in value]
    if depth and isinstance(value, dict):
        return [(repr(key), _plain(part, depth - 1)) for key, part in value.items()]
    return repr(value) if isinstance(value, int | float | complex | str | bytes | set | None) else None


def _digest(tensor: Tensor) -> object:
    if tensor.layout is not torch.strided or tensor.is_quantized or type(tensor.data) is not Tensor:
        return tensor._version
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return (str(tensor.dtype), tuple(tensor.shape), hashlib.sha256(flat.cpu().numpy().data).digest())
