"""A user's own task file: declarations only, refused in words, and the worked example of the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dpzo.data.tasks import find_task, read_task_file, task_from
from dpzo.errors import DpzoError

DOCS = Path(__file__).resolve().parents[3] / "docs" / "tasks.md"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_the_docs_example_is_a_task_that_reads_its_file(tmp_path: Path) -> None:
    blocks = dict(re.findall(r'```\w+ title="(\S+)"\n(.*?)```', DOCS.read_text(), re.S))
    for name, text in blocks.items():
        (tmp_path / name).write_text(text)
    tree = read_task_file(tmp_path / "urgency.yaml")
    task = find_task(tree)
    assert task == task_from(tree)
    records = task.load_file(tmp_path / "tickets.jsonl")
    assert len(records) == 2
    assert task.prompts(records)[0].startswith("Subject: ")
    assert task.mask_words is not None
    assert task.pairs(records) is not None
    assert records.labels is not None
    assert records.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kind: classification\ntemplate: '{text}'\nlabel: [a, b]", "no key 'label'; did you mean labels"),
        ("kind: classification\ntemplate: '{text}'\nlabels: [yes, no]", "put quotes around words such as"),
        ("kind: classification\ntemplate: '{text}'", "needs labels"),
        ("kind: completion", "key template is missing"),
        ("template: '{text}'", "key kind is missing"),
        ("kind: regression\ntemplate: '{text}'", "kind must be"),
        ("kind: completion\ntemplate: 'no field'", "it names no field"),
        ("kind: completion\ntemplate: '{text}'\nmax_length: many", "must be a whole number"),
        ("kind: completion\ntemplate: '{text}'\nmetric: bleurt", "its metric is"),
        ("kind: classification\ntemplate: '{t}'\nlabels: [a, b]\nmask_words: [A, B]", "belong together"),
        (
            "kind: classification\ntemplate: '{t}'\nlabels: [a, b]\nmask_words: [A, B]\nmask_template: '{t}'",
            "must hold {mask} once",
        ),
        ("- a list", "expected lines such as"),
        ("{", "is not a YAML file"),
        ("!!python/object/apply:os.system ['true']", "is not a YAML file"),
    ],
)
def test_a_bad_task_file_is_refused_in_a_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(DpzoError) as caught:
        read_task_file(write(tmp_path, text))
    assert problem in str(caught.value)
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_task_file_and_an_unknown_task() -> None:
    with pytest.raises(DpzoError, match=r"--task none.yaml: No such file"):
        read_task_file("none.yaml")
    with pytest.raises(DpzoError, match="no such task; did you mean squad"):
        find_task("sqaud")
