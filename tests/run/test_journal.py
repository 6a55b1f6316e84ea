"""The journal: what is written is read back, and whatever was changed, cut, moved or torn is noticed."""

from __future__ import annotations

import copy
import json
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpzo.errors import DpzoError
from dpzo.privacy import Release
from dpzo.run.journal import FORMAT, HEAD, JOURNAL, Burnt, Journal, read
from dpzo.run.journal_line import canonical, chain
from dpzo.run.step_key import STEP_KEY

HEADER: dict[str, Any] = {
    "plan": {"num_directions": 2, "steps": 9},
    "lattice_unit": 0.125,
    "note": 'θ, "quotes" and a line\nend',
}
Body = dict[str, Any]


def release(step: int, *values: int) -> Release:
    return Release(step, values or (step, -step), 0.125)


def write(folder: Path, steps: int = 4, *, clean: bool = True, header: Body = HEADER) -> Path:
    folder.mkdir(exist_ok=True)
    journal = Journal.create(folder, header)
    for step in range(steps):
        journal.append(release(step))
    journal.close(clean=clean)
    return folder


def entries(folder: Path) -> list[Any]:
    return [entry for entry, _ in read(folder).entries()]


def lines(folder: Path) -> list[bytes]:
    return (folder / JOURNAL).read_bytes().splitlines(keepends=True)


def put_lines(folder: Path, content: list[bytes]) -> None:
    (folder / JOURNAL).write_bytes(b"".join(content))


def head(folder: Path) -> Body:
    found: Body = json.loads((folder / HEAD).read_bytes())
    return found


def burn_on_reopen(folder: Path) -> list[int]:
    """Steps that a reopening burns where the key is lost; the run is closed cleanly afterwards."""
    before = read(folder).num_steps
    (folder / STEP_KEY).unlink(missing_ok=True)
    Journal.reopen(folder).close(clean=True)
    after = entries(folder)
    assert all(isinstance(entry, Burnt) for entry in after[before:])
    return [entry.step for entry in after[before:]]


INTEGERS = st.integers(min_value=-(10**60), max_value=10**60)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(INTEGERS, INTEGERS), max_size=9))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int]]) -> None:
    folder = tmp_path_factory.mktemp("run")
    journal = Journal.create(folder, HEADER)
    for step, row in enumerate(rows):
        journal.append(release(step, *row))
    journal.close(clean=True)
    found = read(folder)
    assert found.header == HEADER
    assert found.closed
    assert not found.torn
    assert [entry for entry, _ in found.entries()] == [release(step, *row) for step, row in enumerate(rows)]
    assert found.last_hash == head(folder)["hash"]


