"""Whether anything is left to do for a run: what dpzo resume asks first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpzo.report import CARD_JSON, CARD_MARKDOWN, card_of_run
from dpzo.run.journal import read
from dpzo.run.local import as_folder
from dpzo.run.output import require_begun
from dpzo.run.trained_model import FINISHED, MODEL


def finished_card(run: str | Path) -> dict[str, Any] | None:
    """The card of a run of which nothing is left to do; None where `resume` has steps, a model or a card to make."""
    run = as_folder(run, "run")
    require_begun(run)
    transcript = read(run)
    try:
        done = transcript.num_steps >= transcript.header["plan"]["steps"] and transcript.closed
        whole = bool(json.loads((run / MODEL / FINISHED).read_text())["fingerprint"])
        card: dict[str, Any] = json.loads((run / CARD_JSON).read_text())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    saved = any((run / MODEL).glob("*.safetensors")) and (run / CARD_MARKDOWN).is_file()
    return card if done and whole and saved and card == card_of_run(run, transcript) else None
