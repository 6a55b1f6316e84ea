"""Canaries in real training runs, found again in the journal: bounds on ε from one run each.

    python -m benchmarks.canaries [--canaries 400] [--quick] [--json]

The demo's public messages, MiniLM features, a linear head with everything at its defaults but what the case names. The
canaries are beside the messages; what the journal says of each is scored from known directions and noisy releases.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from benchmarks.results_file import write_results
from dpzo.audit.transcript import audit_transcript
from dpzo.cli.demo import demo_model
from dpzo.config.reading import parse_config
from dpzo.data.tasks import demo_messages
from dpzo.models import FeatureObjective
from dpzo.models.quiet import silent_libraries
from dpzo.run.build import RunFacts, start
from dpzo.run.subject import objective

CASES: dict[str, dict[str, Any]] = {
    f"ε = {epsilon:g}, {name}": {"epsilon": epsilon, **given}
    for epsilon in (1.0, 4.0, 8.0)
    for name, given in {
        "sampled, K = 64, T = 200": {},
        "everyone, K = 64, T = 20": {"steps": 20, "everyone": True},
    }.items()
}


def measured(name: str, given: dict[str, Any], canaries: int, kept: list[FeatureObjective]) -> list[dict[str, Any]]:
    """Both bounds of one run; the features are made by the first and kept for the others."""
    messages, _ = demo_messages()
    if given.pop("everyone", False):
        given["expected_batch_size"] = len(messages)
    config = parse_config(
        {
            "model": {"name": str(demo_model())},
            "data": {"task": "demo"},
            "privacy": {"delta": 1e-5, **given},
        }
    )
    parts = start(config, RunFacts(len(messages), "task"))
    if not kept:
        first = objective(messages, parts.subject)
        assert isinstance(first, FeatureObjective)
        kept.append(first)
    (made,) = kept
    module: Any = parts.subject.loaded.module
    private = FeatureObjective(module, made.features, made.targets.numpy(), made.empty, made.microbatch_size)
    found = audit_transcript(parts.job, private, len(messages), canaries=canaries)
    return [{"case": name, **report.to_dict()} for report in found]


def main() -> None:
    """Measure, print and write benchmarks/results/canaries.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--canaries", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="one case with few canaries, nothing written")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    cases = {"ε = 8, everyone, T = 5": {"epsilon": 8.0, "steps": 5, "everyone": True}} if given.quick else CASES
    rows: list[dict[str, Any]] = []
    kept: list[FeatureObjective] = []
    with silent_libraries():
        for name, case in cases.items():
            rows += measured(name, dict(case), 40 if given.quick else given.canaries, kept)
    if not given.quick:
        write_results("canaries", rows, f"one run a case; all bounds of a run hold with 95 %; load {os.getloadavg()}")
    if given.json:
        print(json.dumps(rows))
        return
    print("| case | method | claimed | lower bound | note |\n|---|---|---|---|---|")
    for row in rows:
        claimed, lower = f"{row['epsilon_claimed']:.4g}", f"{row['epsilon_lower']:.3f}"
        print(f"| {row['case']} | {row['method']} | {claimed} | {lower} | {row['note']} |")


if __name__ == "__main__":
    main()
