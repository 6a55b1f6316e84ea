"""The process that fetches from the hub, given a local folder as datasets allows: what it answers, what it leaves."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from dpzo.data import hub
from dpzo.data.hub import HubName, hub_rows
from dpzo.errors import DpzoError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secrets: Any) -> HubName:
    """A data set of csv files with two splits; every home and temporary folder lies in `tmp_path`/scratch."""
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        text = "text,label\n" + "".join(f"{secrets.MARK}{split}{number},no\n" for number in range(3))
        (tmp_path / "set" / f"{split}.csv").write_text(text)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME", "TMPDIR"):
        (scratch / name.lower()).mkdir()
        monkeypatch.setenv(name, str(scratch / name.lower()))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch / "tmpdir"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "_ask", lambda name, revision: None)
    return HubName(str(tmp_path / "set"), None)


def test_rows_come_through_and_nothing_stays(place: HubName, tmp_path: Path, secrets: Any) -> None:
    rows = hub_rows(place, (["text", "label"], ()), "test", "train", None)
    first = next(rows)
    assert first == (1, {"text": f"{secrets.MARK}test0", "label": "no"})
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []  # gone while it is read
    assert [number for number, _ in rows] == [2, 3]
    with pytest.raises(DpzoError, match=r"has no split 'tset'; did you mean test\?"):
        list(hub_rows(place, (["text"], ()), "tset", "train", None))
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []


def test_a_failure_is_told_by_its_kind_alone(place: HubName, tmp_path: Path, secrets: Any) -> None:
    (tmp_path / "set" / "train.csv").write_text(f'text,label\n"{secrets.MARK}\n')
    with pytest.raises(DpzoError, match=r"datasets cannot load it \(\w+\)") as told:
        list(hub_rows(place, (["text"], ()), None, "train", None))
    assert secrets.MARK not in str(told.value)
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []
