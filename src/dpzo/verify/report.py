"""What was checked, and how it came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dpzo.config.plain import printable
from dpzo.errors import DpzoError


@dataclass(frozen=True)
class Check:
    """One check. `ok` is None where it does not apply, and `detail` then says why.

    `detail` is one printable line whatever a stranger's files are called or hold: what would move a terminal's cursor,
    turn text round or end the line is escaped.
    """

    name: str
    ok: bool | None
    detail: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", printable(self.detail))


@dataclass(frozen=True)
class Report:
    """All checks of a run, in the order in which a reader should believe them.

    `findings`: what the card states of a run that is as it claims, and that a reader has to weigh. `not_checked`: what
    is in the folder or the claim, and that no check has compared with anything.
    """

    checks: tuple[Check, ...]
    findings: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("findings", "not_checked"):
            object.__setattr__(self, name, tuple(map(printable, getattr(self, name))))

    @property
    def ok(self) -> bool:
        """Whether the journal holds and nothing else fails: a folder without a journal is never verified."""
        journal = any(check.name == "journal" and check.ok for check in self.checks)
        return journal and all(check.ok is not False for check in self.checks)

    @property
    def first_bad(self) -> str | None:
        """The first check that fails and the place it names; None when all hold."""
        bad = next((check for check in self.checks if check.ok is False), None)
        if bad is None and not self.ok:
            bad = self.checks[0]
        return None if bad is None else f"{bad.name}: {bad.detail}"

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        checks = [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in self.checks]
        return {
            "ok": self.ok,
            "checks": checks,
            "first_bad": self.first_bad,
            "findings": list(self.findings),
            "not_checked": list(self.not_checked),
        }


def passed(name: str, detail: str) -> Check:
    """A check that holds."""
    return Check(name, True, detail)


def failed(name: str, detail: str) -> Check:
    """A check that does not."""
    return Check(name, False, detail)


def inapplicable(name: str, detail: str) -> Check:
    """A check that this run, or this machine, gives no occasion for."""
    return Check(name, None, detail)


def attempt(name: str, check: Callable[[], Check]) -> Check:
    """`check()`, where what it raises is a failure in words: a stranger's header may hold anything."""
    try:
        return check()
    except DpzoError as error:
        return failed(name, str(error))
    except OSError as error:
        return failed(name, f"{error.filename}: {error.strerror}")
    except MemoryError:
        raise
    except Exception as error:  # a library met what no header of ours holds, and no check that broke off has passed
        return failed(name, f"the check could not run: the header is not one that dpzo writes ({type(error).__name__})")
