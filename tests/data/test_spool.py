"""Spools: the same content in memory and in a file; the file has no name and is the owner's."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpzo.data.spool import ArraySpool, RowStore, Spool, TextSpool
from dpzo.errors import DpzoError

ANY_TEXT = st.text(st.characters(), max_size=20)  # lone surrogates too


@given(st.lists(ANY_TEXT, max_size=30), st.sampled_from([0, 100, 1 << 20]))
def test_texts_come_back_wherever_they_lie(texts: list[str], map_above: int) -> None:
    spool = TextSpool(map_above)
    for text in texts:
        spool.append(text)
    found = spool.finish()
    assert list(found) == texts
    assert len(found) == len(texts)
    assert list(found[1:4]) == texts[1:4]
    assert [found[i] for i in range(-len(texts), 0)] == texts
    with pytest.raises(IndexError):
        found[len(texts)]
    assert isinstance(found, tuple) == (map_above > 100 or sum(len(text) + 80 for text in texts) <= map_above)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.sampled_from([0, 50, 1 << 20]))
def test_arrays_come_back_wherever_they_lie(sizes: list[int], map_above: int) -> None:
    blocks = [np.arange(3 * size, dtype=np.int32).reshape(size, 3) + size for size in sizes]
    spool = ArraySpool(map_above)
    for block in blocks:
        spool.append(block)
    found = spool.finish()
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, np.concatenate(blocks))


@given(st.lists(st.integers(0, 6), max_size=12), st.sampled_from([0, 1 << 20]))
def test_rows_come_back_in_any_order(places: list[int], map_above: int) -> None:
    store = RowStore(7, 5, map_above)
    expected = np.zeros((7, 5), dtype=np.uint8)
    for number, place in enumerate(places):
        row = np.full((1, 5), number + 1, dtype=np.uint8)
        store.write(np.array([place]), row)
        expected[place] = row
    np.testing.assert_array_equal(store.read(np.arange(7)), expected)
    both = np.arange(10, dtype=np.uint8).reshape(2, 5)
    store.write(np.array([6, 2]), both)
    found = store.read(np.array([2, 6, 2]))
    np.testing.assert_array_equal(found, both[[1, 0, 1]])
    found[:] = 0  # a copy
    np.testing.assert_array_equal(store.read(np.array([6, 2])), both)
    assert RowStore(0, 5, map_above).read(np.zeros(0, dtype=np.int64)).shape == (0, 5)
    with pytest.raises(ValueError, match="another width"):
        store.write(np.array([1]), both)


def test_blocks_of_another_kind_are_refused() -> None:
    spool = ArraySpool()
    with pytest.raises(ValueError, match="no type"):
        spool.finish()
    spool.append(np.zeros((1, 2), np.int8))
    for other in (np.zeros((1, 3), np.int8), np.zeros((1, 2), np.int16)):
        with pytest.raises(ValueError, match="one type"):
            spool.append(other)


def _open_files() -> list[str]:
    return [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if _links(number)]


def _links(number: str) -> bool:
    try:
        os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return False
    return True


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at Linux's list of open files")
def test_the_file_has_no_name_and_is_mapped_only_when_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spool = Spool(map_above=10)
    spool.write(b"q" * 100_000)
    spool.write(b"r")
    assert list(tmp_path.iterdir()) == []
    held = [name for name in _open_files() if str(tmp_path) in name]
    assert [bool(re.search(r"\(deleted\)$", name)) for name in held] == [True]
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    found = spool.finish()
    assert bytes(found[-2:]) == b"qr"
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    del found, spool
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at Linux's list of open files")
def test_a_store_of_rows_has_no_name_and_takes_its_room_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = RowStore(100, 5000, map_above=10)
    assert list(tmp_path.iterdir()) == []
    held = [number for number in os.listdir("/proc/self/fd") if _links(number)]
    held = [number for number in held if str(tmp_path) in os.readlink(f"/proc/self/fd/{number}")]
    assert held
    for number in held:
        found = os.fstat(int(number))
        assert (found.st_nlink, found.st_mode & 0o777, found.st_size) == (0, 0o600, 500_000)
        assert found.st_blocks * 512 >= 500_000
    store.write(np.array([99]), np.full((1, 5000), 7, dtype=np.uint8))
    assert store.read(np.array([99, 0])).sum(axis=1).tolist() == [35_000, 0]
    del store
    assert not any(str(tmp_path) in name for name in _open_files())


def test_a_store_that_finds_no_room_says_so_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: int) -> None:
        raise OSError(28, "quoted secret")

    for name in ("posix_fallocate", "pwrite"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(DpzoError, match=r"\(No space left on device\); point TMPDIR") as error:
                RowStore(4, 4, map_above=0).write(np.array([0]), np.zeros((1, 4), dtype=np.uint8))
        assert "secret" not in str(error.value)


def test_a_full_disk_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, "quoted secret")

    def full(**options: str) -> Full:
        return Full()

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    for spool in (Spool(map_above=0),):
        with pytest.raises(DpzoError, match=r"cannot be set aside here \(No space left on device\); point TMPDIR") as e:
            spool.write(b"x")
        assert "secret" not in str(e.value)


@pytest.mark.parametrize("make", [Spool, ArraySpool, TextSpool])
def test_nothing_of_a_record_is_shown(make: Callable[[int], object]) -> None:
    spool = TextSpool(0)
    spool.append("secret")
    assert "secret" not in repr(spool) + repr(spool.finish()) + repr(make(0)) + repr(RowStore(1, 1))
