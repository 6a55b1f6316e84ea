"""The ε on the card, from the tightest accountant that is proved for the event."""

from __future__ import annotations

import math

from dpzo.errors import DpzoError
from dpzo.privacy.accounting import closed_form, pld
from dpzo.privacy.accounting.query import Query, check_delta, flatten
from dpzo.privacy.events import Event, NeighboringRelation
from dpzo.privacy.mechanisms import tables

PURE = "pure epsilon (exact: Poisson amplification, linear composition)"
EXACT = "analytic Gaussian (exact: Balle and Wang 2018)"
PLD = "PLD (own: atoms that dominate the worst pair, tilted Fourier transform, every error added)"


def epsilon(event: Event, delta: float, relation: NeighboringRelation) -> float:
    """Smallest ε this project can prove for `event` at δ under `relation`; δ = 0 asks for pure ε.

    Guarantee: an upper bound on the true ε.
    Errors: DpzoError on a number out of range or a combination that no accountant supports.
    """
    found = bound(event, delta, relation)
    if found == math.inf:
        raise DpzoError("`noise_multiplier` is too small: no epsilon is computed for so little noise; raise it")
    return found


def bound(event: Event, delta: float, relation: NeighboringRelation) -> float:
    """`epsilon`, or ∞ if the noise is too small for a finite bound."""
    query = flatten(event)
    check_delta(delta)
    chosen = accountant_of(query, relation, pure=delta == 0.0)
    if query.table is not None:
        return float(tables().epsilon(query, delta, relation))
    if chosen == EXACT:
        return closed_form.gaussian_epsilon(delta, closed_form.gaussian_mu(query, relation))
    pure = math.inf
    if query.mechanism == "laplace":
        pure = closed_form.laplace_pure_epsilon(query.noise, query.sampling_prob, query.count, relation)
    return pure if chosen == PURE else min(pld.epsilon(query, delta, relation), pure)


def accountant(event: Event, delta: float, relation: NeighboringRelation) -> str:
    """The accountant that `epsilon(event, delta, relation)` uses, as the card prints it; DpzoError if there is none."""
    return accountant_of(flatten(event), relation, pure=delta == 0.0)


def accountant_of(query: Query, relation: NeighboringRelation, *, pure: bool) -> str:
    """Depends on everything except the noise, so calibration never changes accountants; `pure`: δ = 0."""
    if query.mechanism == "lattice":
        return str(tables().accountant(query, relation))
    if query.mechanism == "laplace":
        return PURE if pure else PLD
    if pure:
        raise DpzoError("Gaussian noise has no pure ε: give a `delta` above 0, or use laplace")
    return PLD if query.sampling == "poisson" else EXACT
