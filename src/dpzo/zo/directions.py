"""Public directions: every element is a pure function of (seed, step, k, parameter, element index), never of order.

A direction is computed from its address, so it does not depend on the device, sharding, block sizes, other directions,
or any generator's state. `kernels.spec` specifies the bits; `SCHEME` identifies that specification.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from dpzo.errors import DpzoError
from dpzo.zo.kernels import spec
from dpzo.zo.kernels.choose import (
    Backend,
    add_each,
    block_elements,
    fuses_rounding,
    kernels_for,
    round_into,
    step_each,
    step_rounded,
)
from dpzo.zo.kernels.spec import SCHEME, Stream
from dpzo.zo.kinds import KINDS, Kind, sphere_factor

__all__ = [
    "KINDS",
    "SCHEME",
    "Backend",
    "DirectionScheme",
    "Kind",
    "StepDirections",
    "Structure",
]


_CPU: Final = torch.device("cpu")


class Structure(Protocol):
    """A public rule that computes a run's directions u from a kind's elements; all are in `structures`.

    Like z itself, u is addressed by (seed, step, k, parameter, element): no order, no state, no data.
    """

    @property
    def name(self) -> str:
        """Its name in the journal's header."""

    def describe(self) -> dict[str, Any]:
        """Its name and settings, JSON-serialisable: everything that its bits depend on besides the scheme."""

    def check(self, scheme: DirectionScheme) -> None:
        """Raise DpzoError if the structure does not support the scheme's kind or parameters."""

    def dimension(self, scheme: DirectionScheme) -> int:
        """tr E[uuᵀ]: the number of dimensions that are searched."""

    def fill(self, directions: StepDirections, k: int, parameter: int, out: Tensor, start: int) -> None:
        """out_j ← u_{k, start + j}; `out` is flat, contiguous, fp32, within the parameter."""


def check_seed(seed: int) -> None:
    """Raises DpzoError outside 0 … 2⁶⁴ − 1."""
    if not 0 <= seed < 1 << 64:
        raise DpzoError(f"seed: {seed} is outside 0 … 2^64 − 1; choose a seed in that range")


def _check_flat(tensor: Tensor) -> None:
    if tensor.dtype != torch.float32 or tensor.dim() != 1 or not tensor.is_contiguous():
        raise ValueError(
            f"expected a flat contiguous float32 tensor, not {tensor.dtype} of shape {tuple(tensor.shape)}"
        )


@dataclass(frozen=True)
class DirectionScheme:
    """All directions of a run.

    - `kind`: a key of `KINDS`; `seed`: public, 0 … 2⁶⁴ − 1; `num_directions`: K ≥ 1.
    - `sizes`: element count of each trainable parameter, in the journal header's order; Σ sizes = d < 2³⁸.
    - `structure`: the rule that computes u from z, None for u = z; `shapes`: the parameters' shapes, for structures
      that need them.

    Each kind has E[z] = 0 and E[zzᵀ] = I. Distinct (seed, step, k, parameter, kind) never share a counter, nor does any
    initialisation, with one exception: the K directions of an `orthogonal` step are made of the same signs.

    `orthogonal`: z_kJ = r_J·(−1)^popcount(k & J), r the step's Rademacher vector and J the element's index over all
    parameters in header order. With k fixed the second factor is a fixed sign, so each z_k alone is Rademacher. With
    2^m ≥ K the rows (−1)^popcount(k & J) of any 2^m aligned J are a Walsh–Hadamard matrix, so z_k·z_l = 0 but for the
    d mod 2^m last elements. If 2^m divides d, P = Σ_k z_k z_kᵀ/d is a projector of rank K with E[P] = (K/d)·I, and the
    mean of K slopes times directions, (d/K)·P·g, has the variance (d/K)²·(K/d)‖g‖² − ‖g‖² = ((d − K)/K)·‖g‖², where
    independent signs have ((d − 1)/K)·‖g‖²: K = d gives g itself. For K = 2^m and any d it is Σ_j g_j²·(n_j − 1), with
    n_j the number of elements whose J is that of j modulo K. Only K ≤ 2^⌈log₂ d⌉ is allowed: beyond, z_k repeat.

    Raises DpzoError for an unknown kind, a value out of range, or a structure that does not support the scheme.
    Source of `orthogonal`: signed Hadamard rows as in Ailon and Chazelle 2009; the variance is derived here.
    """

    kind: str
    seed: int
    num_directions: int
    sizes: tuple[int, ...]
    structure: Structure | None = None
    shapes: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.kind not in KINDS:
            raise DpzoError(f"directions: {self.kind!r} is unknown; choose one of {', '.join(KINDS)}")
        if not 1 <= self.num_directions <= spec.MAX_DIRECTIONS:
            raise DpzoError(f"num_directions: {self.num_directions} is outside 1 … 2^24; choose a number in that range")
        if not 0 < len(self.sizes) <= spec.MAX_PARAMETERS:
            raise DpzoError(f"trainable: {len(self.sizes)} parameters; directions need 1 … 2^20 of them")
        if min(self.sizes) < 0 or not 0 < sum(self.sizes) < 1 << 38:
            raise DpzoError("trainable: the parameters hold no element, or 2^38 and more; choose other parameters")
        if self.shapes is not None and tuple(math.prod(shape) for shape in self.shapes) != self.sizes:
            raise ValueError("shapes and sizes differ")
        if self.structure is not None:
            self.structure.check(self)
        if self.kind == "orthogonal":
            most = 1 << (self.effective_dimension - 1).bit_length()
            if self.num_directions > most:
                raise DpzoError(
                    f"num_directions: {self.num_directions} directions cannot be orthogonal in "
                    f"{self.effective_dimension} dimensions; choose at most {most}, or rademacher directions"
                )

    @property
    def dimension(self) -> int:
        """d, the number of trainable elements."""
        return sum(self.sizes)

    @cached_property
    def effective_dimension(self) -> int:
        """tr E[uuᵀ], the number of dimensions that a step searches: d, or fewer with a structure."""
        return self.dimension if self.structure is None else self.structure.dimension(self)

    @cached_property
    def origins(self) -> tuple[int, ...]:
        """Index of each parameter's first element over all parameters, in header order."""
        return tuple(accumulate(self.sizes[:-1], initial=0))

    @property
    def description(self) -> dict[str, Any]:
        """The directions' description in the journal's header; with K and the parameters it determines every bit."""
        found: dict[str, Any] = {"scheme": SCHEME, "kind": self.kind, "seed": self.seed}
        return found if self.structure is None else {**found, "structure": self.structure.describe()}

    def at(self, step: int, backend: Backend = "numba") -> StepDirections:
        """The K directions of one step, 0 ≤ step < 2³², generated lazily. The bits do not depend on the backend."""
        return StepDirections(self, step, backend)


