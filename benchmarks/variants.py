"""A step of LoRA or of a head with 1, 2, 4, 8 or 16 settings of the trainable part in one pass over a shared base.

    python -m benchmarks.variants [--cases NAME,…] [--threads 1,2] [--directions 8] [--steps 3] [--quick] [--json]

Each step is what a run does: 2K evaluations of its records at θ ± φz by the central estimator, directions included. The
same module, records and trainable part each time, random weights; numbers of settings are interleaved within a step
and medians are over steps. `gain` is the time at one setting over the time at V. `cpu` times are what one thread
spends, and hold on a busy machine; with more threads only the clock's do. Each number of threads has a process of its
own; `--quick` measures on one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks import shapes
from benchmarks.results_file import write_results
from benchmarks.shapes import Shape
from dpzo.models import FeatureObjective, RowShape, TokenObjective
from dpzo.models.isolation import synthetic_rows
from dpzo.models.shapes import head_rows, synthetic_head
from dpzo.zo import DirectionScheme, TrainableParameters, central_difference

SETTINGS = (1, 2, 4, 8, 16)
SMOOTHING = 1e-3


@dataclass(frozen=True)
class Case:
    """A model's shape, which of its layers learn, and the batch; `top` 0 is a head on kept features."""

    family: str
    hidden: int
    layers: int
    heads: int
    inner: int
    vocabulary: int
    top: int  # layers that LoRA adapts
    records: int  # a step
    microbatch: int
    length: int
    answer: int = 0  # tokens whose logits are needed, for a causal model
    directions: int = 0  # 0: what the command says
    share: bool = False  # the layers below run once a step


OPT = ("opt", 768, 12, 12, 3072, 50272)
MINILM = ("bert", 384, 6, 12, 1536, 30522)
CASES = {
    "opt-125m-lora-1x16": Case(*OPT, 12, 1, 1, 16, 2),
    "opt-125m-lora-4x32": Case(*OPT, 12, 4, 4, 32, 2),
    "opt-125m-lora-8x64": Case(*OPT, 12, 8, 8, 64, 2),
    "opt-125m-top3-1x16-shared": Case(*OPT, 3, 1, 1, 16, 2, share=True),
    "minilm-lora-1x32": Case(*MINILM, 6, 1, 1, 32),
    "minilm-lora-4x32": Case(*MINILM, 6, 4, 4, 32),
    "minilm-lora-16x32": Case(*MINILM, 6, 16, 16, 32),
    "minilm-top2-4x32-shared": Case(*MINILM, 2, 4, 4, 32, share=True),
    "minilm-head-1024": Case(*MINILM, 0, 1024, 256, 32, directions=64),
    "quick-opt-lora-1x16": Case("opt", 128, 4, 4, 512, 1000, 4, 1, 1, 16, 2),
    "quick-head-256": Case("bert", 128, 2, 4, 512, 1000, 0, 256, 256, 32, directions=16),
}
QUICK = tuple(name for name in CASES if name.startswith("quick"))


def made(case: Case) -> tuple[Any, list[str]]:
    """The module with its adapters, and the names of what learns."""
    shape = Shape(case.family, case.hidden, case.layers, case.heads, case.inner, case.vocabulary)
    return shapes.made(shape, "head" if case.top == 0 else "all" if case.top == case.layers else f"top:{case.top}")


def objectives(case: Case, module: Any) -> dict[int, TokenObjective | FeatureObjective]:
    """The production objective over the same synthetic records, for each number of settings."""
    if case.top == 0:
        rows = head_rows(module, case.records)
        return {count: synthetic_head(module, rows, case.microbatch, count) for count in SETTINGS}
    form: Any = "classes" if case.family == "bert" else "completion"
    shape = RowShape(form, case.length, case.vocabulary, 2, case.answer, left_padded=form == "completion")
    encoded = synthetic_rows(shape, case.records)
    depth = case.layers - case.top if case.share else 0
    return {
        count: TokenObjective(module, encoded, case.microbatch, prefix_layers=depth, variants=count)
        for count in SETTINGS
    }


def measure(name: str, directions: int, steps: int) -> dict[str, Any]:
    """Seconds of a step (medians over steps) by clock and by CPU at each number of settings, and the gains."""
    case = CASES[name]
    module, names = made(case)
    parameters = TrainableParameters(module, names)
    count = case.directions if case.directions > 0 else directions
    scheme = DirectionScheme("rademacher", 0, count, parameters.sizes)
    units = np.arange(case.records, dtype=np.int64)
    found: dict[int, list[tuple[float, float]]] = {number: [] for number in SETTINGS}
    evaluated = objectives(case, module)
    worst = 0.0
    for objective in evaluated.values():  # one pass of each warms up
        warm = DirectionScheme("rademacher", 0, 1, parameters.sizes).at(0)
        central_difference(objective, parameters, units, warm, SMOOTHING)
    for step in range(steps):
        slopes = {}
        for number, objective in evaluated.items():
            objective.forget()
            wall, cpu = time.perf_counter(), time.process_time()
            slopes[number] = central_difference(objective, parameters, units, scheme.at(step), SMOOTHING)
            found[number].append((time.perf_counter() - wall, time.process_time() - cpu))
        apart = max(float(np.abs(slopes[number] - slopes[1]).max()) for number in SETTINGS)
        worst = max(worst, 2 * SMOOTHING * apart)
    row: dict[str, Any] = {
        "case": name,
        "threads": torch.get_num_threads(),
        "evaluations": 2 * count,
        "records": case.records,
        "length": case.length,
        "largest_loss_difference": worst,
    }
    for clock, place in (("wall", 0), ("cpu", 1)):
        for number in SETTINGS:
            row[f"{clock}_s_{number}"] = round(statistics.median(step[place] for step in found[number]), 5)
        for number in SETTINGS[1:]:
            gains = [one[place] / own[place] for one, own in zip(found[1], found[number], strict=True)]
            row[f"{clock}_gain_{number}"] = round(statistics.median(gains), 3)
    return row


def main() -> None:
    """Measure every case on each number of threads in a child, print, and write benchmarks/results/variants.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(name for name in CASES if name not in QUICK))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--directions", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small shapes, under a minute, nothing written")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    cases = QUICK if given.quick else tuple(given.cases.split(","))
    if given.child:
        torch.set_num_threads(int(given.threads))
        for case in cases:
            print(json.dumps(measure(case, given.directions, given.steps)), flush=True)
        return
    rows: list[dict[str, Any]] = []
    for threads in ("1",) if given.quick else given.threads.split(","):
        command = [sys.executable, "-m", "benchmarks.variants", *sys.argv[1:], "--threads", threads, "--child"]
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        rows += [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    if not given.quick:
        notes = f"random weights, LoRA r = 8 on query and value; gain = time at 1 ÷ time at V; loads {os.getloadavg()}"
        write_results("variants", rows, notes)
    if given.json:
        print(json.dumps(rows))
        return
    print("| case | threads | 2K | s a step at 1 | gain at 2 | 4 | 8 | 16 |\n|---|---|---|---|---|---|---|---|")
    for row in rows:
        clock = "cpu" if row["threads"] == 1 else "wall"
        gains = " | ".join(f"{row[f'{clock}_gain_{number}']:.2f}" for number in SETTINGS[1:])
        print(f"| {row['case']} | {row['threads']} | {row['evaluations']} | {row[f'{clock}_s_1']:.3f} | {gains} |")


if __name__ == "__main__":
    main()
