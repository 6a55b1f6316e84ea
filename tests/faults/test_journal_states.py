"""The journal as a machine: append, die at any byte, reopen, be edited; no step twice, nothing lost, edits refused."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dpzo.errors import DpzoError
from dpzo.privacy import Release
from dpzo.run.journal import HEAD, JOURNAL, Burnt, Journal, read
from dpzo.run.step_key import STEP_KEY

STEPS = 12
HEADER: dict[str, Any] = {"plan": {"num_directions": 2, "steps": STEPS}, "lattice_unit": 0.125}


class _Died(BaseException):
    """The end of the process."""


class Machine(RuleBasedStateMachine):
    """`keys`: of each step drawn; `known`: what the journal must hold; `journal`: None while nobody has it.

    `lost` says that the key file was removed from a run with a step in flight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="dpzo-states-"))
        self.journal: Journal | None = Journal.create(self.folder, HEADER)
        self.keys: dict[int, bytes] = {}
        self.lost = False
        self.known: list[Release | Burnt] = []
        self.in_flight = True

    def teardown(self) -> None:
        self._die()
        shutil.rmtree(self.folder)

    @precondition(lambda self: self.journal is not None and self.journal.num_steps < STEPS)
    @rule(values=st.tuples(st.integers(), st.integers()))
    def append(self, values: tuple[int, int]) -> None:
        assert self.journal is not None
        release = self._draw(values)
        self.journal.append(release)
        self.known.append(release)

    @precondition(lambda self: self.journal is not None and self.journal.num_steps < STEPS)
    @rule(
        values=st.tuples(st.integers(), st.integers()),
        share=st.floats(0, 1),
        head=st.sampled_from(("old", "new")),
        old_key=st.booleans(),
    )
    def die_within_an_append(self, values: tuple[int, int], share: float, head: str, old_key: bool) -> None:
        """Killed with some bytes of the line on the disk; with all of them, before or after head and key moved."""
        assert self.journal is not None
        before, whole = (self.folder / HEAD).read_bytes(), (self.folder / JOURNAL).stat().st_size
        key = (self.folder / STEP_KEY).read_bytes()
        release = self._draw(values)
        self.journal.append(release)
        size = (self.folder / JOURNAL).stat().st_size
        keep = whole + int(share * (size - whole))
        if keep < size:
            os.truncate(self.folder / JOURNAL, keep)
            (self.folder / HEAD).write_bytes(before)
        else:
            self.known.append(release)
            if head == "old":
                (self.folder / HEAD).write_bytes(before)
        if keep < size or head == "old" or old_key:
            (self.folder / STEP_KEY).touch(0o600)
            (self.folder / STEP_KEY).write_bytes(key)
        self._die()

    @precondition(lambda self: self.journal is not None)
    @rule()
    def die(self) -> None:
        self._die()

    @precondition(lambda self: self.journal is not None)
    @rule()
    def close(self) -> None:
        assert self.journal is not None
        found = self.journal._key.found  # by a process that died: its step stays in flight
        self.journal.close(clean=True)
        self.journal, self.in_flight = None, found

    @precondition(lambda self: self.journal is None and self.in_flight)
    @rule()
    def lose_the_key(self) -> None:
        (self.folder / STEP_KEY).unlink(missing_ok=True)
        self.lost = True

    @precondition(lambda self: self.journal is None)
    @rule()
    def reopen(self) -> None:
        burns = self._burns()
        self.journal = Journal.reopen(self.folder)
        if burns:
            self.known.append(Burnt(len(self.known)))
        assert self.journal.num_steps == len(self.known)
        self.in_flight, self.lost = True, False

    @precondition(lambda self: self.journal is None)
    @rule(call=st.integers(0, 2))
    def die_within_a_reopen(self, call: int) -> None:
        """Killed before one of the writes of a reopening: the head's, the burnt line's, the head's again."""
        calls: list[None] = []
        burns = self._burns()

        def dying(real: Any) -> Any:
            def write(*arguments: Any, **options: Any) -> Any:
                if len(calls) == call:
                    raise _Died
                calls.append(None)
                return real(*arguments, **options)

            return write

        with (
            mock.patch.object(Journal, "_move_head", dying(Journal._move_head)),
            mock.patch.object(Journal, "_write_line", dying(Journal._write_line)),
            contextlib.suppress(_Died),
        ):
            self.journal = Journal.reopen(self.folder)
        if len(calls) > 0:  # the head was moved, so the run is open
            self.in_flight = True
            if burns and len(calls) > 1:
                self.known.append(Burnt(len(self.known)))
                self.lost = False
        if self.journal is not None:
            self.lost = False

    @precondition(lambda self: self.journal is not None)
    @rule()
    def a_second_process_is_refused(self) -> None:
        with pytest.raises(DpzoError, match="another process"):
            Journal.reopen(self.folder)
        with pytest.raises(DpzoError, match="already holds a run"):
            Journal.create(self.folder, HEADER)

    @precondition(lambda self: self.journal is None)
    @rule(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
    def an_edit_is_refused(self, place: float, flip: int) -> None:
        """Wherever the head vouches; a line beyond it that lost its end is one that a death has torn."""
        path = self.folder / JOURNAL
        whole, vouched = path.read_bytes(), json.loads((self.folder / HEAD).read_bytes())["step"] + 1
        held = len(b"".join(whole.splitlines(keepends=True)[:vouched]))
        changed = bytearray(whole)
        changed[int(place * held)] ^= flip
        path.write_bytes(bytes(changed))
        with pytest.raises(DpzoError):
            Journal.reopen(self.folder)
        path.write_bytes(whole)

    @invariant()
    def it_holds_what_was_written_and_no_step_twice(self) -> None:
        found = read(self.folder)
        assert [entry for entry, _ in found.entries()] == self.known
        assert [entry.step for entry in self.known] == list(range(len(self.known)))
        held = b"".join(path.read_bytes() for path in self.folder.iterdir())
        assert not any(key in held for step, key in self.keys.items() if step < len(self.known) - 1)
        assert found.closed == (not self.in_flight)

    def _draw(self, values: tuple[int, int]) -> Release:
        assert self.journal is not None
        step = self.journal.num_steps
        key = self.journal.step_key(step)
        assert self.keys.setdefault(step, key) == key, "a second draw"
        assert list(self.keys.values()).count(key) == 1
        return Release(step, values, 0.125)

    def _burns(self) -> bool:
        return self.in_flight and self.lost and len(self.known) < STEPS

    def _die(self) -> None:
        """The end of the process: its descriptors close, and nothing else happens."""
        if self.journal is not None:
            os.close(self.journal._file)
        self.journal = None


TestJournal = Machine.TestCase
TestJournal.settings = settings(
    max_examples=15 * int(os.environ.get("DPZO_FUZZ", "1")), stateful_step_count=25, deadline=None
)
