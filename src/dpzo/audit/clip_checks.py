"""Tests with extreme rows: no row may move the released sum by more than the plan's bound.

M equal rows ("a crowd") move a correct sum by at most M bounds in any direction, a hostile row among harmless ones
by at most one bound from their sum. How a clip shortens a row is not tested, only the bound. The
shift within the bound is unknown, so each p-value is that of the largest shift that a sound clip allows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dpzo.audit.noise_law import NoiseLaw, sum_beyond
from dpzo.audit.observed import Numbers, Observed
from dpzo.audit.tally import CheckTally
from dpzo.privacy import Lattice, PrivacyPlan, clip_rows, lattice

SIZES = (  # of a row's largest entry, in clip norms
    *(1e-300, 1e-30, 1e-3, 0.999999, 1.0, 1.0 + 1e-9, 1.5, 3.0, 1e2, 1e4, 1e6, 1e8, 1e9, 3e9, 1e10, 1e12, 1e15),
    *(1e19, 1e25, 1e38, 1e39, 1e77, 1e154, 1e155, 1e200, 1e300, 1e308),
)
DENORMAL = 5e-324
BETWEEN = 20  # rows of random size between one clip norm and the largest number
SPECIAL = (math.nan, math.inf, -math.inf)
CROWD = 128  # units in a batch
MOST_NUMBERS = 20_000  # in one batch
HARMLESS = 0.3  # length of the other rows, in clip norms
LARGEST_SLOPE = 1.7e308


@dataclass(frozen=True)
class Hostile:
    """`row` (K,) in slope units; `beside`: one of them among harmless rows, or a crowd of it. `name` for the report."""

    name: str
    row: Numbers
    beside: bool


def hostile_rows(plan: PrivacyPlan, draw: np.random.Generator) -> list[Hostile]:
    """Rows of every size and shape, of either sign; with one bad number, with one huge one; alone and in crowds."""
    width, clip = plan.num_directions, plan.clip_norm
    shapes = {"one coordinate": np.eye(1, width)[0]}
    if width > 1:
        shapes["the last coordinate"] = np.eye(1, width, width - 1)[0]
        shapes["all coordinates"] = np.ones(width)
        shapes["alternating signs"] = np.where(np.arange(width) % 2 == 0, 1.0, -1.0)
        shapes["one large, others small"] = np.eye(1, width, width // 2)[0] + 1e-3
        shapes["falling"] = 0.5 ** np.arange(width)
    sizes = [*(size * clip for size in SIZES), DENORMAL, LARGEST_SLOPE]
    sizes += [clip * 10.0**power for power in draw.uniform(0.0, 307.0, BETWEEN)]
    found = []
    with np.errstate(over="ignore", under="ignore"):
        for size in sizes:
            for shape, pattern in shapes.items():
                for sign in (1.0, -1.0):
                    row = np.clip(sign * size * pattern, -LARGEST_SLOPE, LARGEST_SLOPE)
                    found.append((f"{shape}, {size / clip:.3g} clip norms", row))
            anywhere = np.zeros(width)
            anywhere[draw.integers(width)] = size
            found.append((f"a coordinate, {size / clip:.3g} clip norms", np.minimum(anywhere, LARGEST_SLOPE)))
    for number in SPECIAL:
        for column in {0, width // 2, width - 1}:
            for rest in (0.1 * clip / width, 1e9 * clip):
                row = np.full(width, rest)
                row[column] = number
                found.append((f"a row with {number}", row))
        found.append((f"a row of {number}", np.full(width, number)))
    return [Hostile(name, row, beside) for name, row in found for beside in (False, True)]


def crowd(width: int) -> int:
    """Units in a hostile batch."""
    return max(8, min(CROWD, MOST_NUMBERS // width))


def harmless(plan: PrivacyPlan, count: int) -> Numbers:
    """Rows (count, K) that no clip touches."""
    length = math.sqrt(plan.num_directions) if plan.mechanism.order == 2 else plan.num_directions
    return np.full((count, plan.num_directions), HARMLESS * plan.clip_norm / length)


def batch_of(plan: PrivacyPlan, hostile: Hostile, count: int) -> Numbers:
    """The rows of a batch of `count` units; every other batch could be of another kind."""
    if count == 0 or not hostile.beside:
        return np.tile(hostile.row, (count, 1))
    return np.concatenate([harmless(plan, count - 1), hostile.row[None, :]])


def check_clip(tally: CheckTally, law: NoiseLaw, seen: Observed, rows: list[Hostile]) -> None:
    """In several directions, whether the releases of each kind of rows go further than the bound allows."""
    grid = lattice(seen.plan.mechanism, seen.plan.clip_norm, seen.plan.num_directions)
    known = clip_rows(harmless(seen.plan, 1), grid)[0].astype(np.float64)
    for kind in np.unique(seen.kinds):
        hostile, at = rows[int(kind)], np.flatnonzero((seen.kinds == kind) & (seen.sizes > 0))
        if len(at) == 0:
            continue
        sizes = seen.sizes[at].astype(np.float64)
        expected = np.outer(sizes - 1.0, known) if hostile.beside else 0.0
        total = (seen.values[at] - expected).sum(axis=0)
        allowed = float(len(at)) if hostile.beside else float(sizes.sum())
        finite = np.where(np.isfinite(hostile.row), hostile.row, 0.0)
        directions = _directions(finite, grid)
        for direction in directions:
            excess = total @ direction - allowed * grid.bound * _dual(direction, grid)
            chance = sum_beyond(law, excess, direction, len(at))
            tally.add(f"{hostile.name}{' beside harmless rows' if hostile.beside else ''}", chance)


def _directions(row: Numbers, grid: Lattice) -> list[Numbers]:
    """Where to look: the row's own direction, its signs, all coordinates, and its largest coordinate; both ways."""
    width = len(row)
    largest = int(np.argmax(np.abs(row)))
    found = [np.eye(1, width, column)[0] for column in {0, largest, width - 1}]
    if width > 1:
        found.append(np.ones(width))
        signs = np.sign(row)
        if signs.any() and not (signs == signs[0]).all():
            found.append(signs)
        if grid.order == 2 and row.any():
            shape = row / np.abs(row).max()
            found.append(shape / np.linalg.norm(shape))
    return [sign * direction for direction in found for sign in (1.0, -1.0)]


