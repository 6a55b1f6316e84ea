"""What limits a claim that holds: the same findings stand on the card, after `dpzo verify`, and as warnings."""

from __future__ import annotations

from dataclasses import dataclass

from dpzo.privacy import PrivacyPlan

LARGE_EPSILON = 10.0
"""Above it (ε, δ) bounds little: e^10 = 22 026 in odds. Source: Ponomareva et al. 2023, *How to DP-fy ML*, § 5.2."""


@dataclass(frozen=True)
class Finding:
    """`quantity` (δ or ε) is `value`, and `meaning` says what is wrong with that."""

    quantity: str
    value: str
    meaning: str

    def __str__(self) -> str:
        return f"{self.quantity} = {self.value} {self.meaning}"


def plan_findings(plan: PrivacyPlan, epsilon: float) -> list[Finding]:
    """What limits the claim of `plan` at the run's whole `epsilon` (a private count included)."""
    found = []
    if plan.delta * plan.num_examples >= 1:
        found.append(
            Finding(
                "δ",
                f"{plan.delta:g}",
                f"is not below 1/N = {1 / plan.num_examples:.3g}; a mechanism that publishes one whole unit can have "
                "such a δ; choose a smaller one",
            )
        )
    if epsilon > LARGE_EPSILON:
        found.append(
            Finding(
                "ε",
                f"{epsilon:.4g}",
                f"is above {LARGE_EPSILON:g}: a formal guarantee that protects little, since the odds of a guess "
                "about one unit may change by a factor of e^ε",
            )
        )
    return found
