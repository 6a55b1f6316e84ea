"""Transcripts of synthetic data, drawn by the objects that a run uses, and their scores.

`channel_scores` runs whole channels: batch, clip, sum, noise, budget. `mechanism_scores` draws many steps at once from
the same sampler and mechanism: 3·10⁶ transcripts would take too long through channels, but not this way.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import numpy.typing as npt

from dpzo.audit.attacks import Attack
from dpzo.audit.bounds import Scores
from dpzo.audit.known_seed import generators_put_back, seed_public_generators
from dpzo.privacy import NeighboringRelation, PrivacyPlan, PrivateChannel, SecretRandom, clip_rows

AT_ONCE = 100_000  # steps held in memory
RUNS_AT_ONCE = 1000
NUMBERS_AT_ONCE = 2_000_000  # released, held in memory
ChannelFactory = Callable[[PrivacyPlan], Any]
"""`PrivateChannel`, or what is audited in its place: from a plan to an object with `draw_batch` and `release`."""


class DataSet:
    """Synthetic rows, one batch at a time. `canary_in` records the batches that contain the last unit."""

    def __init__(self, rows: npt.NDArray[np.float64], canary: int) -> None:
        self.canary_in: list[bool] = []
        self._rows = rows
        self._canary = canary

    @property
    def num_units(self) -> int:
        """Units of this data set."""
        return len(self._rows)

    def rows(self, units: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Rows (batch, K) of these units."""
        self.canary_in.append(bool(self._canary in units))
        return np.asarray(self._rows[units])


Work = Callable[[Attack, bool, int], Scores]
Share = Callable[[Work, Attack, bool, int], Scores]
Run = Callable[[ChannelFactory, PrivacyPlan, DataSet], Sequence[Sequence[float]]]
"""All that one run releases, (steps seen, K) in lattice units: the attacker's view."""


def whole_run(make: ChannelFactory, plan: PrivacyPlan, data: DataSet) -> list[Sequence[float]]:
    """Every step of one channel, and one more, if the channel allows it."""
    channel = make(plan)
    seen: list[Sequence[float]] = []
    for _ in range(plan.steps + 1):
        try:
            units = channel.draw_batch(data.num_units)
        except RuntimeError:
            if len(seen) < plan.steps:
                raise
            break
        seen.append(channel.release(data.rows(units)).values)
    return seen


def channel_scores(make: ChannelFactory, run: Run, attack: Attack, present: bool, draws: int) -> Scores:
    """Scores (draws,) of that many runs on one of the two neighbours: log-likelihood ratios, summed over a run."""
    data, absent = attack.data(present), attack.data(False)
    q = 1.0 if attack.knows == "batches" else None
    scores: list[Scores] = []
    with nullcontext() if attack.knows == "releases" else generators_put_back():
        most = max(1, min(RUNS_AT_ONCE, NUMBERS_AT_ONCE // (attack.plan.steps * attack.plan.num_directions)))
        for start in range(0, draws, most):
            steps: list[Sequence[float]] = []
            owners: list[int] = []
            count = min(most, draws - start)
            for i in range(count):
                seen = _seen(make, run, attack, data, absent)
                steps += seen
                owners += [i] * len(seen)
            values = np.array(steps, dtype=np.float64).reshape(len(steps), attack.plan.num_directions)
            scores.append(np.asarray(np.bincount(owners, attack.score(values, q), count), dtype=np.float64))
    return np.asarray(np.round(np.concatenate(scores), 9), dtype=np.float64)


def _seen(
    make: ChannelFactory, run: Run, attack: Attack, data: npt.NDArray[np.float64], absent: npt.NDArray[np.float64]
) -> list[Sequence[float]]:
    """The scored part of one run: its releases; less those of a copy run; or those of the copy's batches."""
    canary = attack.num_units - 1
    if attack.knows == "releases":
        return list(run(make, attack.plan, DataSet(data, canary)))
    seed = int.from_bytes(os.urandom(4), "little")
    copy, own = DataSet(absent, canary), DataSet(data, canary)
    seed_public_generators(seed)
    copied = run(make, attack.plan, copy)
    seed_public_generators(seed)
    released = run(make, attack.plan, own)
    if attack.knows == "noise":
        return [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(released, copied, strict=False)]
    return [values for values, was_in in zip(released, copy.canary_in, strict=False) if was_in]


def mechanism_scores(attack: Attack, present: bool, draws: int) -> Scores:
    """Scores (draws,) of transcripts whose members, clipped row and noise come from the plan's own objects.

    Only coordinates that the canary touches are drawn: the others' densities cancel in the ratio.
    """
    plan, secret = attack.plan, SecretRandom()
    touched = attack.touched
    row = clip_rows(attack.data(True)[-1:], attack.grid)[0][touched]
    if not present:
        row = -row if plan.relation is NeighboringRelation.REPLACE_ONE else 0 * row
    scores = np.empty(draws)
    most = max(1, AT_ONCE // plan.steps)
    for start in range(0, draws, most):
        count = min(most, draws - start)
        steps, words = count * plan.steps, secret.words()
        drawn = plan.mechanism.draw(attack.grid.bits, steps * len(touched), words)
        values = np.array(drawn, dtype=np.float64).reshape(steps, len(touched))
        values[plan.sampler.draw(steps, secret)] += row
        scores[start : start + count] = attack.likelihood(values).reshape(count, plan.steps).sum(axis=1)
    return np.round(scores, 9)


@contextmanager
def processes(workers: int) -> Iterator[Share]:
    """`share(work, attack, present, n)` = `work(attack, present, n)`, in pieces by `workers` processes or just here."""
    if workers <= 1:
        yield lambda work, attack, present, draws: work(attack, present, draws)
        return
    # A Ctrl-C reaches the workers too: only this process handles it, ends them, and reports.
    with get_context("spawn").Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:

        def share(work: Work, attack: Attack, present: bool, draws: int) -> Scores:
            pieces = [len(piece) for piece in np.array_split(np.empty(draws), min(draws, 4 * workers))]
            return np.concatenate(pool.map(partial(work, attack, present), pieces, chunksize=1))

        yield share


def through_channels(make: ChannelFactory, run: Run) -> Work:
    """`channel_scores` of these objects, to be shared."""
    return partial(channel_scores, make, run)


def shipped(make: ChannelFactory, run: Run) -> bool:
    """Whether these are the objects that real runs use; others may not be sent to other processes."""
    return make is PrivateChannel and run is whole_run
