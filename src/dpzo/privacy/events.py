"""Privacy events: plain data that describes the operations on private data, and the only input of an accountant.

A mechanism creates its event, a sampler wraps it, and a plan composes it. An accountant reads the finished tree and no
other value. All sensitivities are 1: events are in units of `clip_norm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class NeighboringRelation(StrEnum):
    """The pairs of data sets that a guarantee makes indistinguishable.

    - `zero_out`: one unit's contribution is replaced by nothing; the number of units N is public. Same numbers as
      add/remove, because the released sum moves by one clipped row.
    - `add_or_remove_one`: one unit is present or absent; N must not be counted from the file.
    - `replace_one`: one unit is replaced by another; the released sum moves by two clipped rows, which the
      accountant (and only the accountant) doubles.
    """

    ZERO_OUT = "zero_out"
    ADD_OR_REMOVE_ONE = "add_or_remove_one"
    REPLACE_ONE = "replace_one"


@dataclass(frozen=True)
class GaussianEvent:
    """Sum of rows with ‖row‖₂ ≤ 1 plus N(0, noise_multiplier²) in each coordinate. Any number of coordinates."""

    noise_multiplier: float


@dataclass(frozen=True)
class LaplaceEvent:
    """Sum of rows with ‖row‖₁ ≤ 1 plus Laplace noise of scale `scale` (std √2·scale) in `dimension` coordinates each.

    No accountant depends on `dimension`: a row of L1 norm 1 on one coordinate is the worst case (docs/guarantees.md).
    """

    scale: float
    dimension: int = 1


@dataclass(frozen=True)
class LatticeEvent:
    """Sum of rows with |row| ≤ 1 (`noise.bound` lattice units) plus the noise of an integer table. `dimension` is 1.

    `noise` is a `dpzo.noise.table.LatticeNoise`; this package does not read it.
    """

    noise: Any
    dimension: int = 1


@dataclass(frozen=True)
class PoissonSampledEvent:
    """`event` on a secret subset that each unit joins independently with probability `sampling_prob`."""

    sampling_prob: float
    event: MechanismEvent


@dataclass(frozen=True)
class ComposedEvent:
    """`event` repeated `count` times adaptively, each time with fresh randomness."""

    event: MechanismEvent | PoissonSampledEvent
    count: int


MechanismEvent = GaussianEvent | LaplaceEvent | LatticeEvent
Event = MechanismEvent | PoissonSampledEvent | ComposedEvent
