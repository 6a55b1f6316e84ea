"""A step of 2K evaluations with the frozen lower layers run each time, once a step, or once a run.

    python -m benchmarks.prefix [--cases NAME,…] [--threads 1,2] [--directions 16] [--steps 3] [--quick] [--json]

The same module, records and trainable part (LoRA on the topmost layers) each time; random weights, since speed does not
depend on what they know. Evaluations are interleaved: two plain forwards of the same micro-batches with the same
logits, then θ ± φz without sharing, with it for the batch, with it for the run; and so for each of the K directions.
Ratios are to the 2K plain forwards, medians over steps. Slopes are compared bit for bit. `cpu` times are what
one thread spends, and hold on a busy machine; with more threads only the clock's do. Each number of threads has a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks import shapes
from benchmarks.results_file import write_results
from benchmarks.shapes import Shape
from dpzo.models import RowShape, TokenObjective
from dpzo.models.frozen_cache import frozen_depth
from dpzo.models.isolation import synthetic_rows
from dpzo.zo import DirectionScheme, TrainableParameters, shifted

VARIANTS = ("none", "batch", "run")
SMOOTHING = 1e-3


@dataclass(frozen=True)
class Case:
    """A model's shape, which of its layers learn, and the batch."""

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


CASES = {
    "minilm-top2of6": Case("bert", 384, 6, 12, 1536, 30522, 2, 64, 32, 32),
    "bert-base-top3of12": Case("bert", 768, 12, 12, 3072, 30522, 3, 16, 16, 32),
    "opt-125m-top3of12": Case("opt", 768, 12, 12, 3072, 50272, 3, 8, 8, 64, 2),
    "quick-top2of6": Case("bert", 128, 6, 4, 512, 1000, 2, 64, 32, 32),
    "quick-top3of12": Case("opt", 128, 12, 4, 512, 1000, 3, 8, 8, 64, 2),
}
QUICK = ("quick-top2of6", "quick-top3of12")


def made(case: Case) -> tuple[Any, list[str]]:
    """The module with its adapters, and the names of what learns."""
    shape = Shape(case.family, case.hidden, case.layers, case.heads, case.inner, case.vocabulary)
    return shapes.made(shape, f"top:{case.top}")


def measure(name: str, directions: int, steps: int) -> dict[str, Any]:
    """Seconds of a step's evaluations (medians over steps) by clock and by CPU, and their ratios to plain forwards."""
    case = CASES[name]
    module, names = made(case)
    form: Any = "classes" if case.family == "bert" else "completion"
    shape = RowShape(form, case.length, case.vocabulary, 2, case.answer, left_padded=form == "completion")
    encoded = synthetic_rows(shape, 2 * case.records)
    whole = TokenObjective(module, encoded, case.microbatch)
    depth = frozen_depth(module, names, lambda: whole.losses(np.arange(1)), case.microbatch)
    assert depth == case.layers - case.top
    objectives = {
        keep: TokenObjective(module, encoded, case.microbatch, prefix_layers=0 if keep == "none" else depth, keep=keep)
        for keep in VARIANTS
    }
    parameters = TrainableParameters(module, names)
    scheme = DirectionScheme("rademacher", 0, directions, parameters.sizes)
    draw = np.random.Generator(np.random.PCG64(1))
    fill = _timed(lambda: objectives["run"].losses(np.arange(len(encoded))))
    found: list[dict[str, tuple[float, float]]] = []
    for step in range(steps + 1):  # the first one warms up
        units = draw.permutation(len(encoded))[: case.records]
        spent = dict.fromkeys(("plain", *VARIANTS), (0.0, 0.0))
        for k in range(directions if step else 1):
            for sign in (1.0, -1.0):
                spent["plain"] = _sum(spent["plain"], _timed(lambda u=units: whole.losses(u)))  # type: ignore[misc]
                results = []
                for keep in VARIANTS:

                    def evaluate(keep: str = keep, k: int = k, sign: float = sign, step: int = step) -> None:
                        with torch.no_grad(), shifted(parameters, scheme.at(step), k, sign * SMOOTHING):
                            results.append(objectives[keep].losses(units).tobytes())  # noqa: B023

                    spent[keep] = _sum(spent[keep], _timed(evaluate))
                assert results[0] == results[1] == results[2], "a loss has other bits"
        found.append(spent)
    row: dict[str, Any] = {
        "case": name,
        "threads": torch.get_num_threads(),
        "directions": directions,
        "records": case.records,
        "length": case.length,
        "fill_cpu_ms_per_record": round(1000 * fill[1] / len(encoded), 2),
    }
    for clock, place in (("wall", 0), ("cpu", 1)):
        for variant in ("plain", *VARIANTS):
            seconds = [step[variant][place] for step in found[1:]]
            row[f"{variant}_{clock}_s"] = round(statistics.median(seconds), 4)
            if variant != "plain":
                ratios = [step[variant][place] / step["plain"][place] for step in found[1:]]
                row[f"{variant}_{clock}_ratio"] = round(statistics.median(ratios), 3)
    row["ours_ratio"] = row["batch_cpu_ratio" if row["threads"] == 1 else "batch_wall_ratio"]
    return row


def _timed(run: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def _sum(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return a[0] + b[0], a[1] + b[1]


def main() -> None:
    """Measure every case on each number of threads in a child, print, and write benchmarks/results/prefix.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(name for name in CASES if name not in QUICK))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--directions", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small shapes, under a minute, nothing written")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    cases = QUICK if given.quick else tuple(given.cases.split(","))
    if given.quick:
        given.directions = min(given.directions, 4)
    if given.child:
        torch.set_num_threads(int(given.threads))
        for case in cases:
            print(json.dumps(measure(case, given.directions, given.steps)), flush=True)
        return
    rows: list[dict[str, Any]] = []
    for threads in given.threads.split(","):
        command = [sys.executable, "-m", "benchmarks.prefix", *sys.argv[1:], "--threads", threads, "--child"]
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        rows += [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    if not given.quick:
        notes = f"random weights, LoRA r = 8 on query and value; ratio to 2K plain forwards; loads {os.getloadavg()}"
        write_results("prefix" if "," in given.threads else f"prefix_threads_{given.threads}", rows, notes, "prefix")
    if given.json:
        print(json.dumps(rows))
        return
    print(
        "| case | threads | K | plain s | none | batch | run | fill CPU ms/record |\n|---|---|---|---|---|---|---|---|"
    )
    for row in rows:
        clock = "cpu" if row["threads"] == 1 else "wall"
        ratios = " | ".join(f"{row[f'{keep}_{clock}_ratio']:.3f}" for keep in VARIANTS)
        print(
            f"| {row['case']} | {row['threads']} | {row['directions']} | {row[f'plain_{clock}_s']:.2f} | {ratios} "
            f"| {row['fill_cpu_ms_per_record']} |"
        )


if __name__ == "__main__":
    main()
