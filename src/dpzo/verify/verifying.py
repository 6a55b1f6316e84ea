"""All checks of a run, in order. Reads the run's folder and the base model, and nothing private."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import nn

from dpzo.errors import DpzoError
from dpzo.journal import JOURNAL, Transcript, read
from dpzo.privacy import PrivacyPlan
from dpzo.verify import papers
from dpzo.verify.report import Check, Report, attempt, failed, inapplicable, passed
from dpzo.verify.signature import check_signature
from dpzo.verify.weights import NAMES, check_module, check_weights

MOST_STEPS = 5_000_000
"""Whose ε takes a minute. A stranger's plan may name any number, and a journal of so many lines is a gigabyte."""
BASELINE_CARD = "baseline_card.json"
_REST = ("steps", "releases", "header", "epsilon", "second accountant", "Rényi bound", "card", "plan", *NAMES)


def verify(
    run: str | Path,
    *,
    base: str | None = None,
    key: str | Path | None = None,
    module: nn.Module | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Report:
    """Check a run as a stranger: journal, steps, noise, ε by a second accountant, card, plan, weights, signature.

    `base` replaces the header's base model (its fingerprint still has to be the header's), `key` is a file of OpenSSH
    public keys, `module` the model at θ_0 of a run of `dpzo.fit` (it holds θ_T afterwards). Nothing is trained, drawn
    or written into the folder. Raises DpzoError for a folder that holds no run.
    """
    folder = Path(run)
    if not (folder / JOURNAL).exists():
        return Report(tuple(_baseline(folder)))
    return Report(tuple(_checks(folder, base, None if key is None else Path(key), module, tell)))


def _checks(
    run: Path, base: str | None, key: Path | None, module: nn.Module | None, tell: Callable[[str], None]
) -> Iterator[Check]:
    strange = _first_that_is_no_file(run)
    if strange is not None:
        yield failed(
            "folder", f"{strange} is neither a file nor a folder but a pipe, a device or a socket; nothing read"
        )
        yield from (inapplicable(name, "not checked") for name in ("journal", *_REST, "signature"))
        return
    signed = check_signature(run, key)  # a mistake about the key is told before minutes are spent
    tell("reading the journal")
    try:
        transcript = read(run)
    except DpzoError as error:
        yield failed("journal", str(error).replace(f"{run}/", ""))
        yield from (inapplicable(name, "not checked: the journal does not verify") for name in _REST)
        yield signed
        return
    yield passed("journal", f"{transcript.num_steps + 1} lines hang together; hash {transcript.last_hash[:16]}…")
    try:
        plan = PrivacyPlan.from_dict(transcript.header["plan"])
        if plan.steps > MOST_STEPS:
            raise DpzoError(f"{plan.steps} steps; more than {MOST_STEPS} are not counted")
    except (DpzoError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        said = str(error) if isinstance(error, DpzoError) else type(error).__name__
        yield failed("header", f"its plan is none that dpzo makes ({said})")
        yield from (inapplicable(name, "not checked: there is no plan") for name in _REST if name != "header")
        yield signed
        return
    yield attempt("steps", lambda: papers.check_steps(transcript, plan))
    yield attempt("releases", lambda: papers.check_releases(transcript, plan))
    yield attempt("header", lambda: papers.check_header(run, transcript, plan))
    tell("recomputing ε")
    yield from _several("epsilon", papers.check_claim(run, transcript, plan))
    yield attempt("card", lambda: papers.check_card(run, transcript))
    yield attempt("plan", lambda: papers.check_plan(run, transcript, plan))
    tell("rebuilding the weights from base model and journal")
    yield from _weights(run, transcript, base, module)
    yield signed


def _first_that_is_no_file(run: Path) -> str | None:
    """The first entry of a run's folder that reading may never come back from; links are followed, folders are not."""
    for folder, folders, files in os.walk(run):
        for name in sorted([*folders, *files]):
            path = Path(folder, name)
            try:
                kind = path.stat().st_mode
            except OSError:  # a link to nowhere, and what may not be looked at: whoever needs it says so
                continue
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                return path.relative_to(run).as_posix()
    return None


def _weights(run: Path, transcript: Transcript, base: str | None, module: nn.Module | None) -> Iterator[Check]:
    of_text = "config" in transcript.header
    found = check_weights(run, transcript, base) if of_text else check_module(run, transcript, module)
    left = list(NAMES)
    for check in _several("weights", found):
        left = [name for name in left if name != check.name]
        yield check
        if check.ok is False and check.name != "checkpoint":
            break
    yield from (inapplicable(name, "not checked") for name in left)


def _several(name: str, checks: Iterator[Check]) -> Iterator[Check]:
    """What `checks` yields, and as its last a failure called `name` should it break off."""
    ended = passed("", "")
    while True:
        check = attempt(name, lambda: next(checks, ended))
        if check is ended:
            return
        yield check
        if check.ok is False and check.name == name:
            return


def _baseline(folder: Path) -> Iterator[Check]:
    """A baseline leaves no journal: what then cannot be checked, which is everything."""
    path = folder / BASELINE_CARD
    try:
        card = json.loads(path.read_bytes())
        method, guarantee = str(card["method"]), card["guarantee"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DpzoError(f"{folder}: no readable {JOURNAL} here; give the folder that dpzo train wrote") from None
    yield failed("journal", f"the baseline {method} writes none, so neither its noise, its steps nor its weights can "
                 "be checked by anyone")  # fmt: skip
    yield (
        passed("card", "claims no guarantee, as every baseline's")
        if guarantee is False and card.get("epsilon") is None
        else failed("card", f"{BASELINE_CARD} claims a guarantee, which no baseline has")
    )
