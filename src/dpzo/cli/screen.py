"""What a command shows: tables, the progress bar, the last words. Public values only; results on standard output."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from dpzo.privacy import PrivacyPlan, Release
from dpzo.runs import Progress as RunProgress
from dpzo.runs import Replayed, Watcher

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def warn_delta(plan: PrivacyPlan) -> None:
    """A δ of 1/N allows a mechanism that publishes one record whole."""
    if plan.delta * plan.num_examples >= 1:
        err.print(f"dpzo: warning: --delta {plan.delta:g} is not below 1/N = {1 / plan.num_examples:.3g}; choose less")


def show_plan(fields: Mapping[str, Any]) -> None:
    """A plan as two columns."""
    table = Table("quantity", "value", show_header=False, box=None)
    for name, value in fields.items():
        table.add_row(name, f"{value:.6g}" if isinstance(value, float) else str(value))
    out.print(table)


def watcher(*, quiet: bool) -> Watcher:
    """A progress bar of step, ε, planned memory and time left by the public forecast; silent for --json."""

    def watch(progress: RunProgress) -> Callable[[Release | None], None]:
        warn_delta(progress.plan)
        if quiet:
            return lambda release: None
        plan = progress.plan
        memory = f"~{progress.memory_bytes / 2**20:.0f} MiB planned"
        err.print(f"plan: ε = {plan.epsilon:.4g}, δ = {plan.delta:g}, {plan.steps} steps; {memory}")
        bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("ε = {task.fields[epsilon]:.4g} · {task.fields[memory]} · {task.fields[left]} left by plan"),
            console=err,
            transient=False,
        )
        row = bar.add_task(
            "",
            total=plan.steps,
            epsilon=plan.epsilon,
            memory=memory,
            left=_duration(plan.steps * progress.seconds_per_step),
        )
        bar.start()
        done = 0

        def step(release: Release | None) -> None:
            nonlocal done
            done += 1
            # From the plan's forecast, never from how long the steps took: that would tell the batch sizes.
            bar.update(row, completed=done, left=_duration((plan.steps - done) * progress.seconds_per_step))
            if done == plan.steps:
                bar.stop()

        return step

    return watch


def finished(card: Mapping[str, Any], output: Path, as_json: bool) -> None:
    """The claim, and where things lie."""
    if as_json:
        print(json.dumps({"output": str(output), "card": card}, ensure_ascii=False))
        return
    out.print(card["claim"], soft_wrap=True)
    out.print(
        f"model: {output / 'model'} · card: {output / 'privacy_card.md'} · journal: {output / 'journal.jsonl'}",
        soft_wrap=True,
    )


def show_replay(rebuilt: Replayed, as_json: bool) -> None:
    """The rebuilt parameters' fingerprint, and whether the run's are the same."""
    if as_json:
        print(json.dumps({"fingerprint": rebuilt.fingerprint, "equals_run": rebuilt.equals_run}))
        return
    verdict = {
        True: "equal to the run's, bit for bit",
        False: "NOT equal to the run's",
        None: "the run is not finished",
    }
    out.print(f"fingerprint {rebuilt.fingerprint}: {verdict[rebuilt.equals_run]}", soft_wrap=True)


def show_score(result: Mapping[str, Any], private: bool, as_json: bool) -> None:
    """A metric; on private data with the sentence that no ε covers it."""
    note = "computed on private data: not covered by the run's ε; do not publish it" if private else None
    if as_json:
        print(json.dumps({**result, "covered": not private, "note": note}))
        return
    out.print(f"{result['metric']}: {result['value']:.4f}" + (f" ({note})" if note else ""), soft_wrap=True)


def show_tasks(as_json: bool) -> None:
    """The built-in tasks, a line each."""
    from dpzo.tasks import TASKS

    rows = [
        {
            "name": task.name,
            "version": task.version,
            "kind": task.kind,
            "labels": None if task.labels is None else list(task.labels),
            "max_length": task.max_length,
            "metric": task.metric,
            "source": task.source,
        }
        for task in TASKS.values()
    ]
    if as_json:
        print(json.dumps({"tasks": rows}, ensure_ascii=False))
        return
    for row in rows:
        labels = row["labels"]
        named = ", ".join(labels) if isinstance(labels, list) else "-"
        out.print(
            f"{row['name']}  {row['kind']}  [{named}]  {row['metric']}  {row['source']}", soft_wrap=True, markup=False
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def teller(*, quiet: bool) -> Callable[[str], None]:
    """Prints what a run is busy with before its first step; never how much of it there is."""
    return (lambda text: None) if quiet else (lambda text: err.print(f"dpzo: {text}"))
