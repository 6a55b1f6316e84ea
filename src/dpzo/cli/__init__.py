"""The command line. `main` is the one place where errors become words and exit codes."""

from __future__ import annotations

import os
import sys
import traceback

from dpzo.errors import DpzoError

__all__ = ["main"]

# Tracebacks quote values, and a value may be a record: they are shown only to someone who asks by this name.
TRACEBACK_VARIABLE = "DPZO_NONPRIVATE_TRACEBACK"


def main() -> None:
    """Run `dpzo`; exit 0 on success, 2 on a mistake the user can mend, 130 when stopped, 1 on a bug of ours."""
    from dpzo.cli.app import app

    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except DpzoError as error:
        _say(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        _say("stopped; if a run was under way, dpzo resume goes on with it")
        sys.exit(130)
    except Exception as error:
        sys.exit(_other(error))


def _other(error: Exception) -> int:
    import click

    # Typer carries its own copy of click in newer versions; both speak the same protocol.
    if isinstance(error, click.exceptions.ClickException) or hasattr(error, "format_message"):
        _say(f"error: {error.format_message()}")
        return 2
    if isinstance(error, click.exceptions.Abort) or type(error).__name__ == "Abort":
        return 130
    if type(error).__name__ == "Stopped":
        _say(f"{error}; dpzo resume goes on")
        return 130
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


def _say(line: str) -> None:
    print(f"dpzo: {line}", file=sys.stderr)
