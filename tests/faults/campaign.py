"""Kill runs again and again and see what is left: `python tests/faults/campaign.py --kills 240 --json FILE`.

Every life but the last is killed, at a chosen act or at a random time. Then the run is finished and looked at: the
trained bits are those of an undisturbed run with the same keys, no step was drawn with two, no file holds a key, the
journal only grew, and a replay, itself killed on the way, rebuilds the bits. One JSON object of counts is written; what
went wrong stands under `mismatches`, a line each.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from deaths import MOMENTS, After, At, Death, Life, Moment, live  # noqa: E402
from stops import CODES, PHASES, arguments, command, stopped_at_random, stopped_in  # noqa: E402
from subjects import Linear, Subject, Whole, burnt, counted, drawn, times_counted, whole_runs  # noqa: E402

from dpzo.errors import DpzoError  # noqa: E402
from dpzo.run import folders as runs  # noqa: E402
from dpzo.run.journal import HEAD, JOURNAL, read  # noqa: E402
from dpzo.run.step_key import STEP_KEY  # noqa: E402

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Rooms lie in memory where that can be: a kill leaves what was written there too, and a sync costs nothing."""


class Tally:
    """Counts of what was done, and every promise that was not kept."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.mismatches: list[str] = []

    def check(self, holds: bool, what: str) -> None:
        """Write `what` down unless it holds."""
        if not holds:
            self.mismatches.append(what)

    def to_dict(self) -> dict[str, Any]:
        """For the result file."""
        return {**dict(sorted(self.counts.items())), "mismatches": self.mismatches}


@contextmanager
def new_room() -> Iterator[Path]:
    """A folder for one run and what watches it."""
    with tempfile.TemporaryDirectory(prefix="dpzo-faults-", dir=MEMORY) as name:
        yield Path(name)


def one_run(subject: Subject, deaths: Iterable[Death], tally: Tally, *, replay_death: Death = None) -> None:
    """A run through these deaths to its end, checked after every one."""
    with new_room() as room:
        folder, what = room / "run", f"{subject.name}, {list(deaths)}"
        earlier = b""
        for death in [*deaths, None]:
            begun = (folder / JOURNAL).exists()
            life = live(lambda: subject.work(room), folder, death)
            if life.killed:
                tally.counts["kills in resume" if begun else "kills in fit"] += 1
            else:
                tally.check(life.code == 0, f"{what}: a life ended with {life.code}: {life.said[-600:]}")
            earlier = _look(subject, room, earlier, tally, what)
            if life.code == 0 or (not life.killed and death is None):
                break
            if not (folder / JOURNAL).exists():
                # Nothing was drawn, so nothing is lost: the run is begun anew.
                tally.check(not drawn(room), f"{what}: a step was drawn before there was a journal")
                shutil.rmtree(folder, ignore_errors=True)
            tally.counts["lives after a death"] += 1
        tally.counts["runs"] += 1
        if life.code == 0:
            _finished(subject, room, tally, what)
            _replayed(subject, room, replay_death, tally, what)


def _look(subject: Subject, room: Path, earlier: bytes, tally: Tally, what: str) -> bytes:
    """What a reader finds between two lives; the journal's whole lines."""
    folder = room / "run"
    draws = drawn(room)
    twice = [step for step, _ in set(draws) if len({key for other, key in draws if other == step}) > 1]
    tally.check(not twice, f"{what}: steps drawn twice: {twice}")
    if not (folder / JOURNAL).exists():
        return b""
    try:
        found = read(folder)
    except DpzoError as error:
        tally.check(False, f"{what}: the journal does not verify: {error}")
        return earlier
    whole = (folder / JOURNAL).read_bytes()[: found.size]
    tally.check(whole.startswith(earlier), f"{what}: the journal changed what it held")
    tally.check(found.num_steps <= subject.steps, f"{what}: more steps than the plan")
    released = {entry.step for entry, _ in found.entries() if hasattr(entry, "values")}
    tally.check(released <= set(dict(draws)), f"{what}: a release that nobody drew")
    # The last line's own key is destroyed by the next life at the latest.
    spent = [key for step, key in draws if step < found.num_steps - 1]
    tally.check(not _holds(folder, spent), f"{what}: a file holds the key of a step that is journalled")
    return whole


