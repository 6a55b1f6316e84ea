"""What can be accounted: mechanism × sampling × relation × δ × dimension, as data, and the page that shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from dpzo.privacy.accounting.query import MechanismName, SamplingName
from dpzo.privacy.events import NeighboringRelation

PLD, EXACT, PURE, RDP, LATTICE, NONE = "PLD", "analytic Gaussian", "pure ε", "RDP", "lattice PLD", ""


@dataclass(frozen=True)
class Support:
    """Whether a combination can be accounted, by which accountant, and why (one line).

    `assumption`: what the accountant takes for granted without a proof, for the card; empty where all is proved.
    """

    supported: bool
    accountant: str
    reason: str
    assumption: str = ""


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
            return Support(True, PLD, "rows u = −v are the worst, in every dimension (proved)")
        return Support(True, PLD, "one row seen along itself is one-dimensional, so any dimension is")
    if mechanism == "lattice":
        if dimension > 1:
            return Support(
                False, NONE, "a noise table is proved for one coordinate: use --num-directions 1, or gaussian"
            )
        if replaced and poisson:
            return Support(
                False, NONE, "replace_one is proved here for log-concave noise, a table need not be: use gaussian"
            )
        return Support(True, LATTICE, "largest loss of the table" if pure else "atoms of the table, any unimodal noise")
    if pure:
        return Support(True, PURE, "exact for L1 rows of every dimension")
    if replaced and poisson:
        return Support(True, PLD, "rows u = −v on one coordinate are the worst (proved)")
    if dimension > 1:
        return Support(True, PLD, "an L1 row on one coordinate is the worst (proved)")
    return Support(True, PLD, "one coordinate" + (", a replaced unit is twice the shift" if replaced else ""))


def support_matrix() -> Iterator[SupportRow]:
    """Every row of the matrix, in the order of docs/support.md."""
    mechanisms: tuple[MechanismName, ...] = ("gaussian", "laplace", "lattice")
    samplings: tuple[SamplingName, ...] = ("poisson", "full_batch")
    for mechanism, sampling, relation, pure, dimension in product(
        mechanisms, samplings, NeighboringRelation, (False, True), (1, 2)
    ):
        answer = support(mechanism, sampling, relation, pure, dimension)
        yield SupportRow(mechanism, sampling, relation, pure, dimension, answer)


_HEAD = """# What can be accounted

Generated from `dpzo.privacy.accounting.support_matrix()` by `python -m dpzo.privacy.accounting docs/support.md`; a test
keeps it current. What no accountant supports is refused with the reason.

`zero_out` and `add_or_remove_one` have the same numbers: the released sum moves by one clipped row. Under
`replace_one` it moves by up to two, and the accountant alone doubles. *Coordinates* counts the released numbers of one
step, `num_directions`.

| mechanism | sampling | relation | δ | coordinates | accountant | why |
|---|---|---|---|---|---|---|
"""

_TAIL = """
## The accountants

- **PLD**: a finite list of losses that dominates one release of Gaussian or Laplace noise (points 0.0015 standard
  deviations apart; both laws' masses kept, so only ever pessimistic), and its T-fold sum by a Fourier transform of
  tilted masses with the error bounded and added to δ. Where that bound is over a 10⁻⁴ of δ, or the grid would show,
  direct convolution of positive numbers is asked too and the smaller ε counts. Excess over the exact ε: about 10⁻⁶ of
  it in short runs, 10⁻⁵ at T = 75 000. Nothing below δ = 1e-250 is answered, RDP is.
- **lattice PLD**: exact losses of a noise table's integers, in both directions; each is split between two points of a
  grid aligned with the largest loss (the pessimistic side), and the T-fold sum is a Fourier transform of tilted masses,
  whose rounding is bounded and added to δ. Nothing below δ = 1e-100 is answered, nor any δ of which rounding makes up
  over 1 %. The worst shift of a symmetric unimodal noise is the largest; other noises are refused.
- **analytic Gaussian**: the exact curve, in decimal arithmetic rounded up; T full-batch releases are one release of
  noise σ/√T. Balle and Wang 2018.
- **pure ε**: exact amplification by Poisson sampling, exact linear composition, in decimal arithmetic rounded up.
- **RDP**: own Rényi curves with the conversion of Canonne, Kamath and Steinke 2020. Also computed beside every PLD: a
  PLD that lies more than 1 % above it is a bug and raises.

## Notes

Proofs: [guarantees](guarantees.md#which-pair-is-the-worst).

- Gaussian, Poisson, `replace_one`: the rows u = −v of full norm are the worst pair, for every number of coordinates.
- Laplace in several coordinates: rows have L1 norm at most `clip_norm`. A row of that norm on one coordinate is the
  worst, for every δ and every sampler, so the number of coordinates does not enter any account.
- Noise tables under `replace_one` on a Poisson sample: the same proof needs a likelihood ratio that rises with x
  (log-concave noise). Tables need only be unimodal, so nothing is claimed for them there.
"""


def page() -> str:
    """The text of docs/support.md."""
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
    return _HEAD + "".join(lines) + _TAIL
