"""How far slopes at a smoothing φ are from the directional derivatives: rounding of the loss below, curvature above.

    python -m benchmarks.smoothing --causal MODEL [--json]

MiniLM's head on the demo's messages after a short training, and a small causal model that completes their second half:
LoRA with its second matrix no longer zero, and all weights, with the base in fp32 and in bf16. Relative error of the
K-rows of 16 records, in L2.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.results_file import write_results
from dpzo.cli.demo import demo_model
from dpzo.config.defaults import Part
from dpzo.config.reading import parse_config
from dpzo.data.tasks import Records, demo_messages
from dpzo.experiments.baselines import train_without_privacy
from dpzo.experiments.baselines.differentiable import differentiable
from dpzo.experiments.baselines.gradients import trainable_by_autograd
from dpzo.run.build import RunFacts, RunParts, start
from dpzo.run.subject import objective
from dpzo.zo import Objective, central_difference

SMOOTHINGS = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
RECORDS = 16


def slopes(parts: RunParts, private: Objective) -> NDArray[np.float64]:
    """z_k·∇ℓ_i by autograd, shape (RECORDS, K)."""
    parameters, scheme = parts.job.parameters, parts.job.scheme
    source, rows = differentiable(private), []
    with trainable_by_autograd(parameters):
        for record in range(RECORDS):
            (part,) = source.objective.passes(np.array([record]), 1)
            gradients = torch.autograd.grad(part.losses().sum(), list(parameters), allow_unused=True)
            row = np.zeros(scheme.num_directions)
            for index, gradient in enumerate(gradients):
                if gradient is None:
                    continue
                z = torch.empty(gradient.numel())
                for k in range(scheme.num_directions):
                    scheme.at(0).fill(k, index, z)
                    row[k] += float(z.double() @ gradient.reshape(-1).double())
            rows.append(row)
    return np.array(rows)


def measure(
    part: Part, dtype: str, exact: NDArray[np.float64], parts: RunParts, private: Objective
) -> list[dict[str, Any]]:
    """Relative error of the rows at each smoothing."""
    job = parts.job
    chosen = parts.subject.config.training.smoothing
    found = []
    for smoothing in SMOOTHINGS:
        rows = central_difference(private, job.parameters, np.arange(RECORDS), job.scheme.at(0), smoothing)
        error = float(np.linalg.norm(rows - exact) / np.linalg.norm(exact))
        found.append({"part": part, "dtype": dtype, "smoothing": smoothing, "error": error, "default": chosen})
    return found


def head() -> list[dict[str, Any]]:
    """The encoder's head on the demo."""
    messages, _ = demo_messages()
    tree = {"model": {"name": str(demo_model())}, "data": {"task": "demo"}}
    config = parse_config({**tree, "privacy": {"epsilon": 8, "delta": 1e-5, "steps": 20, "num_directions": 16}})
    some = messages.subset(np.arange(256))
    parts = start(config, RunFacts(len(some), "task"))
    private = objective(some, parts.subject)
    train_without_privacy(parts.job, private, len(some), clipped=True)
    return measure("head", "float32", slopes(parts, private), parts, private)


def causal(part: Part, model: Path) -> list[dict[str, Any]]:
    """The causal model's adapters or all of its weights: in fp32, and in bf16 against the slopes of fp32."""
    messages, _ = demo_messages()
    words = [text.split() for text in messages.texts[:RECORDS]]
    fields = {"prompt": [" ".join(w[: len(w) // 2]) for w in words]}
    fields["completion"] = [" " + " ".join(w[len(w) // 2 :]) for w in words]
    found, exact = [], np.zeros((0, 0))
    for dtype in ("float32", "bfloat16"):
        config = parse_config(
            {
                "model": {"name": str(model), "trainable": part, "dtype": dtype},
                "data": {"kind": "completion", "max_length": 64, "max_answer_tokens": 32},
                "privacy": {"noise_multiplier": 1.0, "delta": 1e-5, "num_directions": 8},
            }
        )
        parts = start(config, RunFacts(1000, "declared"))
        if part == "lora":  # B starts at zero and A then has no slope
            draw = torch.Generator().manual_seed(0)
            for parameter in parts.job.parameters:
                parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=draw))
        private = objective(Records(fields=fields), parts.subject)
        exact = slopes(parts, private) if dtype == "float32" else exact
        found += measure(part, dtype, exact, parts, private)
    return found


def main() -> None:
    """Measure, print, and write benchmarks/results/smoothing.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--causal", type=Path, required=True, help="folder of a small causal model")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [*head(), *causal("lora", given.causal), *causal("full", given.causal)]
    write_results("smoothing", rows, f"relative error in L2 over {RECORDS} records")
    if given.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['part']:5s} {row['dtype']:8s} φ {row['smoothing']:7.0e} error {row['error']:.2e}")


if __name__ == "__main__":
    main()
