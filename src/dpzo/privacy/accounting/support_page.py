"""The support matrix row by row, and the page that shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from dpzo.errors import DpzoError
from dpzo.privacy.accounting.headline import EXACT, PLD, PURE, accountant_of
from dpzo.privacy.accounting.query import MechanismName, Query, SamplingName
from dpzo.privacy.events import NeighboringRelation

SHORT = {PURE: "pure ε", EXACT: "analytic Gaussian", PLD: "PLD"}
"""Accountants as the page names them; that of noise tables is `lattice PLD`."""


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
    """The accounting's support for a combination; `pure` means δ = 0, `dimension` counts released coordinates."""
    query = Query(mechanism, 1.0, dimension, 0.5 if sampling == "poisson" else 1.0, 1)
    try:
        name = SHORT.get(accountant_of(query, relation, pure=pure), "lattice PLD")
    except DpzoError as refusal:
        return Support(False, "", str(refusal))
    return Support(True, name, _reason(query, relation, pure))


def _reason(query: Query, relation: NeighboringRelation, pure: bool) -> str:
    replaced, poisson = relation is NeighboringRelation.REPLACE_ONE, query.sampling == "poisson"
    if query.mechanism == "gaussian":
        if not poisson:
            return "exact for every dimension, T releases are one of noise σ/√T"
        if replaced:
            return "rows u = −v are the worst, in every dimension (proved)"
        return "one row seen along itself is one-dimensional, so any dimension is"
    if query.mechanism == "lattice":
        return "largest loss of the table" if pure else "atoms of the table, any unimodal noise"
    if pure:
        return "exact for L1 rows of every dimension"
    if replaced and poisson:
        return "rows u = −v on one coordinate are the worst (proved)"
    if query.dimension > 1:
        return "an L1 row on one coordinate is the worst (proved)"
    return "one coordinate" + (", a replaced unit is twice the shift" if replaced else "")


def support_matrix() -> Iterator[SupportRow]:
    """Every row of the matrix, in the order of docs/support.md."""
    mechanisms: tuple[MechanismName, ...] = ("gaussian", "laplace", "lattice")
    samplings: tuple[SamplingName, ...] = ("poisson", "full_batch")
    for mechanism, sampling, relation, pure, dimension in product(
        mechanisms, samplings, NeighboringRelation, (False, True), (1, 2)
    ):
        answer = support(mechanism, sampling, relation, pure, dimension)
        yield SupportRow(mechanism, sampling, relation, pure, dimension, answer)


def table() -> str:
    """The rows of the table in docs/support.md."""
    lines = []
    for row in support_matrix():
        cells = (
            row.mechanism,
            row.sampling,
            row.relation.value,
            "= 0" if row.pure else "> 0",
            "1" if row.dimension == 1 else "> 1",
            row.support.accountant if row.support.supported else "**refused**",
            row.support.reason,
        )
        lines.append("| " + " | ".join(cells) + " |\n")
    return "".join(lines)


_RULE = "|---|---|---|---|---|---|---|\n"


def updated(page: str) -> str:
    """The text of docs/support.md with an up-to-date table."""
    before, rule, rest = page.partition(_RULE)
    after = "".join(line for line in rest.splitlines(keepends=True) if not line.startswith("|"))
    return before + rule + table() + after
