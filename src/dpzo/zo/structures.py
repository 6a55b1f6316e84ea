"""Structured directions that search a subspace of R^d: a public mask, low-rank matrices, a public basis.

Data that is public before the run, or derived from releases, may shape directions at no privacy cost: the slopes
along them are clipped, summed and noised like any other, so a structure changes no event. `direction_scheme` builds a
run's directions from its options.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from dpzo.config.plain import require_regular
from dpzo.errors import DpzoError
from dpzo.zo.directions import DirectionScheme, StepDirections, Structure
from dpzo.zo.kernels import spec
from dpzo.zo.kernels.choose import Backend, keep
from dpzo.zo.kernels.spec import Stream
from dpzo.zo.kinds import KINDS, sphere_factor
from dpzo.zo.parameters import TrainableParameters

__all__ = ["LowRank", "PublicBasis", "RandomMask", "direction_scheme", "load_basis", "public_basis"]

_BLOCK: Final = 1 << 16
_DEPENDENT: Final = 1e-6


@dataclass(frozen=True)
class RandomMask:
    """u = M z with M diagonal of zeros and ones: a random part of the elements moves, the same at every step.

    Element j of a parameter is kept where its own public 32-bit word (purpose `mask`, step 0, k = 0) is below
    ⌊fraction·2³²⌋: with that probability, independently. E[uuᵀ] = M, so an estimate is unbiased on the kept elements
    and zero elsewhere, and its variance has tr M, about fraction·d, in place of d. What is masked keeps its bits.

    For `rademacher` and `gaussian`. A masked sphere has no fixed norm, and a mask breaks orthogonality. Raises
    DpzoError for those, a fraction outside 0 … 1, or a mask that keeps nothing. Source: sparse perturbations as in
    Liu et al., Sparse MeZO, 2024, with a mask that does not depend on the weights.
    """

    keep_fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.keep_fraction < 1:
            raise DpzoError(f"mask: {self.keep_fraction} is outside 0 … 1; choose a fraction of the elements between")

    @property
    def name(self) -> str:
        """mask."""
        return "mask"

    @property
    def threshold(self) -> int:
        """⌊fraction·2³²⌋."""
        return int(Fraction(self.keep_fraction) * (1 << 32))

    def describe(self) -> dict[str, Any]:
        """The fraction; the seed is the scheme's."""
        return {"name": self.name, "keep_fraction": self.keep_fraction}

    def check(self, scheme: DirectionScheme) -> None:
        """Reject kinds whose distribution a mask would break, and a mask that keeps nothing."""
        _require_independent(scheme, "mask")
        # With 100 elements expected, none has a probability below e^-100: only small masks need counting.
        if self.keep_fraction * scheme.dimension < 100 and self.dimension(scheme) == 0:
            raise DpzoError(f"mask: a fraction of {self.keep_fraction} keeps no element; choose a larger one")

    def dimension(self, scheme: DirectionScheme) -> int:
        """The number of elements kept, counted in one pass."""
        ones, total = torch.empty(_BLOCK, dtype=torch.float32), 0
        for parameter, size in enumerate(scheme.sizes):
            for start in range(0, size, _BLOCK):
                block = ones[: min(_BLOCK, size - start)].fill_(1.0)
                self._keep(scheme, parameter, block, start, "numba")
                total += int(block.sum())
        return total

    def fill(self, directions: StepDirections, k: int, parameter: int, out: Tensor, start: int) -> None:
        """The kind's own elements, and +0 where masked."""
        scheme = directions.scheme
        directions.fill_kind(k, parameter, out, start)
        self._keep(scheme, parameter, out, start, directions.backend)

    def _keep(self, scheme: DirectionScheme, parameter: int, out: Tensor, start: int, backend: Backend) -> None:
        stream = Stream(
            law=spec.SIGNS,
            key0=scheme.seed & 0xFFFFFFFF,
            key1=scheme.seed >> 32,
            parameter=parameter,
            c2=0,
            c3=spec.PURPOSES["mask"] << 24,
        )
        keep(backend, stream, self.threshold, out, start)


