"""Check a channel against its plan, step by step, with exact tests of its noise, its clip and its batches.

The auditor synthesises every row and knows every batch, so a release minus its known sum is the noise alone. This is
more than an attacker sees. A finding is not an ε: it states that the release is not the sum of clipped rows plus the
noise for which the plan's ε is proved.

    >>> from dpzo.privacy import FullBatch, Gaussian, PrivacyPlan, PrivateChannel
    >>> from dpzo.audit.draws import whole_run
    >>> plan = PrivacyPlan(100, FullBatch(), Gaussian(2.0), 1.0, 3, 2, 1e-5)
    >>> check_channel(plan, PrivateChannel, whole_run, 2000, 1e-9).findings
    ()
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from dpzo.audit.batch_checks import check_batches
from dpzo.audit.clip_checks import Hostile, batch_of, check_clip, check_hidden_noise, crowd, hostile_rows, rounding_rows
from dpzo.audit.draws import ChannelFactory, DataSet, Run, whole_run
from dpzo.audit.noise_checks import check_entropy, check_independence, check_law
from dpzo.audit.noise_law import NoiseLaw
from dpzo.audit.observed import Numbers, Observed, Observer
from dpzo.audit.tally import CheckTally, Defect
from dpzo.privacy import FullBatch, PrivacyPlan, lattice

CHECKS = ("law of the noise", "independence", "entropy", "clip", "batches")
FIRST_LOOK = 1 / 16  # share of the releases tested first, with a quarter of the error probability
MOST_RELEASES = 60_000  # of one direction each
FEWEST_RUNS = 12  # shorter runs are preferred to fewer runs
HOSTILE_REPEATS = 2  # releases of each hostile kind
ROUNDING_REPEATS = 6
MOST_UNITS = 20_000  # of a made-up data set whose batches are tested
MOST_HOSTILE_UNITS = 200_000  # of one where few are in a batch, and a batch should not be empty
MOST_ROWS = 1_000_000  # numbers in the rows of one batch
EMPTY_OR_NOT = 1.0  # units expected in a batch that is empty about as often as not
SOME = 8.0
BENIGN = 0.3  # length of a harmless row, in clip norms
KINDS = ("zeros", "level", "opposed", "random", "tiny", "one NaN", "one infinite", "all NaN")


@dataclass(frozen=True)
class Checked:
    """`findings`: a correct channel has any with at most the allowed probability; after `releases` releases."""

    findings: tuple[Defect, ...]
    releases: int
    steps: int


def check_channel(plan: PrivacyPlan, make: ChannelFactory, run: Run, releases: int, miss: float) -> Checked:
    """Test a few releases first, then many if nothing is found; on a correct channel any is found with P ≤ `miss`."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # a faulty channel's arithmetic
        return _looks(plan, make, run, releases, miss)


def _looks(plan: PrivacyPlan, make: ChannelFactory, run: Run, releases: int, miss: float) -> Checked:
    most = max(200, int(min(releases, MOST_RELEASES / (1.0 + plan.num_directions / 6.0))))
    checked = _look(plan, make, run, max(150, int(most * FIRST_LOOK)), miss / 4.0, thorough=False)
    if checked.findings:
        return checked
    return _look(plan, make, run, most, 0.75 * miss, thorough=True)


