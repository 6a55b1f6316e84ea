"""ε once more, by accountants that had no part in the claim.

| noise | second accountant |
|---|---|
| Gaussian | prv-accountant (Gopi, Lee and Wutschitz 2021): proved lower and upper ends |
| Gaussian on a Poisson sample, `replace_one` | dp-accounting's PLD, rounded down and up |
| Laplace, δ = 0 | the closed form in decimal arithmetic of 40 digits |
| Laplace, δ > 0 | dp-accounting's PLD of one coordinate, rounded down and up |
| a noise table, δ > 0 | dp-accounting's PLD of the table's masses, rounded down and up |

The claims of the last two are our own: nothing of them is shared. Beside each stands the Rényi bound, which no claim
may exceed.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import warnings
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from dpzo.noise.shape import Shape
from dpzo.privacy import PrivacyPlan
from dpzo.privacy.accounting import second_opinion
from dpzo.privacy.accounting.query import Query, flatten, shift
from dpzo.privacy.events import NeighboringRelation

WIDTH = 0.01
"""Half the width of a bracket ÷ ε, where the accountant lets one choose."""
_SMALLEST_WIDTH = 1e-3
_MOST_CELLS = 1e6


@dataclass(frozen=True)
class Bracket:
    """`low` ≤ ε ≤ `high` as `accountant` has it."""

    accountant: str
    low: float
    high: float


def second_bracket(plan: PrivacyPlan) -> Bracket | str:
    """The bracket of a plan's ε by the second accountant, or why there is none."""
    query = flatten(plan.event)
    replaced = plan.relation is NeighboringRelation.REPLACE_ONE and query.sampling == "poisson"
    if query.mechanism == "gaussian":
        return _library(query, plan) if replaced else _prv(query, plan.delta, plan.relation)
    if plan.delta == 0.0:
        return _decimal(query, plan.relation) if query.table is None else _NO_PURE_TABLE
    if query.table is not None:
        return _table(query.table.shape, query, plan)
    return (
        "dp-accounting does not support replace_one for Laplace noise on a Poisson sample"
        if replaced
        else _library(query, plan)
    )


_NO_PURE_TABLE = "a table's pure ε is read off its largest ratio; no second accountant reads tables at δ = 0"


def renyi_bound(plan: PrivacyPlan) -> float:
    """Our Rényi closed form, an upper bound on the plan's ε at any δ."""
    return second_opinion.rdp_epsilon(plan.event, plan.delta, plan.relation)


def _prv(query: Query, delta: float, relation: NeighboringRelation) -> Bracket | str:
    if importlib.util.find_spec("prv_accountant") is None:
        return "prv-accountant is not installed: pip install 'dpzo[verify]'"
    rough = second_opinion.rdp_epsilon_of(query, delta, relation)
    reach = second_opinion.rdp_epsilon_of(query, delta / 4000, relation) + 3.0
    # Cells: 2·reach ÷ (width ÷ √(T/2·ln(12/δ_error))), theorem 5.5 of its paper.
    growth = math.sqrt(query.count / 2 * math.log(12_000 / delta))
    width = max(WIDTH * rough, _SMALLEST_WIDTH, 2.0 * reach * growth / _MOST_CELLS)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            prv: Any = importlib.import_module("prv_accountant")
            one = (
                prv.GaussianMechanism(query.noise / shift(relation))
                if query.sampling_prob == 1.0
                else prv.PoissonSubsampledGaussianMechanism(query.sampling_prob, query.noise)
            )
            accountant = prv.PRVAccountant(
                [one], eps_error=width, delta_error=delta / 1000, max_self_compositions=[query.count]
            )
            low, _, high = accountant.compute_epsilon(delta, [query.count])
    except (ValueError, RuntimeError, AssertionError, ArithmeticError, IndexError) as error:
        return f"prv-accountant fails on these numbers ({type(error).__name__})"
    if not (math.isfinite(low) and math.isfinite(high)):
        return "prv-accountant fails on these numbers (not finite)"
    return Bracket("prv-accountant", max(0.0, low), max(0.0, high))  # at a large δ its upper end may be negative