@dataclass(frozen=True)
class LowRank:
    """A matrix parameter's direction is a sum of `rank` outer products: u_ij = (1/√rank)·Σ_r a_ri·b_rj.

    To the operation: s ← fl(s + fl(a_ri·b_rj)) for r = 0 … rank − 1 from 0, then u = fl(fl32(1/√rank)·s), in fp32,
    with no matrix product. a_ri is element r·m + i of the kind's stream of purpose `rows`, b_rj element r·n + j of
    `columns`: m + n elements a rank are drawn instead of m·n. E[uuᵀ] = I, since E[a_ri·a_sk] = 1 only for r = s, i = k.

    A parameter of more than two dimensions is a matrix of its first one by the rest. Vectors, and matrices with a side
    of `rank` or less, keep full directions. The estimate's variance is about that of full directions (equal for
    `rademacher` at rank 1): a low rank saves drawing, not dimension.

    For `rademacher` and `gaussian`, whose elements are independent. Raises DpzoError for other kinds, a rank below 1,
    or when no parameter is a larger matrix. Source: low-rank perturbations as in Chen et al., LOZO, 2024.
    """

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise DpzoError(f"direction_rank: {self.rank} is less than 1; choose at least 1")

    @property
    def name(self) -> str:
        """low-rank."""
        return "low-rank"

    def describe(self) -> dict[str, Any]:
        """The rank; shapes are the header's."""
        return {"name": self.name, "rank": self.rank}

    def check(self, scheme: DirectionScheme) -> None:
        """Reject kinds without independent elements, and models in which every parameter stays full."""
        _require_independent(scheme, "direction_rank")
        if scheme.shapes is None:
            raise ValueError("low-rank directions need the parameters' shapes")
        if all(self._matrix(shape) is None for shape in scheme.shapes):
            raise DpzoError(
                f"direction_rank: no trainable parameter is a matrix with both sides above {self.rank}; choose a lower "
                "rank, or leave it out"
            )

    def dimension(self, scheme: DirectionScheme) -> int:
        """All of d."""
        return scheme.dimension

    def fill(self, directions: StepDirections, k: int, parameter: int, out: Tensor, start: int) -> None:
        """The elements of one block, from the rows that it touches and all columns."""
        assert directions.scheme.shapes is not None
        matrix = self._matrix(directions.scheme.shapes[parameter])
        if matrix is None:
            directions.fill_kind(k, parameter, out, start)
            return
        height, width = matrix
        first, last = start // width, -(-(start + out.numel()) // width)
        total = torch.zeros(last - first, width, dtype=torch.float32, device=out.device)
        row, column, product = total.new_empty(last - first), total.new_empty(width), torch.empty_like(total)
        for r in range(self.rank):
            directions.draw("rows", k, parameter, row, r * height + first)
            directions.draw("columns", k, parameter, column, r * width)
            torch.mul(row.unsqueeze(1), column, out=product)
            total.add_(product)
        scale = torch.tensor(1 / math.sqrt(self.rank), dtype=torch.float32, device=out.device)
        flat = total.mul_(scale).view(-1)
        out.copy_(flat[start - first * width : start - first * width + out.numel()])

    def _matrix(self, shape: Sequence[int]) -> tuple[int, int] | None:
        if len(shape) < 2:
            return None
        height, width = shape[0], math.prod(shape[1:])
        return (height, width) if min(height, width) > self.rank else None


