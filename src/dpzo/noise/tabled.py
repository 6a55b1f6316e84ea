"""The mechanism whose noise is an integer table: one scalar row, any symmetric unimodal law."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dpzo.noise.table import LatticeNoise
from dpzo.privacy.events import LatticeEvent
from dpzo.privacy.randomness import Words


@dataclass(frozen=True)
class Tabled:
    """`noise`, in lattice units of clip_norm/bound, on the one sum of rows clipped to [−clip_norm, clip_norm].

    The release is an integer and the noise is what the table says: nothing is floored and nothing approximated. One
    coordinate only: for several no loss distribution is proved, and the plan refuses them.
    """

    noise: LatticeNoise
    name: ClassVar[Literal["lattice"]] = "lattice"
    order: ClassVar[int] = 1

    @property
    def scale(self) -> float:
        """Standard deviation ÷ clip_norm, for want of a parameter common to all tables."""
        return self.noise.noise_multiplier

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation ÷ clip_norm."""
        return self.noise.noise_multiplier

    def event(self, num_directions: int) -> LatticeEvent:
        """What one release is, for the accountant: the same table."""
        return LatticeEvent(self.noise, num_directions)

    def draw(self, bits: int, size: int, words: Words) -> list[int]:
        """`size` exact draws in lattice units; `bits` has no part in it."""
        return self.noise.draw(size, words)

    def __repr__(self) -> str:
        return f"Tabled({self.noise.origin!r}, {self.noise.fingerprint[:12]})"
