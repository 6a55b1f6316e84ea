"""The training loop: fit, resume and replay.

θ_T is a function of (θ_0, public seed, journal), bit for bit. Private data enters through `rows` and leaves only
through the channel; code below the `del` cannot access it.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from dpzo.errors import DpzoError
from dpzo.privacy import PrivacyPlan, PrivateChannel, Randomness, Release
from dpzo.privacy.accounting.second_opinion import check_epsilon
from dpzo.run import checkpoint
from dpzo.run.journal import Journal, Transcript, read
from dpzo.zo import (
    DirectionScheme,
    Estimator,
    ExceptionSafeEstimator,
    Objective,
    TrainableParameters,
    Update,
    central_difference,
)

Observer = Callable[[Release | None], None]
RandomnessAt = Callable[[int], Randomness]


@dataclass(frozen=True)
class Job:
    """The parts that train a run. `header` is public, starts the journal and states everything that θ_T depends on."""

    plan: PrivacyPlan
    parameters: TrainableParameters
    scheme: DirectionScheme
    smoothing: float
    update: Update
    header: Mapping[str, Any]
    estimator: Estimator = central_difference
    checkpoint_every: int = 500


class Stopped(Exception):
    """The run stopped between two steps after the signal `number`. No work is lost; the run can be resumed."""

    def __init__(self, said: str, number: int = signal.SIGINT) -> None:
        super().__init__(said)
        self.number = number


def fit(
    job: Job,
    objective: Objective,
    num_units: int,
    folder: Path,
    *,
    observe: Observer = lambda release: None,
    nonprivate_randomness: RandomnessAt | None = None,
) -> None:
    """Train from θ_0 in a folder that holds no run yet. On return the parameters hold θ_T.

    `objective.losses(units)` gives one loss per unit at the module's present weights; `observe` sees each Release
    (None for a burnt step) and nothing else. A unit whose evaluation raises an exception counts as 0 without a message.

    Raises:
        Stopped: after Ctrl-C or SIGTERM.
        DpzoError: if the folder is in use or writing fails.
    """
    _refuse_undeclared(job, nonprivate_randomness)
    check_epsilon(job.plan.event, job.plan.delta, job.plan.relation, job.plan.epsilon)
    with _stop_requests() as stop_requested, _closing(Journal.create(folder, job.header)) as journal:
        start = checkpoint.Restored(0, job.update.init(job.parameters))
        _train(job, objective, num_units, journal, start, observe, nonprivate_randomness, stop_requested)


def resume(
    job: Job,
    objective: Objective,
    num_units: int,
    folder: Path,
    *,
    observe: Observer = lambda release: None,
    nonprivate_randomness: RandomnessAt | None = None,
) -> None:
    """Resume an interrupted run. `job` must be the run's own, with parameters at θ_0.

    A step that a crash interrupted is repeated with the same batch and the same noise.

    Raises:
        DpzoError: if the journal does not verify or belongs to another model, plan or seed.
    """
    _refuse_undeclared(job, nonprivate_randomness)
    require_same_run(job.header, read(folder))
    with _stop_requests() as stop_requested, _closing(Journal.reopen(folder)) as journal:
        transcript = read(folder)
        start = checkpoint.load(folder, job.parameters, job.update, transcript)
        _replay_entries(job, transcript, start, observe, stop_requested)
        _train(job, objective, num_units, journal, start, observe, nonprivate_randomness, stop_requested)


def replay(job: Job, transcript: Transcript, *, observe: Observer = lambda release: None) -> None:
    """Rebuild θ_T from θ_0 and a journal, without data, model evaluations or noise. On return parameters hold θ_T."""
    require_same_run(job.header, transcript)
    start = checkpoint.Restored(0, job.update.init(job.parameters))
    _replay_entries(job, transcript, start, observe, lambda: 0)
    job.update.finish(job.parameters, start.tensors)


def require_same_run(header: Mapping[str, Any], transcript: Transcript) -> None:
    """Reject a journal whose header differs from the header that this job would write.

    Versions and evaluation sizes do not affect θ_T and are not compared. Neither are the config and the list of its
    derived fields: later versions add fields, and the header states separately every value of it that affects θ_T.
    """
    # Compare the JSON text: in Python True equals 1, and a tuple comes back from the journal as a list.
    written, found = (
        {name: json.dumps(value, sort_keys=True) for name, value in fields.items()}
        for fields in (header, transcript.header)
    )
    for name in sorted({*written, *found} - {"environment", "evaluation", "config", "derived"}):
        if written.get(name) != found.get(name):
            raise DpzoError(f"{transcript.path}: written for another run; its {name} is not the one found now")


def _refuse_undeclared(job: Job, nonprivate_randomness: RandomnessAt | None) -> None:
    """A run whose header states secret noise must use it for every step."""
    if nonprivate_randomness is not None and job.header["secret_randomness"] is not False:
        raise ValueError("nonprivate_randomness needs a header that says so: journal_header(has_guarantee=False)")


def _train(
    job: Job,
    objective: Objective,
    num_units: int,
    journal: Journal,
    start: checkpoint.Restored,
    observe: Observer,
    nonprivate_randomness: RandomnessAt | None,
    stop_requested: Callable[[], int],
) -> None:
    channel = PrivateChannel(
        job.plan,
        spent=journal.num_steps,
        step_key=journal.step_key,
        nonprivate_randomness=nonprivate_randomness,
    )
    state, saved = start.tensors, start.step
    estimator = ExceptionSafeEstimator(job.estimator, stop=Stopped)
    with torch.no_grad():
        for step in range(journal.num_steps, job.plan.steps):
            if number := stop_requested():
                checkpoint.save(journal.folder, job.parameters, state, step, journal.last_hash)
                raise Stopped(f"stopped after step {step} of {job.plan.steps}", number)
            directions = job.scheme.at(step)
            units = channel.draw_batch(num_units)
            rows = estimator(objective, job.parameters, units, directions, job.smoothing)
            release = channel.release(rows)
            del units, rows  # code below must not access the data
            journal.append(release)
            job.update.apply(job.parameters, state, directions, release.slopes(), step)
            # At multiples fixed in advance, not relative to the last save, which would reveal an earlier stop.
            if (step + 1) // job.checkpoint_every > saved // job.checkpoint_every:
                checkpoint.save(journal.folder, job.parameters, state, step + 1, journal.last_hash)
                saved = step + 1
            observe(release)
        _last_checkpoint(job, state, journal, saved)
        job.update.finish(job.parameters, state)


def _last_checkpoint(job: Job, state: dict[str, torch.Tensor], journal: Journal, saved: int) -> None:
    """Save or discard the last checkpoint by the plan alone: one left by a stop would reveal that stop."""
    if job.plan.steps < job.checkpoint_every:
        checkpoint.discard(journal.folder)
    elif saved != job.plan.steps:
        checkpoint.save(journal.folder, job.parameters, state, job.plan.steps, journal.last_hash)


def _replay_entries(
    job: Job,
    transcript: Transcript,
    start: checkpoint.Restored,
    observe: Observer,
    stop_requested: Callable[[], int],
) -> None:
    with torch.no_grad():
        for entry, _ in transcript.entries():
            if number := stop_requested():
                raise Stopped(f"stopped while taking up step {entry.step} of {job.plan.steps} again", number)
            if isinstance(entry, Release):
                if entry.step >= start.step:
                    directions = job.scheme.at(entry.step)
                    job.update.apply(job.parameters, start.tensors, directions, entry.slopes(), entry.step)
                observe(entry)
            else:
                observe(None)


@contextmanager
def _closing(journal: Journal) -> Iterator[Journal]:
    """Close cleanly only if the block ended between two steps: finished or stopped on request."""
    clean = False
    try:
        yield journal
        clean = True
    except Stopped:
        clean = True
        raise
    finally:
        journal.close(clean=clean)


@contextmanager
def _stop_requests() -> Iterator[Callable[[], int]]:
    """Turn the first Ctrl-C or SIGTERM into a stop between two steps; a second one stops immediately.

    The first prints a line on standard error at once, because a step may take minutes. Yields a function that returns
    the number of the received signal, or 0.
    """
    requested = 0
    previous: dict[int, Any] = {}

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            before = previous[number]
            if callable(before):
                before(number, frame)
            raise KeyboardInterrupt
        requested = number
        how = "press Ctrl-C" if number == signal.SIGINT else "send the signal"
        # Write to the descriptor directly: a handler may interrupt a buffered write of the same stream.
        with suppress(OSError):
            below = "\n" if os.isatty(2) else ""  # a progress bar may occupy the line
            os.write(2, f"{below}dpzo: stopping after this step; {how} again to stop now\n".encode())

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, request)
    except ValueError:  # not the main thread, which handles signals
        pass
    try:
        yield lambda: requested
    finally:
        for restored, handler in previous.items():
            # None: a handler that was not installed from Python, and that Python cannot put back.
            signal.signal(restored, signal.SIG_DFL if handler is None else handler)
