"""Time to find the noise for an ε, over the number of steps, beside the peers.

    python -m benchmarks.accounting [--quick] [--json]

Each call solves for the noise multiplier of Poisson-sampled Gaussian (and Laplace) releases at one (ε, δ):

- ours: `solve_plan`, privacy-loss distributions, ε within 0.1 % of the one asked for and never above.
- rdp: dp-accounting's RDP accountant under its own `calibrate_dp_mechanism`.
- prv: Opacus's `get_noise_multiplier(accountant="prv")`, to its default tolerance of 0.01 in ε.

`ours_ratio`: our seconds over the faster peer's. `noise` is what was found: less is better at the same ε.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

from benchmarks.results_file import write_results
from dpzo.config.solve import solve_plan

EPSILON, DELTA, Q, UNITS = 2.0, 1e-5, 0.01, 100_000


def ours(steps: int, mechanism: str = "gaussian") -> float:
    """Noise multiplier by our accountant."""
    plan = solve_plan(
        num_examples=UNITS,
        expected_batch_size=Q * UNITS,
        steps=steps,
        delta=DELTA,
        epsilon=EPSILON,
        mechanism=mechanism,
    )
    return plan.noise_multiplier


def rdp(steps: int) -> float:
    """By dp-accounting's Rényi accountant."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    def event(sigma: float) -> Any:
        sampled = dp_accounting.PoissonSampledDpEvent(Q, dp_accounting.GaussianDpEvent(sigma))
        return dp_accounting.SelfComposedDpEvent(sampled, steps)

    bracket = dp_accounting.LowerEndpointAndGuess(0.3, 1.0)
    return float(dp_accounting.calibrate_dp_mechanism(RdpAccountant, event, EPSILON, DELTA, bracket, tol=1e-3))


def prv(steps: int) -> float:
    """By Opacus's PRV accountant."""
    from opacus.accountants.utils import get_noise_multiplier

    return float(
        get_noise_multiplier(target_epsilon=EPSILON, target_delta=DELTA, sample_rate=Q, steps=steps, accountant="prv")
    )


def timed(run: Callable[[], float]) -> tuple[float, float | None, str]:
    """(seconds, noise, why there is none)."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            noise: float | None = run()
        reason = ""
    except Exception as error:  # a peer's own failure is a figure of the table
        noise, reason = None, f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
    return time.perf_counter() - start, noise, reason


def main() -> None:
    """Measure, print and write benchmarks/results/accounting.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer step counts, under a minute, nothing written")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    ours(2), rdp(2)  # imports are not calibration
    rows: list[dict[str, Any]] = []
    for steps in (100, 1_000) if given.quick else (1, 10, 100, 1_000, 10_000, 75_000):
        row: dict[str, Any] = {"case": f"gaussian T = {steps}", "steps": steps}
        for name, run in (("ours", ours), ("rdp", rdp), ("prv", prv)):
            seconds, noise, reason = timed(lambda run=run, steps=steps: run(steps))  # type: ignore[misc]
            row[f"{name}_s"] = round(seconds, 3)
            row[f"{name}_noise"] = None if noise is None else round(noise, 4)
            if reason:
                row[f"{name}_failed"] = reason
        peers = [row[f"{name}_s"] for name in ("rdp", "prv") if row[f"{name}_noise"] is not None]
        row["ours_ratio"] = round(row["ours_s"] / min(peers), 3) if peers else None
        rows.append(row)
        seconds, noise, _ = timed(lambda steps=steps: ours(steps, "laplace"))  # type: ignore[misc]
        rows.append(
            {
                "case": f"laplace T = {steps}",
                "steps": steps,
                "ours_s": round(seconds, 3),
                "ours_noise": round(noise or 0, 4),
            }
        )
    if not given.quick:
        write_results("accounting", rows, f"ε = {EPSILON}, δ = {DELTA}, q = {Q}, one call each, warm imports")
    if given.json:
        print(json.dumps(rows))
        return
    print("| case | ours s | noise | rdp s | noise | prv s | noise | ours ÷ faster peer |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [f"{row.get(f'{name}_s', '–')} | {row.get(f'{name}_noise', '–')}" for name in ("ours", "rdp", "prv")]
        print(f"| {row['case']} | {' | '.join(cells)} | {row.get('ours_ratio', '–')} |")


if __name__ == "__main__":
    main()
