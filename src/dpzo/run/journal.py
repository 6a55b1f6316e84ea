"""The journal: every release of a run, in order, exactly once, written to disk before use.

`journal.jsonl` is a header line and one line per step: lattice integers (or `burnt`). Each line carries a hash chain:
the SHA-256 of the line and all lines before it. `journal.head` is a second, separately synced file with the last step
and its hash, so truncation of the journal is detected. Neither file holds a time, a count or anything else that is not
a release or public.

Order of every step: write its key to disk → draw → append and fsync the line → move the head → destroy the key and
store the next → apply the update. After a crash, resuming repeats the interrupted step from its key, with the same
batch and the same noise: there is no second draw, and no file shows the crash. A step whose key is lost is *burnt*:
recorded as spent, never drawn again, and never applied.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dpzo.config.plain import read_regular
from dpzo.errors import DpzoError
from dpzo.privacy import Release
from dpzo.run.journal_line import canonical, chain, line_width, longest_line, parse_line, verify_line
from dpzo.run.step_key import STEP_KEY, StepKey

FORMAT = "dpzo-journal/1"
JOURNAL = "journal.jsonl"
HEAD = "journal.head"


@dataclass(frozen=True)
class Burnt:
    """A step that was spent without a release: the process died during the step, and its key is lost."""

    step: int


Entry = Release | Burnt


@dataclass(frozen=True)
class Transcript:
    """A verified journal, read-only: the header, and how many steps it holds. Public.

    `last_hash`: the hash of the hash chain after `num_steps` lines. `torn`: an incomplete last line was found and
        ignored. `closed`: the last process stopped cleanly.
    """

    path: Path
    header: Mapping[str, Any]
    num_steps: int
    last_hash: str
    closed: bool
    torn: bool
    size: int

    def entries(self) -> Iterator[tuple[Entry, str]]:
        """Each step's entry with the chain hash after it, streamed from the file."""
        unit = float(self.header["lattice_unit"])
        with self.path.open("rb") as file:
            file.readline()
            for step in range(self.num_steps):
                fields = json.loads(file.readline())
                burnt = "burnt" in fields
                yield Burnt(step) if burnt else Release(step, tuple(fields["values"]), unit), fields["hash"]


def read(folder: Path) -> Transcript:
    """Read and verify a run's journal without changing it.

    Raises:
        DpzoError: naming the first bad line: not JSON, wrong step, wrong hash, wrong shape, or fewer lines than the
            head recorded.
    """
    for _ in range(_READS):
        # Another process may be writing: judge only a journal whose head did not change during the read.
        before = _head_bytes(folder / HEAD)
        found = _scan(folder)
        if _head_bytes(folder / HEAD) == before:
            return _judged(found, _read_head(folder / HEAD, before))
    # The writer is faster than this reader: judge what was there when the last read began. Lines are only appended.
    head = _read_head(folder / HEAD, before)
    return _judged(_scan(folder, int(head["step"]) + 1), head)


_READS = 10
"""Attempts to read all of a run that is being written."""


@dataclass(frozen=True)
class _Scanned:
    """A journal's lines, verified against each other; `hashes`: the chain's last two (one for a header alone)."""

    path: Path
    header: Mapping[str, Any]
    num_steps: int
    hashes: tuple[str, ...]
    torn: bool
    size: int


def _scan(folder: Path, most: int | None = None) -> _Scanned:
    """The journal's lines, verified against each other; the first `most` steps alone, if given."""
    path = folder / JOURNAL
    try:
        file = path.open("rb")
    except OSError:
        raise DpzoError(f"{folder}: no readable {JOURNAL} here; give the folder that dpzo train wrote") from None
    with file:
        line = file.readline(_LONGEST_HEADER)
        header = parse_line(path, line, 1)
        if not line.endswith(b"\n") or header.get("format") != FORMAT or not isinstance(header.get("header"), dict):
            raise DpzoError(f"{path}: line 1 is not the header of a {FORMAT} journal")
        try:
            hashed = chain("", {"format": FORMAT, "header": header["header"]})
            # Byte for byte, not only by value: another spelling of the same JSON may mean something else to another
            # reader.
            whole = line == canonical({**header, "hash": hashed}) + b"\n"
        except (ValueError, RecursionError):  # NaN, which is not JSON but which Python accepts
            whole = False
        if not whole or header.keys() != {"format", "header", "hash"}:
            raise DpzoError(f"{path}: line 1 was changed after it was written (its hash does not fit)")
        width = line_width(path, header["header"])
        num_steps, size, torn = 0, len(line), False
        hashes: tuple[str, ...] = (hashed,)
        longest = longest_line(width)
        while num_steps != most and (line := file.readline(longest + 1)):
            if len(line) > longest:
                raise DpzoError(f"{path}: line {num_steps + 2} (step {num_steps}) is longer than any that is written")
            if not line.endswith(b"\n"):
                torn = True
                break
            hashed = verify_line(path, line, num_steps, hashed, width)
            hashes = (hashes[-1], hashed)
            num_steps += 1
            size += len(line)
    return _Scanned(path, header["header"], num_steps, hashes, torn, size)


