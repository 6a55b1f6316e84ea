"""The mechanism whose noise is an integer table, and its accountant: one scalar row, any symmetric unimodal law.

The audit core loads this module, and no other of this package, when a plan, an event or a journal uses a table
(`dpzo.privacy.mechanisms.tables`). It calls `Tabled`, `tabled` and the functions at the end of this module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

from dpzo.errors import DpzoError
from dpzo.noise import lattice_pld
from dpzo.noise.table import LatticeNoise
from dpzo.privacy.accounting.query import Query, shift
from dpzo.privacy.accounting.renyi import of_atoms
from dpzo.privacy.accounting.second_opinion import agree, rdp_epsilon_of
from dpzo.privacy.accounting.tilted import Array
from dpzo.privacy.events import LatticeEvent, NeighboringRelation
from dpzo.privacy.randomness import Words


@dataclass(frozen=True)
class Tabled:
    """`noise`, in lattice units of clip_norm/bound, on the one sum of rows clipped to [−clip_norm, clip_norm].

    The release is an integer and the noise follows the table exactly: nothing is rounded or approximated. One
    coordinate only: for several, no loss distribution is proved, and the plan refuses them.
    """

    noise: LatticeNoise
    name: ClassVar[Literal["lattice"]] = "lattice"
    order: ClassVar[int] = 1

    @property
    def scale(self) -> float:
        """Standard deviation ÷ clip_norm, because tables have no common scale parameter."""
        return self.noise.noise_multiplier

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation ÷ clip_norm."""
        return self.noise.noise_multiplier

    def event(self, num_directions: int) -> LatticeEvent:
        """The event of one release, for the accountant: the same table."""
        return LatticeEvent(self.noise, num_directions)

    def draw(self, bits: int, size: int, words: Words) -> list[int]:
        """`size` exact draws in lattice units; `bits` is ignored."""
        return self.noise.draw(size, words)

    def __repr__(self) -> str:
        return f"Tabled({self.noise.origin!r}, {self.noise.fingerprint[:12]})"


def tabled(fields: Mapping[str, Any]) -> Tabled:
    """The mechanism of the table that `LatticeNoise.to_dict` wrote, with all checks."""
    return Tabled(LatticeNoise.from_dict(fields))


def accountant(query: Query, relation: NeighboringRelation) -> str:
    """The accountant of tables, as the card prints it. Errors: DpzoError if no ε is proved for a table."""
    if query.dimension > 1:
        raise DpzoError("a noise table is proved for one coordinate: use `num_directions` 1, or gaussian")
    if relation is NeighboringRelation.REPLACE_ONE and query.sampling == "poisson":
        raise DpzoError("replace_one is proved here for log-concave noise, a table need not be: use gaussian")
    table = "" if query.table is None else f" {_table(query).fingerprint[:12]}"
    return f"lattice PLD (own, exact atoms of noise table{table})"


def epsilon(query: Query, delta: float, relation: NeighboringRelation) -> float:
    """Smallest ε proved for releases of a table, checked against its Rényi bound.

    Errors: DpzoError if the noise is not a table of this package, or no ε is proved at `delta`.
    """
    found = lattice_pld.epsilon(_table(query).shape, delta, query.sampling_prob, query.count, relation)
    if found == math.inf:
        raise DpzoError(
            f"this noise ends where rows do not: its releases prove no epsilon at `delta` {delta:g}; raise `delta`, or "
            "take a noise with a tail"
        )
    if delta > 0.0:
        agree(found, rdp_epsilon_of(query, delta, relation))
    return found


def delta(query: Query, epsilon: float, relation: NeighboringRelation) -> float:
    """Smallest δ proved for releases of a table at `epsilon`."""
    return lattice_pld.delta(_table(query).shape, epsilon, query.sampling_prob, query.count, relation)


def renyi_curve(query: Query, relation: NeighboringRelation) -> tuple[Array, Array]:
    """Orders and bounds on the Rényi divergence of one release, as `accounting.renyi.curve` gives them."""
    return _renyi_curve(_table(query), query.sampling_prob, int(shift(relation)))


@lru_cache(maxsize=8)
def _renyi_curve(table: LatticeNoise, sampling_prob: float, clip_norms: int) -> tuple[Array, Array]:
    return of_atoms(lattice_pld.atoms(table.shape.moving(clip_norms), sampling_prob))


def _table(query: Query) -> LatticeNoise:
    if type(query.table) is not LatticeNoise:
        raise DpzoError("the noise of a LatticeEvent must be a LatticeNoise of dpzo.noise")
    return query.table
