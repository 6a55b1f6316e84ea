"""The pilot that chose rates of the first-order baselines, and T for one direction a step, on tasks of no comparison.

    python -m benchmarks.baseline_rates --data-dir GLUE_FOLDER [--part head] [--tasks subj,mr] [--which first-order]

Two sentence tasks in LM-BFF's 512-a-class splits, scored on their *development* halves, MiniLM. One private run a cell;
the task's data is public.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_file import write_results
from dpzo.data.tasks import TASKS, Task
from dpzo.data.tasks.layouts import frozen_map, k_shot_layouts
from dpzo.experiments.compare.bench import Bench
from dpzo.experiments.compare.cells import Grid, cells
from dpzo.experiments.compare.public_data import TaskFolder
from dpzo.experiments.recipes.methods import SMALL_ENCODER, local_model

Setting = tuple[str, dict[str, float]]


def pilot_task(name: str) -> Task:
    """A sentence task of two classes in the archive's csv form; train and dev only, so that scores are of dev."""
    return Task(
        name=name,
        kind="classification",
        template="{text}",
        labels=("0", "1"),
        max_length=64,
        layouts=k_shot_layouts(
            name,
            {"train": "train.csv", "dev": "dev.csv"},
            fields=frozen_map(text="text"),
            num_examples={512: {"train": 1024, "dev": 1024}, 16: {"train": 32, "dev": 32}},
            label_column="label",
            file_labels=("0", "1"),
            header=("label", "text"),
            quoted=True,
        ),
    )


def settings(which: str) -> Iterator[Setting]:
    """Methods and the fields that are varied."""
    if which == "first-order":
        for rate, clip in itertools.product((0.5, 2.0, 8.0, 32.0), (0.1, 0.5)):
            yield "dp-sgd", {"training.learning_rate": rate, "privacy.clip_norm": clip}
        yield "dp-sgd", {}
        for rate, clip in itertools.product((0.003, 0.01, 0.03, 0.1), (0.1, 0.5)):
            yield "dp-adam", {"training.learning_rate": rate, "privacy.clip_norm": clip}
        for rate in (0.003, 0.01, 0.03, 0.1, 0.3):
            yield "adamw", {"training.learning_rate": rate}
    if which == "one-direction":
        for steps in (200, 1000, 4000):
            yield "dp-zo", {"privacy.steps": steps}
        yield "dp-zo", {"privacy.clip_norm": 2.5}
        yield "dpzero", {}
        yield "mezo", {}
        yield "dpgd-0th", {}
    if which == "lora":
        for rate, clip in itertools.product((0.1, 1.0), (1.0, 10.0)):
            yield "dp-sgd", {"training.learning_rate": rate, "privacy.clip_norm": clip}
        for rate in (1e-3, 3e-3):
            yield "dp-adam", {"training.learning_rate": rate, "privacy.clip_norm": 1.0}
        for rate in (1e-3, 3e-3):
            yield "adamw", {"training.learning_rate": rate}


def measure(
    task: str, data_dir: Path, which: str, epsilons: Sequence[float], extra: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """One row a cell: method, what was varied, ε, development accuracy."""
    TASKS[task] = pilot_task(task)  # type: ignore[index]
    model = local_model(SMALL_ENCODER)
    part = "lora" if which == "lora" else "head"
    bench = Bench(TaskFolder(data_dir))
    for name, fields in settings(which):
        grid = Grid(
            names=(name,),
            tasks=(task,),
            model=model,
            trainable=part,
            epsilons=tuple(epsilons),
            seeds=(0,),
            layouts=("k-512/seed-13",),
            assignments=(*extra, *(f"{field}={value}" for field, value in fields.items())),
        )
        for cell in cells(grid, {task: part}):
            value = bench.run(cell)["score"]["value"]
            yield {"task": task, "method": name, "epsilon": cell.epsilon, **fields, "accuracy": round(value, 4)}


def main() -> None:
    """Measure, print, and write benchmarks/results/baseline_rates_WHICH.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tasks", default="subj,mr")
    parser.add_argument("--which", default="first-order", choices=("first-order", "one-direction", "lora"))
    parser.add_argument("--epsilons", default="0.5,2,6")
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    rows = []
    for task in given.tasks.split(","):
        levels = [float(level) for level in given.epsilons.split(",")]
        for row in measure(task, given.data_dir, given.which, levels, given.set):
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    write_results(
        f"baseline_rates_{given.which.replace('-', '_')}",
        rows,
        "development accuracy; one run a cell",
        "baseline_rates",
    )
    print("| method | set | " + " | ".join(f"ε = {e}" for e in given.epsilons.split(",")) + " | mean |")
    for method, varied in dict.fromkeys((row["method"], _varied(row)) for row in rows):
        own = [row for row in rows if row["method"] == method and _varied(row) == varied]
        by_level: dict[Any, list[float]] = {}
        for row in own:
            by_level.setdefault(row["epsilon"], []).append(row["accuracy"])
        means = [100 * math.fsum(found) / len(found) for found in by_level.values()]
        print(f"| {method} | {varied} | {' | '.join(f'{m:.1f}' for m in means)} | {sum(means) / len(means):.1f} |")


def _varied(row: dict[str, Any]) -> str:
    return ", ".join(f"{name.partition('.')[2]} {value:g}" for name, value in row.items() if "." in name)


if __name__ == "__main__":
    main()