def _judged(found: _Scanned, head: Mapping[str, Any]) -> Transcript:
    """The journal, checked against its head. The head moves after its line: it may be one behind, never ahead."""
    behind = found.num_steps - int(head["step"])
    if behind < 0:
        raise DpzoError(f"{found.path}: cut short after step {found.num_steps}; {HEAD} knows {head['step']} steps")
    if behind > 1 or head["hash"] != (found.hashes[0] if behind == 1 else found.hashes[-1]):
        raise DpzoError(f"{found.path}: does not belong to the {HEAD} beside it")
    closed = bool(head["closed"]) and behind == 0 and not found.torn
    return Transcript(found.path, found.header, found.num_steps, found.hashes[-1], closed, found.torn, found.size)


class Journal:
    """The open, locked journal of one run: append-only, one writer at a time. Use `create` or `reopen`."""

    def __init__(
        self, folder: Path, file_descriptor: int, num_steps: int, last_hash: str, plan: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        self.num_steps = num_steps
        self.last_hash = last_hash
        self._width, self._steps = int(plan["num_directions"]), int(plan["steps"])
        self._file = file_descriptor
        self._key = StepKey(folder)

    @classmethod
    def create(cls, folder: Path, header: Mapping[str, Any]) -> Journal:
        """Create a journal in `folder`, which must hold none: write header line, head and first key to disk.

        The file is renamed last, so that a crash here leaves no partial run.
        """
        path, scratch = folder / JOURNAL, folder / f"{JOURNAL}.new"
        try:
            file = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise _disk_error(path, error) from None
        _lock(file, folder)
        with _closed_on_failure(file):
            body = {"format": FORMAT, "header": dict(header)}
            hashed = chain("", body)
            journal = cls(folder, file, 0, hashed, header["plan"])
            try:
                if path.exists():
                    raise DpzoError(f"{folder}: already holds a run; use dpzo resume, or another --output")
                os.ftruncate(file, 0)
                journal._write_line({**body, "hash": hashed})
                journal._key.start(0, hashed)
                journal._move_head(closed=False)
                scratch.replace(path)
                sync_folder(folder)
            except OSError as error:
                raise _disk_error(path, error) from None
            finally:
                scratch.unlink(missing_ok=True)
        return journal

    @classmethod
    def reopen(cls, folder: Path) -> Journal:
        """Reopen a run: lock, verify, drop an incomplete line; recover the interrupted step's key, or burn that step.

        Raises:
            DpzoError: if another process has locked the run, or the journal does not verify.
        """
        try:
            file = os.open(folder / JOURNAL, os.O_RDWR | os.O_APPEND)
        except OSError:
            raise DpzoError(f"{folder}: no writable {JOURNAL} here; give the folder that dpzo train wrote") from None
        _lock(file, folder)
        with _closed_on_failure(file):
            found = read(folder)
            journal = cls(folder, file, found.num_steps, found.last_hash, found.header["plan"])
            if found.torn:
                os.ftruncate(file, found.size)
                os.fsync(file)
            burns = not journal._recover_key(found)
            # Update the head first: a crash while burning may then leave it one line behind, never two.
            journal._move_head(closed=False)
            if burns:
                journal._append({"step": found.num_steps, "burnt": True})
        return journal

    def _recover_key(self, found: Transcript) -> bool:
        """Recover the key of the current step; False if the step was interrupted and its key is lost."""
        with self._disk(STEP_KEY):
            if self.num_steps >= self._steps:
                self._key.destroy()
            elif self._key.recover(self.num_steps, self.last_hash):
                return True
            elif found.closed:
                self._key.start(self.num_steps, self.last_hash)
            else:
                self._key.mark_lost(self.num_steps, self.last_hash)
                sync_folder(self.folder)
                return False
            sync_folder(self.folder)
        return True

    def step_key(self, step: int) -> bytes:
        """The key of the current step, which is on disk; only for the channel. ValueError for any other step."""
        return self._key.of(step)

    def append(self, release: Release) -> None:
        """Append a release durably. Apply the update only after this returns."""
        if release.step != self.num_steps or len(release.values) != self._width:
            raise ValueError("a journal takes each step once, in order, with all its directions")
        self._append({"step": release.step, "values": list(release.values)})

    def close(self, *, clean: bool) -> None:
        """Release the run's lock. `clean`: this process has no draw in progress, so no key is kept.

        The key of a step that an earlier process may have drawn stays on disk until the step is repeated.
        """
        try:
            if clean and not self._key.found:
                self._move_head(closed=True)
                with self._disk(STEP_KEY):
                    self._key.destroy()
                    sync_folder(self.folder)
        finally:
            os.close(self._file)

    def _append(self, body: dict[str, Any]) -> None:
        hashed = chain(self.last_hash, body)
        self._write_line({**body, "hash": hashed})
        self.num_steps += 1
        self.last_hash = hashed
        self._move_head(closed=False)
        with self._disk(STEP_KEY):
            if self.num_steps < self._steps:
                self._key.move_on(self.num_steps, hashed)
            else:
                self._key.destroy()
                sync_folder(self.folder)

    def _write_line(self, fields: Mapping[str, Any]) -> None:
        line = canonical(fields) + b"\n"
        with self._disk(JOURNAL):
            # A short write leaves an incomplete line, which the next reader drops.
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)

    def _move_head(self, *, closed: bool) -> None:
        head = {"step": self.num_steps, "hash": self.last_hash, "closed": closed}
        write_durably(self.folder / HEAD, canonical(head) + b"\n")

    @contextmanager
    def _disk(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _disk_error(self.folder / name, error) from None


def write_durably(path: Path, content: bytes) -> None:
    """Replace `path` by `content` atomically and synced, owner-only. DpzoError if writing fails."""
    scratch = path.with_name(path.name + ".new")
    try:
        file = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            remaining = content
            while remaining:
                remaining = remaining[os.write(file, remaining) :]
            os.fsync(file)
        finally:
            os.close(file)
        scratch.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise _disk_error(path, error) from None


def sync_folder(folder: Path) -> None:
    """Make renames and creations in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _closed_on_failure(file: int) -> Iterator[None]:
    """Close the file, and so release the lock, if reopening fails: this process may try again."""
    try:
        yield
    except BaseException:
        os.close(file)
        raise


def _disk_error(path: Path, error: OSError) -> DpzoError:
    return DpzoError(f"{path}: {error.strerror}; the run is intact up to its last journalled step: make room, resume")


def _lock(file: int, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise DpzoError(f"{folder}: another process is working on this run; wait for it or stop it") from None


_LARGEST_HEAD = 1024
"""Bytes of a head."""
_LONGEST_HEADER = 1 << 26
"""Bytes of a header line (64 MiB); the largest noise table takes a tenth."""


def _head_bytes(path: Path) -> bytes:
    try:
        return read_regular(path, _LARGEST_HEAD)
    except (DpzoError, OSError):
        return b""


def _read_head(path: Path, content: bytes) -> dict[str, Any]:
    try:
        head = json.loads(content)
        plain = type(head["step"]) is int and isinstance(head["hash"], str) and isinstance(head["closed"], bool)
        # Byte for byte: this program writes no extra keys and only one spelling.
        if plain and head.keys() == {"step", "hash", "closed"} and content == canonical(head) + b"\n":
            return cast("dict[str, Any]", head)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise DpzoError(
        f"{path}: missing or damaged; without it a journal that was cut short cannot be told from a whole one"
    )
