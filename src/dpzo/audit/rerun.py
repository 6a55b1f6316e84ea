"""Rerun a run's plan and model with canaries, on records that may be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dpzo.audit.plans import plan_of
from dpzo.audit.report import AuditReport
from dpzo.audit.transcript import CONFIDENCE, audit_transcript, require_canaries
from dpzo.errors import DpzoError
from dpzo.report.private_uses import CHARGED_AUDIT
from dpzo.run.build import rebuild
from dpzo.run.journal import read
from dpzo.run.local import DataSource, base_name, found_base, records_of
from dpzo.run.subject import objective
from dpzo.run.trained_model import note_private_use

DATA_IS = ("public", "charged")


def audit_rerun(
    run: Path,
    source: DataSource,
    data_is: str | None,
    *,
    canaries: int,
    confidence: float = CONFIDENCE,
    base: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[AuditReport]:
    """Train again as `run` was trained, on `source`, with canaries; only the bounds are kept.

    `data_is`: `public`, or `charged` for private records: the rerun then spends the plan's whole ε on them, in addition
    to other runs. The caller must declare this, and the run's card then states it; the records' nature is never
    guessed.
    Errors: DpzoError without that declaration, and as `audit_transcript`.
    """
    if data_is not in DATA_IS:
        raise DpzoError(
            "--canaries: a run with canaries spends the plan's ε on the records it reads; say --data-is public, or "
            "--data-is charged to spend it on private ones"
        )
    plan = plan_of(run, None)
    tell("loading the base model")
    transcript = read(run)
    parts = rebuild(transcript, found_base(run, base_name(transcript), base))
    require_canaries(plan, canaries, parts.job.scheme.dimension)
    tell("reading the records")
    records = records_of(parts.subject.config, parts.subject.task, source)
    private = objective(records, parts.subject)
    if data_is == "charged":
        note_private_use(run, CHARGED_AUDIT)
    tell(f"training with {canaries} canaries")
    return audit_transcript(parts.job, private, records.num_units, canaries=canaries, confidence=confidence)
