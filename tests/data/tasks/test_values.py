"""One value has one spelling: labels are compared by value, and what is missing is missing in every spelling."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpzo.data.tasks import Records
from dpzo.data.tasks.files import Columns, check_labels, load_records, records_from_tables
from dpzo.data.tasks.values import ClassLabel, label_text, plain
from dpzo.errors import DpzoError

MISSING = [None, float("nan"), np.float32("nan"), Decimal("NaN"), Decimal("sNaN"), pd.NA, pd.NaT, np.datetime64("NaT")]


@pytest.mark.parametrize("value", MISSING, ids=repr)
def test_a_missing_value_is_none_in_every_spelling(value: object) -> None:
    assert plain(value) is None
    assert label_text(value) is None
    assert label_text("  ") is None


@pytest.mark.parametrize(
    ("spellings", "text"),
    [
        ([1, 1.0, np.int8(1), np.float32(1), Decimal("1.00"), "1", " 1.0", "1.00", pa.scalar(1), np.array(1)], "1"),
        ([0, -0.0, "-0.0", "0.0"], "0"),
        ([-3, -3.0, "-3.0"], "-3"),
        ([True, np.True_, "True", "TRUE", "true "], "true"),
        ([0.5, "0.50", Decimal("0.5"), np.float32(0.5), np.float16(0.5)], "0.5"),
        (["caf\u00e9", "cafe\u0301", "caf\u00e9\n"], "caf\u00e9"),
        (["01"], "01"),
        (["1."], "1."),
        (["A"], "A"),
        ([ClassLabel(1, ("no", "yes"))], "yes"),
        ([10**400], "1" + "0" * 400),
    ],
)
def test_equal_values_have_one_text(spellings: list[Any], text: str) -> None:
    assert {label_text(value) for value in spellings} == {text}


@pytest.mark.parametrize("value", [[], {}, b"x", [1]])
def test_what_is_no_label_is_told_apart(value: object) -> None:
    with pytest.raises(TypeError):
        label_text(value)


def read(values: list[Any], *labels: str) -> Records:
    rows = [(row, {"text": "x", "label": value}) for row, value in enumerate(values, start=1)]
    columns = Columns({"text": "text"}, label="label", labels=check_labels(labels))
    return records_from_tables([(Path("t.jsonl"), rows)], columns)


def test_a_truth_value_is_no_number() -> None:
    with pytest.raises(DpzoError, match=r"row 1: .* not declared; declared are '0', '1'; .* --labels false,true"):
        read([True], "0", "1")
    with pytest.raises(DpzoError, match="not declared"):
        read([1], "false", "true")


@pytest.mark.parametrize("twice", [("1", "1.0"), ("true", "True", "no"), ("caf\u00e9", "cafe\u0301"), ("0", "-0.0")])
def test_two_declared_labels_of_one_value_are_refused(twice: tuple[str, ...]) -> None:
    with pytest.raises(DpzoError, match="declared twice"):
        check_labels(twice)


@pytest.mark.parametrize(
    ("names", "labels", "found"),
    [
        (("no", "yes"), ("yes", "no"), [1, 0]),
        (("no", "yes"), ("0", "1"), [0, 1]),  # no name is declared, so the numbers are meant
        (("1", "0"), ("0", "1"), [1, 0]),  # the names are declared, so they are meant
    ],
)
def test_class_labels_are_read_by_name_from_parquet(
    tmp_path: Path, names: tuple[str, ...], labels: tuple[str, ...], found: list[int]
) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))})
    whole = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    pq.write_table(whole.data.table, tmp_path / "t.parquet")
    from dpzo.data.arrow import parquet_rows

    columns = Columns({"text": "text"}, label="label", labels=labels)
    rows = parquet_rows(tmp_path / "t.parquet", (columns.asked, ()))
    records = records_from_tables([(tmp_path / "t.parquet", rows)], columns)
    assert records.labels is not None
    assert records.labels.tolist() == found


def test_a_class_whose_name_is_not_declared_among_others_is_refused() -> None:
    with pytest.raises(DpzoError, match="declare these names"):
        read([ClassLabel(0, ("2", "1", "0"))], "0", "1")


def test_labels_that_pandas_wrote_as_floats_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\nfine,1.0\nbad,0.0\n")
    records = load_records(tmp_path / "t.csv", labels=["0", "1"])
    assert records.labels is not None
    assert records.labels.tolist() == [1, 0]
