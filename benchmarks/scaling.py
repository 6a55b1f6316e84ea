"""How a private step's cost grows: with parameters, tokens, directions, units and steps.

    python -m benchmarks.scaling [--only parameters,tokens,directions,units,steps] [--threads 2] [--quick] [--json]

- parameters, tokens: a step of K = 1 beside two plain forwards, MeZO's style beside it (`benchmarks.step`).
- directions: LoRA steps of K directions beside 2K plain forwards of the same micro-batch.
- units: what sampling, clipping, exact noise and the release take of a step, K = 64, 1024 units expected (all where
  there are fewer): milliseconds, whatever the model.
- steps: what a run of T steps costs beside its model: calibrating the noise, an entry of the journal with its two
  fsyncs, bytes a step, and replaying an entry of a head of 800 weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results_file import write_results
from benchmarks.step import SMOOTHING, Bench, Case, measured
from dpzo.config.solve import solve_plan
from dpzo.privacy import PrivateChannel
from dpzo.run.header import journal_header
from dpzo.run.journal import JOURNAL, Journal
from dpzo.zo import SCHEDULES, DirectionScheme, Sgd, TrainableParameters, central_difference

METHODS = ("plain", "ours", "mezo")
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "scaling.svg"


def parameters(quick: bool, threads: int) -> list[dict[str, Any]]:
    """Full-parameter steps of 8×64 tokens over OPT layers of one width."""
    layers = (1, 4) if quick else (1, 2, 4, 8, 12)
    rows = []
    for count in layers:
        name = f"opt {count} layers"
        case = Case("opt-tiny" if quick else "opt-125m", None, 8, 64, layers=count)
        rows.append(_step_row("parameters", name, case, quick, threads))
    return rows


def tokens(quick: bool, threads: int) -> list[dict[str, Any]]:
    """Full-parameter steps of one model on ever more tokens."""
    batches = ((1, 16), (8, 64)) if quick else ((1, 16), (2, 32), (4, 64), (8, 64), (8, 128))
    shape = "opt-tiny" if quick else "opt-125m"
    return [_step_row("tokens", f"{m}×{n}", Case(shape, None, m, n), quick, threads) for m, n in batches]


def _step_row(axis: str, name: str, case: Case, quick: bool, threads: int) -> dict[str, Any]:
    peaks = () if quick else ("plain", "ours")
    row = measured(f"{axis}: {name}", case, threads=threads, repeats=3 if quick else 5, methods=METHODS, peaks=peaks)
    return {"axis": axis, "x": row["trainable"] if axis == "parameters" else case.records * case.length, **row}


def directions(quick: bool, threads: int) -> list[dict[str, Any]]:
    """LoRA (r = 8, all layers) steps of K directions beside 2K plain forwards."""
    torch.set_num_threads(threads)
    case = Case("bert-tiny" if quick else "minilm", "all", 16, 64)
    rows = []
    for count in (1, 4) if quick else (1, 4, 16, 64):
        bench = Bench(case, "rademacher", 4)
        scheme = DirectionScheme("rademacher", 0, count, bench.parameters.sizes)
        plan = solve_plan(
            num_examples=case.records,
            expected_batch_size=case.records,
            steps=4,
            delta=1e-5,
            epsilon=2,
            num_directions=count,
        )
        channel, update = PrivateChannel(plan), Sgd(SCHEDULES["constant"](1e-6, 4, 0), plan.expected_batch_size)

        def step(
            at: int,
            scheme: DirectionScheme = scheme,
            channel: PrivateChannel = channel,
            update: Sgd = update,
            bench: Bench = bench,
        ) -> None:
            found = scheme.at(at)
            units = channel.draw_batch(len(bench.units))
            slopes = central_difference(bench.objective, bench.parameters, units, found, SMOOTHING)
            update.apply(bench.parameters, {}, found, channel.release(slopes).slopes(), at)

        plain, ours = [], []
        with torch.no_grad():
            for at in range(3):
                plain.append(_seconds(lambda bench=bench, count=count: [bench.plain() for _ in range(count)]))  # type: ignore[misc]
                ours.append(_seconds(lambda at=at: step(at)))  # type: ignore[misc]
        ratio = statistics.median(ours[1:]) / statistics.median(plain[1:])
        rows.append(
            {
                "axis": "directions",
                "x": count,
                "case": f"directions: K = {count}",
                "ours_s": round(statistics.median(ours[1:]), 4),
                "plain_s": round(statistics.median(plain[1:]), 4),
                "ours_ratio": round(ratio, 3),
            }
        )
    return rows


def units(quick: bool, _threads: int) -> list[dict[str, Any]]:
    """Milliseconds of one step's sampling and release."""
    rows = []
    for count in (1_000, 100_000) if quick else (1_000, 10_000, 100_000, 1_000_000):
        repeats = 20 if quick else 200
        plan = solve_plan(
            num_examples=count,
            expected_batch_size=min(1024, count),
            steps=2 * repeats,
            delta=1e-6,
            noise_multiplier=4.0,
            num_directions=64,
        )
        channel = PrivateChannel(plan)
        draw = np.random.Generator(np.random.PCG64(0))
        spent: dict[str, list[float]] = {"draw": [], "release": []}
        for _ in range(repeats):
            found: list[Any] = []
            spent["draw"].append(_seconds(lambda: found.append(channel.draw_batch(count))))  # noqa: B023
            slopes = draw.normal(size=(len(found[0]), 64))
            spent["release"].append(_seconds(lambda: channel.release(slopes)))  # noqa: B023
        medians = {name: 1000 * statistics.median(values) for name, values in spent.items()}
        rows.append(
            {
                "axis": "units",
                "x": count,
                "case": f"units: N = {count}",
                "draw_ms": round(medians["draw"], 3),
                "release_ms": round(medians["release"], 3),
                "total_ms": round(medians["draw"] + medians["release"], 3),
            }
        )
    return rows


