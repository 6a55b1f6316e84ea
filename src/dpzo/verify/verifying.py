"""All checks of a run, in order. Reads the run's folder and the base model, and nothing private."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import nn

from dpzo.config.plain import read_regular
from dpzo.errors import DpzoError
from dpzo.privacy import PrivacyPlan
from dpzo.report import card_of_run
from dpzo.run.header import check_header
from dpzo.run.journal import JOURNAL, Transcript, read
from dpzo.verify import papers
from dpzo.verify.contents import check_contents, check_kinds, owners_files
from dpzo.verify.report import Check, Report, attempt, failed, inapplicable, passed
from dpzo.verify.signature import check_signature
from dpzo.verify.weights import NAMES, check_module, check_weights

NEVER_CHECKED = (
    "that the noise was secret and drawn once, and that N and the data are what the header declares",
    "the versions of libraries that the card names, and how losses were evaluated: as stated by the trainer",
    "the base model's licence and origin, and what its name refers to elsewhere: only its fingerprint is compared",
    "permissions, dates and extended attributes of the files",
)
"""What no check can compare with anything: said with every verdict."""
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
    """Verify a run independently: journal, steps, noise, ε by a second accountant, card, plan, weights, signature.

    `base` replaces the header's base model (its fingerprint still has to be the header's), `key` is a file of OpenSSH
    public keys, `module` the model at θ_0 of a run of `dpzo.fit` (it holds θ_T afterwards). Nothing is trained, drawn
    or written into the folder. Raises DpzoError for a folder that holds no run.
    """
    folder = Path(run)
    if not (folder / JOURNAL).exists():
        return Report(tuple(_baseline(folder)))
    checks = tuple(_checks(folder, base, None if key is None else Path(key), module, tell))
    bad = {check.name for check in checks if check.ok is False}
    found = () if bad & {"folder", "journal", "header"} else _findings(folder)
    return Report(checks, found, _not_checked(folder))


def _findings(run: Path) -> tuple[str, ...]:
    """What the card of the run's journal states beside its claim; empty where there is no card of it."""
    try:
        found = card_of_run(run, read(run)).get("findings", [])
    except DpzoError:
        return ()
    return tuple(str(finding) for finding in found)


def _not_checked(run: Path) -> tuple[str, ...]:
    """What a reader could take for verified, and is not; a check that does not apply says so itself."""
    kept = owners_files(run)
    return (
        *((f"{', '.join(kept)}: private to the owner, not compared with anything",) if kept else ()),
        *NEVER_CHECKED,
    )


def _checks(
    run: Path, base: str | None, key: Path | None, module: nn.Module | None, tell: Callable[[str], None]
) -> Iterator[Check]:
    strange = check_kinds(run)
    if strange is not None:
        yield strange
        yield from (inapplicable(name, "not checked") for name in ("journal", *_REST, "signature"))
        return
    signed = check_signature(run, key)  # a mistake about the key is told before minutes are spent
    tell("reading the journal")
    try:
        transcript = read(run)
    except DpzoError as error:
        yield failed("journal", str(error).replace(f"{run}/", ""))
        yield check_contents(run, finished=False)
        yield from (inapplicable(name, "not checked: the journal failed verification") for name in _REST)
        yield signed
        return
    entries = transcript.num_steps + 1
    yield passed("journal", f"hash chain intact ({entries} entries); hash {transcript.last_hash[:16]}…")
    try:
        check_header(transcript.header)
        plan = PrivacyPlan.from_dict(transcript.header["plan"])
    except (DpzoError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        said = str(error) if isinstance(error, DpzoError) else type(error).__name__
        ours = said.startswith("header: ")
        what = said.removeprefix("header: ") if ours else f"its plan is not one that dpzo writes ({said})"
        yield failed("header", what)
        yield check_contents(run, finished=False)
        yield from (inapplicable(name, "not checked: no valid plan") for name in _REST if name != "header")
        yield signed
        return
    yield check_contents(run, finished=transcript.num_steps >= plan.steps)
    yield attempt("steps", lambda: papers.check_steps(transcript, plan))
    yield attempt("releases", lambda: papers.check_releases(transcript, plan))
    yield attempt("header", lambda: papers.check_header(run, transcript, plan))
    tell("recomputing ε")
    yield from _several("epsilon", papers.check_claim(run, transcript, plan))
    yield attempt("card", lambda: papers.check_card(run, transcript))
    yield attempt("plan", lambda: papers.check_plan(run, transcript, plan))
    tell("rebuilding the weights from the base model and the journal")
    yield from _weights(run, transcript, base, module)
    yield signed


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
        card = json.loads(read_regular(path, 1 << 20))
        method, guarantee = str(card["method"]), card["guarantee"]
    except (DpzoError, OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DpzoError(f"{folder}: no readable {JOURNAL} here; give the folder that dpzo train wrote") from None
    yield failed(
        "journal",
        f"the baseline {method} writes no journal, so its noise, its steps and its weights cannot be checked",
    )
    yield (
        passed("card", "claims no guarantee, like every baseline card")
        if guarantee is False and card.get("epsilon") is None
        else failed("card", f"{BASELINE_CARD} claims a guarantee, which no baseline has")
    )
