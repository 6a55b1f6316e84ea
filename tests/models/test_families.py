"""Each family of the documentation's table does what the table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpzo.models.families import FAMILIES, check_family, row

TABLE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


REFUSED = {"T5": "encoder–decoder", "RecurrentGemma": "does not conform to the plain library"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_says_what_is_found(family: str, tmp_path: Path) -> None:
    outcome = check_family(family, tmp_path)
    assert row(outcome) in TABLE.read_text(encoding="utf-8").splitlines()
    if family in REFUSED:
        assert REFUSED[family] in outcome.reason
    else:
        assert outcome.passed == ("full step", "full reload", "lora step", "lora reload")


def test_the_table_names_every_family_once() -> None:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:] == list(FAMILIES)
