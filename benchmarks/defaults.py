"""The default η, C and average of a linear head beside a grid, on tasks that served to derive them and on others.

    python -m benchmarks.defaults --data-dir GLUE_FOLDER [--quick] [--json] [--cache FOLDER]

GLUE_FOLDER holds `lmbff_k-shot-1k-test.tar.xz`. MiniLM's features are computed once per split (kept under --cache). All
settings of a split share their batches, directions and unit noise, and slopes are taken at φ → 0, so that a grid costs
little more than a run; `library` rows hold the same default run made by dpzo itself. docs/defaults.md explains.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.results_file import write_results
from dpzo.cli.demo import demo_model
from dpzo.config.defaults import DEFAULTS, default_learning_rate
from dpzo.config.reading import parse_config
from dpzo.config.solve import solve_plan
from dpzo.data.tasks import Records, Task, find_task
from dpzo.data.tasks.layouts import frozen_map, k_shot_layouts
from dpzo.models import LoraSettings, encode_classes, load_model, seeded_initialiser
from dpzo.models.encoder import EncoderClassifier
from dpzo.models.objectives import FeatureObjective, compute_features
from dpzo.privacy import PrivacyPlan
from dpzo.run import loop as train
from dpzo.run.build import RunFacts, start

DELTA = 1e-5
EPSILONS = (0.5, 2.0, 6.0)
SPLITS = (13, 21, 42)
AVERAGES = (0.0, 0.1, 0.25, 0.5)
LENGTH = 64
WIDTHS = (16, 24, 32, 48, LENGTH)  # a record is read at the first that holds it: the same but for last bits
DERIVED_ON = ("sst2", "trec", "subj")
HELD_OUT = ("snli", "rte", "mpqa", "cr", "sst5")
OLD_SLOPE, OLD_RATE, OLD_AVERAGE = 0.5, 8.0, 0.5  # the defaults before: η = 8·min(1, √(1000/d)) whatever the noise


def _sentences(folder: str) -> Task:
    return Task(
        name=folder,
        kind="classification",
        template="{text}",
        labels=("0", "1"),
        layouts=k_shot_layouts(
            folder,
            {"train": "train.csv", "test": "test.csv"},
            fields=frozen_map(text="text"),
            num_examples={512: {"train": 880 if folder == "cr" else 1024}, 16: {"train": 32}},
            label_column="label",
            file_labels=("0", "1"),
            header=("label", "text"),
            quoted=True,
        ),
    )


OWN = {folder: _sentences(folder) for folder in ("subj", "mpqa", "cr")}


@dataclass(frozen=True)
class Split:
    """Features with a column of ones, and labels, of one training and test set; all of it public."""

    name: str
    features: Tensor
    labels: Tensor
    test_features: Tensor
    test_labels: Tensor

    @property
    def num_examples(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1

    @property
    def dimension(self) -> int:
        """d of the head."""
        return self.classes * self.features.shape[1]


@dataclass(frozen=True)
class Case:
    """Sizes of a run; `batch` None: the default one."""

    steps: int
    directions: int
    batch: float | None = None

    def expected_batch(self, split: Split) -> float:
        """q·N."""
        default = max(1, min(DEFAULTS["head"].expected_batch_size, split.num_examples // 4))
        return default if self.batch is None else self.batch


@dataclass(frozen=True)
class Setting:
    """One cell of a grid: `slope` is C/√K, `move` is η·slope."""

    epsilon: float
    slope: float
    move: float


@cache
def _encoder() -> Any:
    return load_model(
        str(demo_model()),
        "classification",
        initialiser=seeded_initialiser(0),
        labels=("a", "b"),
        trainable="head",
        lora=LoraSettings(),
        architecture="encoder",
    )


def _features(task: Task, records: Records) -> NDArray[np.float32]:
    loaded, texts, pairs = _encoder(), task.texts(records), task.pairs(records)
    read = loaded.tokenizer(list(texts)) if pairs is None else loaded.tokenizer(list(texts), list(pairs))
    width = np.array([next((w for w in WIDTHS if len(ids) < w), LENGTH) for ids in read["input_ids"]])
    result = np.zeros((len(records), loaded.module.head.in_features), dtype=np.float32)
    for length in WIDTHS:
        rows = np.flatnonzero(width == length).tolist()
        if rows:
            others = None if pairs is None else [pairs[i] for i in rows]
            encoded = encode_classes(
                loaded.tokenizer, [texts[i] for i in rows], [0] * len(rows), max_length=length, pairs=others
            )
            result[rows] = compute_features(loaded.module, encoded, 32).numpy()
    return result


def load_split(name: str, seed: int, data_dir: Path, kept: Path | None) -> Split:
    """The k = 512 split `seed` of a task, its features from `kept` where they lie there."""
    path = None if kept is None else kept / f"{name}-{seed}.npz"
    if path is not None and path.exists():
        found = dict(np.load(path))
    else:
        task, found = (OWN.get(name) or find_task(name)), {}
        for part, end in (("train", ""), ("test", "t")):
            records = task.load(data_dir, part, f"k-512/seed-{seed}")  # type: ignore[arg-type]
            found["X" + end], found["y" + end] = _features(task, records), np.asarray(records.labels)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **found)

    def extended(features: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.hstack([features, np.ones((len(features), 1), dtype=np.float32)]))

    labels, test_labels = torch.from_numpy(found["y"]), torch.from_numpy(found["yt"])
    return Split(f"{name}-{seed}", extended(found["X"]), labels, extended(found["Xt"]), test_labels)


@cache
def solved(num_examples: int, batch: float, steps: int, directions: int, epsilon: float) -> PrivacyPlan:
    """The plan at a clip_norm of √K (slope 1)."""
    return solve_plan(
        num_examples=num_examples,
        expected_batch_size=batch,
        steps=steps,
        delta=DELTA,
        epsilon=epsilon,
        clip_norm=math.sqrt(directions),
        num_directions=directions,
    )


def plan_of(split: Split, case: Case, epsilon: float) -> PrivacyPlan:
    """The plan of a case on a split, at slope 1."""
    return solved(split.num_examples, case.expected_batch(split), case.steps, case.directions, epsilon)


def default_setting(split: Split, case: Case, epsilon: float) -> Setting:
    """What `dpzo.config.defaults` chooses."""
    plan = plan_of(split, case, epsilon)
    slope = DEFAULTS["head"].slope
    plan = replace(plan, clip_norm=slope * plan.clip_norm)
    return Setting(epsilon, slope, default_learning_rate("head", split.dimension, plan) * slope)


def old_setting(split: Split, epsilon: float) -> Setting:
    """What it chose before, at its T and K."""
    return Setting(epsilon, OLD_SLOPE, OLD_SLOPE * OLD_RATE * min(1.0, math.sqrt(1000 / split.dimension)))


def grid(epsilon: float, case: Case, *, coarse: bool) -> list[Setting]:
    """Rates (times 200/T, so that η·T spans one range) by clips; every cell is read off at all AVERAGES."""
    slopes = (0.25, 0.5) if coarse else (0.25, 0.5, 1.0)
    moves = [2.0**power for power in range(-2, 5)] if coarse else [2.0 ** (half / 2) for half in range(-4, 10)]
    return [Setting(epsilon, slope, move * 200 / case.steps) for slope in slopes for move in moves]


def run_settings(split: Split, case: Case, settings: Sequence[Setting], seed: int) -> NDArray[np.float64]:
    """Test accuracy of every setting at every average, shape (settings, AVERAGES); one draw of chance for all."""
    batch, count, classes = case.expected_batch(split), case.directions, split.classes
    width = split.features.shape[1]
    draw = torch.Generator().manual_seed(seed)
    clip = torch.tensor([s.slope * math.sqrt(count) for s in settings])
    noise_std = clip * torch.tensor([plan_of(split, case, s.epsilon).noise_multiplier for s in settings])
    rate = torch.tensor([s.move / s.slope for s in settings])
    weights = torch.zeros(len(settings), width, classes)
    sums = torch.zeros(len(AVERAGES), *weights.shape)
    tails = [max(1, math.ceil(average * case.steps)) for average in AVERAGES]
    targets = torch.nn.functional.one_hot(split.labels, classes).float()
    for step in range(case.steps):
        units = torch.nonzero(torch.rand(split.num_examples, generator=draw) < batch / split.num_examples)[:, 0]
        z = torch.randint(0, 2, (width, classes * count), generator=draw, dtype=torch.int8).float() * 2 - 1
        unit_noise = torch.randn(count, generator=draw)
        seen = split.features[units]
        shown = (seen @ z).view(-1, classes, count)
        flat = weights.transpose(0, 1).reshape(width, -1)
        errors = torch.softmax((seen @ flat).view(len(units), len(settings), classes), -1) - targets[units][:, None]
        # A unit's row is errors · shown; its length needs only the classes' inner products, and the sum no row at all.
        squares = (torch.bmm(errors, torch.bmm(shown, shown.mT)) * errors).sum(-1)
        bounded = errors * torch.clamp(clip / squares.clamp(min=1e-24).sqrt(), max=1.0)[..., None]
        total = bounded.transpose(0, 1).reshape(len(settings), -1) @ shown.reshape(-1, count)
        released = total + noise_std[:, None] * unit_noise
        moved = (released @ z.view(width * classes, count).T).view_as(weights)
        weights -= (rate / (count * batch))[:, None, None] * moved
        for place, tail in enumerate(tails):
            if step >= case.steps - tail:
                sums[place] += weights
    found = []
    for summed, tail in zip(sums, tails, strict=True):
        predicted = torch.einsum("bd,sdm->sbm", split.test_features, summed / tail).argmax(-1)
        found.append((predicted == split.test_labels).double().mean(1).numpy())
    return np.stack(found, axis=1)


@dataclass(frozen=True)
class Measured:
    """Accuracies of one (split, seed) at one ε: of the default, of the earlier default, of every grid cell."""

    split: str
    default: float
    old: float
    cells: NDArray[np.float64]


def measure(split: Split, case: Case, seed: int, *, coarse: bool) -> dict[float, Measured]:
    """All ε at once."""
    average = AVERAGES.index(DEFAULTS["head"].average)
    cells = [setting for epsilon in EPSILONS for setting in grid(epsilon, case, coarse=coarse)]
    chosen = [default_setting(split, case, epsilon) for epsilon in EPSILONS]
    earlier = [old_setting(split, epsilon) for epsilon in EPSILONS]
    found = run_settings(split, case, [*cells, *chosen, *earlier], seed)
    size = len(cells) // len(EPSILONS)
    result = {}
    for place, epsilon in enumerate(EPSILONS):
        default = float(found[len(cells) + place, average])
        old = float(found[len(cells) + len(EPSILONS) + place, AVERAGES.index(OLD_AVERAGE)])
        part = found[place * size : (place + 1) * size].reshape(-1)
        result[epsilon] = Measured(split.name, default, old, part)
    return result


def compare(runs: Sequence[Measured]) -> dict[str, Any]:
    """Means in points; `loss` to the cell that is best on these very runs, `fair_loss` to the one best on others.

    Standard errors are of the paired differences, over splits and seeds.
    """
    cells = 100 * np.stack([run.cells for run in runs])
    default = 100 * np.array([run.default for run in runs])
    splits = np.array([run.split for run in runs])
    best = cells[:, cells.mean(0).argmax()]
    row = {
        "runs": len(runs),
        "default": float(default.mean()),
        "old": float(100 * np.mean([run.old for run in runs])),
        "best": float(best.mean()),
        "loss": float((best - default).mean()),
        "loss_se": _standard_error(best - default),
    }
    if len(set(splits)) > 1:
        elsewhere = np.array([cells[i, cells[splits != splits[i]].mean(0).argmax()] for i in range(len(runs))])
        row["fair_loss"] = float((elsewhere - default).mean())
        row["fair_loss_se"] = _standard_error(elsewhere - default)
    return row


def _standard_error(values: NDArray[np.float64]) -> float | None:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def by_library(name: str, split: Split, epsilon: float, runs: int) -> dict[str, Any]:
    """The default configuration run by dpzo itself on kept features; runs differ by secret noise and batches alone."""
    tree = {
        "model": {"name": str(demo_model())},
        "data": {"task": name, "max_length": 16},  # nothing is read: the length is that of the isolation check
        "privacy": {"epsilon": epsilon, "delta": DELTA},
    }
    parts = start(parse_config(tree), RunFacts(split.num_examples, "declared"))
    module, block = parts.subject.loaded.module, parts.subject.shapes.head_block
    assert isinstance(module, EncoderClassifier)
    assert block is not None

    def seen(features: Tensor, labels: Tensor) -> FeatureObjective:
        return FeatureObjective(module, features[:, :-1], labels.numpy(), np.zeros(len(labels), dtype=np.bool_), block)

    private, test = seen(split.features, split.labels), seen(split.test_features, split.test_labels)
    initial, found = parts.job.parameters.state(), []
    for _ in range(runs):
        parts.job.parameters.load(initial)
        with tempfile.TemporaryDirectory() as folder:
            train.fit(parts.job, private, split.num_examples, Path(folder))
        right = test.predict(np.arange(len(split.test_labels))) == split.test_labels.numpy()
        found.append(100 * float(right.mean()))
    values = np.array(found)
    return {"default": float(values.mean()), "default_se": _standard_error(values), "runs": runs}


def main() -> None:
    """Measure, print, and write benchmarks/results/defaults.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tasks", default=",".join(DERIVED_ON + HELD_OUT))
    parser.add_argument("--seeds", type=int, default=2, help="draws of batches, directions and noise for each split")
    parser.add_argument("--cache", type=Path, help="folder that keeps features")
    parser.add_argument("--quick", action="store_true", help="one split, one seed, default sizes; nothing written")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    main_case = Case(DEFAULTS["head"].steps, DEFAULTS["head"].num_directions)
    equal_cost = (Case(100, 128), Case(400, 32))
    others = (Case(50, 64), Case(800, 64), Case(200, 16), Case(1000, 1), Case(200, 64, 64.0))
    for name in given.tasks.split(","):
        splits = [load_split(name, seed, given.data_dir, given.cache) for seed in SPLITS[: 1 if given.quick else None]]

        def measured(case: Case, seeds: int, coarse: bool, splits: list[Split] = splits) -> list[dict[float, Measured]]:
            return [
                measure(split, case, 100 * place + seed, coarse=coarse)  # no two runs share their chance
                for place, split in enumerate(splits)
                for seed in range(seeds)
            ]

        def add(what: str, case: Case, runs: list[dict[float, Measured]], name: str = name) -> None:
            for epsilon in EPSILONS:
                sizes = {"steps": case.steps, "directions": case.directions, "batch": case.batch}
                row = {"task": name, "what": what, "epsilon": epsilon, **sizes}
                rows.append({**row, **compare([run[epsilon] for run in runs])})
                _show(rows[-1], given.json)

        standard = measured(main_case, 1 if given.quick else given.seeds, coarse=False)
        add("grid", main_case, standard)
        if given.quick:
            continue
        joined = list(standard)
        for case in equal_cost:
            more = measured(case, given.seeds, coarse=True)
            joined = [
                {e: replace(a[e], cells=np.concatenate([a[e].cells, b[e].cells])) for e in EPSILONS}
                for a, b in zip(joined, more, strict=True)
            ]
        add("grid with steps at equal cost", main_case, joined)
        if name in ("sst2", "trec", "mpqa"):
            for case in others:
                add("other sizes", case, measured(case, 1, coarse=True))
            if name != "mpqa":
                same = 100 * float(np.mean([run[2.0].default for run in standard[: given.seeds]]))
                row = {"task": name, "what": "library, first split", "epsilon": 2.0, "simulated": same}
                rows.append({**row, **by_library(name, splits[0], 2.0, 3)})
                _show(rows[-1], given.json)
    if not given.quick:
        write_results("defaults", rows, f"derived on {', '.join(DERIVED_ON)}; the other tasks are held out")
    if given.json:
        print(json.dumps(rows))


def _show(row: dict[str, Any], quiet: bool) -> None:
    if not quiet:
        kept = {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}
        print(" ".join(f"{key}={value}" for key, value in kept.items()), flush=True)


if __name__ == "__main__":
    main()
