"""What can be accounted: mechanism × sampling × relation × δ × dimension, as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from dpzo.privacy.accounting.query import MechanismName, SamplingName
from dpzo.privacy.events import NeighboringRelation

PLD, EXACT, PURE, RDP, NONE = "PLD", "analytic Gaussian", "pure ε", "RDP", ""


@dataclass(frozen=True)
class Support:
    """Whether a combination can be accounted, by which accountant, and why (one line)."""

    supported: bool
    accountant: str
    reason: str


@dataclass(frozen=True)
class SupportRow:
    """One row of the matrix. `dimension` is 1 for one coordinate and 2 for two or more."""

    mechanism: MechanismName
    sampling: SamplingName
    relation: NeighboringRelation
    pure: bool
    dimension: int
    support: Support


def support(
    mechanism: MechanismName, sampling: SamplingName, relation: NeighboringRelation, pure: bool, dimension: int
) -> Support:
    """Which accountant answers for a combination; `pure` means δ = 0, `dimension` counts released coordinates."""
    replaced, poisson = relation is NeighboringRelation.REPLACE_ONE, sampling == "poisson"
    if mechanism == "gaussian":
        if pure:
            return Support(False, NONE, "Gaussian noise has no pure ε: give a --delta above 0, or use laplace")
        if not poisson:
            return Support(True, EXACT, "exact for every dimension, T releases are one of noise σ/√T")
        if replaced:
            return Support(True, PLD, "worst pair taken as rows u = −v, as dp-accounting does; see the note below")
        return Support(True, PLD, "one row seen along itself is one-dimensional, so any dimension is")
    if pure:
        return Support(True, PURE, "exact for L1 rows of every dimension")
    if replaced and poisson:
        return Support(False, NONE, "not proved for sampled Laplace under replace_one: use --delta 0, or gaussian")
    if dimension > 1:
        return Support(True, RDP, "the one-dimensional loss distribution is not proved to dominate L1 rows here")
    return Support(True, PLD, "one coordinate" + (", a replaced unit is twice the shift" if replaced else ""))


def support_matrix() -> Iterator[SupportRow]:
    """Every row of the matrix, in the order of the documentation."""
    mechanisms: tuple[MechanismName, ...] = ("gaussian", "laplace")
    samplings: tuple[SamplingName, ...] = ("poisson", "full_batch")
    for mechanism, sampling, relation, pure, dimension in product(
        mechanisms, samplings, NeighboringRelation, (False, True), (1, 2)
    ):
        answer = support(mechanism, sampling, relation, pure, dimension)
        yield SupportRow(mechanism, sampling, relation, pure, dimension, answer)
