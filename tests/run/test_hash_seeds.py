"""What is saved is the same, and verifies, whatever the order in which a process keeps its sets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

HERE = Path(__file__).resolve().parents[1]
SCRIPT = """
import hashlib, sys
from pathlib import Path
from dpzo.run import folders as runs
from dpzo.verify import verify
assert verify("lora").first_bad is None
runs.replay(Path("lora"), Path(sys.argv[1]))
files = sorted(path for path in Path(sys.argv[1]).rglob("*") if path.is_file())
print(len(files), hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest())
"""
# Under 0 and 3 the names of a LoRA's target modules come in different orders.
SEEDS = ("0", "3")


def test_the_seeds_order_sets_differently() -> None:
    orders = {_run("print(list({'q_proj', 'v_proj'}))", seed, "C") for seed in SEEDS}
    assert len(orders) == len(SEEDS)


@pytest.mark.slow
def test_every_process_saves_and_verifies_alike(tmp_path: Path) -> None:
    """LoRA: PEFT writes the names of its target modules as a set; another locale must not matter either."""
    saved = {
        _run(SCRIPT, seed, locale, str(tmp_path / seed)) for seed, locale in zip(SEEDS, ("C", "C.UTF-8"), strict=True)
    }
    assert len(saved) == 1
    assert int(saved.pop().split()[0]) >= 5


def test_workers_have_hash_seeds_of_their_own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeds that conftest's hooks leave for each of four workers; in a worker, also the one that it got."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    assert worker is None or os.environ["PYTHONHASHSEED"] == worker.removeprefix("gw")
    monkeypatch.setenv("PYTHONHASHSEED", "random")
    hooks: Any = request.config.pluginmanager.get_plugin(str(HERE / "conftest.py"))
    hooks.pytest_xdist_setupnodes()
    seeds = []
    for number in range(4):
        seeds.append(os.environ["PYTHONHASHSEED"])  # a worker starts with what the hook of the one before it left
        hooks.pytest_configure_node(SimpleNamespace(gateway=SimpleNamespace(id=f"gw{number}")))
    assert seeds == ["0", "1", "2", "3"]


def _run(script: str, seed: str, locale: str, *arguments: str) -> str:
    changed = {"PYTHONHASHSEED": seed, "LC_ALL": locale}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | changed,
        cwd=HERE / "fixtures",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
