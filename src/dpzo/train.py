"""fit, resume, replay: the loop that everything else serves.

θ_T is a function of (θ_0, public seed, journal), bit for bit. The data enters through `rows`, leaves through the
channel, and nothing below the `del` can see it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from dpzo import checkpoint
from dpzo.errors import DpzoError
from dpzo.journal import Journal, Transcript, read
from dpzo.privacy import PrivacyPlan, PrivateChannel, Randomness, Release, lattice
from dpzo.zo import DirectionScheme, Objective, TrainableParameters, Update, central_difference

Observer = Callable[[Release | None], None]
RandomnessAt = Callable[[int], Randomness]


@dataclass(frozen=True)
class Job:
    """What a run is made of. `header` names all that θ_T depends on; it opens the journal and is public."""

    plan: PrivacyPlan
    parameters: TrainableParameters
    scheme: DirectionScheme
    smoothing: float
    update: Update
    header: Mapping[str, Any]
    checkpoint_every: int = 500


class Stopped(Exception):
    """The run was asked to stop and did so between two steps; nothing is lost and nothing is burnt."""


def journal_header(plan: PrivacyPlan, has_guarantee: bool, public: Mapping[str, Any]) -> dict[str, Any]:
    """The header line: plan, lattice, whether the noise was secret, and the caller's public facts."""
    grid = lattice(plan.mechanism, plan.clip_norm, plan.num_directions)
    return {
        **public,
        "plan": plan.to_dict(),
        "lattice_unit": grid.unit,
        "lattice_bits": grid.bits,
        "lattice_bound": grid.bound,
        "secret_randomness": has_guarantee,
    }


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
    (None for a burnt step) and nothing else. Raises Stopped after Ctrl-C or SIGTERM, DpzoError if the folder is taken
    or the disk refuses.
    """
    journal = Journal.create(folder, job.header)
    _train(job, objective, num_units, journal, job.update.init(job.parameters), observe, nonprivate_randomness)


def resume(
    job: Job,
    objective: Objective,
    num_units: int,
    folder: Path,
    *,
    observe: Observer = lambda release: None,
    nonprivate_randomness: RandomnessAt | None = None,
) -> None:
    """Go on with a run, wherever and however it stopped. `job` must be the run's own, with parameters at θ_0.

    A step that was in flight when the process died is burnt. Raises DpzoError if the journal does not verify or
    belongs to another model, plan or seed.
    """
    require_same_run(job.header, read(folder))
    journal = Journal.reopen(folder)
    state = checkpoint.load(folder, job.parameters, job.update, read(folder))
    _replay_entries(job, read(folder), state.tensors, after=state.step, observe=observe)
    _train(job, objective, num_units, journal, state.tensors, observe, nonprivate_randomness)


def replay(job: Job, transcript: Transcript, *, observe: Observer = lambda release: None) -> None:
    """Rebuild θ_T from θ_0 and a journal, without data, model evaluations or noise. On return parameters hold θ_T."""
    require_same_run(job.header, transcript)
    state = job.update.init(job.parameters)
    _replay_entries(job, transcript, state, after=0, observe=observe)
    job.update.finish(job.parameters, state)


def require_same_run(header: Mapping[str, Any], transcript: Transcript) -> None:
    """Refuse a journal whose header differs from what this job would write (software versions apart)."""
    for name in sorted({*header, *transcript.header} - {"versions"}):
        if header.get(name) != transcript.header.get(name):
            raise DpzoError(f"{transcript.path}: written for another run; its {name} is not the one found now")


def _train(
    job: Job,
    objective: Objective,
    num_units: int,
    journal: Journal,
    state: dict[str, torch.Tensor],
    observe: Observer,
    nonprivate_randomness: RandomnessAt | None,
) -> None:
    channel = PrivateChannel(job.plan, spent=journal.num_steps, nonprivate_randomness=nonprivate_randomness)
    with _closing(journal), _stop_requests() as stop_requested, torch.no_grad():
        for step in range(journal.num_steps, job.plan.steps):
            if stop_requested():
                checkpoint.save(journal.folder, job.parameters, state, step, journal.last_hash)
                raise Stopped(f"stopped after step {step} of {job.plan.steps}")
            directions = job.scheme.at(step)
            units = channel.draw_batch(num_units)
            rows = central_difference(objective, job.parameters, units, directions, job.smoothing)
            release = channel.release(rows)
            del units, rows  # nothing below may see the data
            journal.append(release)
            job.update.apply(job.parameters, state, directions, release.slopes(), step)
            if (step + 1) % job.checkpoint_every == 0:
                checkpoint.save(journal.folder, job.parameters, state, step + 1, journal.last_hash)
            observe(release)
        job.update.finish(job.parameters, state)


def _replay_entries(
    job: Job, transcript: Transcript, state: dict[str, torch.Tensor], *, after: int, observe: Observer
) -> None:
    with torch.no_grad():
        for entry, _ in transcript.entries():
            if isinstance(entry, Release):
                if entry.step >= after:
                    job.update.apply(job.parameters, state, job.scheme.at(entry.step), entry.slopes(), entry.step)
                observe(entry)
            else:
                observe(None)


@contextmanager
def _closing(journal: Journal) -> Iterator[None]:
    """Close cleanly only if the block ended between two steps: finished or stopped on request."""
    clean = False
    try:
        yield
        clean = True
    except Stopped:
        clean = True
        raise
    finally:
        journal.close(clean=clean)


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request that is honoured between two steps; a second one is immediate."""
    requested = False

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, request)
    except ValueError:  # not the main thread: whoever owns it handles signals
        pass
    try:
        yield lambda: requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
