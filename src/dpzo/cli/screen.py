"""What a command shows: tables, the progress bar, the last words. Public values only; results on standard output."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from decimal import ROUND_CEILING, Context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from dpzo.privacy import PrivacyPlan, Release

if TYPE_CHECKING:  # dpzo plan shows a plan, and needs no torch for it
    from dpzo.run.folders import Progress as RunProgress
    from dpzo.run.folders import Replayed, Watcher

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def warn_findings(plan: PrivacyPlan, epsilon: float | None = None) -> None:
    """One warning for each finding that will stand on the run's card; `epsilon`: the run's, if not the plan's alone."""
    from dpzo.report.findings import plan_findings

    for finding in plan_findings(plan, plan.epsilon if epsilon is None else epsilon):
        what = f"--delta {finding.value}" if finding.quantity == "δ" else f"{finding.quantity} = {finding.value}"
        _tell(f"warning: {what} {finding.meaning}")


# What a reader looks for first. `scale` is left to --json: in words it is the noise scale ÷ clip_norm.
_PLAN_ROWS = (
    "epsilon",
    "delta",
    "relation",
    "mechanism",
    "noise_multiplier",
    "noise_scale",
    "clip_norm",
    "sampling",
    "sampling_prob",
    "expected_batch_size",
    "num_examples",
    "steps",
    "num_directions",
    "accountant",
)


def show_plan(fields: Mapping[str, Any], as_json: bool) -> None:
    """A plan as two columns, or whole as JSON."""
    if as_json:
        print_json(fields)
        return
    for name in _PLAN_ROWS:
        value = fields[name]
        if name == "mechanism" and "noise" in fields:
            value = f"{value}: {fields['noise']['origin']}"
        said = rounded_up(value, 6) if name == "epsilon" else f"{value:.6g}" if isinstance(value, float) else value
        print_line(f"{name:<20} {said}")


def rounded_up(epsilon: float, digits: int) -> str:
    """ε to some digits, never shown smaller than it is."""
    return f"{Context(prec=digits, rounding=ROUND_CEILING).create_decimal(epsilon).normalize():g}"


@contextmanager
def watching(*, quiet: bool) -> Iterator[Watcher]:
    """A watcher that draws step, ε, planned memory and time left by the public forecast; silent for --json.

    On a terminal a bar; elsewhere a line before the first step, after the first few, and at each tenth of
    the plan. The terminal is given back however the block ends.
    """
    with ExitStack() as stack:

        def watch(progress: RunProgress) -> Callable[[Release | None], None]:
            from dpzo.forecast.machine import in_words

            plan = progress.plan
            if progress.guarantee:
                warn_findings(plan, progress.epsilon)
            if quiet:
                return lambda release: None
            epsilon = rounded_up(progress.epsilon, 4) if progress.guarantee else "no guarantee"
            memory = f"~{in_words(progress.memory_bytes)} planned" if progress.memory_bytes else "memory unknown"
            _tell(f"plan: ε = {epsilon}, δ = {plan.delta:g}, {plan.steps} steps, {memory}")

            # By the plan's forecast, never by how long the steps took: that would tell the batch sizes.
            def left(done: int) -> str:
                return f"{duration((plan.steps - done) * progress.seconds_per_step)} left by plan"

            draw = _bar(stack, plan.steps, epsilon, memory, left) if err.is_terminal else _lines(plan.steps, left)
            done = 0

            def step(release: Release | None) -> None:
                nonlocal done
                done += 1
                draw(done)

            return step

        yield watch


def _bar(stack: ExitStack, steps: int, epsilon: str, memory: str, left: Callable[[int], str]) -> Callable[[int], None]:
    bar = stack.enter_context(
        Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=10),
            TextColumn(f"ε = {epsilon} · {memory} · {{task.fields[left]}}", markup=False),
            console=err,
        )
    )
    row = bar.add_task("", total=steps, left=left(0))
    return lambda done: bar.update(row, completed=done, left=left(done))


