"""What is imported by commands and rooms that have to start at once; and that this test would notice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dpzo

SOURCE = Path(dpzo.__file__).resolve().parent
HEAVY = {"torch", "transformers", "peft", "numba", "safetensors", "huggingface_hub", "scipy", "dp_accounting", "jax"}
# typer itself validates a subcommand's options by pydantic, where it is installed.
SCREEN = {"rich", "pydantic", "yaml", "numpy"}
REFUSED_PLAN = "--num-examples 9 --expected-batch-size 3 --steps 2 --delta 2 --epsilon 1"
COMMAND = "import sys; sys.argv = {argv!r}; from dpzo.cli import main\ntry: main()\nexcept SystemExit: pass"


def imported(code: str, root: Path | None = None) -> set[str]:
    """Top names of sys.modules after `code` ran in a fresh interpreter, with dpzo from `root` if one is given."""
    report = "\nimport sys, json; print(); print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    environment = dict(os.environ) if root is None else os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True, env=environment
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


CASES = {
    "help": (COMMAND.format(argv=["dpzo", "--help"]), HEAVY | SCREEN),
    "train --help": (COMMAND.format(argv=["dpzo", "train", "--help"]), HEAVY | SCREEN - {"pydantic", "yaml"}),
    "tasks": (COMMAND.format(argv=["dpzo", "tasks"]), HEAVY - {"scipy"}),
    "plan": (COMMAND.format(argv=["dpzo", "plan", *REFUSED_PLAN.split()]), HEAVY - {"scipy"}),
    "import dpzo": ("import dpzo", HEAVY | SCREEN),
    "import dpzo.privacy": ("import dpzo.privacy", HEAVY - {"scipy"} | SCREEN - {"numpy"} | {"typer"}),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_heavy_is_imported(case: str) -> None:
    code, forbidden = CASES[case]
    found = imported(code)
    assert "dpzo" in found
    assert not found & forbidden


@pytest.mark.parametrize(
    ("file", "case"),
    [("cli/app.py", "help"), ("__init__.py", "import dpzo"), ("privacy/events.py", "import dpzo.privacy")],
)
def test_a_planted_import_would_be_noticed(tmp_path: Path, file: str, case: str) -> None:
    shutil.copytree(SOURCE, tmp_path / "dpzo", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "torch.py").touch()  # what counts is the name, and an empty one is quick
    planted = tmp_path / "dpzo" / file
    future = "from __future__ import annotations\n"
    assert future in planted.read_text()
    planted.write_text(planted.read_text().replace(future, f"{future}import torch\n"))
    code, forbidden = CASES[case]
    assert imported(code, tmp_path) & forbidden == {"torch"}
