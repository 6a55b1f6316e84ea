"""Central or forward slopes, independent or orthogonal directions: what an evaluation buys, and what training gets.

    python -m benchmarks.estimators [--data-dir GLUE_FOLDER] [--quick] [--json]

Estimates: logistic losses in fp32 of unit-length made-up records; the error of a batch's mean slope times direction
against its exact gradient. Training: private runs on made-up records of the same kind, and, with --data-dir, of a
linear head on MiniLM's features for SST-2; the same noise, steps, clip per direction and rate in every row of a block.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.results_file import write_results
from dpzo.cli.demo import demo_model
from dpzo.config.reading import parse_config
from dpzo.config.solve import solve_plan
from dpzo.run import loop as train
from dpzo.run.build import RunFacts, resolve_num_examples, start
from dpzo.run.header import journal_header
from dpzo.run.scoring import judge
from dpzo.run.subject import objective, task_of
from dpzo.zo import (
    ESTIMATORS,
    SCHEDULES,
    DirectionScheme,
    Objective,
    Sgd,
    TailAverage,
    TrainableParameters,
    public_normal,
)

Row = dict[str, Any]
Grid = dict[float, tuple[int, ...]]
WAYS = [(estimator, kind) for estimator in ("central", "forward") for kind in ("rademacher", "orthogonal")]


@dataclass
class Logistic:
    """log(1 + exp(−y·(x·w))) in fp32 of records with ‖x‖ = 1 and labels from a noisy line, all public."""

    module: nn.Linear
    x: torch.Tensor
    y: torch.Tensor
    _kept: tuple[bytes, torch.Tensor, torch.Tensor] | None = None

    def losses(self, units: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        if self._kept is None or self._kept[0] != units.tobytes():  # a step asks 2K times for the same batch
            self._kept = (units.tobytes(), self.x[units], self.y[units])
        margin = self._kept[2] * self.module(self._kept[1])[:, 0]
        return np.asarray(nn.functional.softplus(-margin).numpy())

    def gradient(self, units: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of the mean loss, in float64."""
        x, y = self.x[units].double(), self.y[units].double()
        pull = -y * torch.sigmoid(-y * (x @ self.module.weight[0].double()))
        return np.asarray((pull.unsqueeze(1) * x).mean(dim=0).numpy())

    def accuracy(self) -> float:
        """On its own records."""
        return float((self.y * self.module(self.x)[:, 0] > 0).double().mean())


def logistic(dimension: int, count: int, part: str, module: nn.Linear | None = None) -> Logistic:
    """`count` records of one part (train, test) of the same made-up task."""
    if module is None:
        module = nn.utils.skip_init(nn.Linear, dimension, 1, bias=False)
        with torch.no_grad():
            module.weight.zero_()
    truth = public_normal(1, f"truth/{dimension}", dimension, 1.0)
    x = public_normal(2, f"{part}/{dimension}", count * dimension, 1.0).view(count, dimension)
    x = x / x.norm(dim=1, keepdim=True)
    score = math.sqrt(dimension) * (x @ truth) / truth.norm() + public_normal(3, f"{part}/{dimension}", count, 0.5)
    return Logistic(module, x, torch.where(score > 0, 1.0, -1.0))


def estimate_rows(quick: bool) -> Iterator[Row]:
    """Relative mean squared error of ĝ = (1/K)·Σ_k (mean_i d_ik)·z_k for 64 records, at θ = 0."""
    repeats = 30 if quick else 100
    units = np.arange(64)
    for dimension in (64, 1024):
        problem = logistic(dimension, 64, "train")
        parameters = TrainableParameters(problem.module, ["weight"])
        gradient = problem.gradient(units)
        size = float((gradient**2).sum())
        curvature = 0.25  # tr H of each record: p(1 − p)·‖x‖², p = 1/2
        for smoothing in (1e-6, 1e-2, 1.0, 4.0):
            for count in (1, 4, 16, 64):
                for estimator, kind in WAYS:
                    if count == 1 and kind == "orthogonal":
                        continue  # a single one is a Rademacher direction
                    scheme = DirectionScheme(kind, 5, count, parameters.sizes)
                    errors = np.empty(repeats)
                    for step in range(repeats):
                        at = scheme.at(step)
                        slopes = ESTIMATORS[estimator](problem, parameters, units, at, smoothing).mean(axis=0)
                        found = torch.empty(dimension)
                        at.combine(0, [float(s) / count for s in slopes], found)
                        errors[step] = ((found.double().numpy() - gradient) ** 2).sum() / size
                    calls = 2 * count if estimator == "central" else count + 1
                    yield {
                        "block": "estimate",
                        "dimension": dimension,
                        "smoothing": smoothing,
                        "offset_ratio": smoothing * curvature / 2 / math.sqrt(size),
                        "num_directions": count,
                        "estimator": estimator,
                        "kind": kind,
                        "evaluations": calls,
                        "relative_error": float(errors.mean()),
                        "standard_error": float(errors.std(ddof=1) / math.sqrt(repeats)),
                        "error_times_evaluations_over_d": float(errors.mean()) * calls / dimension,
                    }


def settings(counts: tuple[int, ...]) -> Iterator[tuple[str, str, int]]:
    """(estimator, kind, K): central at K, and forward at K and at the same number of evaluations as central."""
    for count in counts:
        for estimator, kind in WAYS:
            for used in (count,) if estimator == "central" else (count, 2 * count - 1):
                yield estimator, kind, used


