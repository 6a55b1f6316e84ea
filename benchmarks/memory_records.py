"""Peak memory of a private run over many short records, beside the same run over few.

    python benchmarks/memory_records.py --model FOLDER [--records 1000000] [--json]

Writes invented records (jsonl prompts and completions, csv texts and labels) to a temporary folder, trains a few steps
on each in a process of its own, and records the greatest resident size that the system saw of it (`ru_maxrss`; it
counts the pages of mapped files that the process touched). `beside_model_mib` is what the same run takes more than it
does over 1000 records: the records' share. Result: benchmarks/results/memory_records.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

FEW = 1000
RESULT = Path(__file__).parent / "results" / "memory_records.json"
WORDS = (
    *("the", "little", "dog", "ran", "home", "and", "saw", "a", "big", "red", "ball", "so"),
    *("they", "were", "happy", "that", "day", "with", "mum", "on", "top", "of", "it"),
)
RUN = ("--noise-multiplier", "1", "--delta", "1e-7", "--steps", "3", "--num-directions", "2", "--max-length", "32")
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "lora-completion-jsonl": ("jsonl", ("--kind", "completion", "--set", "data.max_answer_tokens=8")),
    "lora-classification-csv": ("csv", ("--labels", "no,yes", "--label-words", " no, yes")),
    "lora-completion-parquet": ("parquet", ("--kind", "completion", "--set", "data.max_answer_tokens=8")),
}


def write_records(path: Path, count: int) -> None:
    """Short invented records: about eight words and an answer each."""
    draw = Random(0)

    def words(number: int) -> str:
        return " ".join(WORDS[int(draw.random() * len(WORDS))] for _ in range(number))

    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        schema = pyarrow.schema([("prompt", pyarrow.string()), ("completion", pyarrow.string())])
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for start in range(0, count, 10_000):
                block = [
                    {"prompt": words(8), "completion": " " + words(2)} for _ in range(start, min(start + 10_000, count))
                ]
                writer.write_table(pyarrow.Table.from_pylist(block, schema))
        return
    with path.open("w") as stream:
        if path.suffix == ".csv":
            stream.write("text,label\n")
        for number in range(count):
            if path.suffix == ".csv":
                stream.write(f"{words(8)},{'no' if number % 2 else 'yes'}\n")
            else:
                stream.write(json.dumps({"prompt": words(8), "completion": " " + words(2)}) + "\n")


def train(arguments: list[str]) -> None:
    """The child: one run through the command line, then its own peak."""
    from dpzo.cli import main as dpzo

    sys.argv = ["dpzo", *arguments]
    try:
        dpzo()
    except SystemExit as done:
        if done.code:
            raise
    print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def measured(case: str, model: str, count: int) -> dict[str, float]:
    """Peak and seconds of one run over `count` records."""
    suffix, options = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / f"records.{suffix}"
        write_records(data, count)
        arguments = ["train", "--model", model, "--data", str(data), "--output", str(Path(folder) / "run"), "--json"]
        arguments += ["--num-examples", str(count), "--expected-batch-size", "64", *RUN, *options]
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, "--child", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        peak = json.loads(done.stdout.splitlines()[-1])["peak_mib"]
        return {"peak_mib": round(peak, 1), "seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    """Measure every case, print a table or the JSON, and write the result file."""
    parser = argparse.ArgumentParser(description="Peak memory of a private run over many short records.")
    parser.add_argument("--model", required=True, help="folder of a small causal model, such as stories260K")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--case", choices=sorted(CASES), action="append")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    for case in asked.case or CASES:
        few, many = measured(case, asked.model, FEW), measured(case, asked.model, asked.records)
        beside = round(many["peak_mib"] - few["peak_mib"], 1)
        found[case] = {"few": few, "many": many, "beside_model_mib": beside}
        if not asked.json:
            print(f"{case}: {many['peak_mib']:.0f} MiB over {asked.records} records, {few['peak_mib']:.0f} over {FEW}")
    report = {
        "command": f"python benchmarks/memory_records.py --records {asked.records}",
        "model": Path(asked.model).name,
        "records": asked.records,
        "few_records": FEW,
        "cases": found,
        "versions": {name: version(name) for name in ("dpzo", "torch", "transformers", "numpy", "pyarrow")},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=2) + "\n")
    if asked.json:
        print(json.dumps(report))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        train(sys.argv[2:])
    else:
        main()