@dataclass(frozen=True, eq=False)
class PublicBasis:
    """u = Σ_r ξ_r·G_r with G_0 … G_{n−1} orthonormal public vectors over all parameters: only their span is searched.

    ξ is a direction of the scheme's own kind in R^n, under the purpose `basis`. To the operation: u_j ← fl(u_j +
    fl(ξ_r·G_rj)) for r = 0 … n − 1 from 0, in fp32. E[uuᵀ] = Σ_r G_r G_rᵀ, the projector on the span: an estimate is
    unbiased for the projected gradient, with n in place of d in its variance; a `sphere` ξ has the norm √n.

    **The vectors must come from public data**: gradients on public records, a difference of public checkpoints, or
    past releases. Nothing here can check that, and the guarantee does not hold for a basis made from private records.
    The header holds `digest`, which identifies the basis.

    `vectors`: a parameter's (n, size) fp32 part in header order, None where it does not move. Holds n times the
    trainable part in memory, on each device that uses it. Made by `public_basis` or `load_basis`. Source: PAZO-P, 2025.
    """

    vectors: tuple[Tensor | None, ...]
    digest: str
    _held: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        """basis."""
        return "basis"

    @property
    def rank(self) -> int:
        """n, the number of vectors."""
        return next(int(part.shape[0]) for part in self.vectors if part is not None)

    def describe(self) -> dict[str, Any]:
        """How many vectors, and the SHA-256 of the orthonormal ones."""
        return {"name": self.name, "rank": self.rank, "sha256": self.digest}

    def check(self, scheme: DirectionScheme) -> None:
        """Reject parameters other than those that the basis was made for."""
        sizes = tuple(None if part is None else part.shape[1] for part in self.vectors)
        if len(sizes) != len(scheme.sizes) or any(a not in (None, b) for a, b in zip(sizes, scheme.sizes, strict=True)):
            raise ValueError("the basis was made for other parameters")

    def dimension(self, scheme: DirectionScheme) -> int:
        """n."""
        return self.rank

    def fill(self, directions: StepDirections, k: int, parameter: int, out: Tensor, start: int) -> None:
        """ξ times the vectors' elements start … start + len − 1."""
        out.zero_()
        part = self.vectors[parameter]
        if part is None:
            return
        if part.device != out.device:
            place = (parameter, out.device)
            if place not in self._held:
                self._held[place] = part.to(out.device)
            part = self._held[place]
        weights = self.weights(directions, k).to(out.device)
        product = torch.empty_like(out)
        for r in range(self.rank):
            out.add_(torch.mul(part[r, start : start + out.numel()], weights[r], out=product))

    def weights(self, directions: StepDirections, k: int) -> Tensor:
        """ξ of direction k, (n,) fp32."""
        found = torch.empty(self.rank, dtype=torch.float32)
        directions.draw("basis", k, 0, found)
        if KINDS[directions.scheme.kind].on_sphere:
            squares = ((found * found) * 2.0**spec.FIXED_POINT_BITS).to(torch.int64)
            found.mul_(torch.tensor(sphere_factor(self.rank, int(squares.sum())), dtype=torch.float32))
        return found


def public_basis(tensors: Mapping[str, Tensor], parameters: TrainableParameters) -> PublicBasis:
    """The basis of n vectors, given as name → (n, *shape), orthonormalised over all parameters jointly.

    Gram–Schmidt twice over, in float64: for r = 0 … n − 1, subtract from vector r its parts along 0 … r − 1 in order,
    do that again, divide by the norm, and round to fp32 when all are done. Inner products add elementwise products by
    halving (the second half onto the first, an odd last one carried), parameters in header order: the same bits on
    every machine. A parameter without a tensor does not move.

    Raises DpzoError for a name that is not trained, shapes that do not fit, numbers that are not finite, or vectors
    that depend on each other (less than 1e-6 of one is left).
    """
    for name in sorted(tensors):
        if name not in parameters.names:
            raise DpzoError(f"basis: it names {name!r}, which is not trained; leave it out, or train it")
    if not tensors:
        raise DpzoError("basis: it holds no tensor; give one for each parameter that shall move")
    shapes = dict(zip(parameters.names, parameters.shapes, strict=True))
    counts = {int(tensor.shape[0]) if tensor.dim() else 0 for tensor in tensors.values()}
    count = min(counts)
    if len(counts) != 1 or count < 1:
        raise DpzoError("basis: its tensors differ in the number of vectors, their first dimension; give each the same")
    for name, tensor in tensors.items():
        if tuple(tensor.shape[1:]) != shapes[name] or not tensor.is_floating_point():
            wanted = ", ".join(map(str, (count, *shapes[name])))
            raise DpzoError(f"basis: {name!r} must be floating-point numbers of shape ({wanted})")
    present = [name for name in parameters.names if name in tensors]
    flat = (tensors[name].detach().cpu().double().reshape(count, math.prod(shapes[name])) for name in present)
    matrix = torch.cat(list(flat), dim=1)
    if not bool(torch.isfinite(matrix).all()):
        raise DpzoError("basis: it holds NaN or an infinity; give finite numbers")
    _orthonormalise(matrix)
    wide, vectors, at = matrix.float(), list[Tensor | None](), 0
    for name, size in zip(parameters.names, parameters.sizes, strict=True):
        vectors.append(wide[:, at : at + size].contiguous() if name in tensors else None)
        at += size if name in tensors else 0
    return PublicBasis(tuple(vectors), _digest(parameters, vectors))


