"""Uses of private data beside training: counted durably in the run's folder, and stated on its card."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dpzo.errors import DpzoError
from dpzo.report import PRIVATE_USES, card_of_run, read_private_uses, record_private_use, write_card
from dpzo.report.private_uses import CHARGED_AUDIT, EVALUATION, TRACEBACK, private_use_findings
from dpzo.run import loop as train
from dpzo.run.journal import read

PUBLIC: dict[str, Any] = {
    "tuning": "not declared",
    "unit_column": None,
    "base": {"name": "tiny", "fingerprint": "f" * 64},
    "num_examples_source": "declared",
    "evaluation": {"isolation": "passed"},
    "nonprivate_uses": [],
    "environment": {"dpzo": "1"},
}


@pytest.fixture
def run(linear: ModuleType, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    job = linear.make_job(4, has_guarantee=True, **PUBLIC)
    train.fit(job, linear.objective(job), linear.NUM_UNITS, folder)
    return folder


def test_uses_are_counted_and_only_that(run: Path) -> None:
    assert read_private_uses(run) == {}
    for kind in (EVALUATION, TRACEBACK, EVALUATION, CHARGED_AUDIT):
        record_private_use(run, kind)
    assert read_private_uses(run) == {EVALUATION: 2, TRACEBACK: 1, CHARGED_AUDIT: 1}
    path = run / PRIVATE_USES
    assert json.loads(path.read_text()) == read_private_uses(run)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_card_states_them_and_keeps_its_claim(run: Path) -> None:
    before = write_card(run, read(run))
    assert before["findings"] == []
    record_private_use(run, EVALUATION)
    record_private_use(run, EVALUATION)
    card = write_card(run, read(run))
    (finding,) = card["findings"]
    assert finding.startswith("2 times evaluated on private data")
    assert finding in (run / "privacy_card.md").read_text()
    assert card["claim"] == before["claim"] + " The findings below limit this claim."
    assert (card["guarantee"], card["epsilon"]) == (True, before["epsilon"])
    assert card == card_of_run(run, read(run))


def test_each_kind_has_its_sentence() -> None:
    said = private_use_findings({EVALUATION: 1, CHARGED_AUDIT: 3, TRACEBACK: 2})
    assert [sentence.split()[0] for sentence in said] == ["Once", "3", "2"]
    assert len(set(said)) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"{}\n",
        b"[]\n",
        b"not json",
        b'{"evaluation": 1}',
        b'{\n  "evaluation": 0\n}\n',
        b'{\n  "evaluation": true\n}\n',
        b'{\n  "evaluation": 1.0\n}\n',
        b'{\n  "evaluation": 10000000000000000000\n}\n',
        b'{\n  "evaluation": 1,\n  "the record was": 1\n}\n',
        b'{\n  "evaluation": 1,\n  "evaluation": 1\n}\n',
        b'{\n  "evaluation": 1\n}\n# and a note',
    ],
)
def test_nothing_else_can_stand_in_the_file(run: Path, content: bytes) -> None:
    (run / PRIVATE_USES).write_bytes(content)
    with pytest.raises(DpzoError, match="is not what dpzo writes"):
        read_private_uses(run)
    with pytest.raises(DpzoError, match="is not what dpzo writes"):
        record_private_use(run, EVALUATION)


def test_a_use_that_cannot_be_recorded_is_refused(run: Path) -> None:
    (run / f"{PRIVATE_USES}.new").mkdir()  # as on a disk that refuses
    with pytest.raises(DpzoError, match="has to be recorded there first"):
        record_private_use(run, EVALUATION)
    assert read_private_uses(run) == {}
