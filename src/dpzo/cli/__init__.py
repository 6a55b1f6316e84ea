"""The command line. `main` is the one place where errors become words and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

from dpzo.cli.signals import (
    die_quietly_at_exit,
    say_stopped,
    stop_asked,
    stop_code,
    stop_signals,
    stopped_silently,
)
from dpzo.errors import DpzoError

__all__ = ["main"]

# Tracebacks quote values, and a value may be a record: they are shown only to someone who asks by this name.
TRACEBACK_VARIABLE = "DPZO_NONPRIVATE_TRACEBACK"

# What typer makes of an interrupt that reaches it, without a word: while it reads the arguments, say.
_TYPERS_CTRL_C = 130


def main() -> None:
    """Run `dpzo`; exit 0 on success, 2 on a user error, 130 when stopped, 1 on a bug or a verdict."""
    die_quietly_at_exit()
    with stop_signals():
        sys.exit(_run())


def _run() -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without an ε shall not cost anyone a result
    try:
        from dpzo.cli.app import app

        code = app(standalone_mode=False, prog_name="dpzo")
        sys.stdout.flush()
        if code == _TYPERS_CTRL_C and stopped_silently():
            return _stopped()
        return code if isinstance(code, int) else 0
    except DpzoError as error:
        if stop_asked():
            return _stopped()
        from dpzo.cli.fields import with_flags

        _say(f"error: {with_flags(str(error))}")
        return 2
    except KeyboardInterrupt:
        return _stopped()
    except BrokenPipeError:
        # Whoever read our output has left. Python would complain about it once more at its own exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        return _other(error)


def _stopped() -> int:
    say_stopped("stopped")
    return stop_code()


def _other(error: Exception) -> int:
    if stop_asked() or type(error).__name__ == "Abort" or _was_interrupted(error):
        return _stopped()
    # Newer versions of typer carry a click of their own, so its errors are known by what they can do.
    if hasattr(error, "format_message"):
        return _usage(error)
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        traceback.print_exc()
        return 1
    frame = traceback.extract_tb(error.__traceback__)[-1]
    _say(
        f"internal error: {type(error).__name__} in {os.path.basename(frame.filename)}, line {frame.lineno}. "
        f"Its message is withheld because it may quote a record; {TRACEBACK_VARIABLE}=1 shows it. "
        "Please report it with dpzo env"
    )
    return 1


def _usage(error: Exception) -> int:
    message: str = error.format_message()  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message, file=sys.stderr)
        return 2
    if type(error).__name__ == "NoSuchOption":
        from dpzo.cli.flags import suggestion

        # An option's value may be glued to it, and a value may be private: only what stands before = is shown.
        name = getattr(error, "option_name", "").partition("=")[0]
        hint = suggestion(name, _flags(context))
        message = f"no such option: {name}" + (f"; {hint}" if hint else "")
    elif type(error).__name__ == "MissingParameter":
        message = _missing(error, context)
    path = getattr(context, "command_path", "dpzo")
    _say(f"error: {message[:1].lower()}{message[1:].rstrip('.')} (see {path} --help)")
    return 2


def _flags(context: Any) -> list[str]:
    return [flag for parameter in getattr(getattr(context, "command", None), "params", ()) for flag in parameter.opts]


def _missing(error: Exception, context: Any) -> str:
    """All required options that are not on the command line, and not the first alone."""
    first, given = getattr(error, "param", None), {word.partition("=")[0] for word in sys.argv[1:]}
    required = [p for p in getattr(getattr(context, "command", None), "params", ()) if p.required]
    absent = [p for p in required if p is first or (p.param_type_name == "option" and not given & set(p.opts))]
    names = [p.opts[0] if p.param_type_name == "option" else str(p.metavar or p.name).upper() for p in absent]
    if not names:
        return error.format_message()  # type: ignore[attr-defined, no-any-return]
    return f"missing {'options' if len(names) > 1 else 'option'}: {', '.join(names)}"


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether a Ctrl-C lies at the root: a library in the middle of its import turns it into errors of its own."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _say(line: str) -> None:
    print(f"dpzo: {' '.join(line.split())}", file=sys.stderr)
