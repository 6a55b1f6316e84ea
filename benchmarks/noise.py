"""What another noise than Gaussian saves, over the number of steps; and whether a run's score notices.

    python -m benchmarks.noise                                  # docs/figures/noise.svg, results/noise.json
    python -m benchmarks.noise --runs --data-dir GLUE_FOLDER    # results/noise_runs.json

The first searches the best noise at each ε, q, δ and T. The second trains a head on MiniLM's features of sentence-level
SST-2 (k-512, every unit in every step, one direction), by Gaussian and by searched noise at the same ε: the same
directions for both, the default rate of each one's plan.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from benchmarks.results_file import write_results
from dpzo.noise.search import search

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "noise.svg"
FULL, SAMPLED = (1, 2, 3, 5, 7, 10, 14, 20, 30, 50, 100), (1, 10, 30, 100, 300, 1000, 3000, 10_000, 75_000)
CURVES = [  # q, δ, ε, steps, colour, dashed
    (1.0, 1e-10, 4.0, FULL, "#1b6ca8", False),
    (1.0, 1e-10, 1.0, FULL, "#2a9d8f", False),
    (1.0, 1e-10, 0.1, FULL, "#8ab17d", False),
    (1.0, 1e-5, 1.0, FULL, "#e76f51", False),
    (0.016, 1e-5, 4.0, SAMPLED, "#6a4c93", True),
    (0.016, 1e-5, 1.0, SAMPLED, "#c1121f", True),
]


def ratios() -> list[dict[str, Any]]:
    """One row a search."""
    rows = []
    for q, delta, epsilon, all_steps, _, _ in CURVES:
        for steps in all_steps:
            start = time.perf_counter()
            found = search(epsilon, delta, q, steps, keep=False)
            best = min(found.families, key=lambda name: found.families[name].ratio)
            row = {
                "sampling_prob": q,
                "delta": delta,
                "epsilon": epsilon,
                "steps": steps,
                "winner": found.winner,
                "ratio": found.families[best].ratio,
                "best": best,
                "gaussian_noise_multiplier": math.sqrt(found.families["gaussian"].variance),
                "families": {name: round(row.ratio, 5) for name, row in found.families.items()},
                "refused": dict(found.refused),
                "seconds": round(time.perf_counter() - start, 1),
            }
            rows.append(row)
            print(
                f"q {q:g} δ {delta:g} ε {epsilon:g} T {steps}: {best} {row['ratio']:.4f}, {row['seconds']} s",
                flush=True,
            )
    return rows


def draw(rows: list[dict[str, Any]]) -> str:
    """The ratio against T as SVG: T logarithmic, the ratio linear from 0 to 1."""
    left, right, top, bottom, width, height = 60, 200, 20, 360, 740, 410
    most = math.log10(75_000)

    def across(steps: float) -> float:
        return left + (width - right - left) * math.log10(steps) / most

    def up(ratio: float) -> float:
        return bottom - (bottom - top) * min(ratio, 1.0)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for decade in range(5):
        x = across(10**decade)
        parts += [
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="#ddd"/>',
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{10**decade}</text>',
        ]
    for tenth in range(0, 11, 2):
        y = up(tenth / 10)
        parts += [
            f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>',
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tenth / 10:g}</text>',
        ]
    parts += [
        f'<text x="{(left + width - right) / 2}" y="{height - 12}" text-anchor="middle">releases T</text>',
        f'<text transform="translate(16 {(top + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        "variance ÷ that of calibrated Gaussian noise</text>",
    ]
    for place, (q, delta, epsilon, _, colour, dashed) in enumerate(CURVES):
        own = [row for row in rows if (row["sampling_prob"], row["delta"], row["epsilon"]) == (q, delta, epsilon)]
        points = " ".join(f"{across(row['steps']):.1f},{up(row['ratio']):.1f}" for row in own)
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        y = top + 20 + 22 * place
        label = escape(f"ε = {epsilon:g}, δ = {delta:g}, q = {q:g}")
        parts += [
            f'<polyline points="{points}" stroke="{colour}" fill="none" stroke-width="2"{dash}/>',
            *(
                f'<circle cx="{across(r["steps"]):.1f}" cy="{up(r["ratio"]):.1f}" r="2.5" fill="{colour}"/>'
                for r in own
            ),
            f'<line x1="{width - right + 12}" x2="{width - right + 36}" y1="{y}" y2="{y}" stroke="{colour}" '
            f'stroke-width="2"{dash}/>',
            f'<text x="{width - right + 42}" y="{y + 4}" font-size="11">{label}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


RUNS = [(0.3, 1e-10, 10), (1.0, 1e-10, 3), (1.0, 1e-10, 10), (1.0, 1e-5, 20)]  # ε, δ, T


def runs(data_dir: Path, seeds: int) -> list[dict[str, Any]]:
    """Test accuracy of private heads by Gaussian and by searched noise, paired over direction seeds."""
    from dpzo.cli.demo import demo_model
    from dpzo.config.defaults import default_learning_rate
    from dpzo.config.reading import parse_config
    from dpzo.config.solve import solve_plan
    from dpzo.experiments.baselines import train_without_privacy
    from dpzo.run import loop as train
    from dpzo.run.build import RunFacts, resolve_num_examples, start
    from dpzo.run.header import journal_header
    from dpzo.run.scoring import judge
    from dpzo.run.subject import objective, task_of
    from dpzo.zo import build_update, direction_scheme
    from dpzo.zo.schedules import SCHEDULES

    layout = "k-512/seed-13"
    tree = {
        "model": {"name": str(demo_model())},
        "data": {"task": "sst2", "layout": layout, "max_length": 64},
        "privacy": {"epsilon": 1.0, "delta": 1e-5, "num_directions": 1, "steps": 20},
    }
    config = parse_config(tree)
    described = task_of(config)
    records = described.load(data_dir, "train", layout)
    number, source = resolve_num_examples(config, described, data_dir, lambda: records.num_units)
    parts = start(config, RunFacts(number, source))
    private = objective(records, parts.subject)
    held_out = "test" if "test" in described.layout(data_dir, layout).files else "dev"
    metric = judge(parts.subject, described.load(data_dir, held_out, layout))
    job, start = parts.job, parts.job.parameters.state()
    rows = []
    for epsilon, delta, steps in RUNS:
        scores: dict[str, list[float]] = {"none": [], "gaussian": [], "auto": []}
        stds, names = {}, {}
        for mechanism in scores:
            plan = solve_plan(
                num_examples=number, expected_batch_size=number, steps=steps, delta=delta, epsilon=epsilon,
                clip_norm=job.plan.clip_norm, mechanism="gaussian" if mechanism == "none" else mechanism,
            )  # fmt: skip
            stds[mechanism] = plan.noise_multiplier
            names[mechanism] = str(plan.mechanism)
            for seed in range(seeds):
                scheme = direction_scheme("rademacher", seed, 1, job.parameters)
                rate = default_learning_rate("head", scheme.effective_dimension, plan)
                update = build_update(
                    "sgd", schedule=SCHEDULES["constant"](rate, steps, 0), expected_batch_size=number, steps=steps,
                    noise_std=plan.noise_multiplier * plan.clip_norm, average=0.0,
                )  # fmt: skip
                header = {**job.header, **journal_header(plan, True, {})}
                one = replace(job, plan=plan, scheme=scheme, update=update, header=header)
                job.parameters.load(start)
                if mechanism == "none":
                    train_without_privacy(one, private, records.num_units, clipped=True)
                else:
                    with tempfile.TemporaryDirectory() as folder:
                        train.fit(one, private, records.num_units, Path(folder))
                value = metric()["value"]
                assert isinstance(value, float)
                scores[mechanism].append(value)
        gap = np.array(scores["auto"]) - np.array(scores["gaussian"])
        row = {
            "epsilon": epsilon,
            "delta": delta,
            "steps": steps,
            "num_examples": number,
            "seeds": seeds,
            "noise": names["auto"],
            "variance_ratio": (stds["auto"] / stds["gaussian"]) ** 2,
            "without_noise": float(np.mean(scores["none"])),
            "gaussian": float(np.mean(scores["gaussian"])),
            "auto": float(np.mean(scores["auto"])),
            "difference": float(gap.mean()),
            "standard_error": float(gap.std(ddof=1) / math.sqrt(seeds)),
        }
        rows.append(row)
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return rows


def main() -> None:
    """Measure, draw, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", action="store_true")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--seeds", type=int, default=60)
    given = parser.parse_args()
    if given.runs:
        if given.data_dir is None:
            parser.error("--runs needs --data-dir, the folder with the task's files")
        notes = "each run has its own ε; difference: auto − gaussian, paired by direction seed"
        write_results("noise_runs", runs(given.data_dir, given.seeds), notes, module="noise")
        return
    rows = ratios()
    write_results("noise", rows, "ratio: variance ÷ that of Gaussian noise at the same (ε, δ)")
    FIGURE.write_text(draw(rows))


if __name__ == "__main__":
    main()
