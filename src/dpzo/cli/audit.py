"""`dpzo audit`: what can be measured of ε, beside what is claimed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpzo.cli.endings import ending_well

if TYPE_CHECKING:
    from dpzo.audit import AuditReport

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]


def audit(
    run: Annotated[
        Path | None, typer.Argument(help="A folder that dpzo train wrote; its plan is audited.", metavar="[RUN]")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="plan.json, or what dpzo plan --json printed.")] = None,
    draws: Annotated[
        int | None, typer.Option(help="Transcripts a side for Clopper-Pearson; 3 000 000 by default.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="With which all lower bounds hold together.")] = 0.95,
    as_json: Json = False,
) -> None:
    """Measure a lower bound on ε: releases of the plan's own objects on made-up neighbours, told apart.

    Reads no data and spends no privacy. Takes a minute or two. Exit code 1 when a bound lies above the claim.
    """
    import os

    from dpzo.audit import audit_mechanism, joint
    from dpzo.audit.mechanism import CHANNEL_DRAWS, DRAWS
    from dpzo.audit.plans import plan_of
    from dpzo.cli.screen import print_json, teller

    audited = plan_of(run, plan)
    wanted = DRAWS if draws is None else draws
    teller(quiet=as_json)(f"drawing up to {wanted:,} transcripts a side")
    with ending_well(None, resumable=False):
        found = audit_mechanism(
            audited,
            draws=wanted,
            channel_draws=min(wanted, CHANNEL_DRAWS),
            confidence=confidence,
            workers=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        )
    if as_json:
        print_json(joint(found))
    else:
        _show(found)
    if any(report.flagged for report in found):
        teller(quiet=False)("the measured ε lies above the claim: the noise is not what the plan says")
        raise typer.Exit(1)


def _show(found: Sequence[AuditReport]) -> None:
    from dpzo.audit.report import LIMITS
    from dpzo.cli.screen import print_line, rounded_up

    first = found[0]
    print_line(f"ε at δ = {first.delta:g}; all lower bounds hold together with {first.confidence:g} confidence")
    print_line(f"{'method':<17}{'claimed':>9}{'lower bound':>13}{'draws a side':>14}{'flagged':>9}")
    for report in found:
        print_line(
            f"{report.method:<17}{rounded_up(report.epsilon_claimed, 4):>9}{report.epsilon_lower:>13.4g}"
            f"{report.draws:>14,}{'YES' if report.flagged else 'no':>9}"
        )
        print_line(f"  {report.note}")
    print_line(LIMITS)
