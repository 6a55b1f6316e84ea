"""Private error against dimension: DPZero beside DPGD-0th on quadratics of effective rank d, about 2√d, about ln d.

F is the mean of ½(θ − c_i)ᵀA(θ − c_i) over n units with c_i ~ N(1, I), from θ = 0; ε = 2, δ = 1e-6, every unit in every
step, neighbours by replacement, noise solved exactly. Steps, step size and clip are tuned for each method, dimension
and spectrum on the result itself (the data are made up; tuning on private data would have to be paid for), then the
best setting is run again with fresh noise, which gives mean and standard error. The same steps without clip and noise
are run beside it: the difference is what privacy costs, the rest is what T steps leave undone in d dimensions.

A central difference of a quadratic is its slope exactly (tests/zo), so slopes are computed in closed form, for all
steps in one matrix product; directions, clip, noise and updates are the library's own.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.log_log import Line, draw
from benchmarks.results_file import write_results
from dpzo.config.solve import solve_plan
from dpzo.experiments.baselines.noise import add_noise
from dpzo.experiments.baselines.vector_noise import clipped
from dpzo.experiments.recipes import theory
from dpzo.privacy import NeighboringRelation, PrivacyPlan, PrivateChannel, SecretRandom
from dpzo.zo import SCHEDULES, DirectionScheme, Sgd, TrainableParameters

EPSILON, DELTA = 2.0, 1e-6
POWERS = {"identity": 0.0, "1/sqrt(i)": 0.5, "1/i": 1.0}
METHODS = ("dpzero", "dpgd-0th")
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "dimension.svg"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Size:
    """How large a measurement is. Step sizes and clips are multiples of what theory suggests; see `settings`."""

    units: int
    dimensions: tuple[int, ...]
    steps: tuple[int, ...]
    rates: tuple[float, ...]
    clips: tuple[float, ...]
    repeats: int


WHOLE = Size(10_000, (20, 60, 200, 600, 2000), (40, 160, 640, 2560), (1.0, 4.0), (0.25, 1.0), 3)
QUICK = Size(2_000, (20, 100, 500), (40, 160, 640), (1.0, 4.0), (0.25, 1.0), 3)


class Problem:
    """One spectrum at one dimension: the data, and the slopes of all units along the directions of every step."""

    def __init__(self, spectrum: str, dimension: int, size: Size, seed: int) -> None:
        self.dimension, self.units = dimension, size.units
        self.curvature = np.arange(1.0, dimension + 1) ** -POWERS[spectrum]
        self.rank = theory.effective_rank(self.curvature)
        draw = np.random.default_rng([seed, dimension])
        centres = draw.standard_normal((size.units, dimension), dtype=np.float32) + np.float32(1)
        self.mean = centres.mean(axis=0, dtype=np.float64)
        self.scheme = DirectionScheme("sphere", seed, 1, (dimension,))
        self.directions = np.empty((max(size.steps), dimension))
        buffer = torch.empty(dimension)
        for step in range(len(self.directions)):
            self.scheme.at(step).fill(0, 0, buffer)
            self.directions[step] = buffer.numpy()
        # u·A(θ − c_i) = u·Aθ − (Au)·c_i; the second part does not know θ
        along = (self.directions * self.curvature).astype(np.float32)
        self.pulls = (centres @ along.T).T.astype(np.float64)
        # ‖∇f_i‖ at the start: E‖A c_i‖² = 2·Σλ²
        self.slope_scale = math.sqrt(2.0 * float((self.curvature**2).sum()))

    def slopes(self, theta: Array, step: int) -> Array:
        """(n,) slopes of every unit along direction `step`."""
        return float((self.directions[step] * self.curvature) @ theta) - self.pulls[step]

    def error(self, theta: Array) -> tuple[float, float]:
        """(‖∇F‖², F − F*) at θ."""
        away = theta - self.mean
        return float(((self.curvature * away) ** 2).sum()), 0.5 * float((self.curvature * away**2).sum())


def plan_of(problem: Problem, steps: int, clip: float) -> PrivacyPlan:
    """The full-batch, replace-one plan at ε = 2: the least noise that exact accounting allows."""
    return solve_plan(
        num_examples=problem.units,
        expected_batch_size=problem.units,
        steps=steps,
        delta=DELTA,
        epsilon=EPSILON,
        clip_norm=clip,
        relation=NeighboringRelation.REPLACE_ONE,
    )


def run(method: str, problem: Problem, steps: int, rate: float, clip: float) -> tuple[float, float]:
    """(‖∇F‖², F − F*) after a private run. `clip` bounds a slope; DPGD-0th clips vectors √d times as long."""
    plan = plan_of(problem, steps, clip)
    module = torch.nn.utils.skip_init(torch.nn.Linear, problem.dimension, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    parameters = TrainableParameters(module, ["weight"])
    flat = parameters.flat(0)
    move = (
        scalar_noise(problem, plan, parameters, rate) if method == "dpzero" else vector_noise(problem, plan, flat, rate)
    )
    with np.errstate(over="ignore", invalid="ignore"), torch.no_grad():
        for step in range(steps):
            move(problem.slopes(flat.double().numpy(), step), step)
        found = problem.error(flat.double().numpy())
    return tuple(value if math.isfinite(value) else math.inf for value in found)  # type: ignore[return-value]


def without_privacy(problem: Problem, steps: int, rate: float) -> float:
    """‖∇F‖² after the same steps along the same directions, with neither clip nor noise: what optimisation leaves."""
    theta = np.zeros(problem.dimension)
    for u in problem.directions[:steps]:
        theta -= rate * float((u * problem.curvature) @ (theta - problem.mean)) * u
    return problem.error(theta)[0]


def scalar_noise(
    problem: Problem, plan: PrivacyPlan, parameters: TrainableParameters, rate: float
) -> Callable[[Array, int], None]:
    """DPZero's step: the channel's release, then SGD along the direction."""
    channel = PrivateChannel(plan)
    update = Sgd(SCHEDULES["constant"](rate, plan.steps, 0), plan.expected_batch_size)

    def move(slopes: Array, step: int) -> None:
        channel.draw_batch(problem.units)
        values = channel.release(slopes[:, None]).slopes()
        update.apply(parameters, {}, problem.scheme.at(step), values, step)

    return move


def vector_noise(problem: Problem, plan: PrivacyPlan, flat: torch.Tensor, rate: float) -> Callable[[Array, int], None]:
    """DPGD-0th's step, as `VectorNoise` of the baselines takes it: noise of √d·σC on every coordinate of the sum."""
    secret = SecretRandom()
    std = plan.noise_scale * math.sqrt(problem.dimension)

    def move(slopes: Array, step: int) -> None:
        total = float(clipped(slopes, plan.clip_norm).sum())
        moved = torch.from_numpy((total * problem.directions[step]).astype(np.float32))
        add_noise(moved, std, secret)
        flat.add_(moved, alpha=-rate / plan.expected_batch_size)

    return move