def _look(plan: PrivacyPlan, make: ChannelFactory, run: Run, releases: int, miss: float, *, thorough: bool) -> Checked:
    steps = min(plan.steps, max(1, releases // FEWEST_RUNS))
    audited = plan if steps == plan.steps else replace(plan, steps=steps)
    draw = np.random.default_rng()
    law = NoiseLaw(plan.mechanism, lattice(plan.mechanism, plan.clip_norm, plan.num_directions))
    tallies, each = {name: CheckTally(name) for name in CHECKS}, miss / len(CHECKS)
    seen = _observe_noise(audited, make, run, releases, draw)
    watched = [("channel", seen)]
    if run is whole_run and _resumes(make, plan):
        watched.append(("channel, resumed", _observe_resumed(plan, make, releases // 8, draw)))
    certain = []
    for what, observed in watched:
        certain += [Defect(what, fault, 0.0) for fault in observed.faults]
        if len(observed.values):
            _check_noise(tallies, law, observed, draw, each)
    if not (certain or _findings(tallies, each)):
        for rows, hostile in _observe_hostile(audited, make, run, draw, thorough=thorough):
            certain += [Defect("clip", fault, 0.0) for fault in hostile.faults]
            check_clip(tallies["clip"], law, hostile, rows)
            check_hidden_noise(tallies["clip"], law, hostile, rows)
    return Checked((*dict.fromkeys(certain), *_findings(tallies, each)), len(seen.values), steps)


def _findings(tallies: dict[str, CheckTally], miss: float) -> list[Defect]:
    return [found for tally in tallies.values() if (found := tally.finding(miss)) is not None]


def _check_noise(
    tallies: dict[str, CheckTally], law: NoiseLaw, seen: Observed, draw: np.random.Generator, miss: float
) -> None:
    z = law.normals(seen.noise, draw.random(seen.noise.shape))
    check_law(tallies["law of the noise"], z, seen)
    check_independence(tallies["independence"], z, seen)
    check_entropy(tallies["entropy"], law, seen, miss)
    check_batches(tallies["batches"], seen, miss)


def data_sizes(plan: PrivacyPlan) -> list[int]:
    """Units of the made-up data sets: none, one, few, and as many as the plan's own; batches empty, small and large."""
    q, own = plan.sampler.sampling_prob, plan.num_examples
    if isinstance(plan.sampler, FullBatch) or q >= 1.0:
        wanted = {0, 1, 2, 9, 64}
    else:
        wanted = {0, 1, 2, math.ceil(EMPTY_OR_NOT / q), math.ceil(SOME / q)}
    wanted = {min(size, MOST_UNITS) for size in wanted}
    if own <= MOST_UNITS and q * own * plan.num_directions <= MOST_ROWS / 10:
        wanted.add(own)
    return sorted(wanted)


def _observe_noise(
    plan: PrivacyPlan, make: ChannelFactory, run: Run, releases: int, draw: np.random.Generator
) -> Observed:
    """Runs on each data set in turn, with another kind of rows in every step."""
    observer, sizes = Observer(make, run, plan), data_sizes(plan)
    shares = np.array([0.25 if size > 1000 else 1.0 for size in sizes])
    wanted = draw.choice(sizes, size=max(4, releases // plan.steps), p=shares / shares.sum()).tolist()
    for size in wanted:
        kinds = draw.integers(len(KINDS), size=plan.steps + 1).tolist()
        observer.observe(size, partial(_rows, plan, kinds, draw), _chosen(kinds), "NaN, infinite or small rows")
    return observer.collected()


def _chosen(kinds: Sequence[int]) -> Callable[[int], int]:
    return lambda step: int(kinds[step])


def _rows(plan: PrivacyPlan, kinds: Sequence[int], draw: np.random.Generator, step: int, count: int) -> Numbers:
    """Rows (count, K) of the step's kind; all are harmless, or count as zeros."""
    width, kind = plan.num_directions, KINDS[kinds[min(step, len(kinds) - 1)]]
    length = BENIGN * plan.clip_norm / (math.sqrt(width) if plan.mechanism.order == 2 else width)
    rows = np.zeros((count, width))
    if kind in ("level", "one NaN", "one infinite"):
        rows += length
    elif kind == "opposed":
        rows += length * np.where(np.arange(count) % 2 == 0, 1.0, -1.0)[:, None]
        rows[count - count % 2 :] = 0.0
    elif kind == "random":
        rows += length * draw.uniform(-1.0, 1.0, size=(count, width))
    elif kind == "tiny":
        rows += 5e-324
    if count and kind == "one NaN":
        rows[draw.integers(count), draw.integers(width)] = math.nan
    elif count and kind == "one infinite":
        rows[draw.integers(count), draw.integers(width)] = math.inf if draw.random() < 0.5 else -math.inf
    elif kind == "all NaN":
        rows += math.nan
    return rows


def _resumes(make: ChannelFactory, plan: PrivacyPlan) -> bool:
    if plan.steps < 2:
        return False
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):
        return False
    return "spent" in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _rest(make: ChannelFactory, plan: PrivacyPlan, data: DataSet, *, spent: int) -> list[Sequence[float]]:
    """The releases of a channel that is created with some steps spent."""
    channel: Any = make(plan, spent=spent)  # type: ignore[call-arg]
    seen: list[Sequence[float]] = []
    for _ in range(spent, plan.steps):
        seen.append(channel.release(data.rows(channel.draw_batch(data.num_units))).values)
    return seen


def _observe_resumed(plan: PrivacyPlan, make: ChannelFactory, releases: int, draw: np.random.Generator) -> Observed:
    """The last steps of resumed runs: of as many as are affordable, so the last step of a long plan is seen too."""
    last = min(plan.steps - 1, max(1, releases // FEWEST_RUNS))
    observer = Observer(make, partial(_rest, spent=plan.steps - last), plan)
    sizes = data_sizes(plan)
    for _ in range(max(4, releases // last)):
        kinds = draw.integers(len(KINDS), size=plan.steps + 1).tolist()
        size = sizes[int(draw.integers(len(sizes)))]
        observer.observe(size, partial(_rows, plan, kinds, draw), _chosen(kinds), "NaN, infinite or small rows")
    return observer.collected()


def _observe_hostile(
    plan: PrivacyPlan, make: ChannelFactory, run: Run, draw: np.random.Generator, *, thorough: bool
) -> list[tuple[list[Hostile], Observed]]:
    """Every kind of hostile rows some times, and a few in crowds large enough to show a single lattice unit."""
    width, found = plan.num_directions, []
    many = min(MOST_HOSTILE_UNITS // width, 3 * 2 ** lattice(plan.mechanism, plan.clip_norm, width).bits)
    sets = [(hostile_rows(plan, draw), crowd(width), HOSTILE_REPEATS if thorough else 1)]
    if thorough:
        sets.append((rounding_rows(plan), max(crowd(width), many), ROUNDING_REPEATS))
    for rows, wanted, repeats in sets:
        units = max(1, min(MOST_HOSTILE_UNITS, math.ceil(wanted / plan.sampler.sampling_prob)))
        observer = Observer(make, run, plan)
        for start in range(0, len(rows) * repeats, plan.steps):
            kinds = [at % len(rows) for at in range(start, start + plan.steps + 1)]

            def rows_at(step: int, count: int, kinds: list[int] = kinds, rows: list[Hostile] = rows) -> Numbers:
                return batch_of(plan, rows[kinds[min(step, plan.steps)]], count)

            observer.observe(units, rows_at, _chosen(kinds), "hostile rows")
        found.append((rows, observer.collected()))
    return found
