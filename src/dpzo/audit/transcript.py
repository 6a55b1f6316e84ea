"""Audit of a whole training run: insert canaries among public records and try to detect them in the journal."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from dpzo.audit.canaries import WithCanaries, places, scores, steepness
from dpzo.audit.one_run import binomial_epsilon, gaussian_epsilon, one_run_epsilons
from dpzo.audit.report import FALSE_FLAG, AuditReport
from dpzo.errors import DpzoError
from dpzo.privacy import NeighboringRelation, PrivacyPlan
from dpzo.run import loop as train
from dpzo.run.journal import read
from dpzo.run.loop import Job
from dpzo.zo import Objective

FEWEST = 20
CONFIDENCE = 0.95  # of one run with canaries, which shows little
Fit = Callable[[Job, Objective, int, Path], None]


def audit_transcript(
    job: Job,
    objective: Objective,
    num_units: int,
    *,
    canaries: int,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    fit: Fit = train.fit,
) -> list[AuditReport]:
    """Train once, by the real loop, on `num_units` public units and about half of `canaries`; bound ε from the journal.

    A coin that the attack does not see decides on each canary. The same guesses give two bounds: the binomial one of
    Steinke et al. 2023, for any (ε, δ) mechanism, and the one for Gaussian trade-off curves of Mahloujifar et al. 2024;
    both hold together with `confidence`; a flag is false at most once in a million audits. `seed` is public: it places
    the canaries and tosses their coins. `fit` is the audited loop, `train.fit` unless a test plants a fault. The
    job's parameters end at θ_T.

    Limits of the bounds: one run gives few guesses, the attack does not know the batches, and rows hide each other:
    besides noise of σC, a score contains the units' rows, and the other canaries' as C·√(q·canaries/(2K)). No real
    unit's row is as large.
    Errors: DpzoError for fewer than 20 canaries, more than trained elements, or the relation replace_one.
    """
    plan = job.plan
    require_canaries(plan, canaries, job.scheme.dimension)
    draw = np.random.Generator(np.random.PCG64(seed))
    at = places(job.scheme, canaries, draw)
    members = draw.random(canaries) < 0.5
    present = [place for place, is_in in zip(at, members, strict=True) if is_in]
    mixed = draw.permutation(canaries)
    held, job.parameters.materialise = job.parameters.materialise, "all"
    try:
        loud = WithCanaries(objective, num_units, job.parameters, present, steepness(plan))
        with tempfile.TemporaryDirectory(prefix="dpzo-audit-") as folder:
            marked = replace(job, header={**job.header, "nonprivate_uses": ["canaries of an audit"]})
            fit(marked, loud, num_units + len(present), Path(folder))
            found = np.array(scores(read(Path(folder)), plan, job.scheme, at))
    finally:
        job.parameters.materialise = held
    miss = (1.0 - confidence) / 2.0
    binomial, gaussian, guesses = one_run_epsilons(found, members, plan.delta, miss, mixed)
    beside = plan.sampler.sampling_prob * len(present)
    note = (
        f"one run, {canaries} canaries, {guesses.right} of {guesses.made} guesses right; about {beside:.0f} canaries a "
        f"step beside noise of {plan.noise_multiplier:.3g}"
    )
    report = AuditReport(
        method="one_run",
        epsilon_claimed=plan.epsilon,
        epsilon_lower=binomial,
        delta=plan.delta,
        confidence=confidence,
        draws=canaries,
        seconds=None,  # a step takes longer with a larger batch, and the records may be private
        note=note,
    )
    strict = min(FALSE_FLAG, 1.0 - confidence) / 2.0
    report = replace(report, epsilon_refuted=binomial_epsilon(guesses, plan.delta, strict))
    refuted = gaussian_epsilon(guesses, plan.delta, strict)
    assumed = "the same guesses, if the trade-off curve is a Gaussian's"
    return [
        report,
        replace(report, method="one_run_gaussian", epsilon_lower=gaussian, epsilon_refuted=refuted, note=assumed),
    ]


def require_canaries(plan: PrivacyPlan, canaries: int, dimension: int) -> None:
    """Refuse a number of canaries that is too small to show anything or too large. DpzoError in one line."""
    if canaries < FEWEST:
        raise DpzoError(f"--canaries: {canaries} show nothing; use at least {FEWEST}, such as 200")
    if canaries > dimension:
        raise DpzoError(f"--canaries: {canaries} need an element each, and {dimension} are trained; use fewer")
    if plan.relation is NeighboringRelation.REPLACE_ONE:
        raise DpzoError("--canaries: a canary is in or not, which replace_one does not speak of; audit the mechanism")
