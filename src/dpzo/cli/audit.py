"""`dpzo audit`: what can be measured of ε, beside what is claimed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpzo.cli.endings import ending_well
from dpzo.errors import DpzoError

if TYPE_CHECKING:
    from dpzo.audit import AuditReport

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]


def audit(
    run: Annotated[
        Path | None, typer.Argument(help="A folder that dpzo train wrote; its plan is audited.", metavar="[RUN]")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="plan.json of a run, or the output of dpzo plan --json.")] = None,
    draws: Annotated[
        int | None, typer.Option(help="Transcripts per side for Clopper-Pearson; 3 000 000 by default.")
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            help="Joint confidence of all lower bounds; 0.95 by default. At most one audit in a million flags falsely."
        ),
    ] = None,
    canaries: Annotated[
        int | None, typer.Option(help="Retrain RUN on --data with this many canaries inserted, and detect them.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="With --canaries: a file with the run's columns.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="With --canaries: folder with the task's files.")] = None,
    data_is: Annotated[
        str | None, typer.Option(help="public, or charged: private data, on which the run's ε is spent once more.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="With --canaries: current location of the base model, if it moved.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a lower bound on ε by distinguishing the plan's releases on synthetic neighboring data sets.

    Reads no data, spends no ε and takes a minute or two. With --canaries, audits a whole training run on public
    records, or on private ones at the cost of its ε once more. Exit code 1 if a lower bound exceeds the claim.
    """
    from dpzo.audit import joint, mechanism, transcript
    from dpzo.cli.screen import print_json, teller

    given = [
        name
        for name, value in (("--data", data), ("--data-dir", data_dir), ("--data-is", data_is), ("--base", base))
        if value
    ]
    if canaries is None and given:
        raise DpzoError(f"{given[0]}: the mechanism's audit reads no data; give --canaries, or leave it out")
    if canaries is not None and draws is not None:
        raise DpzoError("--draws: a run with canaries is one run; leave it out, or leave --canaries out")
    if confidence is None:
        confidence = mechanism.CONFIDENCE if canaries is None else transcript.CONFIDENCE
    mechanism.require_numbers(draws, confidence)
    with ending_well(None, resumable=False):
        if canaries is None:
            found = _mechanism(run, plan, draws, confidence, teller(quiet=as_json))
        else:
            found = _rerun(run, canaries, (data, data_dir, data_is), confidence, base, teller(quiet=as_json))
    if as_json:
        print_json(joint(found) | {"epsilon_spent": found[0].epsilon_claimed if data_is == "charged" else 0.0})
    else:
        _show(found)
    if any(report.flagged for report in found):
        teller(quiet=False)(_accusation(found))
        raise typer.Exit(1)


def _accusation(found: Sequence[AuditReport]) -> str:
    faults = [report.fault for report in found if report.fault]
    if faults:
        return f"the releases deviate from the plan: {'; '.join(faults)}"
    return "the measured ε exceeds the claim: the noise does not match the plan"


def _mechanism(
    run: Path | None, plan: Path | None, draws: int | None, confidence: float, tell: Callable[[str], None]
) -> list[AuditReport]:
    import os

    from dpzo.audit import audit_mechanism
    from dpzo.audit.mechanism import CHANNEL_DRAWS, DRAWS
    from dpzo.audit.plans import plan_of

    audited = plan_of(run, plan)
    wanted = DRAWS if draws is None else draws
    tell(f"drawing up to {wanted:,} transcripts per side")
    return audit_mechanism(
        audited,
        draws=wanted,
        channel_draws=min(wanted, CHANNEL_DRAWS),
        confidence=confidence,
        workers=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
    )


def _rerun(
    run: Path | None,
    canaries: int,
    places: tuple[str | None, Path | None, str | None],
    confidence: float,
    base: str | None,
    tell: Callable[[str], None],
) -> list[AuditReport]:
    from dpzo.audit.rerun import audit_rerun
    from dpzo.run.folders import DataSource

    file, folder, data_is = places
    if run is None or (file is None) == (folder is None):
        raise DpzoError("--canaries needs RUN, and one of --data FILE and --data-dir FOLDER")
    found = audit_rerun(
        run,
        DataSource(file=file, folder=folder),
        data_is,
        canaries=canaries,
        confidence=confidence,
        base=base,
        tell=tell,
    )
    if data_is == "charged":
        tell(
            f"this has spent ε = {found[0].epsilon_claimed:.4g} on these records, in addition to what other runs spent"
        )
    return found


def _show(found: Sequence[AuditReport]) -> None:
    from dpzo.audit.report import CHECKS_METHOD, FALSE_FLAG, LIMITS
    from dpzo.cli.screen import print_line, rounded_up

    first = found[0]
    print_line(f"ε at δ = {first.delta:g}; all lower bounds hold jointly with confidence {first.confidence:g}")
    print_line(f"a flag is false at most once in {1 / FALSE_FLAG:,.0f} audits")
    print_line(f"{'method':<17}{'claimed':>9}{'lower bound':>13}{'draws per side':>16}{'flagged':>9}")
    for report in found:
        lower = f"{report.epsilon_lower:.4g}" if report.method != CHECKS_METHOD else "-"
        print_line(
            f"{report.method:<17}{rounded_up(report.epsilon_claimed, 4):>9}{lower:>13}"
            f"{report.draws:>16,}{'YES' if report.flagged else 'no':>9}"
        )
        print_line(f"  {report.note}")
    print_line(LIMITS)
