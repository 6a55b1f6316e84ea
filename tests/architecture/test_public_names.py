"""`import dpzo` offers what it lists, each name from the room that owns it."""

from __future__ import annotations

import importlib

import pytest

import dpzo


@pytest.mark.parametrize("name", dpzo.__all__)
def test_a_listed_name_is_there(name: str) -> None:
    found = getattr(dpzo, name)
    assert found.__module__.startswith("dpzo.")
    assert getattr(importlib.import_module(found.__module__), found.__name__) is found
    assert name in dir(dpzo)


def test_the_list_is_sorted_and_complete() -> None:
    assert sorted(dpzo.__all__) == sorted(set(dpzo.__all__)) == sorted(dpzo._HOME)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = dpzo.fitt