def _finished(subject: Subject, room: Path, tally: Tally, what: str) -> None:
    folder = room / "run"
    tally.check(not burnt(folder), f"{what}: burnt {sorted(burnt(folder))}")
    found, draws = read(folder), drawn(room)
    tally.counts["steps made again"] += len(draws) - len(set(draws))
    tally.check(found.num_steps == subject.steps and found.closed, f"{what}: the run is not whole")
    tally.check(set(dict(draws)) == set(range(subject.steps)), f"{what}: a step is missing")
    tally.check(subject.fingerprint(room) == subject.expected(dict(draws)), f"{what}: other bits")
    tally.check(not (folder / STEP_KEY).exists(), f"{what}: a key file is left")
    stray = sorted(path.name for path in folder.rglob("*.new"))
    tally.check(not set(stray) - {f"{HEAD}.new"} or subject.name != "fit and resume", f"{what}: left over: {stray}")


def _holds(folder: Path, keys: list[bytes]) -> bool:
    """Whether a file of `folder`, that of the key in flight among them, holds one of `keys`."""
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return any(key in content or key.hex().encode() in content for key in keys)


def _replayed(subject: Subject, room: Path, death: Death, tally: Tally, what: str) -> None:
    if death is not None:
        output = room / "replayed"
        life = live(lambda: subject.rebuild(room, output), output, death)
        tally.counts["kills in replay"] += life.killed
        tally.check(life.killed or life.code == 0, f"{what}: a replay ended with {life.code}: {life.said[-600:]}")
    again = live(lambda: subject.rebuild(room, room / "rebuilt"), room / "rebuilt")
    tally.counts["replays"] += 1
    tally.check(again.code == 0, f"{what}: a replay gives other bits: {again.said[-600:]}")


def measure(subject: Subject) -> tuple[Life, Life]:
    """An undisturbed run and its replay: their acts and seconds."""
    with new_room() as room:
        whole = live(lambda: subject.work(room), room / "run")
        if whole.code != 0:
            raise SystemExit(f"{subject.name}: does not even run: {whole.said}")
        again = live(lambda: subject.rebuild(room, room / "rebuilt"), room / "rebuilt")
    return whole, again


def sweep(subject: Subject, tally: Tally, clock: random.Random, most: int) -> None:
    """One death at every act and moment of a run, or at `most` of them."""
    whole, again = measure(subject)
    points = [At(act, moment) for act in range(whole.acts) for moment in MOMENTS]
    for point in points if len(points) <= most else clock.sample(points, most):
        one_run(subject, [point], tally, replay_death=_at_random(clock, again))
    tally.counts["acts of a run"] = max(tally.counts["acts of a run"], whole.acts)


def chains(subject: Subject, tally: Tally, clock: random.Random, kills: int) -> None:
    """Runs of several deaths each, at acts and at times, until `kills` were dealt."""
    whole, again = measure(subject)
    start = _kills(tally)
    while _kills(tally) - start < kills:
        # The later ones early in their lives: a run that is taken up again has less to do.
        deaths = [_at_random(clock, whole, 1.0 if life == 0 else 0.3) for life in range(clock.randint(2, 6))]
        one_run(subject, deaths, tally, replay_death=_at_random(clock, again))


def _at_random(clock: random.Random, life: Life, share: float = 1.0) -> Death:
    """A death within the first `share` of such a life."""
    if life.acts > 0 and clock.random() < 0.6:
        return At(clock.randrange(math.ceil(share * life.acts)), clock.choice(MOMENTS))
    return After(clock.uniform(0, share * life.seconds))


def _kills(tally: Tally) -> int:
    return sum(count for name, count in tally.counts.items() if name.startswith("kills"))


