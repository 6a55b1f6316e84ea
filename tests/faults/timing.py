"""Kill runs in which one unit's batches take long: `python tests/faults/timing.py --kills 300` prints what shows.

One of 40 units has 1,500 records, the others one; q = 0.05. A step takes as long as its batch has records, by a clock
that is counted and not measured. Kills come at times drawn beforehand, so a step that is in flight at a kill holds the
large unit nearly always. Three rules are compared: the step is *made again* from its key (dpzo), it is *burnt* (the key
is removed after every kill, as before there were keys), or it is *drawn anew* (a fault).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from subjects import burnt, double  # noqa: E402

from dpzo.privacy import PrivateChannel  # noqa: E402
from dpzo.run import loop as train  # noqa: E402
from dpzo.run.header import journal_header  # noqa: E402
from dpzo.run.journal import Journal  # noqa: E402
from dpzo.run.step_key import STEP_KEY  # noqa: E402

linear = double("linear")
Rule = Literal["made again", "burnt", "drawn anew"]
LARGE, RECORDS, STEPS, PROB = 0, 1500, 20, 0.05
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass
class Clock:
    """Counts records that were evaluated; the process dies when `death` have been."""

    death: float = float("inf")
    now: float = 0.0

    def spend(self, records: float) -> None:
        """Evaluate so many records, or die on the way."""
        self.now += records
        if self.now > self.death:
            raise linear.Died


@dataclass(frozen=True)
class Slow:
    """The double's losses, in the time that the units' records take."""

    inner: Any
    clock: Clock

    def losses(self, units: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        self.clock.spend(1 + len(units) + (RECORDS - 1) * int(LARGE in units))
        losses: np.ndarray[Any, np.dtype[np.float64]] = self.inner.losses(units)
        return losses


@dataclass
class Shown:
    """Counts over all runs. A *marked* step is one that the published journal tells apart: a burnt one.

    `p_marked`: χ² of the marked steps' membership of the large unit against q, 1 where none is marked. `p_batches`: χ²
    of the membership of all released steps. `in_flight_with`: of the steps in flight at a kill, those that held the
    unit (nobody outside sees them). `other_files`: files that differ from those of an undisturbed run of the same keys.
    """

    kills: int = 0
    in_flight_with: int = 0
    marked: int = 0
    marked_with: int = 0
    released: int = 0
    released_with: int = 0
    drawn_twice: int = 0
    keys_left: int = 0
    other_files: int = 0

    @property
    def p_marked(self) -> float:
        return _p(self.marked_with, self.marked)

    @property
    def p_batches(self) -> float:
        return _p(self.released_with, self.released)

    def to_dict(self) -> dict[str, float]:
        """For a reader."""
        return {**asdict(self), "p_marked": self.p_marked, "p_batches": self.p_batches}


def _p(members: int, steps: int) -> float:
    """χ² of membership against q."""
    if steps == 0:
        return 1.0
    return float(stats.chisquare([members, steps - members], [steps * PROB, steps * (1 - PROB)]).pvalue)


def attack(rule: Rule, kills: int, seed: int = 1) -> Shown:
    """Whole runs under one rule, until so many kills were dealt.

    They come once in the time that a run takes on average; four times as often where a fault is to be found.
    """
    shown, clock = Shown(), random.Random(seed)
    while shown.kills < kills:
        with tempfile.TemporaryDirectory(prefix="dpzo-timing-", dir=MEMORY) as name:
            _run(rule, Path(name), clock, shown)
    return shown


def _run(rule: Rule, room: Path, clock: random.Random, shown: Shown) -> None:
    """One run to its end."""
    folder, drawn = room / "run", list[tuple[int, bytes]]()
    folder.mkdir()
    evaluations = 2 * _PLAN.num_directions
    mean = evaluations * STEPS * (1 + PROB * (39 + RECORDS)) / (1 if rule == "made again" else 4)
    with _watched(drawn):
        while True:
            try:
                _life(folder, Clock(death=clock.expovariate(1 / mean)))
                break
            except linear.Died:
                shown.kills += 1
                step, key = drawn[-1]
                shown.in_flight_with += LARGE in _batch(step, key)
                if rule == "burnt":
                    (folder / STEP_KEY).unlink()
                elif rule == "drawn anew":
                    _forget(folder)
    keys, lost = dict(drawn), burnt(folder)
    shown.drawn_twice += len(set(drawn)) - len(keys)
    shown.marked += len(lost)
    shown.marked_with += sum(LARGE in _batch(step, keys[step]) for step in lost)
    shown.released += STEPS - len(lost)
    shown.released_with += sum(LARGE in _batch(step, key) for step, key in keys.items() if step not in lost)
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    shown.keys_left += sum(key in content or key.hex().encode() in content for _, key in drawn)
    if rule == "made again":
        shown.other_files += _differ(folder, room / "undisturbed", keys)


def _job() -> train.Job:
    job = linear.make_job(STEPS, has_guarantee=True)
    plan = linear.make_plan(STEPS, sampling=PROB * linear.NUM_UNITS)
    header = journal_header(plan, True, {"seed": 3, "shapes": job.parameters.shapes})
    return replace(job, plan=plan, header=header)


def _life(folder: Path, clock: Clock) -> None:
    job = _job()
    act = train.resume if (folder / "journal.jsonl").exists() else train.fit
    act(job, Slow(linear.objective(job), clock), linear.NUM_UNITS, folder)


def _batch(step: int, key: bytes) -> set[int]:
    channel = PrivateChannel(_PLAN, spent=step, step_key=lambda asked: key)
    return set(channel.draw_batch(linear.NUM_UNITS).tolist())


def _forget(folder: Path) -> None:
    """As if the key had never been: the next life draws another for the same step."""
    journal = Journal.reopen(folder)
    journal._key.found = False
    journal.close(clean=True)


def _differ(folder: Path, undisturbed: Path, keys: dict[int, bytes]) -> int:
    undisturbed.mkdir()
    real = Journal.step_key
    Journal.step_key = lambda journal, step: keys[step]  # type: ignore[method-assign]
    try:
        _life(undisturbed, Clock())
    finally:
        Journal.step_key = real  # type: ignore[method-assign]
    ours, theirs = ({path.name: path.read_bytes() for path in place.iterdir()} for place in (folder, undisturbed))
    return sum(ours.get(name) != theirs.get(name) for name in {*ours, *theirs})


@contextmanager
def _watched(drawn: list[tuple[int, bytes]]) -> Iterator[None]:
    real = Journal.step_key

    def step_key(journal: Journal, step: int) -> bytes:
        key = real(journal, step)
        drawn.append((step, key))
        return key

    Journal.step_key = step_key  # type: ignore[method-assign]
    try:
        yield
    finally:
        Journal.step_key = real  # type: ignore[method-assign]


_PLAN = linear.make_plan(STEPS, sampling=PROB * linear.NUM_UNITS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rules: tuple[Rule, ...] = ("made again", "burnt", "drawn anew")
    print(json.dumps({rule: attack(rule, given.kills, given.seed).to_dict() for rule in rules}, indent=2))


if __name__ == "__main__":
    main()