_EARLY = (1, 2, 5, 10)
"""Steps after which a line is printed however many are planned: slow steps would be silent for hours."""


def _lines(steps: int, left: Callable[[int], str]) -> Callable[[int], None]:
    def draw(done: int) -> None:
        if done in _EARLY or done * 10 // steps > (done - 1) * 10 // steps:
            _tell(f"step {done}/{steps}, {left(done)}")

    _tell(f"step 0/{steps}, {left(0)}")
    return draw


def finished(card: Mapping[str, Any], output: Path, as_json: bool) -> None:
    """The claim, and where things lie."""
    if as_json:
        print_json({"output": str(output), "card": card})
        return
    print_line(card["claim"])
    print_line(f"model: {output / 'model'} · card: {output / 'privacy_card.md'} · journal: {output / 'journal.jsonl'}")


def nothing_left(card: Mapping[str, Any], run: Path, as_json: bool) -> None:
    """What dpzo resume says of a run that is finished."""
    if as_json:
        print_json({"output": str(run), "card": card})
        return
    steps = card["steps"]
    print_line(f"{run}: already finished ({steps['spent']} of {steps['planned']} steps); nothing to resume")
    print_line(f"model: {run / 'model'} · card: {run / 'privacy_card.md'} · dpzo verify {run} checks it")


def show_replay(rebuilt: Replayed, as_json: bool) -> None:
    """The rebuilt parameters' fingerprint, and whether the run's are the same."""
    if as_json:
        print_json({"fingerprint": rebuilt.fingerprint, "equals_run": rebuilt.equals_run})
        return
    verdict = {
        True: "equal to the run's, bit for bit",
        False: "NOT equal to the run's",
        None: "the run is not finished",
    }
    print_line(f"fingerprint {rebuilt.fingerprint}: {verdict[rebuilt.equals_run]}")


def show_score(result: Mapping[str, Any], private: bool, as_json: bool) -> None:
    """A metric; on private data with the sentence that no ε covers it."""
    note = "computed on private data: not covered by the run's ε; do not publish it" if private else None
    if as_json:
        print_json({**result, "covered": not private, "note": note})
        return
    low, high = result["interval"]
    within = f"{result['metric']}: {result['value']:.4f} (95 % of resampled test sets: {low:.4f} to {high:.4f})"
    print_line(within + (f" ({note})" if note else ""))
    for name, value in result["others"].items():
        print_line(f"{name}: {value:.4f}")


def show_texts(prompts: Sequence[str], texts: Sequence[str], as_json: bool) -> None:
    """What a model said after each prompt; the texts alone on standard output, for a pipe."""
    if as_json:
        print_json({"texts": [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]})
        return
    for number, text in enumerate(texts, start=1):
        print_line(text)
        if not text.strip():
            _tell(f"prompt {number}: the model generated no text, so the line is empty")


def show_environment(as_json: bool) -> None:
    """What a bug report needs: versions, operating system, processors, devices."""
    import torch

    from dpzo.run.environment import environment

    found = {
        "os": platform.platform(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **environment(),
    }
    for name in ("huggingface-hub", "tokenizers", "pydantic", "typer", "rich"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        print_line(f"{name:<20} {value}")


def duration(seconds: float) -> str:
    """A length of time for a reader."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:,.0f} days"


def teller(*, quiet: bool) -> Callable[[str], None]:
    """Prints what a run is busy with before its first step; never how much of it there is."""
    return (lambda text: None) if quiet else _tell


def _tell(text: str) -> None:
    err.print(f"dpzo: {text}", soft_wrap=True, markup=False)


def print_line(text: str) -> None:
    """A line of a result on standard output, never broken and never read as markup."""
    out.print(text, soft_wrap=True, markup=False)


def print_json(fields: Mapping[str, Any]) -> None:
    """One object on standard output, in ASCII: it survives any locale."""
    print(json.dumps(fields, indent=2))