def steps(quick: bool, _threads: int) -> list[dict[str, Any]]:
    """Calibration, journal and replay over T, K = 64."""
    rows = []
    for count in (100, 10_000) if quick else (100, 1_000, 10_000, 75_000):
        begin = time.perf_counter()
        plan = solve_plan(
            num_examples=100_000,
            expected_batch_size=1024,
            steps=count,
            delta=1e-6,
            epsilon=2,
            num_directions=64,
        )
        calibrated = time.perf_counter() - begin
        channel, timed = PrivateChannel(plan), min(count, 200)
        head = TrainableParameters(torch.nn.Linear(400, 2), ["weight"])
        scheme = DirectionScheme("rademacher", 0, 64, head.sizes)
        update = Sgd(SCHEDULES["constant"](0.1, count, 0), plan.expected_batch_size)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            journal = Journal.create(folder, journal_header(plan, True, {}))
            first = (folder / JOURNAL).stat().st_size
            appended, replayed = [], []
            for at in range(timed):
                release = _released(channel)
                appended.append(_seconds(lambda: journal.append(release)))  # noqa: B023
                slopes = release.slopes()
                replayed.append(_seconds(lambda: update.apply(head, {}, scheme.at(at), slopes, at)))  # noqa: B023
            size = ((folder / JOURNAL).stat().st_size - first) / timed
            journal.close(clean=True)
        rows.append(
            {
                "axis": "steps",
                "x": count,
                "case": f"steps: T = {count}",
                "calibration_s": round(calibrated, 3),
                "append_ms": round(1000 * statistics.median(appended), 3),
                "replay_ms": round(1000 * statistics.median(replayed), 3),
                "bytes_a_step": round(size, 1),
            }
        )
    return rows


def _released(channel: PrivateChannel) -> Any:
    batch = channel.draw_batch(channel.plan.num_examples)
    return channel.release(np.zeros((len(batch), 64)))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


AXES = {"parameters": parameters, "tokens": tokens, "directions": directions, "units": units, "steps": steps}


def draw(rows: list[dict[str, Any]]) -> None:
    """docs/figures/scaling.svg: a panel an axis."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "dpzo"
    figure, panels = pyplot.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    lines = {
        "parameters": [("ours_ratio", "dpzo"), ("mezo_ratio", "MeZO's style")],
        "tokens": [("ours_ratio", "dpzo"), ("mezo_ratio", "MeZO's style")],
        "directions": [("ours_ratio", "dpzo")],
        "units": [("total_ms", "sampling + release"), ("draw_ms", "sampling")],
    }
    labels = {
        "parameters": ("trainable parameters", "step ÷ two forwards"),
        "tokens": ("tokens a batch", "step ÷ two forwards"),
        "directions": ("directions K", "step ÷ 2K forwards"),
        "units": ("units N", "milliseconds a step"),
    }
    for panel, (axis, names) in zip(panels, lines.items(), strict=True):
        own = [row for row in rows if row["axis"] == axis]
        for field, label in names:
            panel.plot([row["x"] for row in own], [row[field] for row in own], marker="o", label=label)
        panel.set_xscale("log")
        panel.set_ylim(0, 1.1 * max(row[field] for row in own for field, _ in names))
        panel.set_xlabel(labels[axis][0])
        panel.set_ylabel(labels[axis][1])
        panel.grid(alpha=0.3)
        if axis != "units":
            panel.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
        panel.legend(frameon=False)
    figure.savefig(FIGURE, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Measure, print, write benchmarks/results/scaling.json and docs/figures/scaling.svg."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(AXES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="small shapes, under a minute, nothing written")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    load = os.getloadavg()
    rows = [row for axis in given.only.split(",") for row in AXES[axis](given.quick, given.threads)]
    if not given.quick and given.only == ",".join(AXES):
        write_results("scaling", rows, f"random weights; load at the start {load}")
        draw(rows)
    if given.json:
        print(json.dumps(rows))
        return
    for row in rows:
        shown = {name: value for name, value in row.items() if name not in ("axis", "x", "case", "threads")}
        print(f"{row['case']:<28}", "  ".join(f"{name} {value}" for name, value in shown.items()))


if __name__ == "__main__":
    main()