_LARGEST_BASIS = 1 << 38
"""Bytes of a basis file (256 GiB): it has to fit in memory."""


def load_basis(path: Path, parameters: TrainableParameters) -> PublicBasis:
    """Load a `public_basis` from a .safetensors file.

    Args:
        path: The file; name → (n, *shape) tensors.
        parameters: The trainable part.

    Returns:
        The orthonormalised basis.

    Raises:
        DpzoError: if the file cannot be read or does not fit the parameters.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.exists():
            require_regular(path, _LARGEST_BASIS)
        tensors = load_file(path)
    except DpzoError as error:
        raise DpzoError(f"basis: {error}") from None
    except OSError:
        raise DpzoError(f"basis: {path} is missing or cannot be read; give a .safetensors file") from None
    except (SafetensorError, ValueError):
        raise DpzoError(f"basis: {path} is not a safetensors file; save the vectors by safetensors.torch") from None
    return public_basis(tensors, parameters)


def direction_scheme(
    kind: str,
    seed: int,
    num_directions: int,
    parameters: TrainableParameters,
    *,
    keep_fraction: float | None = None,
    rank: int | None = None,
    basis: Path | None = None,
) -> DirectionScheme:
    """Build the directions of a run from its options, with at most one of the three structures; none gives u = z.

    Args:
        kind: A key of `KINDS`.
        seed: The public seed, 0 … 2⁶⁴ − 1.
        num_directions: K, directions per step.
        parameters: The trainable part.
        keep_fraction: Fraction of elements that a `RandomMask` keeps.
        rank: Rank of `LowRank` directions.
        basis: A .safetensors file with the vectors of a `PublicBasis`.

    Returns:
        The scheme.

    Raises:
        DpzoError: for more than one structure, or for values that the structure or the scheme does not support.
    """
    given = {"mask": keep_fraction, "direction_rank": rank, "basis": basis}
    chosen = [option for option, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise DpzoError(f"{chosen[0]} and {chosen[1]} exclude each other; choose one structure of directions")
    structure: Structure | None = None
    if keep_fraction is not None:
        structure = RandomMask(keep_fraction)
    elif rank is not None:
        structure = LowRank(rank)
    elif basis is not None:
        structure = load_basis(basis, parameters)
    return DirectionScheme(kind, seed, num_directions, parameters.sizes, structure, parameters.shapes)


def _require_independent(scheme: DirectionScheme, option: str) -> None:
    if scheme.kind not in ("rademacher", "gaussian"):
        raise DpzoError(
            f"{option}: it does not go with {scheme.kind} directions; choose rademacher or gaussian, or leave it out"
        )


def _inner(a: Tensor, b: Tensor) -> float:
    """a·b in float64, the products added by halving; elementwise operations alone, so bits do not depend on threads."""
    terms = a * b
    while terms.numel() > 1:
        half = terms.numel() // 2
        folded = terms[:half] + terms[half : 2 * half]
        terms = torch.cat((folded, terms[2 * half :])) if terms.numel() % 2 else folded
    return float(terms.sum())


def _orthonormalise(matrix: Tensor) -> None:
    for r, row in enumerate(matrix):
        before = math.sqrt(_inner(row, row))
        for _ in range(2):
            for earlier in matrix[:r]:
                row -= earlier * _inner(row, earlier)
        left = math.sqrt(_inner(row, row))
        if not left > _DEPENDENT * before:
            raise DpzoError(f"basis: vector {r} is zero or a combination of the ones before it; leave it out")
        row /= torch.tensor(left, dtype=torch.float64)


def _digest(parameters: TrainableParameters, vectors: Sequence[Tensor | None]) -> str:
    """SHA-256 over name, shape and little-endian fp32 bytes of each part, in header order."""
    digest = hashlib.sha256()
    for name, shape, part in zip(parameters.names, parameters.shapes, vectors, strict=True):
        if part is not None:
            digest.update(f"{name}\0{part.shape[0]},{shape}\0".encode())
            digest.update(part.numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
