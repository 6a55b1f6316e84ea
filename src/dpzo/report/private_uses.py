"""Uses of private data beside training, counted in the run's folder: that they were made, and nothing of the data.

The counts are no part of the journal, because such uses come after a run. Whoever owns the folder can delete the file;
the operator is trusted (docs/threat_model.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dpzo.errors import DpzoError
from dpzo.run.journal import write_durably

PRIVATE_USES = "private_uses.json"

EVALUATION, CHARGED_AUDIT, TRACEBACK = "evaluation", "charged_audit", "nonprivate_traceback"
_STATEMENTS = {
    EVALUATION: "evaluated on private data: no ε covers the results, or what was chosen by them",
    CHARGED_AUDIT: "audited with canaries on private data: the plan's ε was spent on those records once more each time",
    TRACEBACK: "showed a traceback (DPZO_NONPRIVATE_TRACEBACK): it may quote a record, and no ε covers it",
}
_MOST = 1_000_000
"""Uses of a kind that are told apart; beyond, the count stays."""


def read_private_uses(folder: Path) -> dict[str, int]:
    """Kind → how many uses of it were made; empty where none is recorded.

    Raises DpzoError for a file that is not, byte for byte, what `record_private_use` writes: nothing may hide in it.
    """
    path = folder / PRIVATE_USES
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DpzoError(f"{path}: {error.strerror}") from None
    try:
        counts = json.loads(content)
        is_sound = isinstance(counts, dict) and all(
            kind in _STATEMENTS and type(count) is int and 1 <= count <= _MOST for kind, count in counts.items()
        )
    except (ValueError, RecursionError):
        is_sound = False
    if not is_sound or not counts or content != _encoded(counts):
        raise DpzoError(f"{path}: is not what dpzo writes: counts of {', '.join(_STATEMENTS)}")
    return dict(counts)


def record_private_use(folder: Path, kind: str) -> None:
    """Count one more use of `kind`, durably, before it is made. The folder must be claimed by the caller.

    Raises DpzoError where the folder cannot be written: a use that cannot be recorded must not be made.
    """
    counts = read_private_uses(folder)
    counts[kind] = min(counts.get(kind, 0) + 1, _MOST)
    try:
        write_durably(folder / PRIVATE_USES, _encoded(counts))
    except DpzoError:
        raise DpzoError(
            f"{folder}: cannot be written, and a use of private data has to be recorded there first; give a copy of "
            "the run that you can write to"
        ) from None


def private_use_findings(uses: Mapping[str, int]) -> list[str]:
    """What the card says of them, one sentence a kind."""
    return [f"{_times(uses[kind])} {statement}" for kind, statement in _STATEMENTS.items() if kind in uses]


def _times(count: int) -> str:
    return "Once" if count == 1 else f"{count} times"


def _encoded(counts: Mapping[str, int]) -> bytes:
    return (json.dumps(dict(sorted(counts.items())), indent=2) + "\n").encode()
