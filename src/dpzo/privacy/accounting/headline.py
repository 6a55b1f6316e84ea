"""The ε that goes on the card: the tightest proved accountant for an event, checked against a second one."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dpzo.errors import DpzoError
from dpzo.noise import lattice_pld
from dpzo.noise.table import LatticeNoise
from dpzo.privacy.accounting import closed_form, matrix, pld
from dpzo.privacy.accounting.query import Query, check_delta, flatten
from dpzo.privacy.events import Event, NeighboringRelation

PLD_NAME = "PLD (own: atoms that dominate the worst pair, tilted Fourier transform, every error added)"
DISAGREEMENT = 0.01
"""Relative, above which two upper bounds contradict each other."""
SURE = 1e-6
"""A δ is at least this share of its Rényi bound where it is wanted to the last digits; below it is merely bounded."""


class AccountantDisagreement(RuntimeError):
    """Two accountants contradict each other: a bug in one of them, never a mistake of the user."""


def epsilon(event: Event, delta: float, relation: NeighboringRelation) -> float:
    """Smallest ε this project can prove for `event` at δ under `relation`.

    Guarantee: an upper bound on the true ε, never above the Rényi bound. δ = 0 asks for pure ε.
    Errors: DpzoError on a number out of range or a combination that no accountant supports.
    """
    query = flatten(event)
    check_delta(delta)
    accountant = accountant_of(query, delta, relation)
    if accountant == matrix.PURE:
        return closed_form.laplace_pure_epsilon(query.noise, query.sampling_prob, query.count, relation)
    if accountant == matrix.EXACT:
        return closed_form.gaussian_epsilon(delta, closed_form.gaussian_mu(query, relation))
    bound = closed_form.rdp_epsilon_of(query, delta, relation)
    if accountant == matrix.RDP:
        return bound
    if query.table is not None:
        return _of_table(query.table, query, delta, relation, bound)
    found = pld.epsilon(query, delta, relation)
    _agree(found, bound)
    return min(found, bound)


def delta(event: Event, epsilon: float, relation: NeighboringRelation) -> float:
    """Smallest δ this project can prove for `event` at ε under `relation`; the same accountants as `epsilon`."""
    query = flatten(event)
    if not 0.0 <= epsilon < math.inf:
        raise DpzoError(f"--epsilon is {epsilon}, must be at least 0 and finite")
    accountant = accountant_of(query, None, relation)
    if accountant == matrix.EXACT:
        return closed_form.gaussian_delta(epsilon, closed_form.gaussian_mu(query, relation))
    if query.table is not None:
        return lattice_pld.delta(query.table.shape, epsilon, query.sampling_prob, query.count, relation)
    bound = closed_form.rdp_delta_of(query, epsilon, relation)
    if accountant == matrix.RDP or bound == 0.0:
        return bound
    return min(pld.delta(query, epsilon, relation, SURE * bound), bound)


def delta_curve(
    event: Event, epsilons: npt.NDArray[np.float64], relation: NeighboringRelation
) -> npt.NDArray[np.float64]:
    """Upper bounds on δ at many ascending ε ≥ 0, in the time of a few: `delta`, but looser where δ is tiny."""
    query = flatten(event)
    if query.table is None and accountant_of(query, None, relation) == matrix.PLD:
        return pld.curve(query, epsilons, relation)
    return np.array([delta(event, float(one), relation) for one in epsilons])


def accountant_name(event: Event, delta: float, relation: NeighboringRelation) -> str:
    """The accountant behind `epsilon(event, delta, relation)`, as the card prints it."""
    query = flatten(event)
    check_delta(delta)
    accountant = accountant_of(query, delta, relation)
    if accountant == matrix.PURE:
        return "pure epsilon (exact: Poisson amplification, linear composition)"
    if accountant == matrix.EXACT:
        return "analytic Gaussian (exact: Balle and Wang 2018)"
    if accountant == matrix.RDP:
        return "RDP (own closed form, Canonne-Kamath-Steinke conversion)"
    if query.table is not None:
        return f"lattice PLD (own, exact atoms of noise table {query.table.fingerprint[:12]})"
    return PLD_NAME


def accountant_of(query: Query, delta: float | None, relation: NeighboringRelation) -> str:
    """Which accountant answers; a function of everything but the noise, so calibration never changes accountants.

    `delta` None means: some positive δ, still to be found. Errors: DpzoError with the matrix's reason.
    """
    answer = matrix.support(query.mechanism, query.sampling, relation, delta == 0.0, query.dimension)
    if not answer.supported:
        raise DpzoError(f"{query.mechanism} with {query.sampling} under {relation.value}: {answer.reason}")
    if answer.accountant == matrix.PLD and delta is not None and delta < pld.SMALLEST_DELTA:
        return matrix.RDP
    return answer.accountant


def _of_table(table: LatticeNoise, query: Query, delta: float, relation: NeighboringRelation, bound: float) -> float:
    found = lattice_pld.epsilon(table.shape, delta, query.sampling_prob, query.count, relation)
    if found == math.inf:
        raise DpzoError(
            f"this noise ends where rows do not: its releases prove no epsilon at --delta {delta:g}; raise --delta, or "
            "take a noise with a tail"
        )
    if delta > 0.0:
        _agree(found, bound)
    return found


def _agree(found: float, bound: float) -> None:
    # Both are upper bounds. Where grids are coarse (losses of many orders of magnitude) the first may lie a little
    # above the second; further above, one of them is wrong.
    if math.isfinite(found) and found > bound * (1.0 + DISAGREEMENT) + 1e-6:
        raise AccountantDisagreement(f"PLD gives epsilon {found!r}, above the Rényi bound {bound!r}")
