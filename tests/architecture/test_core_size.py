"""The audit core can be read in one sitting: six files, what they import, and the accounting, each within a limit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import dpzo
from dpzo.audit import code_size
from dpzo.audit.code_size import ACCOUNTING, CLOSURE_LIMIT, CORE, CORE_LIMIT, WHOLE_LIMIT, closure, code_lines, imported


def loaded(statement: str) -> set[str]:
    """Modules of this package that a fresh interpreter holds after `statement`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    return {name for name in done.stdout.split() if name.partition(".")[0] == "dpzo"}


def test_the_count_counts_code() -> None:
    lines = [
        *('"""A', "", 'module."""', "", "# why"),
        *("def f(", "    x: int,  # a name", ") -> str:", '    """One."""'),
        *('    y = """a', '    b"""', "", "    return y", ""),
    ]
    assert code_lines("\n".join(lines)) == 6


def test_imports_are_found_wherever_they_are_executed() -> None:
    source = """
from typing import TYPE_CHECKING
import dpzo.zo, numpy
from dpzo.privacy import plan, Release
if TYPE_CHECKING:
    from dpzo.cli import app
def late():
    from dpzo.errors import DpzoError
"""
    assert imported(source) == {"dpzo.zo", "dpzo.privacy.plan", "dpzo.privacy", "dpzo.errors"}
    with pytest.raises(ValueError, match="relative"):
        imported("from . import plan")


def test_the_core_stays_within_its_limits(capsys: pytest.CaptureFixture[str]) -> None:
    small, whole = closure(accounting=False), closure(accounting=True)
    core, outer, total = sum(whole[name] for name in CORE), sum(small.values()), sum(whole.values())
    assert core <= CORE_LIMIT, whole
    assert outer <= CLOSURE_LIMIT, small
    assert total <= WHOLE_LIMIT, whole
    assert core < outer < total
    code_size.main()
    told = capsys.readouterr().out
    assert f"{core:5}  the six files" in told
    assert f"{outer:5}  their import closure" in told
    assert f"{total:5}  with accounting" in told


def test_the_core_is_six_files() -> None:
    folder = Path(dpzo.__file__).parent / "privacy"
    assert {f"dpzo.privacy.{path.stem}" for path in folder.glob("*.py") if path.stem != "__init__"} == set(CORE)


def test_the_closure_is_what_python_loads() -> None:
    """Nothing is loaded that is not counted, and `dpzo` by itself loads no module that the count would miss."""
    assert loaded("import dpzo") == {"dpzo"}
    whole = set(closure(accounting=True))
    assert loaded("\n".join(f"import {name}" for name in CORE)) == whole | {"dpzo"}
    assert {name for name in whole if not name.startswith(ACCOUNTING)} == set(closure(accounting=False))
    assert not {name for name in whole if name.startswith(("dpzo.noise", "dpzo.cli", "dpzo.config", "dpzo.run"))}


def test_an_epsilon_loads_no_more() -> None:
    plan = "PrivacyPlan(100, PoissonSampling(0.1), {noise}, 1.0, 5, 1, 1e-5)"
    first = "from dpzo.privacy import *\n"
    assert loaded(first + plan.format(noise="Gaussian(2.0)") + ".epsilon") == set(closure(accounting=True)) | {"dpzo"}
    table = "from dpzo.noise.families import laplace; from dpzo.noise.tabulate import table\n"
    table += "from dpzo.noise.tabled import Tabled\n"
    assert "dpzo.noise.tabled" in loaded(first + table + plan.format(noise="Tabled(table(laplace(2.0)))") + ".epsilon")
