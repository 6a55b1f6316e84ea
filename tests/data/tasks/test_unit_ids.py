"""One person is one unit, however files spell the id; what cannot be decided is refused without showing it."""

from __future__ import annotations

import datetime
import itertools
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpzo.config.schema import DataConfig
from dpzo.data import read_records
from dpzo.data.tasks import own_classification
from dpzo.data.tasks.unit_ids import UnitIds
from dpzo.errors import DpzoError


def units(*ids: Any) -> list[int]:
    known = UnitIds()
    return [known.number(value) for value in ids]


ONE = [
    [
        17,
        17.0,
        np.int64(17),
        np.float32(17),
        np.uint8(17),
        Decimal("17.00"),
        "17",
        " 17 ",
        "17.0",
        "17.",
        pa.scalar(17),
    ],
    [0, -0.0, "0", "-0", "0.0"],
    [-3, "-3", -3.0],
    [2**53 - 1, float(2**53 - 1), str(2**53 - 1), f"{2**53 - 1}.0"],
    [10**30, "1" + "0" * 30, Decimal(10**30)],
    ["Zo\u00eb", "Zoe\u0308", "\u00a0Zo\u00eb", "Zo\u00eb\ufeff", "Zo\u00eb\u200b"],
    ["Ann  Lee", "Ann Lee", "Ann\tLee", "Ann\u3000Lee"],
    ["\uff11\uff17", "17", "\u0661\u0667"],
    ["p01", " p01", np.str_("p01")],
]
"""Spellings of one id each."""


@pytest.mark.parametrize("spellings", ONE, ids=lambda value: repr(value[0]))
def test_spellings_of_one_id_are_one_unit(spellings: list[Any]) -> None:
    for one, other in itertools.permutations(spellings, 2):
        assert units(one, other, one) == [0, 0, 0]


def test_ids_that_differ_are_units_of_their_own() -> None:
    assert units("p1", "P1", "p01", "1p", "-1", 1, "1e5f", "12e4", "a b", "ab") == list(range(10))
    assert units("007", "008", "010", "007") == [0, 1, 2, 0]


REFUSED = [
    *((value, "is empty") for value in (None, "", " \n", "\u200b", float("nan"), Decimal("NaN"), pd.NA, pd.NaT)),
    *((value, "a missing value") for value in ("NaN", "nan", "None", "null", "NULL", "NA", "N/A", "<NA>", "NaT")),
    *((value, "true or false") for value in (True, np.False_, "True", "false")),
    *((value, "not whole") for value in (17.5, Decimal("0.1"), float("inf"), "17.5", ".5", np.float32(0.1))),
    *(
        (value, "rounded number")
        for value in (float(2**53), 1e20, np.float32(2**24), np.float16(2048), "9007199254740992.0")
    ),
    *((value, "exponent form") for value in ("1e+20", "1.23E+11", "1.5e3", "1E-4")),
    *((value, "a list, an object or a date") for value in ([17], {"id": 17}, b"17", datetime.date(2024, 1, 1))),
]


@pytest.mark.parametrize(("value", "problem"), REFUSED, ids=[repr(case[0]) for case in REFUSED])
def test_what_cannot_be_decided_is_refused(value: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as told:
        units("p", value)
    assert "17" not in str(told.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [("017", 17), ("017", "17"), ("17.0", "017.0"), ("+17", 17), ("00", 0), ("1e5", 100000), ("017", "0017")],
)
def test_one_number_in_two_spellings_is_refused_in_either_order(one: Any, other: Any) -> None:
    for ids in ((one, other), (other, one), (one, "x", one, other)):
        with pytest.raises(ValueError, match="two spellings") as told:
            units(*ids)
        assert "17" not in str(told.value)


@given(st.integers(-(2**53) + 1, 2**53 - 1), st.integers(-(2**53) + 1, 2**53 - 1))
def test_whole_numbers_are_one_unit_exactly_when_equal(one: int, other: int) -> None:
    spellings = [one, float(one), str(one), f"{one}.0", other, float(other), str(other), Decimal(other)]
    first = 0 if one == other else 1
    assert units(*spellings) == [0] * 4 + [first] * 4


@given(st.lists(st.text(max_size=4), max_size=6))
def test_any_text_is_a_unit_or_refused(names: list[str]) -> None:
    known = UnitIds()
    for name in names:
        with suppress(ValueError):
            assert known.number(name) == known.number(f" {name}\n")


def files(folder: Path) -> dict[str, Path]:
    """The same three people in files of every kind, as the writers of these spell them."""
    ids = {"int": [17, 18, 19], "gap": [17.0, 18.0, 19.0], "narrow": pa.array([17, 18, 19], pa.float32())}
    ids["decimal"] = pa.array([Decimal(17), Decimal(18), Decimal(19)], pa.decimal128(5, 2))
    ids["text"] = ["17", " 18", "19"]
    texts, labels = ["fine", "bad", "so so"], ["a", "b", "a"]
    found = {}
    for name, values in ids.items():
        found[name] = folder / f"{name}.parquet"
        pq.write_table(pa.table({"text": texts, "label": labels, "patient": values}), found[name])
    for name, cells in {"plain": "17 18 19", "pandas": "17.0 18.0 19.0"}.items():
        found[name] = folder / f"{name}.csv"
        rows = zip(texts, labels, cells.split(), strict=True)
        found[name].write_text("text,label,patient\n" + "".join(",".join(row) + "\n" for row in rows))
    found["json"] = folder / "j.jsonl"
    found["json"].write_text("".join(f'{{"text": "t", "label": "a", "patient": {n}.0}}\n' for n in (17, 18, 19)))
    return found


def test_a_person_in_files_of_every_kind_is_one_unit(tmp_path: Path) -> None:
    task, data = own_classification(("a", "b")), DataConfig(unit_column="patient", labels=("a", "b"))
    places = files(tmp_path)
    records = read_records(list(places.values()), task, data)
    assert records.units is not None
    assert records.units.tolist() == [0, 1, 2] * len(places)


def test_an_id_that_is_refused_is_named_by_file_row_and_column(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text,label,patient\nx,a,17\n")
    (tmp_path / "two.csv").write_text("text,label,patient\nx,a,18\ny,a,017\n")
    task, data = own_classification(("a", "b")), DataConfig(unit_column="patient", labels=("a", "b"))
    with pytest.raises(DpzoError, match=r"two\.csv, row 3: column 'patient' holds one number in two") as told:
        read_records([tmp_path / "one.csv", tmp_path / "two.csv"], task, data)
    assert "17" not in str(told.value).replace(str(tmp_path), "")
