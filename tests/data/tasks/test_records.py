"""Records keep texts, labels and owners together, and show nothing of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpzo.data.tasks.records import Records
from dpzo.data.tasks.unit_ids import UnitIds
from dpzo.errors import DpzoError


def test_a_repr_shows_neither_a_record_nor_how_many_there_are() -> None:
    short = Records(fields={"text": ["quark"]}, labels=np.array([0]))
    long = Records(fields={"text": ["quark", "gluon"]}, labels=np.array([0, 1]))
    assert repr(short) == repr(long) == str(long) == f"{long}"
    assert "quark" not in repr(short)


def number_units(names: list[str]) -> np.ndarray:
    ids = UnitIds()
    return np.array([ids.number(f"person {name}") for name in names], np.int64)


@given(st.lists(st.text("abc", max_size=3), max_size=40))
def test_units_are_numbered_by_first_appearance_and_their_members_partition_the_records(names: list[str]) -> None:
    records = Records(fields={"text": [""] * len(names)}, units=number_units(names))
    distinct = list(dict.fromkeys(names))
    assert records.num_units == len(distinct)
    for unit, name in enumerate(distinct):
        assert records.members(unit).tolist() == [i for i, other in enumerate(names) if other == name]
    with pytest.raises(IndexError):
        records.members(len(distinct))
    with pytest.raises(IndexError):
        records.members(-1)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.data())
def test_a_subset_keeps_who_owns_what(owners: list[int], data: st.DataObject) -> None:
    texts = [f"t{i}" for i in range(len(owners))]
    units = number_units([str(owner) for owner in owners])
    records = Records(fields={"text": texts}, labels=np.arange(len(owners)), units=units)
    chosen = data.draw(st.lists(st.integers(0, len(owners) - 1), min_size=1, max_size=20))
    part = records.subset(chosen)
    assert list(part.texts) == [texts[i] for i in chosen]
    assert part.labels is not None
    assert part.labels.tolist() == chosen
    assert part.units is not None
    assert part.units.tolist() == number_units([str(owners[i]) for i in chosen]).tolist()


def test_without_units_each_record_is_its_own() -> None:
    records = Records(fields={"prompt": ["a", "b"], "completion": ["c", "d"]})
    assert records.num_units == len(records) == 2
    assert records.members(1).tolist() == [1]
    with pytest.raises(DpzoError, match="no field 'text'"):
        _ = records.texts


def test_arrays_are_copied_and_cannot_be_written() -> None:
    labels = np.array([0, 1])
    records = Records(fields={"text": ["a", "b"]}, labels=labels)
    labels[0] = 7
    assert records.labels is not None
    assert records.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        records.labels[0] = 1


@pytest.mark.parametrize(
    ("fields", "labels", "units"),
    [
        ({}, None, None),
        ({"text": ["a"], "other": []}, None, None),
        ({"text": ["a"]}, [0, 1], None),
        ({"text": ["a"]}, None, [0, 0]),
        ({"text": ["a", "b"]}, None, [0, 2]),
        ({"text": ["a"]}, None, [-1]),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    fields: dict[str, list[str]], labels: list[int] | None, units: list[int] | None
) -> None:
    with pytest.raises(ValueError, match="Records needs"):
        Records(
            fields=fields,
            labels=None if labels is None else np.array(labels, np.int64),
            units=None if units is None else np.array(units, np.int64),
        )
