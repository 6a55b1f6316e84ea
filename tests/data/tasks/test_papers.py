"""The papers' tasks: prompts as published, public files read in full, splits that no other record moves."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpzo.data.tasks import TASKS, Records, Task, k_shot
from dpzo.data.tasks.layouts import Layout, frozen_map
from dpzo.data.tasks.templates import FILTERS, fields_of, render
from dpzo.errors import DpzoError

SHARED = Path(os.environ.get("DPZO_SHARED_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
PAPERS = [task for task in TASKS.values() if task.name != "demo"]


@pytest.mark.parametrize("task", PAPERS, ids=lambda task: task.name)
def test_a_task_states_all_that_is_public(task: Task) -> None:
    assert task.hub is not None
    assert task.source
    assert task.version >= 1
    assert task.example is not None
    answer = {"completion"} if task.kind == "completion" else {"label"}
    assert set(task.example) == {*task.text_fields} | answer
    assert set(task.hub.columns) >= set(task.text_fields)
    if task.labels is not None:
        assert task.example["label"] in task.labels
        assert len(task.hub.label_values) == len(task.labels)
        assert (task.label_words is None) != (task.option_fields is None)
    for layout in task.layouts:
        assert set(layout.fields) >= set(task.text_fields)
        assert set(layout.num_examples) >= {"train"} or layout.name == "sentence"
        assert len(layout.file_labels) == (0 if task.labels is None else len(task.labels))


def rendered(name: str, **fields: str) -> tuple[str, str]:
    """(causal prompt, masked prompt or "") of one record."""
    task, records = TASKS[name], Records(fields={field: [text] for field, text in fields.items()})
    masked = ""
    if task.mask_template is not None:
        slots = {slot: texts[0] for slot, texts in task.mask_fields(records).items()}
        masked = task.mask_template.format_map({**slots, "mask": "<mask>"})
    return task.prompts(records)[0], masked


def test_prompts_are_the_published_ones() -> None:
    assert rendered("sst2", text="so so .")[1] == "so so . It was<mask>."
    assert rendered("sst5", text="so so .")[1] == "so so . It was<mask>."
    assert rendered("trec", text="Who ?")[1] == "<mask>: Who ?"
    assert rendered("mnli", premise="It rains.", hypothesis="Wet it is.")[1] == "It rains?<mask>, wet it is."
    assert rendered("qnli", question="Who?", sentence="He did.")[1] == "Who?<mask>, he did."
    assert rendered("mrpc", first="A b .", second="A c .")[1] == "A b .<mask>, a c ."
    assert rendered("boolq", passage="P.", question="is it so")[0] == "P. Is it so?\n"
    assert rendered("rte", premise="P.", hypothesis="H.")[0] == 'P.\nDoes this mean that "H." is true? Yes or No?\n'
    assert rendered("cb", premise="P.", hypothesis="H")[0] == ('Suppose P. Can we infer that "H"? Yes, No, or Maybe?\n')
    assert rendered("wsc", text="A saw it.", span1="A", span2="It")[0] == (
        'A saw it.\nIn the previous sentence, does the pronoun "it" refer to A? Yes or No?\n'
    )
    assert rendered("multirc", passage="P", question="Q?", answer="A")[0] == (
        'P\nQuestion: Q?\nI found this answer "A". Is that correct? Yes or No?\n'
    )
    assert rendered("drop", passage="P", question="Q?")[0] == "Passage: P\nQuestion: Q?\nAnswer:"


def test_copa_brings_its_own_options() -> None:
    copa = TASKS["copa"]
    fields = {
        "premise": ["It rained.", "x"],
        "asked": ["effect", "cause"],
        "choice1": ["I ran.", ""],
        "choice2": ["B", "C"],
    }
    records = Records(fields={name: list(texts) for name, texts in fields.items()}, labels=np.array([0, 1]))
    assert list(copa.prompts(records)) == ["It rained so", "x because"]
    assert copa.options(records) == ((" i ran.", " b"), (" ", " c"))


def test_squads_answer_ends_with_the_line() -> None:
    squad = TASKS["squad"]
    records = Records(fields={"title": ["t"], "context": ["c"], "question": ["q"], "completion": ["a"]})
    assert squad.prompts(records)[0] + squad.answers(records)[0] == "Title: t\nContext: c\nQuestion: q\nAnswer: a\n"
    assert squad.stop == "\n"


READ = [
    ("sst5", "sst5", "resplit", "train", 7689),
    ("sst5", "sst5", "sentence", "test", 2210),
    ("trec", "trec", "coarse", "train", 5452),
    ("trec", "glue", "k-512/seed-13", "train", 2646),
    ("snli", "glue", "k-16/seed-42", "test", 1000),
    ("rte", "superglue", "superglue", "train", 2490),
    ("rte", "glue", "subset", "dev", 249),
    ("boolq", "superglue", "carved", "test", 324),
    ("copa", "superglue", "fewglue", "test", 100),
    ("multirc", "superglue", "fewglue", "train", 154),
    ("wic", "superglue", "fewglue", "test", 638),
    ("wsc", "superglue", "fewglue", "test", 104),
    ("squad", "squad", "carved", "test", 1310),
    ("drop", "drop", "carved", "dev", 740),
    ("e2e", "e2e", "dev-as-train", "test", 630),
    ("dart", "dart", "dev-as-train", "train", 6980),
    ("dart", "dart", "dev-as-train", "test", 5097),
]


@pytest.mark.parametrize(("name", "folder", "layout", "split", "count"), READ)
def test_public_files_hold_what_is_published(name: str, folder: str, layout: str, split: str, count: int) -> None:
    if not (SHARED / folder).is_dir():
        pytest.skip("the shared data files are absent; set DPZO_SHARED_DATA")
    task = TASKS[name]
    records = task.load(SHARED / folder, split, layout)  # type: ignore[arg-type]
    assert len(records) == count == task.public_num_examples(SHARED / folder, split, layout)  # type: ignore[arg-type]
    assert not task.blank(records).any()
    if task.kind == "completion":
        assert all(len(golds) >= 1 for golds in records.accepted)
    else:
        assert records.labels is not None
        assert task.labels is not None
        assert set(records.labels.tolist()) == set(range(len(task.labels)))


def test_archives_are_read_where_they_lie(tmp_path: Path) -> None:
    text = b"NUM:dist How far ?\nHUM:ind Who \xf0 ?\n"
    with zipfile.ZipFile(tmp_path / "qc.zip", "w") as made:
        made.writestr("qc/train.txt", text)
    records = TASKS["trec"].load(tmp_path, "train", "coarse")
    assert list(records.texts) == ["How far ?", "Who ð ?"]
    assert records.labels is not None
    assert records.labels.tolist() == [5, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["qc.zip"]
    with pytest.raises(DpzoError, match=r"qc.zip!qc/test.txt: the archive holds no such file"):
        TASKS["trec"].load(tmp_path, "test", "coarse")
    (tmp_path / "qc.zip").write_bytes(b"PK no")
    with pytest.raises(DpzoError, match="the archive is damaged"):
        TASKS["trec"].load(tmp_path, "train", "coarse")


def test_a_damaged_tar_is_told(tmp_path: Path) -> None:
    inside = io.BytesIO()
    with tarfile.open(fileobj=inside, mode="w:xz") as made:
        entry = tarfile.TarInfo("glue_subsets/RTE/train.json")
        entry.size = 9
        made.addfile(entry, io.BytesIO(b'{"0": []}'))
    archive = tmp_path / "glue_train_subsets.tar.xz"
    archive.write_bytes(inside.getvalue())
    with pytest.raises(DpzoError, match=r"train.json, row 1: is not a JSON object"):
        TASKS["rte"].load(tmp_path, "train", "subset")
    archive.write_bytes(inside.getvalue()[:60])
    with pytest.raises(DpzoError, match="the archive is damaged"):
        TASKS["rte"].load(tmp_path, "train", "subset")


@pytest.mark.parametrize(
    ("task", "name", "content"),
    [
        ("squad", "squad_v1.1_dev.json.gz", '{"data": [{"title": "SECRET"}]}'),
        ("squad", "squad_v1.1_dev.json.gz", '{"SECRET'),
        ("drop", "drop_v0_dev.jsonl.gz", '{"context": "SECRET", "completion": "", "ref_text": ""}\n'),
        ("drop", "drop_v0_dev.jsonl.gz", '{"context": 1, "completion": "SECRET"}\n'),
        ("dart", "dart-v1.1.1-full-dev.json.gz", '[{"SECRET": 1}]'),
        ("sst5", "train_90pct.json.gz", '["SECRET"]'),
        ("sst5", "train_90pct.json.gz", '{"0": {"text_a": "x", "label": "SECRET"}}'),
    ],
)
def test_a_bad_file_is_refused_without_showing_it(tmp_path: Path, task: str, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(content.encode()))
    with pytest.raises(DpzoError) as caught:
        TASKS[task].load(tmp_path, "train")
    assert name in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.lists(st.text("abcde ", min_size=1), min_size=1, unique=True), st.integers(0, 20))
def test_a_carved_record_stays_whatever_the_others_are(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], cut: int
) -> None:
    layout = Layout(name="carved", files={}, num_examples={}, fields=frozen_map(passage="passage"), carve_by="passage")
    path = tmp_path_factory.mktemp("carved") / "rows.jsonl"
    found = []
    for part in (texts, texts[: max(1, cut)]):
        path.write_text("".join(f'{{"passage": "{text}"}}\n' for text in part))
        splits = {split: layout.read(path, split).fields["passage"] for split in ("train", "dev", "test")}  # type: ignore[arg-type]
        assert sorted(text for some in splits.values() for text in some) == sorted(text.strip() for text in part)
        found.append({text: split for split, some in splits.items() for text in some})
    assert all(found[0][text] == split or texts.count(text) != 1 for text, split in found[1].items())


def test_grouped_references_meet_in_one_record(tmp_path: Path) -> None:
    (tmp_path / "testset_w_refs.csv").write_text("mr,ref\nx,one\ny,two\nx,three\n")
    (tmp_path / "trainset.csv").write_text("mr,ref\nx,one\ny,two\nx,three\n")
    test = TASKS["e2e"].load(tmp_path, "test")
    assert list(test.completions) == ["one", "two"]
    assert list(test.accepted) == [("one", "three"), ("two",)]
    assert list(test.subset([1]).accepted) == [("two",)]
    assert len(TASKS["e2e"].load(tmp_path, "train")) == 3


def test_k_shot_takes_k_of_each_label_by_a_public_seed() -> None:
    labels = np.array([0, 1, 2] * 30)
    records = Records(fields={"text": [str(i) for i in range(90)]}, labels=labels)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    train, dev = k_shot(records, 5, 13)
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    assert train.labels is not None
    assert train.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert not set(train.texts) & set(dev.texts)
    assert list(k_shot(records, 5, 13)[0].texts) == list(train.texts)
    assert list(k_shot(records, 5, 21)[0].texts) != list(train.texts)
    with pytest.raises(DpzoError, match="k of 1 or more"):
        k_shot(records, 0, 1)


@given(st.text())
def test_filters_are_defined_for_every_text(text: str) -> None:
    for name in FILTERS:
        (made,) = render(f"<{{text|{name}}}>", {"text": [text]}, 1)
        assert made == f"<{FILTERS[name](text)}>"


def test_an_unknown_filter_is_refused() -> None:
    with pytest.raises(DpzoError, match="names an unknown filter; there are drop_last"):
        fields_of("{text|eval}")


@given(st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_the_shuffle_is_the_papers_scripts(count: int, seed: int) -> None:
    texts = [str(i) for i in range(count)]
    labels = np.zeros(count, np.int64)
    train, _ = k_shot(Records(fields={"text": texts}, labels=labels), max(count, 1), seed)
    np.random.RandomState(seed).shuffle(texts)
    assert list(train.texts) == texts
