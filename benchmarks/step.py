"""What a private step costs beside two plain forward passes, and beside other ways of stepping.

    python -m benchmarks.step [--cases NAME,…] [--threads 2] [--repeats 7] [--processes 3] [--directions-kind gaussian]
                             [--quick] [--json]

Same module object, records, trainable part, micro-batch and threads for all; interleaved in one run, medians of the
repeats, ratios to two plain forwards of the same micro-batch with the same logits. Ratios move by some percent from
process to process (docs/log.md), so the repeats of several processes are put together.

- ours: Poisson draw, K = 1 central difference beside the weights, exact noise, update. Two evaluations.
- mezo: the same loss in the style of MeZO: +φz, −2φz, +φz in place with `torch.normal` from a re-seeded generator,
  then −ηsz. Four passes of random numbers, no privacy.
- hooks, ghost: DP-SGD's clipped gradient sum by Opacus, as `dpzo.experiments.baselines` calls it, and a plain SGD
  step; where Opacus refuses, the reason stands in the row.

`peak_mib`: what the process held at most above the loaded model (VmHWM reset after loading), in a child process each.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results_file import write_results
from benchmarks.shapes import SHAPES, made, objective_of
from dpzo.config.solve import solve_plan
from dpzo.errors import DpzoError
from dpzo.models.quiet import silent_libraries
from dpzo.privacy import PrivateChannel
from dpzo.zo import SCHEDULES, DirectionScheme, Sgd, TrainableParameters, central_difference

SMOOTHING = 1e-3
RATE = 1e-6
METHODS = ("plain", "ours", "mezo", "hooks", "ghost")


@dataclass(frozen=True)
class Case:
    """A shape, what learns of it, and the batch."""

    shape: str
    adapted: str | None  # None: every parameter learns
    records: int
    length: int
    answer: int = 1  # scored tokens of a causal row
    layers: int | None = None  # of the shape, where not its own number
    target: float | None = None  # `ours` was asked to stay below this
    mezo: float | None = None  # the ratio found elsewhere for MeZO's style


CASES = {
    "opt-125m full 8×64": Case("opt-125m", None, 8, 64, target=1.08, mezo=2.1),
    "opt-125m full 1×16": Case("opt-125m", None, 1, 16, target=1.6, mezo=11.7),
    "opt-125m lora 8×64": Case("opt-125m", "all", 8, 64, target=1.03),
    "minilm full 16×64": Case("minilm", None, 16, 64, target=1.10, mezo=1.9),
}
QUICK = {
    "tiny opt full 8×64": Case("opt-tiny", None, 8, 64),
    "tiny bert full 16×64": Case("bert-tiny", None, 16, 64),
}


class Bench:
    """A case, loaded, with one step of every method."""

    def __init__(self, case: Case, kind: str, steps: int) -> None:
        shape = SHAPES[case.shape]
        shape = shape if case.layers is None else replace(shape, layers=case.layers)
        self.module, names = made(shape, case.adapted)
        self.objective = objective_of(shape, self.module, case.records, case.length, case.answer)
        self.parameters = TrainableParameters(self.module, names)
        self.units = np.arange(case.records, dtype=np.int64)
        plan = solve_plan(
            num_examples=case.records, expected_batch_size=case.records, steps=steps, delta=1e-5, epsilon=2
        )
        self._channel = PrivateChannel(plan)
        self._scheme = DirectionScheme(kind, 0, 1, self.parameters.sizes)
        self._update = Sgd(SCHEDULES["constant"](RATE, steps, 0), plan.expected_batch_size)
        self._step = 0

    def plain(self) -> None:
        """Two forward passes."""
        for _ in range(2):
            self.objective.losses(self.units)

    def ours(self) -> None:
        """A private zeroth-order step, as `train` takes it."""
        directions = self._scheme.at(self._step)
        batch = self._channel.draw_batch(len(self.units))
        rows = central_difference(self.objective, self.parameters, batch, directions, SMOOTHING)
        self._update.apply(self.parameters, {}, directions, self._channel.release(rows).slopes(), self._step)
        self._step += 1

    def mezo(self) -> None:
        """In place and back again, with torch's own random numbers."""
        self._perturb(SMOOTHING)
        above = self.objective.losses(self.units).mean()
        self._perturb(-2 * SMOOTHING)
        below = self.objective.losses(self.units).mean()
        self._perturb(SMOOTHING)
        self._perturb(float(-RATE * (above - below) / (2 * SMOOTHING)))

    def _perturb(self, scale: float) -> None:
        generator = torch.Generator().manual_seed(self._step)
        for parameter in self.parameters:
            z = torch.normal(0.0, 1.0, parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data.add_(z, alpha=scale)

    def hooks(self) -> None:
        """DP-SGD by Opacus's hooks."""
        self._first_order("hooks")

    def ghost(self) -> None:
        """DP-SGD by Opacus's ghost norms."""
        self._first_order("ghost")

    def _first_order(self, clipping: Any) -> None:
        from dpzo.experiments.baselines import clipped_sums
        from dpzo.experiments.baselines.differentiable import differentiable

        # Wrapped for this step alone, so that the other methods never run under Opacus's hooks.
        with clipped_sums(self.parameters, differentiable(self.objective), 1.0, clipping) as clipped:
            for parameter, whole in zip(self.parameters, clipped(self.units), strict=True):
                parameter.data.add_(whole, alpha=-RATE)


def timings(name: str, case: Case, repeats: int, kind: str, methods: Sequence[str]) -> dict[str, Any]:
    """The seconds of every repeat of every method that runs, under `seconds`, and why others do not."""
    row: dict[str, Any] = {"case": name, "threads": torch.get_num_threads(), "directions": kind}
    bench = Bench(case, kind, repeats + 2)
    row["trainable"] = bench.parameters.dimension
    seconds: dict[str, list[float]] = {}
    runs: dict[str, Callable[[], None]] = {}
    for method in methods:
        try:
            with torch.no_grad():
                getattr(bench, method)()
            runs[method] = getattr(bench, method)
            seconds[method] = []
        except (DpzoError, NotImplementedError) as error:
            row[f"{method}_refused"] = str(error).splitlines()[0]
    for _ in range(repeats):
        for method, run in runs.items():
            start = time.perf_counter()
            with torch.no_grad():
                run()
            seconds[method].append(time.perf_counter() - start)
    return row | {"seconds": seconds}


def summed_up(rows: Sequence[dict[str, Any]], target: float | None) -> dict[str, Any]:
    """One row of the medians over all processes, each ratio's range, and its median in each process."""
    row = {key: value for key, value in rows[0].items() if key != "seconds"}
    for method in rows[0]["seconds"]:
        own, plain = ([s for each in rows for s in each["seconds"][name]] for name in (method, "plain"))
        row[f"{method}_s"] = round(statistics.median(own), 4)
        if method != "plain":
            ratios = [one / two for one, two in zip(own, plain, strict=True)]
            row[f"{method}_ratio"] = round(statistics.median(own) / statistics.median(plain), 3)
            row[f"{method}_ratio_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
            medians = [[statistics.median(each["seconds"][name]) for name in (method, "plain")] for each in rows]
            row[f"{method}_ratio_by_process"] = [round(one / two, 3) for one, two in medians]
    return row if target is None else row | {"target_ratio": target}


def peak(case: Case, method: str, kind: str) -> dict[str, Any]:
    """MiB above the loaded model in two steps of one method."""
    bench = Bench(case, kind, 4)
    with torch.no_grad():
        if method == "ours":
            _load_kernels(kind)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _status("VmHWM")
        for _ in range(2):
            getattr(bench, method)()
        after = _status("VmHWM")
    largest = max(p.numel() * p.element_size() for p in bench.parameters) / 2**20
    return {"peak_mib": round(after - before, 1), "largest_layer_mib": round(largest, 1)}


def _load_kernels(kind: str) -> None:
    """Numba and the kernels' code are no memory of a step."""
    toy = TrainableParameters(torch.nn.Linear(64, 64), ["weight", "bias"])
    directions = DirectionScheme(kind, 0, 1, toy.sizes).at(0)
    directions.shift(0, 0, toy.flat(0), SMOOTHING, torch.empty(64 * 64))
    directions.shift_rows(0, 0, torch.zeros(64, 64), SMOOTHING, torch.arange(3))
    directions.step_into(0, [0.0], toy.flat(0))


def _status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 2**10


def measured(
    name: str,
    case: Case,
    *,
    threads: int = 2,
    repeats: int = 7,
    processes: int = 1,
    kind: str = "rademacher",
    methods: Sequence[str] = METHODS,
    peaks: Sequence[str] = METHODS,
) -> dict[str, Any]:
    """A case's row: times of `methods` in some children, and the peak of each of `peaks` in a child of its own."""
    common = {"case": asdict(case), "name": name, "threads": threads, "kind": kind, "repeats": repeats}
    row = summed_up([_child({**common, "methods": list(methods)}) for _ in range(processes)], case.target)
    for method in peaks:
        if f"{method}_s" in row:
            found = _child({**common, "peak": method})
            row["peak_mib" if method == "ours" else f"{method}_peak_mib"] = found["peak_mib"]
            row["largest_layer_mib"] = found["largest_layer_mib"]
    return row


def _child(asked: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.step", "--child", json.dumps(asked)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(asked["threads"])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _as_child(asked: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(asked["threads"])
    case = Case(**asked["case"])
    with silent_libraries():  # as a run does; entering it anew for every evaluation takes milliseconds
        if "peak" in asked:
            return peak(case, asked["peak"], asked["kind"])
        return timings(asked["name"], case, asked["repeats"], asked["kind"], asked["methods"])


def main() -> None:
    """Measure every case in children of their own, print, and write benchmarks/results/step.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--directions-kind", default="rademacher")
    parser.add_argument("--quick", action="store_true", help="small shapes, under a minute, nothing written")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(_as_child(json.loads(given.child))))
        return
    table = QUICK if given.quick else CASES
    load = os.getloadavg()
    rows = []
    for name in given.cases.split(",") if given.cases else list(table):
        settings: dict[str, Any] = {"threads": given.threads, "repeats": given.repeats, "kind": given.directions_kind}
        settings |= {"peaks": ("plain", "ours")} if given.quick else {"processes": given.processes}
        rows.append(measured(name, table[name], **settings))
    if not given.quick and not given.cases:
        result = "step" if given.directions_kind == "rademacher" else f"step_{given.directions_kind}"
        write_results(result, rows, f"random weights; answer logits only; load at the start {load}", "step")
    if given.json:
        print(json.dumps(rows))
        return
    print("Ratios to two plain forwards, then peak MiB above the loaded model.\n")
    print("| case | two forwards s | ours | asked | mezo | hooks | ghost | plain | ours | mezo | hooks | ghost |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        ratios = [str(row.get(f"{method}_ratio", "–")) for method in METHODS[1:]]
        ratios.insert(1, str(row.get("target_ratio", "–")))
        held = [row.get("peak_mib" if method == "ours" else f"{method}_peak_mib", "–") for method in METHODS]
        print(f"| {row['case']} | {row['plain_s']} | {' | '.join(ratios)} | {' | '.join(str(mib) for mib in held)} |")
    for row in rows:
        for method in METHODS:
            if f"{method}_refused" in row:
                print(f"{row['case']}, {method}: {row[f'{method}_refused']}")


if __name__ == "__main__":
    main()
