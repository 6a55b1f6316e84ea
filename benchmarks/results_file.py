"""How a benchmark leaves its figures: one JSON file with the command, the versions and the date beside the rows."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpzo.run.environment import environment

RESULTS = Path(__file__).parent / "results"


def write_results(name: str, rows: Sequence[dict[str, Any]], notes: str = "", module: str | None = None) -> Path:
    """Write benchmarks/results/NAME.json; returns its path. The command is the module's, without any folder's path.

    `module`: of benchmarks, where one writes several results; NAME by default.
    """
    arguments = [Path(argument).name if os.sep in argument else argument for argument in sys.argv[1:]]
    content = {
        "command": " ".join(["python", "-m", f"benchmarks.{name if module is None else module}", *arguments]),
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "versions": environment(),
        "notes": notes,
        "rows": list(rows),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path
