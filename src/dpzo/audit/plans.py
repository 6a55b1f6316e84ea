"""The plan to audit: from a file that `dpzo plan --json` printed, or from a run's journal."""

from __future__ import annotations

import json
from pathlib import Path

from dpzo.errors import DpzoError
from dpzo.privacy import PrivacyPlan
from dpzo.run.journal import read


def plan_of(run: Path | None, file: Path | None) -> PrivacyPlan:
    """The plan of exactly one of a run folder and a plan file.

    Errors: DpzoError when none or both are given, or what is there is no plan. A run whose noise was not secret is
    refused: it has no guarantee to audit.
    """
    if (run is None) == (file is None):
        raise DpzoError("give one of RUN, a folder that dpzo train wrote, and --plan FILE")
    if run is not None:
        header = read(run).header
        if header.get("secret_randomness") is not True:
            raise DpzoError(f"{run}: this run's noise was not secret; it claims no ε that could be audited")
        return _plan(header.get("plan"), f"{run}: the journal's header")
    assert file is not None
    try:
        fields = json.loads(file.read_bytes())
    except OSError as error:
        raise DpzoError(f"--plan {file}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise DpzoError(f"--plan {file}: is not JSON; write it with dpzo plan ... --json") from None
    return _plan(fields, f"--plan {file}")


def _plan(fields: object, source: str) -> PrivacyPlan:
    if not isinstance(fields, dict):
        raise DpzoError(f"{source} holds no plan; write one with dpzo plan ... --json")
    try:
        return PrivacyPlan.from_dict(fields)
    except DpzoError as error:
        raise DpzoError(f"{source}: {error}") from None
    except KeyError as missing:
        raise DpzoError(f"{source} lacks {missing.args[0]}; write it with dpzo plan ... --json") from None
    except (TypeError, ValueError, AttributeError):
        raise DpzoError(f"{source} holds a value of the wrong kind; write it with dpzo plan ... --json") from None
