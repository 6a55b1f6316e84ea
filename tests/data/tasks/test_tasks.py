"""Tasks: declarations that fit together, layouts found by name, SST-2 as published."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpzo.data.tasks import TASKS, Records, Task, own_classification, own_completion
from dpzo.errors import DpzoError

SHARED = Path(os.environ.get("DPZO_SHARED_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))

SST2 = TASKS["sst2"]


def test_the_registry_is_keyed_by_the_tasks_own_names() -> None:
    papers = "sst2 sst5 trec snli mnli rte qnli qqp mrpc boolq cb copa wic multirc wsc squad drop e2e dart"
    assert list(TASKS) == [*papers.split(), "demo"]
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize(("split", "count"), [("train", 6920), ("dev", 872), ("test", 1821)])
def test_sst2_sentences_are_as_many_as_published(split: str, count: int) -> None:
    folder = SHARED / "sst2"
    if not folder.is_dir():
        pytest.skip("the shared SST-2 files are absent; set DPZO_SHARED_DATA")
    records = SST2.load(folder, split)  # type: ignore[arg-type]
    assert len(records) == count == SST2.public_num_examples(folder, split)  # type: ignore[arg-type]
    assert SST2.layout(folder).name == "sentence"
    assert records.labels is not None
    assert set(records.labels.tolist()) == {0, 1}


def test_sst2_of_glue_is_read_on_request() -> None:
    folder = SHARED / "sst2"
    if not folder.is_dir():
        pytest.skip("the shared SST-2 files are absent; set DPZO_SHARED_DATA")
    records = SST2.load(folder, "test", layout="glue-resplit")
    assert len(records) == SST2.public_num_examples(folder, "test", "glue-resplit") == 872
    assert records.texts[0] == "it 's a charming and often affecting journey ."
    assert records.labels is not None
    assert records.labels[0] == 1
    assert all(text == text.strip() for text in records.texts)


def test_layouts_are_told_apart_by_names_alone(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text('sentence\tlabel\n"so so \t0\nfine\t1\n')
    assert SST2.layout(tmp_path).name == "glue"
    assert SST2.public_num_examples(tmp_path, "train") == 67349
    assert SST2.public_num_examples(tmp_path, "test") is None
    assert list(SST2.load(tmp_path, "train").texts) == ['"so so', "fine"]
    with pytest.raises(DpzoError, match=r"no dev split of task sst2 \(glue\); add dev.tsv"):
        SST2.load(tmp_path, "dev")
    with pytest.raises(DpzoError, match="this layout has train, dev"):
        SST2.load(tmp_path, "test")
    (tmp_path / "sentence_train.tsv").write_text("1\tgood\n")
    assert SST2.layout(tmp_path).name == "sentence"
    assert list(SST2.load(tmp_path, "train").texts) == ["good"]
    with pytest.raises(DpzoError, match="no layout 'parquet'; it has sentence, glue"):
        SST2.layout(tmp_path, "parquet")


def test_a_folder_without_the_files_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(DpzoError, match=r"sentence_train.tsv.gz or train.tsv or glue_train.tsv.gz"):
        SST2.load(tmp_path, "train")
    with pytest.raises(DpzoError, match="no such folder"):
        SST2.load(tmp_path / "none", "train")


def test_a_prompt_is_the_template_with_the_text_put_in() -> None:
    records = Records(fields={"text": ["a film {text} {0}", ""]}, labels=np.array([0, 1]))
    assert SST2.prompts(records) == ("a film {text} {0} It was", " It was")
    pair = own_classification(("no", "yes"), template="{a}? {b}. {a}{{")
    assert pair.fields == ("a", "b")
    assert pair.prompts(Records(fields={"a": ["x"], "b": ["y"]})) == ("x? y. x{",)
    with pytest.raises(DpzoError, match="a field that these records do not have"):
        pair.prompts(records)
    completion = own_completion()
    assert completion.prompts(Records(fields={"prompt": ["p"], "completion": ["c"]})) == ("p",)


@pytest.mark.parametrize(
    "template", ["", "no field", "{", "}", "{}", "{0}", "{text.__class__}", "{text[0]}", "{text!r}", "{text:>9}",
                 "{completion}"],
)  # fmt: skip
def test_a_template_may_only_name_fields(template: str) -> None:
    with pytest.raises(DpzoError, match="template: "):
        own_classification(("a", "b"), template=template)


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DpzoError, match="needs labels"):
        replace_task(labels=None)
    with pytest.raises(DpzoError, match="one word of its own"):
        replace_task(label_words=(" great",))
    with pytest.raises(DpzoError, match="one word of its own"):
        replace_task(label_words=(" great", " great"))
    with pytest.raises(DpzoError, match="max_length"):
        replace_task(max_length=0)
    with pytest.raises(DpzoError, match="use macro_f1"):
        own_classification(("a", "b", "c"), metric="f1")
    with pytest.raises(DpzoError, match="a completion has no labels"):
        Task(name="t", kind="completion", template="{prompt}", metric="accuracy")


def replace_task(**changes: object) -> Task:
    parts = {name: getattr(SST2, name) for name in ("name", "kind", "template", "labels", "label_words", "max_length")}
    return Task(**{**parts, **changes})


def test_a_task_is_a_value() -> None:
    assert replace(SST2, max_length=64).max_length == 64
    assert replace(SST2) == SST2
