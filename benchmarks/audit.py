"""What an audit of the mechanism measures beside the claim: Gaussian and Laplace, sampled and not, K = 1 and 16.

    python -m benchmarks.audit [--quick] [--unsampled] [--json]   # benchmarks/results/audit.json, audit_unsampled.json

Each row solves the noise for its ε, then audits the plan as `dpzo audit` does. Clopper–Pearson with 3·10⁶ transcripts
a side for K = 1, a tenth of that for K = 16, where it draws the one coordinate that the canary touches and so repeats
the row above on a finer lattice. Rows are written as they come, so that a run that is stopped leaves what it has. Quick
results end in _quick.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

from benchmarks.results_file import write_results
from dpzo.audit import audit_mechanism
from dpzo.config.solve import solve_plan
from dpzo.privacy import NeighboringRelation, PrivacyPlan

NUM_EXAMPLES, DELTA = 1000, 1e-5
CASES = [  # ε, mechanism, q, K, T
    *[(e, m, q, 1, 1) for e in (0.5, 1.0, 4.0) for q in (1.0, 0.1) for m in ("gaussian", "laplace")],
    *[(e, m, q, 16, 1) for e in (0.5, 1.0, 4.0) for q in (1.0, 0.1) for m in ("gaussian", "laplace")],
    (4.0, "auto", 1.0, 1, 1),
    (4.0, "gaussian", 1.0, 1, 16),
    (4.0, "laplace", 0.1, 1, 16),
]
UNSAMPLED = [(e, "gaussian", 1.0, 1, 1) for e in (1.0, 4.0)]
NOTES = (
    "a row's bounds hold together with 95 % confidence, a flag is false once in a million audits; checks has no bound; "
    "three tenths of the draws choose attack and threshold, "
    "the rest are counted; f_dp (gaussian_dp: the same, exact) assumes the plan's mechanism with an unknown amount of "
    "noise, clopper_pearson assumes nothing; laplace with K = 16 is claimed by its pure or Rényi bound, which one "
    "canary cannot reach"
)


def plan_of(epsilon: float, mechanism: str, sampling_prob: float, directions: int, steps: int) -> PrivacyPlan:
    """The plan that `dpzo plan` solves."""
    return solve_plan(
        num_examples=NUM_EXAMPLES,
        expected_batch_size=sampling_prob * NUM_EXAMPLES,
        steps=steps,
        delta=DELTA,
        epsilon=epsilon,
        noise_multiplier=None,
        clip_norm=1.0,
        num_directions=directions,
        mechanism=mechanism,
        relation=NeighboringRelation.ZERO_OUT,
    )


def row(case: tuple[float, str, float, int, int], draws: int, channel_draws: int, workers: int) -> dict[str, Any]:
    """One plan, audited by both methods."""
    epsilon, mechanism, sampling_prob, directions, steps = case
    start = time.perf_counter()
    plan = plan_of(*case)
    fewer = draws if directions == 1 else draws // 10
    found = audit_mechanism(plan, draws=fewer, channel_draws=channel_draws, workers=workers)
    return {
        "epsilon": epsilon,
        "mechanism": mechanism,
        "sampling_prob": sampling_prob,
        "num_directions": directions,
        "steps": steps,
        "noise_multiplier": plan.noise_multiplier,
        "epsilon_claimed": plan.epsilon,
        **{report.method: round(report.epsilon_lower, 4) for report in found},
        "share_of_claim": round(max(report.epsilon_lower for report in found) / plan.epsilon, 3),
        "flagged": any(report.flagged for report in found),
        "reports": [report.to_dict() for report in found],
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Audit every case, write the results after each, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="A hundredth of the draws.")
    parser.add_argument("--unsampled", action="store_true", help="Gaussian noise on everyone at ε = 1 and 4 alone.")
    parser.add_argument("--json", action="store_true", help="Print the rows as JSON.")
    parser.add_argument("--draws", type=int, default=3_000_000)
    parser.add_argument("--channel-draws", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    share = 100 if given.quick else 1
    draws, through = given.draws // share, given.channel_draws // share
    rows = []
    name = ("audit_unsampled" if given.unsampled else "audit") + ("_quick" if given.quick else "")
    for case in UNSAMPLED if given.unsampled else CASES:
        rows.append(row(case, draws, through, given.workers))
        write_results(name, rows, NOTES, module="audit")
        if not given.json:
            said = rows[-1]
            f_dp = said.get("f_dp", said.get("gaussian_dp", "-"))
            print(
                f"ε {case[0]:<4} {case[1]:<9} q {case[2]:<4} K {case[3]:<3} T {case[4]:<3} claimed "
                f"{said['epsilon_claimed']:.4f}  f-DP {f_dp}  Clopper–Pearson {said['clopper_pearson']}"
                f"{'  FLAGGED' if said['flagged'] else ''}",
                flush=True,
            )
    if given.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
