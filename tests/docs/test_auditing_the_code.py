"""docs/auditing_the_code.md and its neighbours: counts are those of the files, and every file or test named exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dpzo
from dpzo.audit.code_size import CLOSURE_LIMIT, CORE, CORE_LIMIT, WHOLE_LIMIT, closure

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(dpzo.__file__).resolve().parent
PAGE = (ROOT / "docs" / "auditing_the_code.md").read_text(encoding="utf-8")
NAMING = ("auditing_the_code.md", "guarantees.md", "threat_model.md", "pitfalls.md", "extending.md", "index.md")


def test_the_counts_are_those_of_the_files() -> None:
    told = {name: int(lines) for name, lines in re.findall(r"^\| \d \| `(\w+)\.py` \| (\d+) \|", PAGE, re.MULTILINE)}
    counted = closure(accounting=True)
    assert told == {name.rpartition(".")[2]: counted[name] for name in CORE}
    assert f"the limit is {CORE_LIMIT} together" in PAGE
    assert f"at\nmost {CLOSURE_LIMIT} lines" in PAGE
    assert f"at most {WHOLE_LIMIT:,} with the accounting" in PAGE


@pytest.mark.parametrize("name", NAMING)
def test_every_file_that_a_page_names_is_there(name: str) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:tests|src|benchmarks)/[\w/.-]+)`", page))
    assert named or name == "index.md"
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_the_files_of_the_law_table_are_there() -> None:
    rows = [row.split("|") for row in PAGE.splitlines() if re.match(r"\| \d+\. ", row)]
    assert len(rows) >= 10
    homes = [SOURCE, SOURCE / "privacy"]
    for _, law, enforced, tests, _ in rows:
        files = re.findall(r"`([\w/]+\.py)`", enforced)
        assert files, law
        for file in files:
            assert any((home / file).is_file() for home in homes), file
        assert "tests/" in tests, law