def settings(problem: Problem, size: Size, method: str) -> list[tuple[int, float, float]]:
    """(steps, step size, slope clip) to try: rates around theorem 3's 1/(4ℓ(r + 2)), clips around ‖∇f_i(0)‖.

    Four times the theorem's rate is half of what diverges. DPGD-0th also gets an eighth of each, as noise of √d times
    the length wants smaller steps.
    """
    base = 1.0 / (4.0 * (problem.rank + 2.0))
    shrink = (1.0,) if method == "dpzero" else (1.0, 1 / 8)
    rates = [base * rate * part for rate, part in product(size.rates, shrink)]
    return [(steps, rate, clip * problem.slope_scale) for steps, rate, clip in product(size.steps, rates, size.clips)]


def measure(spectrum: str, dimension: int, size: Size) -> list[dict[str, Any]]:
    """One row a method: the best setting of its grid, run again."""
    problem = Problem(spectrum, dimension, size, seed=1)
    start = problem.error(np.zeros(dimension))
    rows = []
    for method in METHODS:
        tried = [(run(method, problem, *given), given) for given in settings(problem, size, method)]
        _, (steps, rate, clip) = min(tried, key=lambda pair: pair[0][0])
        again = np.array([run(method, problem, steps, rate, clip) for _ in range(size.repeats)])
        mean, error = again.mean(axis=0), again.std(axis=0, ddof=1) / math.sqrt(size.repeats)
        rows.append(
            {
                "method": method,
                "spectrum": spectrum,
                "dimension": dimension,
                "effective_rank": round(problem.rank, 3),
                "squared_gradient": float(mean[0]),
                "standard_error": float(error[0]),
                "without_privacy": without_privacy(problem, steps, rate),
                "excess_loss": float(mean[1]),
                "start": {"squared_gradient": start[0], "excess_loss": start[1]},
                "steps": steps,
                "learning_rate": rate,
                "slope_clip": clip,
                "noise_multiplier": plan_of(problem, steps, clip).noise_multiplier,
                "settings_tried": len(tried),
            }
        )
    return rows