def _dual(direction: Numbers, grid: Lattice) -> float:
    """max of ⟨s, direction⟩ over rows s of length 1."""
    return float(np.linalg.norm(direction)) if grid.order == 2 else float(np.abs(direction).max())


def rounding_rows(plan: PrivacyPlan) -> list[Hostile]:
    """Rows at the bound, and just beyond: their crowd shows a clip that leaves them a lattice unit too long."""
    width, clip = plan.num_directions, plan.clip_norm
    shapes = {"one coordinate": np.eye(1, width)[0]}
    if width > 1:
        shapes["all coordinates"] = np.ones(width) / (math.sqrt(width) if plan.mechanism.order == 2 else width)
    return [
        Hostile(f"{shape}, a crowd at {size:.7g} clip norms", sign * size * clip * pattern, False)
        for shape, pattern in shapes.items()
        for size in (1.0, 1.0000001, 1.37)
        for sign in (1.0, -1.0)
    ]


def check_hidden_noise(tally: CheckTally, law: NoiseLaw, seen: Observed, rows: list[Hostile]) -> None:
    """Two releases of the same hostile row among harmless ones differ as two draws of the noise do.

    The clipped row cancels. A difference of two draws is at most d with probability at most (2d + 1)·p,
    p the largest probability of a number: a binomial bound for all kinds together.
    """
    grid = lattice(seen.plan.mechanism, seen.plan.clip_norm, seen.plan.num_directions)
    known = clip_rows(harmless(seen.plan, 1), grid)[0].astype(np.float64)
    gaps = []
    for kind in np.unique(seen.kinds):
        at = np.flatnonzero((seen.kinds == kind) & (seen.sizes > 0))
        if rows[int(kind)].beside and len(at) > 1:
            rest = seen.values[at] - np.outer(seen.sizes[at] - 1.0, known)
            half = len(at) // 2
            gaps.append(np.abs(rest[:half] - rest[half : 2 * half]))
    if gaps:
        close = math.floor(0.02 / law.largest_mass)
        every = np.concatenate(gaps)
        chance = min(1.0, (2 * close + 1) * law.largest_mass)
        hits = (every <= close).sum(axis=0)
        tally.add("the noise beside hostile rows", stats.binom.sf(hits - 1, len(every), chance))
