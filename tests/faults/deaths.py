"""Lives that end by kill -9 at a chosen act on a folder, or at a chosen time.

The libraries are imported once; every life is a fork that takes milliseconds. In it each act on the watched folder
(open, write, sync, rename, truncate, remove, make) is counted, and the process kills itself before, within or after the
n-th. A write that is killed within has half its bytes on the disk.
"""

from __future__ import annotations

import builtins
import io
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch

Moment = Literal["before", "within", "after"]
MOMENTS: tuple[Moment, ...] = ("before", "within", "after")
PATIENCE = 90.0
"""Seconds after which a life counts as hung."""


@dataclass(frozen=True)
class At:
    """Death at an act, counted from 0."""

    act: int
    moment: Moment = "before"


@dataclass(frozen=True)
class After:
    """Death, or another signal, from outside after some seconds."""

    seconds: float
    number: int = signal.SIGKILL


Death = At | After | None


@dataclass(frozen=True)
class Life:
    """How a life ended: `code` as a shell has it, acts counted (of those that told), seconds, and what it printed."""

    code: int
    acts: int
    seconds: float
    said: str

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Hung(AssertionError):
    """A life that did not end by itself."""


def live(work: Callable[[], object], folder: Path, death: Death = None) -> Life:
    """Fork, run `work` there, see how it ends: 0, the code of SystemExit, 70 for an exception, −number if killed."""
    acts_read, acts_write = os.pipe()
    said_read, said_write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(acts_read)
        os.close(said_read)
        _be(work, folder, death, acts_write, said_write)
    os.close(acts_write)
    os.close(said_write)
    said, status = _wait(child, said_read, death, start)
    with os.fdopen(acts_read, "rb") as pipe:
        acts = int(pipe.read() or b"-1")
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return Life(code, acts, time.monotonic() - start, said.decode(errors="replace"))


def _be(work: Callable[[], object], folder: Path, death: Death, acts_pipe: int, said_pipe: int) -> None:
    """The child: never returns."""
    code = 70
    watched = Acts(folder, death if isinstance(death, At) else None)
    real_write = os.write
    try:
        os.dup2(said_pipe, 1)
        os.dup2(said_pipe, 2)
        # A terminal's Ctrl-C and a service's SIGTERM, whatever this process was started with.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        watched.patch()
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        real_write(acts_pipe, str(watched.count).encode())
        os._exit(code)


def _wait(child: int, pipe: int, death: Death, start: float) -> tuple[bytes, int]:
    """All that the child says until it ends; the death from outside is dealt on the way."""
    said, status = b"", None
    due = start + death.seconds if isinstance(death, After) else None
    while status is None:
        now = time.monotonic()
        if due is not None and death is not None and now >= due:
            os.kill(child, death.number if isinstance(death, After) else signal.SIGKILL)
            due = None
        wait = 0.02 if due is None else max(0.0, min(0.02, due - now))
        if select.select([pipe], [], [], wait)[0]:
            said += os.read(pipe, 1 << 16)
        ended, found = os.waitpid(child, os.WNOHANG)
        status = found if ended else None
        if status is None and now - start > PATIENCE:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise Hung(f"a life of more than {PATIENCE:g} s: {said.decode(errors='replace')[-2000:]}")
    while select.select([pipe], [], [], 0)[0] and (more := os.read(pipe, 1 << 16)):
        said += more
    os.close(pipe)
    return said, status


class Acts:
    """Counts the acts on a folder and dies at the chosen one."""

    def __init__(self, folder: Path, death: At | None) -> None:
        self.folder = os.path.realpath(folder)
        self.death = death
        self.count = 0

    def patch(self) -> None:
        """For the rest of this process; there is no way back."""
        for name in ("fsync", "ftruncate", "rename", "replace", "unlink", "remove", "mkdir", "chmod", "link"):
            setattr(os, name, self._counted(getattr(os, name)))
        os.write = self._counted(os.write, self._half_a_write)
        os.pwrite = self._counted(os.pwrite, self._half_a_place)
        real_open = os.open
        creates = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        os.open = self._counted(real_open, only=lambda path, flags, *mode, **more: bool(flags & creates))

        def written(path: Any, mode: str = "r", *rest: Any, **more: Any) -> bool:
            return isinstance(path, str | bytes | os.PathLike) and any(letter in mode for letter in "wax+")

        io.open = builtins.open = self._counted(io.open, self._an_empty_file, only=written)  # type: ignore[assignment]
        library: Any = safetensors.torch
        library.serialize_file = self._counted(library.serialize_file, self._half_a_file, place=1)

    def _counted(
        self,
        real: Callable[..., Any],
        within: Callable[..., None] | None = None,
        *,
        only: Callable[..., bool] = lambda *arguments, **options: True,
        place: int = 0,
    ) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            target = arguments[place] if len(arguments) > place else options.get("filename")
            if not self._inside(target) or not only(*arguments, **options):
                return real(*arguments, **options)
            here = self.death is not None and self.count == self.death.act
            self.count += 1
            if not here or self.death is None:
                return real(*arguments, **options)
            if self.death.moment == "within" and within is not None:
                within(real, *arguments, **options)
            elif self.death.moment != "before":
                real(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("still alive")

        return call

    def _inside(self, target: Any) -> bool:
        try:
            name = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.path.abspath(target)
        except (OSError, TypeError, ValueError):
            return False
        return str(name).startswith(self.folder)

    @staticmethod
    def _half_a_write(real: Callable[..., int], descriptor: int, data: bytes) -> None:
        real(descriptor, bytes(data)[: len(data) // 2])

    @staticmethod
    def _half_a_place(real: Callable[..., int], descriptor: int, data: bytes, place: int) -> None:
        real(descriptor, bytes(data)[: len(data) // 2], place)

    @staticmethod
    def _an_empty_file(real: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        real(*arguments, **options).close()

    @staticmethod
    def _half_a_file(real: Callable[..., Any], tensors: Any, filename: Any, *rest: Any, **options: Any) -> None:
        real(tensors, filename, *rest, **options)
        os.truncate(filename, os.path.getsize(filename) // 2)
