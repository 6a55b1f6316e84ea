"""docs/pitfalls.md names every planted fault, and names none that is not planted."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def _tests_in(path: Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}


def test_the_table_and_the_tests_agree() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")))
    planting = {name for path in HERE.glob("test_*mutants.py") for name in _that_catch(_tests_in(path))}
    known = (
        planting
        | set(_tests_in(HERE / "test_training_mutants.py"))
        | set(_tests_in(ROOT / "tests" / "golden" / "test_published.py"))
    )
    assert named - known == set()
    assert planting - named == {"test_an_update_too_few_is_noticed_too"}  # it costs accuracy, not privacy


def _that_catch(found: dict[str, ast.FunctionDef]) -> list[str]:
    return [name for name, node in found.items() if "checks.Caught" in ast.unparse(node)]


def test_every_check_has_a_mutant_and_says_what_it_is(checks: ModuleType) -> None:
    names = [name for name in vars(checks) if name.startswith("check_")]
    source = "".join(path.read_text(encoding="utf-8") for path in HERE.glob("test_*mutants.py"))
    assert len(names) >= 12
    for name in names:
        assert getattr(checks, name).__doc__
        assert f"checks.{name}(" in source
