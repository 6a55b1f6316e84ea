"""Every command that works on a user's files, once, on local models, in processes that bar and record the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUN = "made/here/run"
HOMES = ("TMPDIR", "HOME", "HF_HOME", "XDG_CACHE_HOME")


@dataclass(frozen=True)
class Workplace:
    """A scratch folder in which commands run, with every home, cache and temporary folder inside it."""

    scratch: Path

    def home(self, name: str) -> Path:
        """The folder that stands for one of `HOMES`."""
        return self.scratch / "homes" / name.lower()

    def tried(self) -> list[str]:
        """Every try to reach a network so far: the event and the host."""
        log = self.scratch / "network"
        return log.read_text().splitlines() if log.exists() else []

    def run(self, *steps: dict[str, Any], **environment: str) -> tuple[list[int], str, str]:
        """Exit codes, standard output and error of commands carried out in one process, under umask 022."""
        plan, codes = self.scratch / "steps.json", self.scratch / "codes.json"
        plan.write_text(json.dumps(steps))
        for name in HOMES:
            self.home(name).mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.lower().endswith("_proxy") and not name.startswith(("HF_", "TRANSFORMERS_"))
        }
        path = [str(HERE / "watched"), *filter(None, [os.environ.get("PYTHONPATH")])]
        done = subprocess.run(
            [sys.executable, str(HERE / "command_line.py"), str(plan), str(codes)],
            env=kept
            | {name: str(self.home(name)) for name in HOMES}
            | {"PYTHONPATH": os.pathsep.join(path), "DPZO_TESTS_NETWORK": str(self.scratch / "network")}
            | environment,
            cwd=self.scratch,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
            umask=0o022,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(codes.read_text()), done.stdout, done.stderr

    def files(self) -> Iterator[Path]:
        """All that lies in the scratch folder, the homes' own contents included."""
        inputs = {self.scratch / name for name in ("steps.json", "codes.json", "network", "homes", "given")}
        for path in sorted(self.scratch.rglob("*")):
            if not any(path == each or (each.name != "homes" and each in path.parents) for each in inputs):
                yield path


def give(scratch: Path) -> None:
    """The user's own files: records, held-out records, a task's folder, a key."""
    given = scratch / "given"
    own = given / "SST-2" / "16-13"
    own.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        lines = [f"a {('good', 'bad')[i % 2]} film {i * 13 % 97} {split}\t{1 - i % 2}" for i in range(32)]
        (own / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    rows = ({"text": f"words {number}", "label": ("good", "bad")[number % 2]} for number in range(60))
    (given / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(given / "key")], check=True, capture_output=True
    )


def steps(model: Path) -> list[dict[str, Any]]:
    """A run from plan to signature: interrupted and resumed, with a private count; all end by 0, train by 130."""
    train = ("train", "--model", str(model), "--data", "given/records.jsonl", "--labels", "good,bad", "--steps", "4")
    train = (*train, "--expected-batch-size", "8", "--delta", "1e-3", "--max-length", "12", "--num-directions", "2")
    train = (*train, "--relation", "add_or_remove_one", "--num-examples", "private")
    plan = ("--num-examples", "60", "--expected-batch-size", "8", "--steps", "4", "--delta", "1e-3", "--epsilon", "4")
    commands: list[tuple[str, ...]] = [
        ("plan", *plan, "--json"),
        (*train, "--epsilon", "40", "--output", RUN),
        ("resume", RUN),
        ("replay", RUN, "--output", "replayed/run"),
        ("evaluate", RUN, "--data", "given/records.jsonl", "--data-is", "public"),
        ("sign", RUN, "--key", "given/key"),
        ("verify", RUN, "--key", "given/key.pub"),
    ]
    return [{"arguments": list(each), **({"interrupt": 1} if each[0] == "train" else {})} for each in commands]


def long_steps(model: Path) -> list[dict[str, Any]]:
    """What takes longer, after `steps`: a recipe, a comparison, a search for noise, an audit; all end by 0."""
    small = ("--set", "data.max_length=16", "--set", "privacy.steps=4", "--set", "privacy.expected_batch_size=8")
    task = ("--data-dir", "given", "--model", str(model), *small)
    recipe = ("dpzero-roberta-large-sst2-eps2", "--scale", "small", "--output", "recipe/run", *task)
    grid = ("--task", "sst2", "--layouts", "k-16/seed-13", "--trainable", "head", "--output", "compared/table", *task)
    commands: list[tuple[str, ...]] = [
        ("recipe", "run", *recipe, "--set", "data.layout=k-16/seed-13"),
        ("compare", "dpzero", "mezo", *grid),
        ("noise", "--epsilon", "2", "--delta", "1e-5", "--sampling-prob", "1", "--steps", "1"),
        ("audit", RUN, "--draws", "2000", "--confidence", "0.999999999"),  # what is sound is not flagged
    ]
    return [{"arguments": list(each)} for each in commands]