@dataclass(frozen=True)
class StepDirections:
    """The K directions z_0 … z_{K−1} of one step, generated on use and never stored.

    `parameter` is an index into the scheme's `sizes`; `start` is the global index of the first element, so any shard of
    a parameter can be generated. Tensors are flat, contiguous, fp32; `out` may be `base` but not overlap it otherwise.
    """

    scheme: DirectionScheme
    step: int
    backend: Backend = "numba"
    _factors: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.step < spec.MAX_STEPS:
            raise DpzoError(f"step: {self.step} is outside 0 … 2^32 − 1")

    @property
    def num_directions(self) -> int:
        """K."""
        return self.scheme.num_directions

    def stream(self, k: int, parameter: int, role: str = "") -> Stream:
        """The counters of direction k in one parameter, or of a structure's part `role`; see `kernels.spec`."""
        scheme = self.scheme
        if not 0 <= k < scheme.num_directions or not 0 <= parameter < len(scheme.sizes):
            raise IndexError("no such direction or parameter")
        return Stream(
            law=KINDS[scheme.kind].law,
            key0=scheme.seed & 0xFFFFFFFF,
            key1=scheme.seed >> 32,
            parameter=parameter,
            c2=self.step,
            c3=k | spec.PURPOSES[f"{role}/{scheme.kind}" if role else scheme.kind] << 24,
            origin=scheme.origins[parameter],
        )

    def draw(self, role: str, k: int, parameter: int, out: Tensor, start: int = 0) -> None:
        """out_j ← element start + j of the kind's distribution in the stream of `role`, for structures."""
        kernels_for(self.backend, out.device).fill(self.stream(k, parameter, role), 1.0, out, start)

    def scale_factor(self, k: int, device: torch.device = _CPU) -> float:
        """√d / ‖g_k‖ rounded to fp32 for `sphere`, with g_k the Gaussian direction over all parameters jointly; else 1.

        ‖g_k‖² is a sum of integers ⌊fl(g²)·2²⁴⌋. Integer addition is associative, so every sharding, block size, thread
        count and order yields the same bits without coordination; a float64 sum is only reproducible while all
        processes use the same blocks in the same order, which a sharded run cannot ensure. The truncation shifts the
        norm by 1.5e-8·d/‖g‖², less than the factor's own rounding. Costs one generation of the whole direction; cached.
        """
        if not KINDS[self.scheme.kind].on_sphere or self.scheme.structure is not None:
            return 1.0  # a structure applies its own scale, if any
        if k not in self._factors:
            kernels = kernels_for(self.backend, device)
            parts = enumerate(self.scheme.sizes)
            total = sum(kernels.square_sum(self.stream(k, parameter), 0, size) for parameter, size in parts)
            self._factors[k] = sphere_factor(self.scheme.dimension, total)
        return self._factors[k]

    def fill(self, k: int, parameter: int, out: Tensor, start: int = 0) -> None:
        """out_j ← z_{k, start + j}; here and below, of the structure's u if there is one."""
        self._check(parameter, out, start)
        if self.scheme.structure is not None:
            self.scheme.structure.fill(self, k, parameter, out, start)
        else:
            self.fill_kind(k, parameter, out, start)

    def fill_kind(self, k: int, parameter: int, out: Tensor, start: int = 0) -> None:
        """out_j ← z_{k, start + j} of the kind alone, for any structure."""
        kernels_for(self.backend, out.device).fill(
            self.stream(k, parameter), self.scale_factor(k, out.device), out, start
        )

    def add(self, k: int, parameter: int, base: Tensor, scale: float, out: Tensor, start: int = 0) -> None:
        """out_j ← fl(base_j + fl(scale·z_{k, start + j})), `scale` rounded to fp32 first; two rounded operations."""
        self._check(parameter, out, start)
        _check_flat(base)
        if base.numel() != out.numel():
            raise ValueError("base and out differ in length")
        if self.scheme.structure is not None:
            self._add_structured(self.scheme.structure, k, parameter, base, scale, out, start)
            return
        stream, factor = self.stream(k, parameter), self.scale_factor(k, out.device)
        kernels_for(self.backend, out.device).add(stream, factor, base, scale, out, start)

    def accumulate(self, k: int, parameter: int, coefficient: float, acc: Tensor, start: int = 0) -> None:
        """acc_j ← fl(acc_j + fl(coefficient·z_{k, start + j}))."""
        self.add(k, parameter, acc, coefficient, acc, start)

    def combine(self, parameter: int, coefficients: Sequence[float], out: Tensor, start: int = 0) -> None:
        """out_j ← Σ_k fl(c_k·z_{k, start + j}) in fp32, sequentially for k = 0 … K − 1 from zero."""
        self._check(parameter, out, start)
        streams, factors, _ = self._terms(parameter, coefficients, out.device)
        out.zero_()
        if self.scheme.structure is not None:
            for k, coefficient in enumerate(coefficients):
                self._add_structured(self.scheme.structure, k, parameter, out, coefficient, out, start)
            return
        kernels_for(self.backend, out.device).accumulate(streams, factors, coefficients, out, start)

    def _add_structured(
        self, structure: Structure, k: int, parameter: int, base: Tensor, scale: float, out: Tensor, start: int
    ) -> None:
        """`add` block by block: u is computed in scratch, multiplied there, then added, each rounded once."""
        block = block_elements(out.device)
        scratch = torch.empty(min(out.numel(), block), dtype=torch.float32, device=out.device)
        scale32 = torch.tensor(scale, dtype=torch.float32, device=out.device)
        for at in range(0, out.numel(), block):
            target = out[at : at + block]
            u = scratch[: target.numel()]
            structure.fill(self, k, parameter, u, start + at)
            torch.add(base[at : at + block], u.mul_(scale32), out=target)

    def shift(self, k: int, parameter: int, base: Tensor, scale: float, out: Tensor, start: int = 0) -> None:
        """out_j ← rn(fl(base_j + fl(scale·z_{k, start + j}))): fp32, then to nearest even in `out`'s dtype.

        `base` and `out` are flat, of one dtype: fp32, bf16 or fp16. Allocates nothing of θ's size.
        """
        if self.scheme.structure is None:
            stream, factor = self.stream(k, parameter), self.scale_factor(k, out.device)
            kernels_for(self.backend, out.device).add(stream, factor, base, scale, out, start)
            return
        if base.dtype == torch.float32:
            self.add(k, parameter, base, scale, out, start)
            return
        block = block_elements(out.device)
        for at in range(0, base.numel(), block):
            wide = base[at : at + block].float()
            self.add(k, parameter, wide, scale, wide, start + at)
            out[at : at + block].copy_(wide)

    def shift_each(
        self, k: int, parameters: Sequence[int], bases: Sequence[Tensor], scale: float, outs: Sequence[Tensor]
    ) -> None:
        """`shift` of several whole parameters, all of one dtype and device: for many small ones."""
        if self.scheme.structure is not None:
            for parameter, base, out in zip(parameters, bases, outs, strict=True):
                self.shift(k, parameter, base, scale, out)
        elif parameters:
            streams = [self.stream(k, parameter) for parameter in parameters]
            add_each(self.backend, streams, self.scale_factor(k, outs[0].device), bases, scale, outs)

    def shift_rows(self, k: int, parameter: int, base: Tensor, scale: float, rows: Tensor) -> Tensor:
        """Rows `rows` (R,) of the result of `shift` on the whole matrix `base` (V, W), bit for bit; shape (R, W)."""
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(base):
            raise IndexError("a row asked for lies outside the matrix")
        out = base.new_empty((len(rows), base.shape[1]))
        if self.scheme.structure is None:
            stream, factor = self.stream(k, parameter), self.scale_factor(k, out.device)
            kernels_for(self.backend, out.device).add_rows(stream, factor, base, scale, rows, out)
            return out
        for own, row in zip(out, rows.tolist(), strict=True):
            wide = base[row].float()
            self.add(k, parameter, wide, scale, wide, row * base.shape[1])
            own.copy_(wide)
        return out

    def step_into(self, parameter: int, coefficients: Sequence[float], theta: Tensor) -> None:
        """θ_j ← fl(θ_j + g_j) over a whole parameter, with g from `combine`, in one pass over memory if possible.

        A 16-bit θ_j ← the same fp32 sum, rounded stochastically as `round_into` does.
        """
        if theta.dim() != 1 or not theta.is_contiguous() or theta.numel() > self.scheme.sizes[parameter]:
            raise ValueError("theta must be a flat view of the parameter")
        wide, plain = theta.dtype == torch.float32, self.scheme.structure is None
        if plain and wide:
            terms = self._terms(parameter, coefficients, theta.device)
            kernels_for(self.backend, theta.device).step(*terms, theta, 0)
            return
        if plain and fuses_rounding(self.backend, theta.device):
            terms = self._terms(parameter, coefficients, theta.device)
            step_rounded(*terms, theta, 0, self._rounding(parameter))
            return
        block = block_elements(theta.device)
        gradient = torch.empty(min(theta.numel(), block), dtype=torch.float32, device=theta.device)
        for start in range(0, theta.numel(), block):
            part = theta[start : start + block]
            g = gradient[: part.numel()]
            self.combine(parameter, coefficients, g, start)
            if wide:
                part.add_(g)
            else:
                self.round_into(parameter, g.add_(part), part, start)

    def step_each(self, parameters: Sequence[int], coefficients: Sequence[float], thetas: Sequence[Tensor]) -> None:
        """`step_into` of several whole parameters, all fp32 and on one device: for many small ones."""
        if self.scheme.structure is not None:
            for parameter, theta in zip(parameters, thetas, strict=True):
                self.step_into(parameter, coefficients, theta)
        elif parameters:
            terms = [self._terms(parameter, coefficients, thetas[0].device) for parameter in parameters]
            step_each(self.backend, [streams for streams, _, _ in terms], terms[0][1], coefficients, thetas)

    def _terms(
        self, parameter: int, coefficients: Sequence[float], device: torch.device
    ) -> tuple[list[Stream], list[float], Sequence[float]]:
        """Streams, factors and coefficients of a sum over k."""
        if len(coefficients) != self.num_directions:
            raise ValueError(f"{len(coefficients)} coefficients for {self.num_directions} directions")
        count = range(self.num_directions)
        streams = [self.stream(k, parameter) for k in count]
        return streams, [self.scale_factor(k, device) for k in count], coefficients

    def round_into(self, parameter: int, wide: Tensor, out: Tensor, start: int = 0) -> None:
        """out_j ← wide_j, rounded stochastically by public bits of (seed, step, parameter, start + j).

        `wide` flat fp32, `out` flat bf16 or fp16; the bits are `kernels.rounding`'s, under a purpose of their own, so
        no direction shares them. Unbiased: E[out_j] = wide_j.
        """
        self._check(parameter, wide, start)
        if out.dtype not in (torch.bfloat16, torch.float16) or out.shape != wide.shape or not out.is_contiguous():
            raise ValueError("out must be flat bfloat16 or float16, of the same length")
        round_into(self.backend, self._rounding(parameter), wide, out, start)

    def _rounding(self, parameter: int) -> Stream:
        """The random bits that round a 16-bit parameter in this step."""
        return Stream(
            law=spec.SIGNS,
            key0=self.scheme.seed & 0xFFFFFFFF,
            key1=self.scheme.seed >> 32,
            parameter=parameter,
            c2=self.step,
            c3=spec.PURPOSES["rounding"] << 24,
        )

    def _check(self, parameter: int, out: Tensor, start: int) -> None:
        _check_flat(out)
        if start < 0 or start + out.numel() > self.scheme.sizes[parameter]:
            raise IndexError("the elements asked for lie outside the parameter")