def counts_once(whole: Whole, tally: Tally, clock: random.Random, lives: int) -> None:
    """A run that counts its units, killed before its journal: what was counted stands, and no other count is drawn."""
    subject = counted(whole)
    with new_room() as room:
        first = live(lambda: subject.work(room), room / "run", At(_NEVER))
        tally.check(first.code == 0, f"{subject.name}: does not even run: {first.said[-600:]}")
        before = len((room / "run" / JOURNAL).read_bytes().splitlines())
        tally.check(before == subject.steps + 1, f"{subject.name}: is not whole")
    for _ in range(lives):
        with new_room() as room:
            folder = room / "run"
            life = live(lambda: subject.work(room), folder, At(clock.randrange(_BEFORE_THE_JOURNAL), _moment(clock)))
            tally.counts["kills in fit"] += life.killed
            kept = (folder / "count.json").exists()
            if (folder / JOURNAL).exists() or not kept:
                continue
            tally.counts["counts kept"] += 1
            for again in (False, True):
                refused = live(lambda: _refused(subject, room, again), folder)  # noqa: B023  it is called at once
                tally.check(refused.code == 0, f"{subject.name}: {refused.said[-600:]}")
            tally.check(times_counted(room) == 1, f"{subject.name}: counted more than once")


_NEVER = 10**9
_BEFORE_THE_JOURNAL = 30
"""Acts on the folder until the journal has its name, about."""


def _moment(clock: random.Random) -> Moment:
    return clock.choice(MOMENTS)


def _refused(subject: Subject, room: Path, again: bool) -> None:
    try:
        subject.work(room) if again else runs.resume(room / "run")
    except DpzoError as error:
        print(error)
    else:
        raise AssertionError("it was not refused")


def _warm(whole: Whole) -> None:
    """Import, compile and solve here, once, for all the lives to come."""
    import dpzo.cli.app
    import dpzo.cli.checks
    import dpzo.cli.screen  # noqa: F401

    with new_room() as room:
        whole.work(room)
        whole.rebuild(room, room / "rebuilt")
        whole.expected(dict(drawn(room)))


def stops(whole: Whole, tally: Tally, clock: random.Random, phases: int, at_random: int) -> None:
    """Ctrl-C and SIGTERM: in `phases` of the phases and signals (drawn if not all), and `at_random` times."""
    pairs = [(phase, number) for phase in PHASES for number in CODES]
    for phase, number in pairs if len(pairs) <= phases else clock.sample(pairs, phases):
        with new_room() as room:
            stopped_in(whole, room, phase, number, tally.check)
        tally.counts["stops in a phase"] += 1
    if at_random:
        with new_room() as room:
            seconds = live(lambda: command(room, arguments(whole, room / "run")), room / "run").seconds
    for _ in range(at_random):
        with new_room() as room:
            life = stopped_at_random(whole, room, clock, tally.check, seconds)
        tally.counts["stops at a random time"] += life.code != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sweep", type=int, default=10**6, help="deaths of the double, at most, one a run")
    parser.add_argument("--kills", type=int, default=240, help="further kills of the double, several a run")
    parser.add_argument("--whole", type=int, default=60, help="kills of each of the whole runs; 0 leaves them out")
    parser.add_argument("--phases", type=int, default=26, help="stops by Ctrl-C and SIGTERM, a phase each, at most")
    parser.add_argument("--stops", type=int, default=40, help="further stops at random times")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    clock, tally, start = random.Random(given.seed), Tally(), time.monotonic()
    linear = Linear()
    sweep(linear, tally, clock, given.sweep)
    chains(linear, tally, clock, given.kills)
    if given.whole or given.phases or given.stops:
        with tempfile.TemporaryDirectory(prefix="dpzo-faults-") as name:
            wholes = whole_runs(Path(name))
            for whole in wholes:
                _warm(whole)
                if given.whole:
                    chains(whole, tally, clock, given.whole)
            counts_once(wholes[0], tally, clock, given.whole // 4)
            stops(wholes[0], tally, clock, given.phases, given.stops)
    result = {"seed": given.seed, "seconds": round(time.monotonic() - start, 1), "kills": _kills(tally)}
    given.json.write_text(json.dumps({**result, **tally.to_dict()}, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
