"""The result of an audit: a lower bound on ε next to the claim, with the draws and time that it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LIMITS = (
    "A flag proves a fault, but for one audit of sound code in a million; no flag proves nothing more than that these "
    "attacks and checks, with this many draws, found none."
)
CHECKS_METHOD = "checks"  # the report of faults that no ε expresses
FALSE_FLAG = 1e-6  # probability of any flag in an audit of correct code


@dataclass(frozen=True)
class AuditReport:
    """One method's result. Public: computed from synthetic rows, or from a run's published files.

    `epsilon_claimed` at `delta` is what the plan's accountant says, an upper bound; `epsilon_lower` what was measured:
    but for a chance of 1 − `confidence` the true ε at `delta` is no less. `draws` runs (or canaries) on each side,
    `seconds` of computing (None where they would tell of records), `note` what was attacked and what limits the figure.
    `epsilon_refuted`: the bound that decides about a flag, which holds but for a chance of 10⁻⁶ (`FALSE_FLAG`) over all
    methods together; `epsilon_lower` where there is no other. `fault`: what a check found that no ε expresses.
    """

    method: str
    epsilon_claimed: float
    epsilon_lower: float
    delta: float
    confidence: float
    draws: int
    seconds: float | None
    note: str = ""
    epsilon_refuted: float | None = None
    fault: str = ""

    @property
    def flagged(self) -> bool:
        """Whether the measurement contradicts the claim."""
        refuted = self.epsilon_lower if self.epsilon_refuted is None else self.epsilon_refuted
        return bool(self.fault) or refuted > self.epsilon_claimed

    def to_dict(self) -> dict[str, Any]:
        """As `dpzo audit --json` prints it."""
        return {
            "method": self.method,
            "epsilon_claimed": self.epsilon_claimed,
            "epsilon_lower": self.epsilon_lower,
            "delta": self.delta,
            "confidence": self.confidence,
            "epsilon_refuted": self.epsilon_lower if self.epsilon_refuted is None else self.epsilon_refuted,
            "flagged": self.flagged,
            "fault": self.fault,
            "draws": self.draws,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "note": self.note,
        }


def joint(reports: Sequence[AuditReport]) -> dict[str, Any]:
    """The strongest bound, whether any is flagged, and each method's report."""
    best = max(reports, key=lambda report: report.epsilon_lower)
    return {**best.to_dict(), "flagged": any(r.flagged for r in reports), "reports": [r.to_dict() for r in reports]}
