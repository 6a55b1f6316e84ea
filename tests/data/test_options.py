"""Every option about the data is used or refused, in every form of data; so are those of a part that does not learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpzo.cli.fields import listed
from dpzo.config.reading import load_config, parse_config
from dpzo.config.schema import DataConfig, RunConfig
from dpzo.data import read_records
from dpzo.data.options import refuse_unused, used_fields
from dpzo.errors import DpzoError
from dpzo.run.declared import refuse_unused_parts, without_ignored
from dpzo.run.local import DataSource
from dpzo.run.subject import task_of

CLASSES = {"name": "t", "kind": "classification", "template": "{body}", "labels": ["a", "b"]}
CHOICES = {**CLASSES, "option_fields": ["one", "two"]}
ANSWERS = {"name": "t", "kind": "completion", "template": "{body}"}
FORMS: dict[str, tuple[dict[str, Any], bool, set[str]]] = {
    "own classes": (
        {"labels": ["a", "b"]},
        False,
        {"text_column", "label_column", "labels", "label_words", "template"},
    ),
    "own completions": (
        {"kind": "completion"},
        False,
        {"prompt_column", "completion_column", "max_answer_tokens", "end_token"},
    ),
    "chats": ({"kind": "chat"}, False, {"messages_column", "chat_template"}),
    "task of classes": ({"task": CLASSES}, False, {"label_column"}),
    "task of choices": ({"task": CHOICES}, False, {"label_column", "max_answer_tokens"}),
    "task of answers": ({"task": ANSWERS}, False, {"completion_column", "max_answer_tokens", "end_token"}),
    "folder of classes": ({"task": "rte"}, True, {"layout"}),
    "folder of answers": ({"task": "squad"}, True, {"layout", "max_answer_tokens", "end_token"}),
}
"""Form → what declares it, whether a folder is read, and the fields that it uses beside those of every form."""
EVERYWHERE = {"task", "kind", "objective", "max_length"}

OTHER: dict[str, Any] = {
    "layout": "k-16/seed-13",
    **dict.fromkeys(
        ("text_column", "label_column", "prompt_column", "completion_column", "messages_column", "unit_column"),
        "absent",
    ),
    "labels": ["x", "y"],
    "label_words": [" x", " y"],
    "template": "It: {text}",
    "max_answer_tokens": 7,
    "end_token": "none",
    "max_records_per_unit": 3,
    "chat_template": "other",
}
"""Each other field with a value that is not its default."""


def config(data: dict[str, Any]) -> RunConfig:
    return parse_config({"model": {"name": "m"}, "data": data, "privacy": {"delta": 1e-5}})


def test_the_walk_covers_every_field() -> None:
    assert OTHER.keys() | EVERYWHERE == DataConfig.model_fields.keys()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OTHER)
def test_every_option_is_used_or_refused_in_every_form(tmp_path: Path, form: str, name: str) -> None:
    declared, from_folder, used = FORMS[form]
    used = used if from_folder else used | {"unit_column", "max_records_per_unit"}
    chosen = config({**declared, name: OTHER[name]})
    task = task_of(chosen)
    assert used_fields(chosen.data, task, from_folder=from_folder) == used | EVERYWHERE
    if name not in used:
        with pytest.raises(DpzoError, match=name.replace("_", "[-_]")) as told:
            refuse_unused(chosen.data, task, from_folder=from_folder)
        assert "is not used with --" in str(told.value)
        return
    refuse_unused(chosen.data, task, from_folder=from_folder)
    if name.endswith("_column"):  # it is read: its absence is noticed
        row = dict.fromkeys(("text", "body", "one", "two", "prompt", "completion"), "")
        turns = [{"role": "assistant", "content": "x"}]
        (tmp_path / "d.jsonl").write_text(json.dumps({**row, "label": "a", "messages": turns}))
        with pytest.raises(DpzoError, match="'absent'"):
            read_records([tmp_path / "d.jsonl"], task, chosen.data)
    elif name in ("labels", "label_words", "template"):
        assert task != task_of(config(declared))


def test_a_default_in_an_older_config_is_no_choice() -> None:
    chosen = config({"kind": "chat", "max_answer_tokens": 32})
    refuse_unused(chosen.data, task_of(chosen), from_folder=False)


def test_a_kind_that_the_task_is_not_is_refused() -> None:
    chosen = config({"task": CLASSES, "kind": "completion"})
    with pytest.raises(DpzoError, match=r"--kind \(data.kind\): the task is a classification"):
        refuse_unused(chosen.data, task_of(chosen), from_folder=False)


PARTS = {
    "lora_rank": 4,
    "lora_alpha": 4,
    "lora_targets": ["q"],
    "lora_layers": "top:2",
    "lora_scaling": "root-rank",
    "virtual_tokens": 3,
}


@pytest.mark.parametrize("trainable", ["head", "full", "lora", "prefix", "prompt", "ia3", None])
@pytest.mark.parametrize("name", PARTS)
def test_an_option_of_a_part_that_does_not_learn_is_refused(trainable: str | None, name: str) -> None:
    tree = {"model": {"name": "m", "trainable": trainable, name: PARTS[name]}, "privacy": {"delta": 1e-5}}
    chosen = parse_config(tree)
    used = (
        trainable is None or trainable == "lora" if name.startswith("lora") else trainable in (None, "prefix", "prompt")
    )
    if used:
        refuse_unused_parts(chosen)
        return
    with pytest.raises(DpzoError, match=rf"{name}\)?: is not used with --trainable {trainable}"):
        refuse_unused_parts(chosen)


@pytest.mark.parametrize(
    ("field", "value", "needs"),
    [
        ("training.momentum", 0.5, {"training.update": "adam"}),
        ("training.master", "float32", {"model.dtype": "bfloat16"}),
        ("privacy.count_share", 0.2, {"privacy.num_examples": "private"}),
    ],
)
def test_an_option_of_an_absent_update_or_count_is_refused(field: str, value: object, needs: dict[str, object]) -> None:
    base = {"model.name": "m", "privacy.delta": 1e-5, field: value}
    refuse_unused_parts(load_config(None, base | needs))
    with pytest.raises(DpzoError, match=rf"{field.partition('.')[2]}.* is not used with"):
        refuse_unused_parts(load_config(None, base))


@pytest.mark.parametrize(("option", "given"), [("--split", {"split": "test"}), ("--data-revision", {"revision": "v1"})])
def test_an_option_of_a_file_is_refused_beside_a_folder(tmp_path: Path, option: str, given: dict[str, str]) -> None:
    with pytest.raises(DpzoError, match=f"{option}: is not used with --data-dir"):
        DataSource(folder=tmp_path, **given)


def test_a_run_refuses_what_it_would_ignore(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    source = DataSource(file=tmp_path / "d.jsonl")
    assert without_ignored(config({}), source).data.kind == "completion"
    for ignored in ({"template": "It: {text}"}, {"text_column": "other"}):
        with pytest.raises(DpzoError, match="is not used with --kind completion"):
            without_ignored(config(ignored), source)
    with pytest.raises(DpzoError, match=r"--unit-column .* is not used with --task and --data-dir"):
        without_ignored(config({"task": "rte", "unit_column": "person"}), DataSource(folder=tmp_path))


def test_names_are_given_with_commas_or_one_by_one() -> None:
    assert listed(["yes, no"], strip=True) == ["yes", "no"]
    assert listed(["yes, of course ", "no"], strip=True) == ["yes, of course", "no"]
    assert listed([" bad, good"], strip=False) == [" bad", " good"]
    assert listed([], strip=True) == []