def test_a_line_holds_the_release_its_step_and_its_hash_and_nothing_else(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", 3, clean=False)
    burn_on_reopen(folder)
    first, *rest = (json.loads(line) for line in lines(folder))
    assert first.keys() == {"format", "header", "hash"}
    assert [line.keys() for line in rest] == [{"step", "values", "hash"}] * 3 + [{"step", "burnt", "hash"}]
    assert head(folder).keys() == {"step", "hash", "closed"}
    # The same releases make the same bytes: no time, no process number, nothing of the machine.
    again = write(tmp_path / "again", 3, clean=False)
    burn_on_reopen(again)
    for name in (JOURNAL, HEAD):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_files_are_the_owners(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        folder = write(tmp_path / "run")
        open_run = write(tmp_path / "open", clean=False)
    finally:
        os.umask(mask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {JOURNAL: 0o600, HEAD: 0o600}
    assert stat.S_IMODE((open_run / STEP_KEY).stat().st_mode) == 0o600


def test_a_folder_that_holds_a_run_is_refused_and_kept(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    before = (folder / JOURNAL).read_bytes()
    with pytest.raises(DpzoError, match="already holds a run"):
        Journal.create(folder, HEADER)
    assert (folder / JOURNAL).read_bytes() == before


def test_no_run_is_named(tmp_path: Path) -> None:
    for look in (read, Journal.reopen):
        with pytest.raises(DpzoError, match=r"journal\.jsonl here; give the folder"):
            look(tmp_path)


@pytest.mark.parametrize(
    "wrong", [release(1), release(0, 1), release(0, 1, 2, 3)], ids=["out of turn", "too short", "too long"]
)
def test_a_release_out_of_turn_or_shape_is_not_written(tmp_path: Path, wrong: Release) -> None:
    journal = Journal.create(tmp_path, HEADER)
    before = (tmp_path / JOURNAL).read_bytes()
    with pytest.raises(ValueError, match="each step once"):
        journal.append(wrong)
    journal.close(clean=True)
    assert (tmp_path / JOURNAL).read_bytes() == before


# --- who was in flight


def test_a_clean_stop_burns_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", 4)
    assert burn_on_reopen(folder) == []
    assert burn_on_reopen(folder) == []


def test_a_death_whose_key_is_there_burns_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", 4, clean=False)
    keys = []
    for _ in range(3):
        journal = Journal.reopen(folder)
        keys.append(journal.step_key(4))
        journal.close(clean=False)
    assert len(set(keys)) == 1
    journal = Journal.reopen(folder)
    journal.append(release(4))
    with pytest.raises(ValueError, match="only the step that is due"):
        journal.step_key(4)
    assert journal.step_key(5) != keys[0]
    content = (folder / STEP_KEY).read_bytes()
    assert keys[0] not in content
    journal.close(clean=True)
    assert entries(folder) == [release(step) for step in range(5)]
    assert not (folder / STEP_KEY).exists()


def test_a_key_whose_step_is_journalled_is_destroyed_and_never_used(tmp_path: Path) -> None:
    """The line and the head are on the disk, and the process died before it destroyed the key."""
    folder = write(tmp_path / "run", 3, clean=False)
    old = (folder / STEP_KEY).read_bytes()
    journal = Journal.reopen(folder)
    spent = journal.step_key(3)
    journal.append(release(3))
    journal.close(clean=False)
    (folder / STEP_KEY).write_bytes(old)
    journal = Journal.reopen(folder)
    assert journal.step_key(4) != spent
    assert spent not in (folder / STEP_KEY).read_bytes()
    assert entries(folder) == [release(step) for step in range(4)]
    journal.close(clean=True)


def test_a_key_is_shown_by_nothing(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, HEADER)
    key = journal.step_key(0)
    for holder in (journal, journal._key, journal._key._held):
        shown = repr(holder) + str(holder)
        assert not any(form in shown for form in (key.hex(), repr(key), str(list(key))))
    for act in (pickle.dumps, copy.copy, copy.deepcopy):
        for holder in (journal._key, journal._key._held):
            with pytest.raises(TypeError, match="never pickled"):
                act(holder)
    journal.close(clean=True)


def test_a_death_burns_exactly_the_step_whose_key_is_lost(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", 4, clean=False)
    assert burn_on_reopen(folder) == [4]
    assert burn_on_reopen(folder) == []
    journal = Journal.reopen(folder)
    with pytest.raises(ValueError, match="each step once"):
        journal.append(release(4))
    journal.append(release(5))
    journal.close(clean=True)
    assert entries(folder) == [*(release(step) for step in range(4)), Burnt(4), release(5)]


def test_a_death_before_the_first_line_burns_step_0(tmp_path: Path) -> None:
    assert burn_on_reopen(write(tmp_path / "run", 0, clean=False)) == [0]


def test_a_whole_run_has_no_step_left_to_burn(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", 9, clean=False)
    before = (folder / JOURNAL).read_bytes()
    assert burn_on_reopen(folder) == []
    assert (folder / JOURNAL).read_bytes() == before


@pytest.mark.parametrize("keep", [1, 20, -1], ids=["a byte", "some bytes", "all but the line end"])
def test_a_torn_line_is_dropped_and_its_step_burnt(tmp_path: Path, keep: int) -> None:
    folder = write(tmp_path / "run", 4, clean=False)
    longer = lines(write(tmp_path / "longer", 5))[5]
    with (folder / JOURNAL).open("ab") as file:
        file.write(longer[:keep])
    found = read(folder)
    assert (found.num_steps, found.torn, found.closed) == (4, True, False)
    assert entries(folder) == [release(step) for step in range(4)]
    assert burn_on_reopen(folder) == [4]
    assert not read(folder).torn


def test_a_torn_line_after_a_clean_stop_is_burnt_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", 4)
    with (folder / JOURNAL).open("ab") as file:
        file.write(b'{"hash"')
    assert burn_on_reopen(folder) == [4]


def test_a_head_that_is_one_line_behind_is_a_death_between_line_and_head(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", 3, clean=False)
    behind = (folder / HEAD).read_bytes()
    longer = write(tmp_path / "longer", 4, clean=False)
    (longer / HEAD).write_bytes(behind)
    found = read(longer)
    assert (found.num_steps, found.closed) == (4, False)
    assert burn_on_reopen(longer) == [4]
    assert entries(longer)[:4] == [release(step) for step in range(4)]


def test_a_head_behind_that_calls_itself_closed_still_burns(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", 3)
    longer = write(tmp_path / "longer", 4)
    (longer / HEAD).write_bytes((folder / HEAD).read_bytes())
    assert not read(longer).closed
    assert burn_on_reopen(longer) == [4]


# --- what is refused


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_a_journal_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    folder = write(tmp_path / "run", 4)
    put_lines(folder, lines(folder)[:-cut])
    for look in (read, Journal.reopen):
        with pytest.raises(DpzoError, match=f"cut short after step {4 - cut}; journal.head knows 4 steps"):
            look(folder)


def test_a_journal_that_lost_its_last_line_end_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", 4)
    (folder / JOURNAL).write_bytes((folder / JOURNAL).read_bytes()[:-1])
    with pytest.raises(DpzoError, match="cut short"):
        read(folder)


def _without(content: list[bytes]) -> list[bytes]:
    return [*content[:2], *content[3:]]


def _swapped(content: list[bytes]) -> list[bytes]:
    return [*content[:2], content[3], content[2], *content[4:]]


def _doubled(content: list[bytes]) -> list[bytes]:
    return [*content[:3], content[2], *content[3:]]


@pytest.mark.parametrize("change", [_without, _swapped, _doubled])
def test_steps_that_are_missing_moved_or_repeated_are_refused(
    tmp_path: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    folder = write(tmp_path / "run", 4)
    put_lines(folder, change(lines(folder)))
    with pytest.raises(DpzoError, match=r"line [34] \(step [12]\) was changed, moved or damaged"):
        read(folder)


def test_a_line_of_another_run_is_refused(tmp_path: Path) -> None:
    folder, other = write(tmp_path / "run"), write(tmp_path / "other", header={**HEADER, "note": "another"})
    put_lines(folder, [*lines(folder)[:4], lines(other)[4]])
    with pytest.raises(DpzoError, match=r"line 5 \(step 3\)"):
        read(folder)


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_goes_unnoticed(whole_run: Path, data: st.DataObject) -> None:
    content = (whole_run / JOURNAL).read_bytes()
    place = data.draw(st.integers(0, len(content) - 1), label="place")
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255), label="flip")
    number = content[:place].count(b"\n") + 1
    try:
        (whole_run / JOURNAL).write_bytes(bytes(changed))
        with pytest.raises(DpzoError) as caught:
            read(whole_run)
        with pytest.raises(DpzoError):
            Journal.reopen(whole_run)
        assert (whole_run / JOURNAL).read_bytes() == bytes(changed)
    finally:
        (whole_run / JOURNAL).write_bytes(content)
    last_line_end = place == len(content) - 1
    assert ("cut short" if last_line_end else f"line {number} ") in str(caught.value)
    assert read(whole_run).num_steps == 4


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_of_the_head_lets_other_values_pass(whole_run: Path, data: st.DataObject) -> None:
    content = (whole_run / HEAD).read_bytes()
    place = data.draw(st.integers(0, len(content) - 1), label="place")
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255), label="flip")
    try:
        (whole_run / HEAD).write_bytes(bytes(changed))
        try:
            found = read(whole_run)
        except DpzoError as error:
            assert "journal.head" in str(error)  # noqa: PT017  white space around JSON may change without harm
        else:
            assert (found.num_steps, found.closed) == (4, True)
    finally:
        (whole_run / HEAD).write_bytes(content)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "run", 4)


def test_another_spelling_of_the_same_values_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", 4)
    content = lines(folder)
    spaced = [json.dumps(json.loads(line)).encode() + b"\n" for line in content]
    for number in (0, 2):
        put_lines(folder, [*content[:number], spaced[number], *content[number + 1 :]])
        with pytest.raises(DpzoError, match=f"line {number + 1} "):
            read(folder)


def test_a_line_with_more_in_it_is_refused_even_with_the_right_hash(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", 1, clean=False)
    previous = read(folder).last_hash
    for body in (
        {"step": 1, "values": [1, 2], "time": 5},
        {"step": 1, "values": [1, 2], "burnt": True},
        {"step": 1, "values": [1.5, 2]},
        {"step": 1, "values": [True, 2]},
        {"step": 1, "values": [1]},
        {"step": True, "values": [1, 2]},
        {"step": 1, "burnt": 1},
        {"step": 1, "burnt": False},
        {"step": 1},
        {},
    ):
        hashed = chain(previous, body)
        line = canonical({**body, "hash": hashed}) + b"\n"
        put_lines(folder, [*lines(folder)[:2], line])
        with pytest.raises(DpzoError, match=r"line 3 \(step 1\)"):
            read(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"[]\n", b"null\n", b"{}\n", b"\xff\xfe\n", b"[" * 100_000, b'{"format":1}\n'],
)
def test_what_is_no_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = write(tmp_path / "run")
    (folder / JOURNAL).write_bytes(content)
    with pytest.raises(DpzoError, match=r"journal\.jsonl: line 1 "):
        read(folder)


@pytest.mark.parametrize(
    "header", [{}, {"plan": {}}, {"plan": {"num_directions": "2", "steps": 9}, "lattice_unit": 1.0}]
)
def test_a_header_without_what_reading_needs_is_refused(tmp_path: Path, header: Body) -> None:
    folder = write(tmp_path / "run")
    body = {"format": FORMAT, "header": header}
    hashed = chain("", body)
    put_lines(folder, [canonical({**body, "hash": hashed}) + b"\n"])
    with pytest.raises(DpzoError, match="line 1 lacks the plan"):
        read(folder)


@pytest.mark.parametrize("value", [b"NaN", b"-Infinity", b"1e999"])
def test_a_header_with_what_json_does_not_know_is_refused(tmp_path: Path, value: bytes) -> None:
    folder = write(tmp_path / "run")
    first, *rest = lines(folder)
    put_lines(folder, [first.replace(b"0.125", value), *rest])
    with pytest.raises(DpzoError, match="line 1 was changed"):
        read(folder)


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"[" * 100_000,
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"{}",
        b'{"step":"4","hash":"","closed":true}',
        b'{"step":4,"hash":4}',
        b"\xff",
    ],
)
def test_a_missing_or_damaged_head_is_refused(tmp_path: Path, content: bytes | None) -> None:
    folder = write(tmp_path / "run")
    (folder / HEAD).unlink()
    if content is not None:
        (folder / HEAD).write_bytes(content)
    for look in (read, Journal.reopen):
        with pytest.raises(DpzoError, match=r"journal\.head: missing or damaged"):
            look(folder)


def test_a_foreign_or_old_head_is_refused(tmp_path: Path) -> None:
    folder, other = write(tmp_path / "run"), write(tmp_path / "other", header={**HEADER, "note": "another"})
    old = write(tmp_path / "old", 2)
    for stranger in (other, old):
        (folder / HEAD).write_bytes((stranger / HEAD).read_bytes())
        with pytest.raises(DpzoError, match=r"does not belong to the journal\.head beside it"):
            read(folder)
