"""Run a list of dpzo commands in this one process: `python command_line.py STEPS.json CODES.json`.

Each step: `arguments`, and optionally `interrupt` (Ctrl-C arrives while that step number is written down) or `plant`
(a fault that the scan has to survive, or to find). Exit codes are written to CODES.json.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from dpzo.cli import main
from dpzo.data.tasks import Records
from dpzo.run import folders as runs
from dpzo.run.journal import Journal

_append = Journal.append
_objective = runs.objective


def _interrupting(step: int) -> Any:
    def append(self: Journal, release: Any) -> None:
        if release.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        _append(self, release)

    return mock.patch.object(Journal, "append", append)


def _planting(kind: str) -> Any:
    def objective(records: Records, subject: Any) -> Any:
        text = records.texts[0]
        if kind == "raise":
            raise RuntimeError(f"cannot encode {text}")
        if kind == "print":
            print("first record:", text)
        if kind == "count":
            print(f"read {len(records)} records", file=sys.stderr)
        if kind == "pickle":
            Path(tempfile.mkstemp()[1]).write_bytes(pickle.dumps({"cache": list(records.texts)}))
        if kind == "sqlite":
            with sqlite3.connect(Path.home() / "cache.db") as base:
                base.execute("create table texts (text)")
                base.execute("insert into texts values (?)", (text,))
            base.close()
        return _objective(records, subject)

    return mock.patch.object(runs, "objective", objective)


def _run(step: dict[str, Any]) -> int:
    with mock.patch.object(sys, "argv", ["dpzo", *step["arguments"]]):
        try:
            if "interrupt" in step:
                with _interrupting(step["interrupt"]):
                    main()
            elif "plant" in step:
                with _planting(step["plant"]):
                    main()
            else:
                main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


if __name__ == "__main__":
    steps = json.loads(Path(sys.argv[1]).read_text())
    codes = [_run(step) for step in steps]
    Path(sys.argv[2]).write_text(json.dumps(codes))
