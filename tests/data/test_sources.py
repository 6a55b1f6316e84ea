"""Parquet, saved data sets, several files: the same records whatever they lie in; each fault in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpzo.config.reading import parse_config
from dpzo.config.schema import RunConfig
from dpzo.data import open_table, read_records
from dpzo.data.hub import HubName, hub_rows, parse_hub
from dpzo.data.tasks import Records
from dpzo.errors import DpzoError
from dpzo.run.subject import task_of

TEXTS, LABELS, OWNERS = ["one", "", 'two, "three"', "vier ü\n"], ["no", "yes", "yes", "no"], ["a", "b", "a", "c"]
CLASSES = {"labels": ["no", "yes"]}


def config(**data: Any) -> RunConfig:
    return parse_config({"model": {"name": "m"}, "data": data, "privacy": {"delta": 1e-5}})


def read(*places: str | Path, split: str | None = None, revision: str | None = None, **data: Any) -> Records:
    chosen = config(**data)
    return read_records(places, task_of(chosen), chosen.data, split=split, revision=revision)


def table(**more: Any) -> pa.Table:
    return pa.table({"text": TEXTS, "label": LABELS, "person": OWNERS, **more})


def save_parquet(folder: Path) -> Path:
    pq.write_table(table(other=[1, 2, 3, 4]), folder / "a.parquet", row_group_size=3)
    return folder / "a.parquet"


def save_one(folder: Path) -> Path:
    datasets.Dataset(table()).save_to_disk(str(folder / "one"), num_shards=2)
    return folder / "one"


def save_several(folder: Path) -> Path:
    whole = datasets.Dataset(table())
    datasets.DatasetDict({"train": whole, "test": whole.select([0])}).save_to_disk(str(folder / "several"))
    return folder / "several"


def save_labels_as_numbers(folder: Path) -> Path:
    """As most data sets of the hub have them; and rearranged, which datasets keeps as a list of indices until saved."""
    names = datasets.ClassLabel(names=["no", "yes"])
    turned = datasets.Dataset(table().take([3, 2, 1, 0])).cast_column("label", names).select([3, 2, 1, 0])
    turned.save_to_disk(str(folder / "numbers"))
    return folder / "numbers"


def save_jsonl(folder: Path) -> Path:
    rows = zip(TEXTS, LABELS, OWNERS, strict=True)
    lines = [json.dumps({"text": text, "label": label, "person": owner}) + "\n" for text, label, owner in rows]
    (folder / "a.jsonl").write_text("".join(lines))
    return folder / "a.jsonl"


SAVERS = (save_parquet, save_one, save_several, save_labels_as_numbers, save_jsonl)


@pytest.mark.parametrize("save", SAVERS)
def test_records_are_the_same_whatever_they_lie_in(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    records = read(save(tmp_path), unit_column="person", **CLASSES)
    assert list(records.texts) == TEXTS
    assert records.labels is not None
    assert records.labels.tolist() == [0, 1, 1, 0]
    assert records.units is not None
    assert records.units.tolist() == [0, 1, 0, 2]


def test_a_unit_may_own_records_in_several_files_of_several_kinds(tmp_path: Path) -> None:
    records = read(save_jsonl(tmp_path), save_parquet(tmp_path), unit_column="person", **CLASSES)
    assert list(records.texts) == TEXTS * 2
    assert records.units is not None
    assert records.units.tolist() == [0, 1, 0, 2] * 2
    (tmp_path / "b.csv").write_text("text,name\nx,no\n")
    with pytest.raises(DpzoError, match=r"b\.csv: has no column 'label'"):
        read(save_jsonl(tmp_path), tmp_path / "b.csv", **CLASSES)


def test_a_split_is_named(tmp_path: Path) -> None:
    folder = save_several(tmp_path)
    assert list(read(folder, split="test", **CLASSES).texts) == TEXTS[:1]
    with pytest.raises(DpzoError, match=r"several: has no split 'tset'; did you mean test\?"):
        read(folder, split="tset", **CLASSES)
    with pytest.raises(DpzoError, match="has no split 'dev'; it has train, test"):
        read(folder, split="dev", **CLASSES)


def test_nothing_is_written_by_reading(tmp_path: Path) -> None:
    places = [save(tmp_path) for save in SAVERS]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for place in places:
        read(place, **CLASSES)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(texts=st.lists(st.text(max_size=8), min_size=1, max_size=20), rows=st.integers(1, 7))
def test_any_text_survives_parquet(tmp_path: Path, texts: list[str], rows: int) -> None:
    # A surrogate cannot be written: Arrow's texts are UTF-8.
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    pq.write_table(pa.table({"prompt": texts, "completion": texts}), tmp_path / "x.parquet", row_group_size=rows)
    records = read(tmp_path / "x.parquet", kind="completion")
    assert list(records.prompts) == list(records.completions) == texts


def spoil(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def broken_places(folder: Path) -> dict[str, Path]:
    whole = save_parquet(folder).read_bytes()
    middle = len(whole) // 4
    saved = save_one(folder)
    arrow = sorted(saved.glob("*.arrow"))[0]
    spoil(arrow, arrow.read_bytes()[:100])
    lost = save_several(folder)
    (lost / "train" / "state.json").write_text("{")
    (folder / "nothing").mkdir()
    pq.write_table(table().slice(0, 0), folder / "empty.parquet")
    pq.write_table(pa.table({"text": [b"secret"], "label": ["no"]}), folder / "bytes.parquet")
    pq.write_table(pa.table({"text": [None], "label": ["no"]}), folder / "null.parquet")
    pq.write_table(pa.table({"txet": ["secret"], "label": ["no"]}), folder / "typo.parquet")
    return {
        "is not a whole parquet file": spoil(folder / "cut.parquet", whole[:-30]),
        "is not a whole parquet file, or": spoil(folder / "text.parquet", b"text,label\nsecret,no\n"),
        "it is damaged": spoil(folder / "bits.parquet", whole[:middle] + bytes(40) + whole[middle + 40 :]),
        "no such file": folder / "none.parquet",
        "is not a whole data set": saved,
        "is missing or damaged": lost,
        "is a folder, but no data set": folder / "nothing",
        "has no records": folder / "empty.parquet",
        "row 1: column 'text' holds an object": folder / "bytes.parquet",
        "row 1: column 'text' holds null": folder / "null.parquet",
        "has no column 'text' (--text-column); did you mean 'txet'": folder / "typo.parquet",
    }


def test_each_fault_is_one_line_that_names_the_place(tmp_path: Path) -> None:
    for problem, place in broken_places(tmp_path).items():
        with pytest.raises(DpzoError) as told:
            read(place, **CLASSES)
        said = str(told.value)
        assert problem in said
        assert place.name in said
        assert "secret" not in said
        assert "\n" not in said
        assert told.value.__cause__ is None


@pytest.mark.parametrize(
    ("place", "options", "problem"),
    [
        ("x.csv", {"split": "train"}, "--split: is for a saved data set or a hub name"),
        ("x.csv", {"revision": "main"}, "--data-revision: is for a data set of the hub"),
        ("hub:", {}, "write hub:organisation/name"),
        ("hub:a/b/c", {}, "write hub:organisation/name"),
        ("hub:a/b:", {}, "write hub:organisation/name"),
    ],
)
def test_an_option_out_of_place_is_refused(place: str, options: dict[str, str], problem: str) -> None:
    with pytest.raises(DpzoError, match=problem):
        open_table(place, ["text"], **options)


def test_hub_names() -> None:
    assert parse_hub("hub:org/name") == HubName("org/name", None)
    assert parse_hub("hub:glue:sst2") == HubName("glue", "sst2")
    assert str(parse_hub("hub:org/name:part")) == "hub:org/name:part"
    assert parse_hub("data/hub.csv") is None


def test_a_hub_out_of_reach_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def away(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("a long\nstory")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", away)
    with pytest.raises(
        DpzoError, match=r"^--data hub:org/name: the hub does not answer \(ConnectionError\); check"
    ) as e:
        list(hub_rows(HubName("org/name", None), (["text"], ()), None, "train", None))
    assert "\n" not in str(e.value)
