"""A linear regression of four parameters with noise that is a public function of the step: a run in a millisecond.

Also a script: `python linear.py kill FOLDER KILLS` trains in a child that is killed at random times, `python linear.py
fit FOLDER` trains once. Both train with secret noise and write down, outside the run folder, which step was drawn with
which key, so that a second draw would show and the run can be computed again.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpzo.config.solve import solve_plan
from dpzo.privacy import PrivacyPlan, Release
from dpzo.run import loop as train
from dpzo.run.header import journal_header
from dpzo.run.journal import Burnt, Journal, read
from dpzo.zo import SCHEDULES, DirectionScheme, Sgd, StepDirections, TailAverage, TrainableParameters, Update

NUM_UNITS = 40


@dataclass(frozen=True)
class Noise:
    """The noise double's words for one step, the same whenever they are asked for."""

    step: int

    def words(self) -> Iterator[int]:
        generator = self._generator(1)
        while True:
            yield from generator.integers(0, 2**64, size=64, dtype=np.uint64).tolist()

    def word_array(self, size: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        return self._generator(0).integers(0, 2**64, size=size, dtype=np.uint64)

    def _generator(self, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([20_240_601, self.step, stream]))


@dataclass
class Draws:
    """The seam's argument: gives each step its double and remembers who asked."""

    log: Path | None = None
    steps: list[int] = field(default_factory=list)

    def __call__(self, step: int) -> Noise:
        self.steps.append(step)
        if self.log is not None:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(descriptor, f"{step}\n".encode())
            os.close(descriptor)
        return Noise(step)


@dataclass
class Keys:
    """Remembers, outside the run folder, which step was drawn with which key. Put in place by `watch`."""

    log: Path | None = None
    drawn: list[tuple[int, bytes]] = field(default_factory=list)
    before: Callable[[int], None] = lambda step: None

    def watch(self, patch: Callable[[type, str, Any], object] = setattr, kind: type[Journal] = Journal) -> Keys:
        """Look on whenever a channel asks a journal for the key of a step."""
        real = getattr(kind.step_key, "unwatched", kind.step_key)

        def step_key(journal: Journal, step: int) -> bytes:
            self.before(step)
            key = real(journal, step)
            self.drawn.append((step, key))
            if self.log is not None:
                descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                os.write(descriptor, f"{step} {key.hex()}\n".encode())
                os.close(descriptor)
            return key

        step_key.unwatched = real  # type: ignore[attr-defined]
        patch(kind, "step_key", step_key)
        return self

    def by_step(self) -> dict[int, bytes]:
        """The one key of each step; AssertionError where a step was drawn with two."""
        found = dict(self.drawn)
        assert set(found.items()) == set(self.drawn), "a step was drawn twice"
        return found


def drawn_keys(log: Path) -> list[tuple[int, bytes]]:
    """What a `Keys` wrote to its log."""
    lines = (line.split() for line in log.read_text().splitlines()) if log.exists() else ()
    return [(int(step), bytes.fromhex(key)) for step, key in lines]


@dataclass(frozen=True)
class Squares:
    """(w·x + b − y)² of each unit of a fixed regression."""

    module: torch.nn.Linear

    def losses(self, units: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        draw = np.random.Generator(np.random.PCG64(5))
        x = torch.from_numpy(draw.standard_normal((NUM_UNITS, 3))).float()[units]
        y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.25
        return np.asarray(((self.module(x)[:, 0] - y) ** 2).double().numpy())


@dataclass
class Counted:
    """An update that remembers the steps it was applied for."""

    inner: Update
    applied: list[int] = field(default_factory=list)
    before: Callable[[int], None] = lambda step: None

    def init(self, parameters: TrainableParameters) -> dict[str, torch.Tensor]:
        return self.inner.init(parameters)

    def apply(
        self,
        parameters: TrainableParameters,
        state: dict[str, torch.Tensor],
        directions: StepDirections,
        values: np.ndarray[Any, np.dtype[np.float64]],
        step: int,
    ) -> None:
        self.before(step)
        self.inner.apply(parameters, state, directions, values, step)
        self.applied.append(step)

    def finish(self, parameters: TrainableParameters, state: dict[str, torch.Tensor]) -> None:
        self.inner.finish(parameters, state)


def make_plan(steps: int = 12, num_directions: int = 2, sampling: float = 8.0) -> PrivacyPlan:
    return solve_plan(
        num_examples=NUM_UNITS,
        expected_batch_size=sampling,
        steps=steps,
        delta=1e-3,
        noise_multiplier=1.0,
        clip_norm=2.0,
        num_directions=num_directions,
    )


def make_job(
    steps: int = 12,
    *,
    seed: int = 3,
    checkpoint_every: int = 5,
    average: float = 0.5,
    has_guarantee: bool = False,
    **header: Any,
) -> train.Job:
    """A fresh module at θ_0 = 0.1 and all that trains it; its update is a `Counted`."""
    module = torch.nn.utils.skip_init(torch.nn.Linear, 3, 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(0.1)
    parameters = TrainableParameters(module, ["weight", "bias"])
    plan = make_plan(steps)
    update: Update = Sgd(SCHEDULES["cosine"](0.05, steps, 1), plan.expected_batch_size)
    if average > 0:
        update = TailAverage(update, steps, average)
    return train.Job(
        plan=plan,
        parameters=parameters,
        scheme=DirectionScheme("rademacher", seed, plan.num_directions, parameters.sizes),
        smoothing=1e-2,
        update=Counted(update),
        header=journal_header(plan, has_guarantee, {"seed": seed, "shapes": parameters.shapes, **header}),
        checkpoint_every=checkpoint_every,
    )


def objective(job: train.Job) -> Squares:
    module = job.parameters.module
    assert isinstance(module, torch.nn.Linear)
    return Squares(module)


def fingerprint(job: train.Job) -> str:
    """SHA-256 of the trained bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(job.parameters.state().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def expected(burnt: set[int], steps: int = 12, keys: Mapping[int, bytes] | None = None, **options: Any) -> str:
    """The fingerprint of a run that no one disturbed, with these steps spent and not applied; `keys`: its words."""
    job = make_job(steps, **options)
    words: dict[str, Any] = {"nonprivate_randomness": Noise} if keys is None else {"step_key": keys.__getitem__}
    channel = train.PrivateChannel(job.plan, **words)
    state = job.update.init(job.parameters)
    with torch.no_grad():
        for step in range(steps):
            if step in burnt:
                channel = train.PrivateChannel(job.plan, spent=step + 1, **words)
                continue
            units = channel.draw_batch(NUM_UNITS)
            rows = job.estimator(objective(job), job.parameters, units, job.scheme.at(step), job.smoothing)
            release: Release = channel.release(rows)
            job.update.apply(job.parameters, state, job.scheme.at(step), release.slopes(), step)
        job.update.finish(job.parameters, state)
    return fingerprint(job)


class Died(BaseException):
    """Stands for the end of the process: nothing in the program catches it."""


def run(
    act: Callable[..., None],
    folder: Path,
    draws: Any = None,
    observe: Callable[[Release | None], None] = lambda release: None,
    before: Callable[[int], None] = lambda step: None,
    steps: int = 12,
    **options: Any,
) -> train.Job:
    """`train.fit` or `train.resume` of the double's job in `folder`; the job, at θ_T. `before` is called by updates.

    With `has_guarantee` the noise is secret, else that of `draws`.
    """
    job = make_job(steps, **options)
    assert isinstance(job.update, Counted)
    job.update.before = before
    noise = None if options.get("has_guarantee") else Draws() if draws is None else draws
    act(job, objective(job), NUM_UNITS, folder, observe=observe, nonprivate_randomness=noise)
    return job


def at(step: int, error: BaseException) -> Callable[[Any], None]:
    """Raises `error` when called for `step`, by number or by release."""

    def call(seen: Any) -> None:
        if (seen.step if isinstance(seen, Release) else seen) == step:
            raise error

    return call


def burnt(folder: Path) -> set[int]:
    """Steps of a run that are spent without a release."""
    return {entry.step for entry, _ in read(folder).entries() if isinstance(entry, Burnt)}


def go(folder: Path, steps: int, pause: float = 0.0, most: int | None = None) -> str:
    """Fit, or resume where there is a run, with secret noise; the fingerprint at the end. Keys are logged beside it.

    Each update waits for `pause` seconds first; those after `most` of them wait for ten minutes.
    """
    job, done = make_job(steps, has_guarantee=True), count(1)

    def wait(step: int) -> None:
        time.sleep(pause if most is None or next(done) <= most else 600)

    if pause:
        job = replace(job, update=Counted(job.update, before=wait))
    act = train.resume if (folder / "journal.head").exists() else train.fit
    act(job, objective(job), NUM_UNITS, folder)
    return fingerprint(job)


def kill_repeatedly(folder: Path, steps: int, kills: int) -> None:
    """Train in a child that is killed `kills` times, each soon after it has made a new draw; then let it finish.

    However late the killing comes on a busy machine, the child is still there: in a life it makes `steps`/(kills + 2)
    updates at most and then waits.
    """
    clock = random.Random(11)
    log = key_log(folder)
    for _ in range(kills):
        seen = log.stat().st_size if log.exists() else 0
        child = os.fork()
        if child == 0:
            go(folder, steps, pause=0.003, most=steps // (kills + 2))
            os._exit(0)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (not log.exists() or log.stat().st_size <= seen):
            time.sleep(0.001)
        time.sleep(clock.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit("the child was not killed: it had finished or failed")


def key_log(folder: Path) -> Path:
    """Where the keys of the run in `folder` are written down: beside the folder."""
    return folder.with_name(folder.name + ".keys")


if __name__ == "__main__":
    torch.set_num_threads(1)
    act, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(exist_ok=True)
    Keys(key_log(folder)).watch()
    steps = int(sys.argv[3])
    if act == "kill":
        kill_repeatedly(folder, steps, int(sys.argv[4]))
    print(go(folder, steps, pause=0.2 if act == "slow" else 0.0))