def training_rows(
    block: str, job: train.Job, data: Objective, num_units: int, measure: Callable[[], Row], grid: Grid, seeds: int
) -> Iterator[Row]:
    """Private runs of one job for each φ, K and way of estimating: `seeds` each, with own noise and directions."""
    start, clip = job.parameters.state(), job.plan.clip_norm / math.sqrt(job.plan.num_directions)
    for smoothing, counts in grid.items():
        for estimator, kind, count in settings(counts):
            if kind == "orthogonal" and count > 1 << (job.parameters.dimension - 1).bit_length():
                continue
            plan = replace(job.plan, num_directions=count, clip_norm=clip * math.sqrt(count))
            found: list[Row] = []
            for seed in range(seeds):
                job.parameters.load(start)
                run = replace(
                    job,
                    plan=plan,
                    scheme=DirectionScheme(kind, seed, count, job.parameters.sizes),
                    smoothing=smoothing,
                    estimator=ESTIMATORS[estimator],
                    header=journal_header(plan, True, {}),
                )
                with tempfile.TemporaryDirectory() as folder:
                    train.fit(run, data, num_units, Path(folder))
                found.append(measure())
            row: Row = {
                "block": block,
                "dimension": job.parameters.dimension,
                "epsilon": plan.epsilon,
                "steps": plan.steps,
                "smoothing": smoothing,
                "num_directions": count,
                "estimator": estimator,
                "kind": kind,
                "evaluations": 2 * count if estimator == "central" else count + 1,
            }
            for name in found[0]:
                values = np.array([one[name] for one in found])
                row[name] = float(values.mean())
                row[f"{name}_standard_error"] = float(values.std(ddof=1) / math.sqrt(seeds))
            yield row


def made_up(dimension: int, epsilon: float, quick: bool) -> Iterator[Row]:
    """A linear classifier of made-up records: N = 4000, B = 400, 100 steps."""
    data = logistic(dimension, 4000, "train")
    held_out = logistic(dimension, 4000, "test", data.module)
    parameters = TrainableParameters(data.module, ["weight"])
    steps = 20 if quick else 100
    plan = solve_plan(
        num_examples=4000,
        expected_batch_size=400,
        steps=steps,
        delta=1e-5,
        epsilon=epsilon,
        clip_norm=0.5,
        num_directions=1,
    )
    update = TailAverage(Sgd(SCHEDULES["constant"](8.0, steps, 0), plan.expected_batch_size), steps, 0.5)
    job = train.Job(plan, parameters, DirectionScheme("rademacher", 0, 1, parameters.sizes), 1e-2, update, {})
    everyone = np.arange(4000)
    grid: Grid = {1e-2: (4,)} if quick else {1e-2: (4, 16, 64), 4.0: (16,)}

    def measure() -> Row:
        with torch.no_grad():
            return {"accuracy": held_out.accuracy(), "loss": float(held_out.losses(everyone).mean())}

    yield from training_rows(f"made-up, d = {dimension}", job, data, 4000, measure, grid, 2 if quick else 4)


def head(data_dir: Path, epsilon: float, quick: bool) -> Iterator[Row]:
    """MiniLM's frozen features and a linear head, SST-2, 512 records a class."""
    layout = "k-512/seed-13"
    tree = {
        "model": {"name": str(demo_model())},
        "data": {"task": "sst2", "layout": layout, "max_length": 64},
        "privacy": {"epsilon": epsilon, "delta": 1e-5, **({"steps": 20} if quick else {})},
    }
    config = parse_config(tree)
    task = task_of(config)
    records = task.load(data_dir, "train", layout)
    files = task.layout(data_dir, layout).files
    number, source = resolve_num_examples(config, task, data_dir, lambda: records.num_units)
    parts = start(config, RunFacts(number, source))
    private = objective(records, parts.subject)
    metric = judge(parts.subject, task.load(data_dir, "test" if "test" in files else "dev", layout))

    def measure() -> Row:
        return {"accuracy": metric()["value"]}

    grid: Grid = {1e-2: (4,) if quick else (16, 64)}
    yield from training_rows("head, sst2", parts.job, private, records.num_units, measure, grid, 2 if quick else 3)


def main() -> None:
    """Measure, print, and write benchmarks/results/estimators.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--epsilon", type=float, default=2.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = list(estimate_rows(given.quick))
    for dimension in (64, 1024):
        rows += made_up(dimension, given.epsilon, given.quick)
    if given.data_dir is not None:
        rows += head(given.data_dir, given.epsilon, given.quick)
    if not given.quick:
        write_results("estimators", rows, "one rate for all rows of a block, not tuned; clip_norm = 0.5·√K")
    if given.json:
        print(json.dumps(rows))
        return
    for block in dict.fromkeys(row["block"] for row in rows):
        print(f"\n## {block}\n")
        chosen = [row for row in rows if row["block"] == block]
        names = [name for name in chosen[0] if name not in ("block", "dimension", "epsilon", "steps")]
        names = names if block != "estimate" else ["dimension", *names]
        print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
        for row in chosen:
            cells = (f"{row[n]:.4g}" if isinstance(row[n], float) else str(row[n]) for n in names)
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
