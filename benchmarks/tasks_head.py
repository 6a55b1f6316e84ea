"""MiniLM with a linear head on few-shot tasks: private at some ε beside the same steps without noise.

    python -m benchmarks.tasks_head --data-dir GLUE_FOLDER [--tasks trec,snli,rte,qnli] [--epsilon 2] [--seeds 3]

Default configuration, nothing tuned; features of each data set are computed once and shared by all its runs.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_file import write_results
from dpzo.cli.demo import demo_model
from dpzo.config.reading import parse_config
from dpzo.experiments.baselines import train_without_privacy
from dpzo.run import loop as train
from dpzo.run.build import RunFacts, resolve_num_examples, start
from dpzo.run.scoring import judge
from dpzo.run.subject import objective, task_of


def measure(task: str, data_dir: Path, layout: str, epsilon: float, seeds: int, max_length: int) -> dict[str, Any]:
    """Test metric of `seeds` private runs (mean, standard error) and of one non-private run of the same steps."""
    tree = {
        "model": {"name": str(demo_model())},
        "data": {"task": task, "layout": layout, "max_length": max_length},
        "privacy": {"epsilon": epsilon, "delta": 1e-5},
    }
    config = parse_config(tree)
    described = task_of(config)
    records = described.load(data_dir, "train", layout)
    held_out = described.load(data_dir, "test" if "test" in described.layout(data_dir, layout).files else "dev", layout)
    number, source = resolve_num_examples(config, described, data_dir, lambda: records.num_units)
    parts = start(config, RunFacts(number, source))
    private = objective(records, parts.subject)
    metric = judge(parts.subject, held_out)
    initial = parts.job.parameters.state()
    train_without_privacy(parts.job, private, records.num_units, clipped=True)
    without = metric()["value"]
    found = []
    for _ in range(seeds):  # the noise differs from run to run; the directions are the config's
        parts.job.parameters.load(initial)
        with tempfile.TemporaryDirectory() as folder:
            train.fit(parts.job, private, records.num_units, Path(folder))
        found.append(metric()["value"])
    assert all(isinstance(value, float) for value in found)
    scores = np.array(found, dtype=float)
    return {
        "task": task,
        "layout": layout,
        "metric": metric()["metric"],
        "num_examples": number,
        "epsilon": parts.job.plan.epsilon,
        "private": float(scores.mean()),
        "standard_error": float(scores.std(ddof=1) / math.sqrt(seeds)) if seeds > 1 else None,
        "nonprivate": without,
        "chance": 1 / len(described.labels or (0,)),
    }


def main() -> None:
    """Measure, print, and write benchmarks/results/tasks_head.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tasks", default="trec,snli,rte,qnli")
    parser.add_argument("--layout", default="k-512/seed-13")
    parser.add_argument("--epsilon", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = [
        measure(task, given.data_dir, given.layout, given.epsilon, given.seeds, given.max_length)
        for task in given.tasks.split(",")
    ]
    write_results("tasks_head", rows, "default configuration; several runs on one data set, each with its own ε")
    if given.json:
        print(json.dumps(rows))
        return
    print("| task | N | non-private | private | standard error | chance |\n|---|---|---|---|---|---|")
    for row in rows:
        error = "-" if row["standard_error"] is None else f"{100 * row['standard_error']:.1f}"
        print(
            f"| {row['task']} | {row['num_examples']} | {100 * row['nonprivate']:.1f} | {100 * row['private']:.1f} "
            f"| {error} | {100 * row['chance']:.1f} |"
        )


if __name__ == "__main__":
    main()