def cost(row: dict[str, Any]) -> float:
    """What privacy costs: ‖∇F‖² beyond what the same steps leave without it. At least one standard error."""
    return max(float(row["squared_gradient"] - row["without_privacy"]), float(row["standard_error"]))


def growth(rows: list[dict[str, Any]], method: str, spectrum: str) -> float:
    """How many times as large the cost is at the largest dimension as at the one ten times smaller (or nearest)."""
    chosen = {r["dimension"]: cost(r) for r in rows if (r["method"], r["spectrum"]) == (method, spectrum)}
    largest = max(chosen)
    before = min(chosen, key=lambda d: abs(math.log(d * 10 / largest)))
    return float(chosen[largest] / chosen[before])


def figure(rows: list[dict[str, Any]]) -> str:
    """The SVG: the cost of privacy in ‖∇F‖² against d, a colour a spectrum, DPZero solid and DPGD-0th dashed."""
    colours = dict(zip(POWERS, ("#b03030", "#c08a10", "#2060a0"), strict=True))
    lines = [
        Line(
            f"{'DPZero' if method == 'dpzero' else 'DPGD-0th'}, {spectrum}",
            [
                (r["dimension"], cost(r), r["standard_error"])
                for r in rows
                if r["spectrum"] == spectrum and r["method"] == method
            ],
            colours[spectrum],
            dashed=method != "dpzero",
        )
        for spectrum in POWERS
        for method in METHODS
    ]
    return draw(lines, x="dimension d", y="squared gradient norm that privacy costs")


def main() -> None:
    """Measure, print, write benchmarks/results/dimension.json and the figure; --quick prints only."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer units, steps and dimensions; nothing is written")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    size = QUICK if given.quick else WHOLE
    torch.set_num_threads(1)
    start = process_time()
    rows = [row for spectrum in POWERS for d in size.dimensions for row in measure(spectrum, d, size)]
    seconds = process_time() - start
    if not given.quick:
        notes = (
            f"n = {size.units}, ε = {EPSILON:g}, δ = {DELTA:g}, {size.repeats} runs each; {seconds:.0f} s of one core"
        )
        write_results("dimension", rows, notes)
        FIGURE.parent.mkdir(exist_ok=True)
        FIGURE.write_text(figure(rows))
    if given.json:
        print(json.dumps(rows))
        return
    print("| spectrum | d | r | start | DPZero | its cost of privacy | DPGD-0th | its cost |\n" + "|---" * 8 + "|")
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        shown = [f"{r['squared_gradient']:.3g} ± {r['standard_error']:.1g} | {cost(r):.2g}" for r in (ours, theirs)]
        print(
            f"| {ours['spectrum']} | {ours['dimension']} | {ours['effective_rank']:.1f} "
            f"| {ours['start']['squared_gradient']:.3g} | {shown[0]} | {shown[1]} |"
        )
    for spectrum, method in product(POWERS, METHODS):
        factor = growth(rows, method, spectrum)
        print(f"{spectrum}, {method}: cost of privacy × {factor:.2g} over the last decade of d")
    print(f"{seconds:.0f} s of one core")


if __name__ == "__main__":
    main()
