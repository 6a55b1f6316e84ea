"""The key of the current step: 32 bytes in an owner-only file beside the journal, kept only while it is needed.

All secret random words of a step come from its key, so a step that a crash interrupts is repeated with the same batch
and the same noise. The file exists while a step may be in progress. It is never published: with it, the noise of that
step can be subtracted.

Two slots in one file are written in turn, so that an incomplete write never damages the previous key. A slot holds the
step, the journal's hash before the step, the key and a checksum. Once the release of a step is durable its key is
overwritten by zeros (in the same act that stores the next key, which is synced before it is used); when no step is
due the file is overwritten, synced and unlinked.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from dpzo.privacy.randomness import KEY_BYTES

STEP_KEY = "journal.key"
"""Name of the file in a run folder."""
PLACE_BYTES = 4096
"""Bytes from one slot to the next, so that no disk block holds both."""
_NO_KEY = bytes(KEY_BYTES)
_HASH_BYTES = 32


@dataclass(frozen=True, repr=False)
class _Record:
    """One slot: the key of `step`, which follows the journal's lines up to `chain_hash`; no key once it is spent."""

    step: int
    chain_hash: bytes
    key: bytes

    def to_bytes(self) -> bytes:
        body = self.step.to_bytes(8, "big") + self.chain_hash + self.key
        return body + hashlib.sha256(b"dpzo step key/1" + body).digest()

    @classmethod
    def from_bytes(cls, content: bytes) -> _Record | None:
        """The record, or None unless `content` is whole."""
        key_from = 8 + _HASH_BYTES
        found = cls(int.from_bytes(content[:8], "big"), content[8:key_from], content[key_from : key_from + KEY_BYTES])
        return found if content == found.to_bytes() else None

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        raise TypeError("the key of a step is never pickled or copied")


_RECORD_BYTES = len(_Record(0, bytes(_HASH_BYTES), _NO_KEY).to_bytes())
_FILE_BYTES = PLACE_BYTES + _RECORD_BYTES


class StepKey:
    """The key file of one run folder, whose journal this process has locked. Writes raise OSError; reads never do."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / STEP_KEY
        self._held: _Record | None = None
        self.found = False
        """Whether the key was found after a crash: its step may have been drawn, and may only be drawn with this key.
        """

    def __repr__(self) -> str:
        return f"StepKey({str(self._path.parent)!r})"

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        raise TypeError("the key of a step is never pickled or copied")

    def of(self, step: int) -> bytes:
        """The key of `step`, which is on disk. ValueError unless `step` is the current step."""
        if self._held is None or self._held.step != step or self._held.key == _NO_KEY:
            raise ValueError("only the step that is due has a key")
        return self._held.key

    def start(self, step: int, chain_hash: str) -> None:
        """Create the file with a fresh key of `step`, destroying any previous file. The caller syncs the folder."""
        self.destroy()
        self._make(_Record(step, bytes.fromhex(chain_hash), os.urandom(KEY_BYTES)))

    def mark_lost(self, step: int, chain_hash: str) -> None:
        """Create the file with a record that `step` has no key and must be burnt. The caller syncs the folder."""
        self.destroy()
        self._make(_Record(step, bytes.fromhex(chain_hash), _NO_KEY))

    def move_on(self, step: int, chain_hash: str) -> None:
        """Destroy the key of the step before `step`, whose line is durable; store a fresh one of `step`, durably."""
        new = _Record(step, bytes.fromhex(chain_hash), os.urandom(KEY_BYTES))
        old = self._held
        file = os.open(self._path, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            _write(file, new)
            if old is not None:
                _write(file, _Record(old.step, old.chain_hash, _NO_KEY))
            os.fsync(file)
        finally:
            os.close(file)
        self._held, self.found = new, False

    def recover(self, step: int, chain_hash: str) -> bool:
        """After a crash: load the key of `step`, or create one if nothing was drawn yet. False if the key is lost.

        The key of a step is durable before its batch is drawn, and the previous step's key stays in the other slot
        until then. A file with the previous step's record and no key of this step therefore shows that nothing was
        drawn.
        """
        found = {record.step: record for record in self._read()}
        own, before = found.get(step), found.get(step - 1)
        if own is not None and own.chain_hash.hex() == chain_hash:
            self._held, self.found = own, own.key != _NO_KEY
            return self.found
        if own is None and before is not None:
            self._held = before
            self.move_on(step, chain_hash)
            return True
        return False

    def destroy(self) -> None:
        """Overwrite, sync and unlink the file, if there is one; the caller syncs the folder."""
        self._held, self.found = None, False
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        except OSError:  # a link or a folder in its place is not a key file of dpzo
            self._path.unlink()
            return
        try:
            os.pwrite(file, bytes(_FILE_BYTES), 0)
            os.fsync(file)
        finally:
            os.close(file)
        self._path.unlink()

    def _make(self, record: _Record) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.pwrite(file, bytes(_FILE_BYTES), 0)  # reserve the disk space of both slots
            _write(file, record)
            os.fsync(file)
        finally:
            os.close(file)
        self._held = record

    def _read(self) -> list[_Record]:
        """The complete records of a file that only this user can access; none of any other file."""
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return []
        try:
            state = os.fstat(file)
            own = stat.S_ISREG(state.st_mode) and state.st_uid == os.geteuid() and not state.st_mode & 0o077
            if not own or state.st_size != _FILE_BYTES:
                return []
            content = os.pread(file, _FILE_BYTES, 0)
        except OSError:
            return []
        finally:
            os.close(file)
        places = (content[place : place + _RECORD_BYTES] for place in (0, PLACE_BYTES))
        return [record for record in map(_Record.from_bytes, places) if record is not None]


def _write(file: int, record: _Record) -> None:
    content = record.to_bytes()
    if os.pwrite(file, content, record.step % 2 * PLACE_BYTES) != len(content):
        raise OSError(28, os.strerror(28))