def _decimal(query: Query, relation: NeighboringRelation) -> Bracket:
    """T·ln(1 + q(e^{1/b} − 1)), under replace_one + −T·ln(1 − q(1 − e^{−1/b})), with 40 digits."""
    with localcontext() as context:
        context.prec = 40
        gap, q, one = 1 / Decimal(query.noise), Decimal(query.sampling_prob), Decimal(1)
        loss = (one + q * (gap.exp() - one)).ln()
        if relation is NeighboringRelation.REPLACE_ONE:
            loss -= (one - q * (one - (-gap).exp())).ln()
        epsilon = float(query.count * loss)
    return Bracket("the closed form in 40 digits", epsilon * (1 - 1e-9), epsilon * (1 + 1e-9))


def _library(query: Query, plan: PrivacyPlan) -> Bracket | str:
    """Both roundings of dp-accounting's PLD; a row on one coordinate is the worst (docs/guarantees.md)."""
    rough = second_opinion.rdp_epsilon_of(query, plan.delta, plan.relation)
    step = WIDTH * max(rough, 10.0 * _SMALLEST_WIDTH) / query.count
    if plan.delta < 100.0 * query.count * 2.0**-52:
        return "δ is too small for the Fourier transform of dp-accounting"
    if 2.0 * rough / step > _MOST_CELLS:
        return "there are too many steps for dp-accounting's PLD rounded down"
    from dp_accounting import NeighboringRelation as Theirs
    from dp_accounting.pld import privacy_loss_distribution as losses

    ends = []
    for pessimistic in (False, True):
        rounding: dict[str, Any] = {"pessimistic_estimate": pessimistic, "value_discretization_interval": step}
        if query.mechanism == "gaussian":
            one = losses.from_gaussian_mechanism(
                query.noise, sampling_prob=query.sampling_prob, neighboring_relation=Theirs.REPLACE_ONE, **rounding
            )
        else:
            scale = query.noise / shift(plan.relation)
            one = losses.from_laplace_mechanism(scale, sampling_prob=query.sampling_prob, **rounding)
        composed = one.self_compose(query.count) if query.count > 1 else one
        ends.append(float(composed.get_epsilon_for_delta(plan.delta)))
    return Bracket("dp-accounting's PLD", max(0.0, ends[0] * (1 - 1e-6)), ends[1] * (1 + 1e-6))


def _table(law: Shape, query: Query, plan: PrivacyPlan) -> Bracket | str:
    """Both roundings of dp-accounting's PLD between the table and itself moved by a clip norm."""
    law = law.moving(int(shift(plan.relation)))
    cells = len(law.masses) + law.shift
    if law.ratio > 0.0:  # on to where what is cut off cannot be felt in δ
        cut = math.log(plan.delta * 1e-6 / query.count / max(law.beyond, 1e-300)) / math.log(law.ratio) * law.period
        cells += max(0, math.ceil(cut))
    rough = second_opinion.rdp_epsilon_of(query, plan.delta, plan.relation)
    step = WIDTH * rough / query.count
    if cells > 200_000 or query.count > 20_000:
        return "the table or the number of steps is too large for dp-accounting's general PLD"
    from dp_accounting.pld import privacy_loss_distribution as losses

    side = law.extended(cells - len(law.masses))
    at = np.arange(-cells + 1, cells + law.shift)
    still, moved = (_masses(side, np.abs(at - by)) for by in (0, law.shift))
    mixed = (1.0 - query.sampling_prob) * still + query.sampling_prob * moved
    lower, upper = ({int(x): math.log(p) for x, p in zip(at, law_, strict=True) if p > 0} for law_ in (still, mixed))
    ends = []
    for pessimistic in (False, True):
        one = losses.from_two_probability_mass_functions(
            lower, upper, pessimistic_estimate=pessimistic, value_discretization_interval=step, symmetric=False
        )
        composed = one.self_compose(query.count)
        ends.append(float(composed.get_epsilon_for_delta(plan.delta)))
    return Bracket("dp-accounting's PLD of the table", ends[0] * (1 - 1e-6), ends[1] * (1 + 1e-6))


def _masses(side: Any, distance: Any) -> Any:
    return np.where(distance < len(side), side[np.minimum(distance, len(side) - 1)], 0.0)
