"""What is killed: the linear double at the level of `train`, and whole runs of tiny models at the level of `runs`.

A subject works in a room of its own: `run` is the run folder, and what watches it (the steps whose noise was asked
for, the fingerprint at the end) lies beside it, where no death is dealt.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch

from dpzo import runs, train
from dpzo.assembly import assemble, objective, task_of
from dpzo.config import RunConfig, parse_config
from dpzo.journal import JOURNAL, Burnt, read
from dpzo.lm import fingerprint_tensors
from dpzo.privacy import PrivateChannel

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
    """A run that can be begun, gone on with, rebuilt, and whose end is known for every set of burnt steps."""

    name: str
    steps: int

    def work(self, room: Path) -> None:
        """Fit, or resume where there is a run."""

    def fingerprint(self, room: Path) -> str:
        """The trained bits that the last life left."""

    def rebuild(self, room: Path, output: Path) -> None:
        """Replay from base and journal; raises unless it gives the trained bits."""

    def expected(self, burnt: frozenset[int]) -> str:
        """The trained bits of a run that no one disturbed, with these steps spent and not applied."""


def drawn(room: Path) -> list[int]:
    """Steps whose noise or batch was asked for, in order, over all lives."""
    log = room / "draws.log"
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def burnt(folder: Path) -> frozenset[int]:
    return frozenset(entry.step for entry, _ in read(folder).entries() if isinstance(entry, Burnt))


@dataclass
class Linear:
    """Four parameters; a checkpoint every 5 steps, a tail average; a step takes a millisecond."""

    steps: int = 12
    name: str = "fit and resume"
    _known: dict[frozenset[int], str] = field(default_factory=dict)

    def work(self, room: Path) -> None:
        double_ = double("linear")
        job, folder = double_.make_job(self.steps), room / "run"
        folder.mkdir(exist_ok=True)
        act = train.resume if (folder / JOURNAL).exists() else train.fit
        noise = double_.Draws(room / "draws.log")
        act(job, double_.objective(job), double_.NUM_UNITS, folder, nonprivate_randomness=noise)
        (room / "fingerprint").write_text(double_.fingerprint(job))

    def fingerprint(self, room: Path) -> str:
        return (room / "fingerprint").read_text()

    def rebuild(self, room: Path, output: Path) -> None:
        job = double("linear").make_job(self.steps)
        train.replay(job, read(room / "run"))
        assert double("linear").fingerprint(job) == self.fingerprint(room)

    def expected(self, burnt: frozenset[int]) -> str:
        if burnt not in self._known:
            self._known[burnt] = double("linear").expected(set(burnt), self.steps)
        return self._known[burnt]


@dataclass
class Whole:
    """A run folder from beginning to card, with a noise double; see `whole_runs`."""

    name: str
    config: RunConfig
    source: runs.DataSource
    steps: int
    _known: dict[frozenset[int], str] = field(default_factory=dict)

    def work(self, room: Path) -> None:
        noise, folder = double("linear").Draws(room / "draws.log"), room / "run"
        if (folder / JOURNAL).exists():
            runs.resume(folder, nonprivate_randomness=noise)
        else:
            runs.train(self.config, self.source, folder, nonprivate_randomness=noise)

    def fingerprint(self, room: Path) -> str:
        return _trained(room / "run")

    def rebuild(self, room: Path, output: Path) -> None:
        rebuilt = runs.replay(room / "run", output)
        assert rebuilt.equals_run is True
        assert _trained(output) == rebuilt.fingerprint
        for path in (output / "model").glob("*.safetensors"):
            assert path.read_bytes() == (room / "run" / "model" / path.name).read_bytes(), path.name

    def expected(self, burnt: frozenset[int]) -> str:
        if burnt not in self._known:
            self._known[burnt] = self._uninterrupted(burnt)
        return self._known[burnt]

    def _uninterrupted(self, burnt: frozenset[int]) -> str:
        noise = double("linear").Noise
        records = runs.records_of(self.config, task_of(self.config), self.source)
        assert isinstance(self.config.privacy.num_examples, int)
        parts = assemble(
            self.config,
            num_examples=self.config.privacy.num_examples,
            num_examples_source="declared",
            has_guarantee=False,
        )
        job, private = parts.job, objective(records, parts.subject)
        channel = PrivateChannel(job.plan, nonprivate_randomness=noise)
        state = job.update.init(job.parameters)
        with torch.no_grad():
            for step in range(job.plan.steps):
                if step in burnt:
                    channel = PrivateChannel(job.plan, spent=step + 1, nonprivate_randomness=noise)
                    continue
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
        return parse_config(
            {
                "model": {"name": str(model), "trainable": trainable, "lora_rank": 2},
                "data": {"max_length": 16, "max_answer_tokens": 4, **data},
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
    return replace(whole, name="private count", config=parse_config(tree), _known={})
