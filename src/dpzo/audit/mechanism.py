"""Audit the noise that a plan claims, by distinguishing its releases on neighbouring synthetic inputs.

    >>> from dpzo.privacy import FullBatch, Gaussian, PrivacyPlan
    >>> plan = PrivacyPlan(100, FullBatch(), Gaussian(2.0), 1.0, 1, 1, 1e-5)
    >>> [report.flagged for report in audit_mechanism(plan, draws=400, channel_draws=400, confidence=1 - 1e-9)]
    [False, False, False]

No data are read and no privacy budget is spent: the rows are synthetic.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from dpzo.audit.attacks import Attack, attacks
from dpzo.audit.bounds import Scores, clopper_pearson_epsilon, rates
from dpzo.audit.checking import check_channel
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
from dpzo.audit.report import CHECKS_METHOD, FALSE_FLAG, AuditReport
from dpzo.errors import DpzoError
from dpzo.privacy import FullBatch, Gaussian, PrivacyPlan, PrivateChannel

CHOOSING = 0.3  # share of the draws that choose attack and threshold; the others are counted
DRAWS, CHANNEL_DRAWS = 3_000_000, 100_000
MOST_STEPS = 3_000_000  # noise draws per side of Clopper–Pearson
MOST_RELEASES = 400_000  # releases a side through channels, of one direction each
FEWEST = 10_000  # transcripts per side: fewer steps are preferred to fewer transcripts
MOST_DIRECTIONS = 4096  # eight times the largest published number; beyond, ten thousand transcripts take too long
KNOWN_SEED_DRAWS = 5000  # of attacks that run everything twice; a few show predictable noise
CONFIDENCE = 0.95  # with which the reported lower bounds hold; a flag errs once in a million (report.FALSE_FLAG)
FOR_CHECKS = 0.5  # share of a flag's chance of an error that the checks may use; the bounds have the rest
MOST_FINDINGS = 6  # that a report names
Drawn = Callable[[Attack, bool, int], Scores]


@dataclass(frozen=True)
class Risk:
    """Error probabilities of each bound: `lower` of the reported one, `flag` of the one that decides a flag."""

    lower: float
    flag: float


@dataclass(frozen=True)
class Measured:
    """The bounds of one method: (reported, refuted) ε; the number and source of the draws, and the time."""

    lower: float
    refuted: float
    draws: int
    note: str
    seconds: float


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
    """Lower bounds on ε at the plan's δ, which hold together with `confidence`; and checks of the channel itself.

    `draws` transcripts a side from sampler and mechanism, `channel_draws` through whole channels, by each of `attacks`;
    each are counted (Clopper–Pearson) and judged within the plan's family (f-DP). `checks`: exact tests of noise, clip
    and batches through whole channels (`check_channel`). A custom `channel_factory` or `run` is audited through
    channels alone. Long plans: see `_extent`. `workers` processes share the drawing for the bounds.
    Guarantee: on sound code anything is flagged with probability at most 10⁻⁶ (less if 1 − `confidence` is less), and
    some reported bound exceeds the true ε with probability at most 1 − `confidence`.
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
    bounds = (3 if family else 1) if own else (2 if family else 1)
    flag = min(FALSE_FLAG, 1.0 - confidence)
    risk = Risk((1.0 - confidence) / bounds, (1.0 - FOR_CHECKS) * flag / bounds)
    found: dict[str, list[Measured]] = {}
    with processes(workers if own else 1) as share:
        if family or not own:
            drawn = partial(share, through_channels(channel_factory, run))
            _through_channels(found, plan, channel_draws, risk, drawn, counted=not own)
        if own:
            _by_parts(found, plan, draws, risk, partial(share, mechanism_scores))
    reports = [_report(plan, method, confidence, measured) for method, measured in found.items()]
    return [*reports, _checked(plan, channel_factory, run, channel_draws, FOR_CHECKS * flag, confidence)]


def _report(plan: PrivacyPlan, method: str, confidence: float, found: Sequence[Measured]) -> AuditReport:
    """The best of a method's bounds, all of which hold together."""
    best = max(found, key=lambda measured: measured.lower)
    return AuditReport(
        method=method,
        epsilon_claimed=plan.epsilon,
        epsilon_lower=best.lower,
        delta=plan.delta,
        confidence=confidence,
        draws=best.draws,
        seconds=sum(measured.seconds for measured in found),
        note="; ".join(measured.note for measured in found),
        epsilon_refuted=max(measured.refuted for measured in found),
    )


def _checked(
    plan: PrivacyPlan, make: ChannelFactory, run: Run, channel_draws: int, miss: float, confidence: float
) -> AuditReport:
    start = time.perf_counter()
    checked = check_channel(plan, make, run, channel_draws * plan.steps, miss)
    note = f"noise, clip and batches of {checked.releases:,} releases, and hostile rows"
    if checked.steps < plan.steps:
        note += f"; runs of {checked.steps} of {plan.steps} steps"
    return AuditReport(
        method=CHECKS_METHOD,
        epsilon_claimed=plan.epsilon,
        epsilon_lower=0.0,
        delta=plan.delta,
        confidence=confidence,
        draws=checked.releases,
        seconds=time.perf_counter() - start,
        note=note,
        fault="; ".join(str(finding) for finding in checked.findings[:MOST_FINDINGS]),
    )


