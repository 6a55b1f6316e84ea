"""Is the noise what the plan claims? Releases of the plan's own objects on neighbouring made-up inputs, told apart.

    >>> from dpzo.privacy import FullBatch, Gaussian, PrivacyPlan
    >>> plan = PrivacyPlan(100, FullBatch(), Gaussian(2.0), 1.0, 1, 1, 1e-5)
    >>> [report.flagged for report in audit_mechanism(plan, draws=400, channel_draws=400, confidence=1 - 1e-9)]
    [False, False]

No data are read and nothing is spent: the rows are made up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from dpzo.audit.attacks import Attack, attacks
from dpzo.audit.bounds import Scores, clopper_pearson_epsilon, rates
from dpzo.audit.choosing import FOR_COUNTS, FOR_NOISE, Trial, by_epsilon, by_noise, choose
from dpzo.audit.draws import (
    ChannelFactory,
    Run,
    mechanism_scores,
    processes,
    shipped,
    through_channels,
    whole_run,
)
from dpzo.audit.family import NoiseFamily
from dpzo.audit.report import AuditReport
from dpzo.errors import DpzoError
from dpzo.privacy import FullBatch, Gaussian, PrivacyPlan, PrivateChannel

CHOOSING = 0.3  # share of the draws that choose attack and threshold; the others are counted
DRAWS, CHANNEL_DRAWS = 3_000_000, 100_000
MOST_STEPS = 3_000_000  # noise draws a side of Clopper–Pearson
MOST_RELEASES = 400_000  # releases a side through channels, of one direction each
FEWEST = 10_000  # transcripts a side: rather fewer steps than fewer of them
MOST_DIRECTIONS = 4096  # eight times what is published; beyond, ten thousand transcripts take too long
KNOWN_SEED_DRAWS = 5000  # of attacks that run everything twice; predictable noise shows in a handful
CONFIDENCE = 0.999_999  # a flag accuses: of a million audits of sound code one may be wrong
Drawn = Callable[[Attack, bool, int], Scores]


def audit_mechanism(
    plan: PrivacyPlan,
    *,
    draws: int = DRAWS,
    channel_draws: int = CHANNEL_DRAWS,
    confidence: float = CONFIDENCE,
    channel_factory: ChannelFactory = PrivateChannel,
    run: Run = whole_run,
    workers: int = 1,
) -> list[AuditReport]:
    """Lower bounds on ε at the plan's δ by Clopper–Pearson and by the f-DP estimator; all hold with `confidence`.

    `draws` transcripts a side for Clopper–Pearson, from sampler and mechanism; `channel_draws` for the f-DP estimator,
    through whole channels, by each of `attacks`. A `channel_factory` or `run` of one's own is audited by both, through
    channels alone. Long plans: see `_extent`. `workers` processes share the work.
    Guarantee: on sound code each bound exceeds the true ε with probability at most (1 − confidence)/(number of bounds).
    Errors: DpzoError when a number is out of range, or the plan has more than 4096 directions a step.
    """
    require_numbers(min(draws, channel_draws), confidence)
    if plan.num_directions > MOST_DIRECTIONS:
        raise DpzoError(
            f"--num-directions: an audit draws every direction's noise, and {plan.num_directions:,} are more than the "
            f"{MOST_DIRECTIONS:,} it can; the same plan with fewer spends the same ε"
        )
    own = shipped(channel_factory, run)
    family = NoiseFamily.exists(plan)
    miss = (1.0 - confidence) / (2 if family else 1)
    reports = []
    with processes(workers if own else 1) as share:
        if family or not own:
            drawn = partial(share, through_channels(channel_factory, run))
            reports += _through_channels(plan, channel_draws, confidence, miss, drawn, counted=not own)
        if own:
            reports.append(_by_parts(plan, draws, confidence, miss, partial(share, mechanism_scores)))
    return reports


def require_numbers(draws: int | None, confidence: float) -> None:
    """Refuse a number of draws that shows nothing, or a confidence that is none. DpzoError in one line."""
    if not 0.0 < confidence < 1.0:
        raise DpzoError("--confidence must lie between 0 and 1, as 0.999999 does")
    if draws is not None and draws < 100:
        raise DpzoError("--draws must be at least 100: fewer show nothing")


def _extent(plan: PrivacyPlan, draws: int, most: float) -> tuple[PrivacyPlan, int]:
    """What is affordable: first fewer transcripts than asked for, then shorter ones. T′ ≤ T steps leak no more than T.

    The f-DP estimator goes on from the noise that T′ steps show to all T by the accountant; Clopper–Pearson does not.
    """
    transcripts = int(min(draws, max(FEWEST, most // plan.steps)))
    steps = int(min(plan.steps, max(1, most // transcripts)))
    return (plan if steps == plan.steps else replace(plan, steps=steps)), transcripts


def _by_parts(plan: PrivacyPlan, draws: int, confidence: float, miss: float, drawn: Drawn) -> AuditReport:
    start = time.perf_counter()
    audited, transcripts = _extent(plan, draws, MOST_STEPS)
    attack = attacks(audited)[0]
    absent, present = (drawn(attack, there, transcripts) for there in (False, True))
    choosing = int(transcripts * CHOOSING)
    trial = Trial(attack, absent[:choosing], present[:choosing])
    _, threshold = choose([trial], by_epsilon(plan.delta), miss, FOR_COUNTS)
    found = rates(absent[choosing:], present[choosing:], np.array([threshold]), miss)
    return AuditReport(
        method="clopper_pearson",
        epsilon_claimed=plan.epsilon,
        epsilon_lower=float(clopper_pearson_epsilon(found, plan.delta)[0]),
        delta=plan.delta,
        confidence=confidence,
        draws=transcripts,
        seconds=time.perf_counter() - start,
        note=_note(plan, audited, "sampler and mechanism", ""),
    )


def _through_channels(
    plan: PrivacyPlan,
    draws: int,
    confidence: float,
    miss: float,
    drawn: Drawn,
    *,
    counted: bool,
) -> list[AuditReport]:
    """Each attack gets a share of the draws that choose; the one that did best, with its threshold, is then counted."""
    start = time.perf_counter()
    audited, transcripts = _extent(plan, draws, MOST_RELEASES / (1.0 + plan.num_directions / 6.0))
    tried = attacks(audited)
    choosing = int(transcripts * CHOOSING)
    family = NoiseFamily(plan, audited.steps) if NoiseFamily.exists(plan) else None

    def both(attack: Attack, count: int) -> tuple[Scores, Scores]:
        return drawn(attack, False, count), drawn(attack, True, count)

    trials = [Trial(attack, *both(attack, _counted(attack, choosing // len(tried)))) for attack in tried]
    if family is None:
        attack, threshold = choose(trials, by_epsilon(plan.delta), miss, FOR_COUNTS)
    else:
        attack, threshold = choose(trials, by_noise(family), miss, FOR_NOISE)
    absent, present = both(attack, _counted(attack, transcripts - choosing))
    found = rates(absent, present, np.array([threshold]), miss)
    note = _note(plan, audited, "whole channels", attack.name)
    seconds = time.perf_counter() - start
    bounds = {}
    if family is not None:
        exact = isinstance(plan.mechanism, Gaussian) and isinstance(plan.sampler, FullBatch)
        bounds["gaussian_dp" if exact else "f_dp"] = family.epsilon(family.least_refuted(found))
    if counted:
        bounds["clopper_pearson"] = float(clopper_pearson_epsilon(found, plan.delta)[0])
    return [
        AuditReport(method, plan.epsilon, lower, plan.delta, confidence, len(absent), seconds, note)
        for method, lower in bounds.items()
    ]


def _counted(attack: Attack, draws: int) -> int:
    """Runs a side of this attack: fewer where everything is run twice."""
    return draws if attack.knows == "releases" else min(draws, KNOWN_SEED_DRAWS)


def _note(plan: PrivacyPlan, audited: PrivacyPlan, through: str, attack: str) -> str:
    said = f"through {through}" + (f", attack: {attack}" if attack else "")
    if audited.steps < plan.steps:
        said += f", transcripts of {audited.steps} of {plan.steps} steps"
    return said
