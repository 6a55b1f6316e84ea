"""Ctrl-C and SIGTERM while a command runs: both stop it wherever it is, with one line and the shell's exit code."""

from __future__ import annotations

import _thread
import atexit
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN_SECONDS = 0.02

_asked: list[int] = []
_said: list[str] = []


def stop_asked() -> bool:
    """Whether a signal has interrupted this command, even if a library has made another error of it since."""
    return bool(_asked)


def stop_code(number: int | None = None) -> int:
    """128 + the signal's number, as a shell has it: 130 after Ctrl-C, 143 after SIGTERM."""
    first = _asked[0] if _asked else signal.SIGINT
    return 128 + (first if number is None else number)


def say_stopped(line: str) -> None:
    """The one line that a stopped command ends with."""
    _said.append(line)
    print(f"dpzo: {line}", file=sys.stderr)


def stopped_silently() -> bool:
    """Whether a signal has interrupted this command and no line has told so yet."""
    return bool(_asked) and not _said


@contextmanager
def stop_signals() -> Iterator[None]:
    """Within the block either signal raises KeyboardInterrupt at once; a signal that was ignored stays ignored.

    An interrupt that falls into a finaliser would be lost there, and its traceback printed: it is raised once more a
    moment later. Handlers are put back afterwards. Without effect outside the main thread.
    """
    _asked.clear()
    _said.clear()
    previous: dict[int, Any] = {}
    hook = sys.unraisablehook
    try:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, _interrupt)
    except ValueError:
        pass
    sys.unraisablehook = lambda lost: _again() if _is_interrupt(lost) else hook(lost)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for restored, handler in previous.items():
            signal.signal(restored, signal.SIG_DFL if handler is None else handler)


def die_quietly_at_exit() -> None:
    """While the interpreter winds up, Ctrl-C ends the process as SIGTERM does, without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _asked.append(number)
    raise KeyboardInterrupt


def _is_interrupt(lost: Any) -> bool:
    return isinstance(lost.exc_value, KeyboardInterrupt) and bool(_asked)


def _again() -> None:
    timer = threading.Timer(_AGAIN_SECONDS, _thread.interrupt_main, args=(_asked[0],))
    timer.daemon = True
    timer.start()