def require_numbers(draws: int | None, confidence: float) -> None:
    """Refuse a number of draws that shows nothing, or a confidence that is none. DpzoError in one line."""
    if not 0.0 < confidence < 1.0:
        raise DpzoError("--confidence must lie between 0 and 1, as 0.999999 does")
    if draws is not None and draws < 100:
        raise DpzoError("--draws must be at least 100: fewer show nothing")


def _extent(plan: PrivacyPlan, draws: int, most: float) -> tuple[PrivacyPlan, int]:
    """The affordable size: first fewer transcripts than requested, then shorter ones. T′ ≤ T steps leak at most as T.

    The f-DP estimator extends the noise found in T′ steps to all T by the accountant; Clopper–Pearson does not.
    """
    transcripts = int(min(draws, max(FEWEST, most // plan.steps)))
    steps = int(min(plan.steps, max(1, most // transcripts)))
    return (plan if steps == plan.steps else replace(plan, steps=steps)), transcripts


def _by_parts(found: dict[str, list[Measured]], plan: PrivacyPlan, draws: int, risk: Risk, drawn: Drawn) -> None:
    """Clopper–Pearson in the tail, and the f-DP estimator where it is most sensitive, on the same draws."""
    start = time.perf_counter()
    audited, transcripts = _extent(plan, draws, MOST_STEPS)
    attack = attacks(audited)[0]
    absent, present = (drawn(attack, there, transcripts) for there in (False, True))
    choosing = int(transcripts * CHOOSING)
    trial, counted = Trial(attack, absent[:choosing], present[:choosing]), (absent[choosing:], present[choosing:])
    note = _note(plan, audited, "sampler and mechanism", "")
    _count(found, plan, trial, counted, risk, note, time.perf_counter() - start)
    if NoiseFamily.exists(plan):
        _judge(found, NoiseFamily(plan, audited.steps), trial, counted, risk, note, time.perf_counter() - start)


def _count(
    found: dict[str, list[Measured]],
    plan: PrivacyPlan,
    trial: Trial,
    counted: tuple[Scores, Scores],
    risk: Risk,
    note: str,
    seconds: float,
) -> None:
    bounds = []
    for miss in (risk.lower, risk.flag):
        _, threshold = choose([trial], by_epsilon(plan.delta), miss, FOR_COUNTS)
        bounds.append(float(clopper_pearson_epsilon(rates(*counted, np.array([threshold]), miss), plan.delta)[0]))
    found.setdefault("clopper_pearson", []).append(Measured(bounds[0], bounds[1], len(counted[0]), note, seconds))


def _judge(
    found: dict[str, list[Measured]],
    family: NoiseFamily,
    trial: Trial,
    counted: tuple[Scores, Scores],
    risk: Risk,
    note: str,
    seconds: float,
) -> None:
    bounds = []
    for miss in (risk.lower, risk.flag):
        _, threshold = choose([trial], by_noise(family), miss, FOR_NOISE)
        bounds.append(family.epsilon(family.least_refuted(rates(*counted, np.array([threshold]), miss))))
    exact = isinstance(family.plan.mechanism, Gaussian) and isinstance(family.plan.sampler, FullBatch)
    measured = Measured(bounds[0], bounds[1], len(counted[0]), note, seconds)
    found.setdefault("gaussian_dp" if exact else "f_dp", []).append(measured)


def _through_channels(
    found: dict[str, list[Measured]], plan: PrivacyPlan, draws: int, risk: Risk, drawn: Drawn, *, counted: bool
) -> None:
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
        attack, _ = choose(trials, by_epsilon(plan.delta), risk.flag, FOR_COUNTS)
    else:
        attack, _ = choose(trials, by_noise(family), risk.flag, FOR_NOISE)
    trial = next(trial for trial in trials if trial.attack is attack)
    scores = both(attack, _counted(attack, transcripts - choosing))
    note = _note(plan, audited, "whole channels", attack.name)
    if family is not None:
        _judge(found, family, trial, scores, risk, note, time.perf_counter() - start)
    if counted:
        _count(found, plan, trial, scores, risk, note, time.perf_counter() - start)


def _counted(attack: Attack, draws: int) -> int:
    """Runs a side of this attack: fewer where everything is run twice."""
    return draws if attack.knows == "releases" else min(draws, KNOWN_SEED_DRAWS)


def _note(plan: PrivacyPlan, audited: PrivacyPlan, through: str, attack: str) -> str:
    said = f"through {through}" + (f", attack: {attack}" if attack else "")
    if audited.steps < plan.steps:
        said += f", transcripts of {audited.steps} of {plan.steps} steps"
    return said
