"""The distributions of a direction, each with E[zzᵀ] = I, and the factor that scales a Gaussian one to the sphere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import torch

from dpzo.zo.kernels import spec


@dataclass(frozen=True)
class Kind:
    """A distribution of z with E[zzᵀ] = I: its elements, and whether the direction is scaled to ‖z‖ = √d."""

    law: int
    on_sphere: bool


KINDS: Final[dict[str, Kind]] = {
    "rademacher": Kind(spec.SIGNS, on_sphere=False),
    "gaussian": Kind(spec.NORMALS, on_sphere=False),
    "sphere": Kind(spec.NORMALS, on_sphere=True),
    "orthogonal": Kind(spec.WALSH, on_sphere=False),
}


def sphere_factor(dimension: int, square_sum: int) -> float:
    """fl32(√(d·2²⁴ / S)) for the integer sum S = Σ⌊g²·2²⁴⌋: the ratio and the root each rounded once in float64.

    S = 0 (only possible for a handful of elements, about once in 2²⁰ draws of a single one) yields 0: no direction.
    """
    if square_sum == 0:
        return 0.0
    root = math.sqrt(Fraction(dimension << spec.FIXED_POINT_BITS, square_sum))
    return float(torch.tensor(root, dtype=torch.float32))
