"""Who may import whom: the contracts of .importlinter hold, and would notice a breach."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINTER = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """lint-imports over `root`/src with the contracts of `root`."""
    return subprocess.run(
        [sys.executable, "-c", LINTER, "--no-cache", "--config", str(root / ".importlinter")],
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root / "src"), "COLUMNS": "200"},
        check=False,
    )


def test_the_contracts_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "breach", "contract"),
    [
        ("privacy/events.py", "import torch", "The privacy core"),
        ("privacy/events.py", "import dpzo.privacy.channel", "The audit core:"),
        ("privacy/accounting/pld.py", "import dpzo.noise.shape", "The audit core imports no noise table"),
        ("run/journal.py", "import dpzo.experiments.recipes.theory", "Nothing but the command line"),
        ("noise/shape.py", "import torch", "The privacy core and the noise tables"),
        ("zo/schedules.py", "import transformers", "The zeroth-order core"),
        ("run/journal.py", "import dpzo.cli", "Upper floors"),
        ("data/tasks/metrics.py", "import torch", "Tasks"),
    ],
)
def test_a_breach_is_noticed(tmp_path: Path, file: str, breach: str, contract: str) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    path = tmp_path / "src" / "dpzo" / file
    path.write_text(path.read_text() + f"\n\n{breach}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert any(contract in line and "BROKEN" in line for line in done.stdout.splitlines()), done.stdout
