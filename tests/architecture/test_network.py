"""No command reaches for a network on local models and files; a hub's name asks that hub and nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HUB = {"HF_ENDPOINT": "https://hub.invalid", "HF_HUB_DISABLE_TELEMETRY": ""}
TRAIN = "train --num-examples 60 --epsilon 4 --delta 1e-3 --labels good,bad --output run --model organisation/model"


def test_local_runs_try_no_network(everyday: Any) -> None:
    """Train, interrupted and resumed, replay, evaluate, sign, verify: the fixture has run them all, barred."""
    assert everyday.tried() == []


def test_a_hub_name_asks_the_hub_alone_and_fails_in_one_line(everyday_steps: ModuleType, tmp_path: Path) -> None:
    everyday_steps.give(tmp_path)
    place = everyday_steps.Workplace(tmp_path)
    asked = (
        f"{TRAIN} --data given/records.jsonl",
        f"{TRAIN} --data hub:organisation/records",
        "compare dpzero --task sst2 --data-dir given --layouts k-16/seed-13 --output table --model organisation/model",
    )
    codes, out, err = place.run(*({"arguments": each.split()} for each in asked), **HUB)
    assert codes == [2, 2, 2], err
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("dpzo: error: ")]
    assert len(errors) == 3
    assert "Traceback" not in err
    assert all("the hub does not answer" in line for line in errors), errors
    assert {line.split(" ")[1] for line in place.tried()} == {"hub.invalid"}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "reach",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9), 1)",
        "import socket; socket.getaddrinfo('somewhere.invalid', 443)",
        "import urllib.request; urllib.request.urlopen('http://somewhere.invalid', timeout=1)",
        "import httpx; httpx.get('https://somewhere.invalid')",
    ],
)
def test_the_watch_sees_and_bars_every_way_out(tmp_path: Path, everyday_steps: ModuleType, reach: str) -> None:
    if "httpx" in reach:
        pytest.importorskip("httpx")
    log = tmp_path / "network"
    watched = Path(everyday_steps.HERE) / "watched"
    done = subprocess.run(
        [sys.executable, "-c", reach],
        env={**os.environ, "PYTHONPATH": str(watched), "DPZO_TESTS_NETWORK": str(log)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "the tests bar the network" in done.stderr
    host = "127.0.0.1" if "127" in reach else "somewhere.invalid"
    assert {line.split(" ")[1] for line in log.read_text().splitlines()} == {host}
