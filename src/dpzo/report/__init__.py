"""What is said about a run: the privacy card."""

from dpzo.report.card import CARD_JSON, CARD_MARKDOWN, build_card, render_markdown, write_card

__all__ = ["CARD_JSON", "CARD_MARKDOWN", "build_card", "render_markdown", "write_card"]
