"""What is killed: the linear double at the level of `train`, and whole runs of tiny models at the level of `runs`.

A subject works in a room of its own: `run` is the run folder, and what watches it (which step was drawn with which key,
the fingerprint at the end) lies beside it, where no death is dealt. Noise is secret: what a run must end at is computed
anew from the keys that were drawn.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch

from dpzo.config.reading import parse_config
from dpzo.config.schema import RunConfig
from dpzo.models import fingerprint_tensors
from dpzo.privacy import PrivateChannel
from dpzo.run import folders as runs
from dpzo.run import loop as train
from dpzo.run.build import RunFacts, start
from dpzo.run.journal import JOURNAL, Burnt, read
from dpzo.run.local import records_of
from dpzo.run.subject import objective, task_of

DOUBLES = Path(__file__).resolve().parents[1] / "doubles"


def double(name: str) -> ModuleType:
    """tests/doubles/NAME.py, by its path."""
    known = f"dpzo_tests_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, DOUBLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[known] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[known]


class Subject(Protocol):
    """A run that can be begun, gone on with, rebuilt, and whose end is known for every set of keys."""

    name: str
    steps: int

    def work(self, room: Path) -> None:
        """Fit, or resume where there is a run."""

    def fingerprint(self, room: Path) -> str:
        """The trained bits that the last life left."""

    def rebuild(self, room: Path, output: Path) -> None:
        """Replay from base and journal; raises unless it gives the trained bits."""

    def expected(self, keys: Mapping[int, bytes]) -> str:
        """The trained bits of a run that no one disturbed, whose steps have these keys."""


def drawn(room: Path) -> list[tuple[int, bytes]]:
    """Which step was drawn with which key, in order, over all lives."""
    found: list[tuple[int, bytes]] = double("linear").drawn_keys(room / LOG)
    return found


def watch(room: Path) -> None:
    """Write down, from now on in this process, which step is drawn with which key, and each count of the units."""
    double("linear").Keys(room / LOG).watch()
    real = getattr(runs.release_count, "unwatched", runs.release_count)

    def release_count(*given: Any, **options: Any) -> Any:
        with (room / COUNTS).open("a") as log:
            log.write("counted\n")
        return real(*given, **options)

    release_count.unwatched = real  # type: ignore[attr-defined]
    runs.release_count = release_count


def times_counted(room: Path) -> int:
    """How often the units were counted, over all lives."""
    return len((room / COUNTS).read_text().split())


LOG, COUNTS = "keys.log", "counts.log"


def burnt(folder: Path) -> frozenset[int]:
    return frozenset(entry.step for entry, _ in read(folder).entries() if isinstance(entry, Burnt))


@dataclass
class Linear:
    """Four parameters; a checkpoint every 5 steps, a tail average; a step takes a millisecond."""

    steps: int = 12
    name: str = "fit and resume"

    def work(self, room: Path) -> None:
        double_ = double("linear")
        job, folder = double_.make_job(self.steps, has_guarantee=True), room / "run"
        watch(room)
        folder.mkdir(exist_ok=True)
        act = train.resume if (folder / JOURNAL).exists() else train.fit
        act(job, double_.objective(job), double_.NUM_UNITS, folder)
        (room / "fingerprint").write_text(double_.fingerprint(job))

    def fingerprint(self, room: Path) -> str:
        return (room / "fingerprint").read_text()

    def rebuild(self, room: Path, output: Path) -> None:
        job = double("linear").make_job(self.steps, has_guarantee=True)
        train.replay(job, read(room / "run"))
        assert double("linear").fingerprint(job) == self.fingerprint(room)

    def expected(self, keys: Mapping[int, bytes]) -> str:
        trained: str = double("linear").expected(set(), self.steps, keys=keys, has_guarantee=True)
        return trained


@dataclass
class Whole:
    """A run folder from beginning to card; see `whole_runs`."""

    name: str
    config: RunConfig
    source: runs.DataSource
    steps: int

    def work(self, room: Path) -> None:
        folder = room / "run"
        watch(room)
        if (folder / JOURNAL).exists():
            runs.resume(folder)
        else:
            runs.train(self.config, self.source, folder)

    def fingerprint(self, room: Path) -> str:
        return _trained(room / "run")

    def rebuild(self, room: Path, output: Path) -> None:
        rebuilt = runs.replay(room / "run", output)
        assert rebuilt.equals_run is True
        assert _trained(output) == rebuilt.fingerprint
        for path in (output / "model").glob("*.safetensors"):
            assert path.read_bytes() == (room / "run" / "model" / path.name).read_bytes(), path.name

    def expected(self, keys: Mapping[int, bytes]) -> str:
        records = records_of(self.config, task_of(self.config), self.source)
        assert isinstance(self.config.privacy.num_examples, int)
        parts = start(self.config, RunFacts(self.config.privacy.num_examples, "declared"))
        job, private = parts.job, objective(records, parts.subject)
        channel = PrivateChannel(job.plan, step_key=keys.__getitem__)
        state = job.update.init(job.parameters)
        with torch.no_grad():
            for step in range(job.plan.steps):
                units = channel.draw_batch(records.num_units)
                rows = job.estimator(private, job.parameters, units, job.scheme.at(step), job.smoothing)
                slopes = channel.release(rows).slopes()
                job.update.apply(job.parameters, state, job.scheme.at(step), slopes, step)
            job.update.finish(job.parameters, state)
        return fingerprint_tensors(job.parameters.state())


def _trained(folder: Path) -> str:
    return str(json.loads((folder / "model" / "trained.json").read_text())["fingerprint"])


MARK = "zqj7xk"
"""Part of every record: it may never be shown."""


def records(folder: Path) -> Path:
    """24 marked records that serve as texts with labels and as prompts with completions."""
    path = folder / "records.jsonl"
    rows = [
        {"text": f"{MARK} {i}", "label": ("calm", "loud")[i % 2], "prompt": f"{MARK} {i}", "completion": f" {i * 7}"}
        for i in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def whole_runs(folder: Path, steps: int = 9) -> list[Whole]:
    """An encoder's head with momentum, and a causal model's adapter; base models and records are made in `folder`."""
    tiny = double("tiny")
    source = runs.DataSource(file=records(folder))
    with open(os.devnull, "w") as nowhere:  # the libraries draw bars as they save
        keep, sys.stderr = sys.stderr, nowhere
        try:
            bert, llama = tiny.save_bert(folder / "bert"), tiny.save_llama(folder / "llama")
        finally:
            sys.stderr = keep

    def config(model: Path, trainable: str, data: dict[str, Any], training: dict[str, Any]) -> RunConfig:
        adapter = {"lora_rank": 2} if trainable == "lora" else {}
        return parse_config(
            {
                "model": {"name": str(model), "trainable": trainable, **adapter},
                "data": {"max_length": 16, **({} if "labels" in data else {"max_answer_tokens": 4}), **data},
                "privacy": {
                    "noise_multiplier": 2.0,
                    "delta": 1e-3,
                    "num_examples": 24,
                    "expected_batch_size": 6,
                    "steps": steps,
                    "num_directions": 2,
                },
                "training": {"microbatch_size": 8, "learning_rate": 1e-2, "checkpoint_every": 4, **training},
            }
        )

    head = config(bert, "head", {"labels": ["calm", "loud"]}, {"update": "momentum"})
    lora = config(llama, "lora", {"kind": "completion"}, {})
    return [Whole("head of an encoder", head, source, steps), Whole("adapter", lora, source, steps)]


def counted(whole: Whole) -> Whole:
    """The same run with a private number of units: one release more, before the journal."""
    tree = whole.config.model_dump()
    tree["privacy"] |= {
        "num_examples": "private",
        "relation": "add_or_remove_one",
        "noise_multiplier": None,
        "epsilon": 4.0,
    }
    return replace(whole, name="private count", config=parse_config(tree))
