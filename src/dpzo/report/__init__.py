"""What is said about a run: the privacy card."""

from dpzo.report.card import CARD_JSON, CARD_MARKDOWN, build_card, card_of_run, render_markdown, round_up, write_card
from dpzo.report.findings import Finding, plan_findings
from dpzo.report.private_uses import PRIVATE_USES, read_private_uses, record_private_use

__all__ = [
    "CARD_JSON",
    "CARD_MARKDOWN",
    "PRIVATE_USES",
    "Finding",
    "build_card",
    "card_of_run",
    "plan_findings",
    "read_private_uses",
    "record_private_use",
    "render_markdown",
    "round_up",
    "write_card",
]
