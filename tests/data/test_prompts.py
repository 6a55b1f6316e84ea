"""Prompts and completions of other projects' forms; kinds by columns; known columns that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpzo.config.reading import parse_config
from dpzo.config.schema import DataConfig
from dpzo.data import kind_by_columns, read_records
from dpzo.data.tasks import Records
from dpzo.errors import DpzoError
from dpzo.run.subject import task_of


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "d.json").write_text(json.dumps(rows, indent=1))
    return folder / "d.json"


def read(place: Path, **data: Any) -> Records:
    config = parse_config({"model": {"name": "m"}, "data": data, "privacy": {"delta": 1e-5}})
    return read_records([place], task_of(config), config.data)


def test_alpacas_columns_become_prompt_and_completion(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "2 and 3", "output": "5", "system": "", "history": []},
        {"instruction": "Say hi.", "input": "", "output": "hi"},
        {"instruction": "Say no.", "output": "no"},
    ]
    records = read(written(tmp_path, *rows), kind="completion")
    assert list(records.prompts) == [
        "### Instruction:\nAdd.\n\n### Input:\n2 and 3\n\n### Response:\n",
        "### Instruction:\nSay hi.\n\n### Response:\n",
        "### Instruction:\nSay no.\n\n### Response:\n",
    ]
    assert list(records.completions) == ["5", "hi", "no"]


def test_a_task_of_ones_own_reads_the_completion_from_the_named_column(tmp_path: Path) -> None:
    task = {"name": "t", "kind": "completion", "template": "{instruction}\n{input}\n"}
    place = written(tmp_path, {"instruction": "Add.", "input": "1", "output": "3"})
    assert list(read(place, task=task, completion_column="output").completions) == ["3"]
    with pytest.raises(
        DpzoError, match=r"no column 'completion' \(--completion-column\).*'instruction', 'input', 'output'"
    ):
        read(place, task=task)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": [{"role": "user", "content": "secret"}], "completion": "x"}, "list of messages.*--kind chat"),
        ({"prompt": "x", "completion": [{"role": "assistant", "content": "secret"}]}, "list of messages.*--kind chat"),
        ({"prompt": "x", "completion": "y", "system": "secret"}, "column 'system' is not read"),
        ({"prompt": "x", "completion": "y", "rejected": "secret"}, "column 'rejected' is not read"),
        ({"instruction": "x", "output": "y", "history": [["secret", "b"]]}, "column 'history' is not read"),
        ({"instruction": "x", "output": ["secret"]}, "needs an instruction and an output that are texts"),
        ({"text": "secret", "label": "b"}, r"no column 'prompt' \(--prompt-column\).*it has 'text', 'label'"),
    ],
)
def test_what_is_no_prompt_and_completion_is_refused(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DpzoError, match=problem) as told:
        read(written(tmp_path, row), kind="completion")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "a", "completion": "b"}, "completion"),
        ({"instruction": "a", "input": "", "output": "b"}, "completion"),
        ({"messages": []}, "chat"),
        ({"conversations": [], "id": 1}, "chat"),
        ({"text": "a", "label": "b"}, None),
        ({"text": "a", "label": "b", "prompt": "c", "completion": "d"}, None),
        ({"messages": [], "prompt": "a", "completion": "b"}, None),
        ({"other": 1}, None),
    ],
)
def test_columns_decide_the_kind_where_it_is_beyond_doubt(
    tmp_path: Path, row: dict[str, Any], kind: str | None
) -> None:
    told: list[str] = []
    assert kind_by_columns(written(tmp_path, row), DataConfig(), tell=told.append) == kind
    assert any(f"--kind {kind}" in line for line in told) == (kind is not None)


def test_columns_that_were_named_decide_the_kind(tmp_path: Path) -> None:
    place = written(tmp_path, {"q": "a", "a": "b"})
    assert kind_by_columns(place, DataConfig(prompt_column="q", completion_column="a")) == "completion"
    assert kind_by_columns("hub:a/b", DataConfig()) is None
