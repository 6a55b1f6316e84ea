"""Killed and stopped at many points: what `make fuzz` does at length, here with few deaths."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("campaign.py")


def campaign(tmp_path: Path, **options: int) -> dict[str, Any]:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc to name descriptors by")
    result = tmp_path / "result.json"
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--json", str(result), *words], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(result.read_text())
    assert found["mismatches"] == []
    return found


def test_a_killed_run_loses_nothing(tmp_path: Path) -> None:
    found = campaign(tmp_path, sweep=10, kills=6, whole=0, phases=0, stops=0)
    assert found["kills"] >= 14
    assert found["replays"] == found["runs"] >= 11
    assert 0 < found["steps made again"] <= found["kills"]


@pytest.mark.slow
def test_whole_runs_survive_kills_and_end_well_when_they_are_stopped(tmp_path: Path) -> None:
    found = campaign(tmp_path, sweep=0, kills=0, whole=2, phases=2, stops=0)
    assert found["kills"] >= 4
    assert found["stops in a phase"] == 2
