"""What a run says of itself, against what its journal says: steps, releases, header, ε, card, plan, config."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from scipy.stats import gamma

from dpzo.config.plain import markdown
from dpzo.config.reading import stated_config
from dpzo.config.schema import FROM_FILE, PRIVATE, RunConfig
from dpzo.config.solve import plan_summary
from dpzo.errors import DpzoError
from dpzo.privacy import Laplace, PrivacyPlan, Release, lattice
from dpzo.privacy.mechanisms import Gaussian
from dpzo.report import CARD_JSON, CARD_MARKDOWN, build_card, card_0_1, card_of_run, read_private_uses, render_markdown
from dpzo.run.folders import PLAN
from dpzo.run.header import check_header as check_schema
from dpzo.run.header import is_of_0_1
from dpzo.run.journal import Transcript
from dpzo.run.journal_line import begun_line
from dpzo.run.output import CONFIG, COUNT
from dpzo.run.private_count import PrivateCount, count_text
from dpzo.run.published import config_text, plan_facts
from dpzo.run.step_key import STEP_KEY
from dpzo.verify.accountants import renyi_bound, second_bracket
from dpzo.verify.report import Check, attempt, failed, inapplicable, passed

SAME = 1e-6
"""Relative difference of two ε by the same accountant, on another machine, that counts as none."""
FORMER = re.compile(r"PLD \(dp-accounting [\w.+-]+, connect-the-dots, grid [\d.e-]+\)|RDP \(own closed form, .*\)")
"""Accountants of version 0.1.0 on the papers of a run; their grids and bounds may say more ε than the present one."""
UNLIKELY = 1e-9
"""A chance below which the releases are taken to hold less noise than the plan says."""


def check_steps(transcript: Transcript, plan: PrivacyPlan) -> Check:
    """No more lines than the plan has steps; a burnt step counts as spent. Order and hashes: `journal.read`.

    A key of a step beside a run in which none is in flight is refused: with it, noise can be subtracted.
    """
    spent, planned = transcript.num_steps, plan.steps
    if spent > planned:
        return failed(
            "steps", f"line {planned + 2} of the journal (step {planned}) is beyond the plan's {planned} steps"
        )
    if spent == planned and transcript.torn:
        return failed("steps", f"the journal begins another line after the plan's {planned} steps")
    has_key = os.path.lexists(transcript.path.with_name(STEP_KEY))
    if has_key and (spent == planned or transcript.closed):
        return failed("steps", f"{STEP_KEY}, the secret key of a step, is still here; dpzo resume destroys it")
    if transcript.torn and not begun_line(_torn_line(transcript), spent):
        return failed(
            "steps", f"line {spent + 2} of the journal is incomplete and is not the beginning of a step's line"
        )
    burnt = sum(1 for entry, _ in transcript.entries() if not isinstance(entry, Release))
    said = f"{spent} of {planned} spent, {burnt} of them burnt; each step once, in order"
    if spent < planned and not transcript.closed:
        said += "; one more may be in flight (dpzo resume repeats it with the same random draw)"
    if has_key:
        said += f"; {STEP_KEY} is its secret key: do not publish this folder before dpzo resume has finished"
    return passed("steps", said + ("" if spent == planned else "; the claim covers the whole plan"))


def _torn_line(transcript: Transcript) -> bytes:
    with transcript.path.open("rb") as file:
        file.seek(transcript.size)
        return file.readline()


def check_releases(transcript: Transcript, plan: PrivacyPlan) -> Check:
    """Every value an integer on the plan's lattice, K a step; and no less noise in them than the plan says.

    Noise that is symmetric and unimodal only makes a sum larger in absolute value: whatever the data were, and
    whichever way a step's sum hangs on the steps before, Σ|v|^p is stochastically at least that of pure noise (p = 2,
    χ²; Laplace p = 1, Gamma). A sum whose chance under pure noise is below 10⁻⁹ is refused. Source: Anderson 1955.
    """
    grid = lattice(plan.mechanism, plan.clip_norm, plan.num_directions)
    header = transcript.header
    stated = (header["lattice_unit"], header["lattice_bits"], header["lattice_bound"])
    if stated != (grid.unit, grid.bits, grid.bound):
        return failed("releases", f"the header's lattice (unit, bits, bound) {stated} does not match its plan")
    if not isinstance(plan.mechanism, Gaussian | Laplace):
        return passed("releases", f"integers on a lattice of {grid.unit:g}, {plan.num_directions} per step")
    power = 2 if isinstance(plan.mechanism, Gaussian) else 1
    total, count = 0.0, 0
    for entry, _ in transcript.entries():
        if isinstance(entry, Release):
            # + 1: the floor may have brought a value nearer to 0 by less than a unit.
            if not all(abs(value) < 2**63 for value in entry.values):
                return failed("releases", f"step {entry.step} contains an integer outside the range of a release")
            total += math.fsum(((abs(value) + 1) / 2**grid.bits) ** power for value in entry.values)
            count += len(entry.values)
    chance = float(gamma.cdf(total / power, count / power)) if count else 1.0
    if not chance >= UNLIKELY:
        size = (total / count) ** (1 / power) * plan.noise_scale
        return failed(
            "releases",
            f"too little noise: typical size {size:.4g} over {count} values, but noise of scale "
            f"{plan.noise_scale:.4g} alone is larger (probability {chance:.1g})",
        )
    return passed(
        "releases",
        f"integers on a lattice of {grid.unit:g}, {plan.num_directions} per step; the noise is not below the plan's",
    )


def check_header(run: Path, transcript: Transcript, plan: PrivacyPlan) -> Check:
    """The header agrees with itself: its plan with its config, its count with where N comes from; config.yaml too.

    config.yaml holds the header's config with the derived fields open.
    """
    header = transcript.header
    check_schema(header)
    if "config" not in header:
        return passed("header", "run of a module: no config to compare its plan and settings with")
    config = stated_config(header["config"])
    count = None if header.get("count") is None else PrivateCount.from_dict(header["count"])
    for what, agrees in _agreements(config, plan, count, str(header["num_examples_source"])):
        if not agrees:
            return failed("header", f"{what} does not match its config")
    bad = _count_file(run, count)
    if bad is not None:
        return failed("header", bad)
    path = run / CONFIG
    if not path.exists():
        return passed("header", f"its plan matches its config; there is no {CONFIG}")
    bad = first_other_line(path.read_bytes(), config_text(header))
    if bad is not None:
        return failed("header", f"{CONFIG}, {bad}")
    return passed("header", f"its plan matches its config; {CONFIG} matches byte for byte")


def _agreements(
    config: RunConfig, plan: PrivacyPlan, count: PrivateCount | None, source: str
) -> Iterator[tuple[str, bool]]:
    privacy, declared = config.privacy, config.privacy.num_examples
    batch = privacy.expected_batch_size
    origin = {FROM_FILE: "from-file", PRIVATE: "private-count", None: "task"}.get(declared, "declared")  # type: ignore[arg-type]
    yield "num_examples_source", source == origin
    yield "count", (count is not None) == (declared == PRIVATE)
    yield "plan.num_examples", not isinstance(declared, int) or plan.num_examples == declared
    yield "plan.num_examples", count is None or plan.num_examples == count.num_examples
    yield "plan.steps", plan.steps == privacy.steps
    yield "plan.num_directions", plan.num_directions == privacy.num_directions
    yield "plan.delta", plan.delta == privacy.delta
    yield "plan.relation", plan.relation.value == privacy.relation
    yield "plan.clip_norm", privacy.clip_norm is None or plan.clip_norm == privacy.clip_norm
    if batch is not None and count is not None:  # nobody could know that so many units are not there
        batch = min(batch, count.num_examples)
    yield "plan.sampling_prob", batch is not None and math.isclose(plan.expected_batch_size, batch, rel_tol=1e-9)
    yield "plan.mechanism", privacy.mechanism in ("auto", plan.mechanism.name)
    asked = privacy.noise_multiplier
    yield "plan.scale", asked is None or math.isclose(plan.noise_multiplier, asked, rel_tol=1e-9)
    spent = plan.epsilon + (0.0 if count is None else count.epsilon)
    yield "plan.scale", privacy.epsilon is None or spent <= privacy.epsilon * (1 + SAME)


def _count_file(run: Path, count: PrivateCount | None) -> str | None:
    path = run / COUNT
    if not path.exists():
        return None
    if count is None:
        return f"{COUNT} is present, but the journal records no private count: its ε is missing from the claim"
    same = path.read_bytes() == count_text(count).encode()
    return None if same else f"{COUNT} differs from the count in the journal"


def check_claim(run: Path, transcript: Transcript, plan: PrivacyPlan) -> Iterator[Check]:
    """ε as the folder claims it, against three accountants: the claim's own, a second one, and the Rényi bound."""
    count = transcript.header.get("count")
    counted = 0.0 if count is None else PrivateCount.from_dict(count).epsilon
    whole, place = _claimed(run)
    recomputed = plan.epsilon + counted
    training = recomputed - counted if whole is None else whole - counted
    broken = _broken_assumption(transcript)
    if broken is not None:
        yield failed(
            "epsilon", f"the run has no guarantee, whatever the ε of its plan. This assumption fails: {broken}"
        )
    elif whole is None:
        yield inapplicable("epsilon", f"no file claims an ε; the events give {recomputed:.6g}")
    elif _same_claim(whole, recomputed, _stated_accountant(run)):
        yield passed("epsilon", f"{place} claims {whole:.6g}; the events give {recomputed:.6g}")
    else:
        yield failed("epsilon", f"{place} claims {whole:.6g}; the events give {recomputed:.6g} ({plan.accountant})")
    yield attempt("second accountant", lambda: _second(plan, training))
    yield attempt("Rényi bound", lambda: _bounded(plan, training))


def _broken_assumption(transcript: Transcript) -> str | None:
    """The first of the card's assumptions that the journal itself denies; None where it denies none.

    A header that no card can be made of is told by `check_card`.
    """
    try:
        assumptions = build_card(transcript)["assumptions"]
    except DpzoError:
        return None
    said = next((each["statement"] for each in assumptions if each["verdict"] == "fail"), None)
    return None if said is None else f"{said[:1].lower()}{said[1:]}"


def _same_claim(claimed: float, recomputed: float, accountant: str) -> bool:
    """Equal to rounding; by a former accountant it may be larger (the Rényi bound caps it), never smaller."""
    if claimed > recomputed and FORMER.fullmatch(accountant):
        return True
    return abs(claimed - recomputed) <= SAME * recomputed


def _stated_accountant(run: Path) -> str:
    found = (str(_json(run / name).get("accountant", "")) for name in (CARD_JSON, PLAN) if (run / name).exists())
    return next(found, "")


def _second(plan: PrivacyPlan, claimed: float) -> Check:
    bracket = second_bracket(plan)
    if isinstance(bracket, str):
        return inapplicable("second accountant", bracket)
    said = f"{bracket.accountant}: ε in [{bracket.low:.6g}, {bracket.high:.6g}]; claimed for training: {claimed:.6g}"
    # A claim that a looser accountant made may lie above; none may lie below.
    loose = claimed > plan.epsilon * (1 + SAME)
    holds = bracket.low <= claimed and (loose or claimed <= bracket.high)
    return passed("second accountant", said) if holds else failed("second accountant", said)


def _bounded(plan: PrivacyPlan, claimed: float) -> Check:
    bound = renyi_bound(plan)
    said = f"{bound:.6g}; claimed for training: {claimed:.6g}"
    # Privacy-loss grids round up by up to 1e-4 a release, which shows only beside the pure ε of a few releases.
    holds = claimed <= bound * (1 + SAME) + 1e-4 * min(plan.steps, 50)
    return passed("Rényi bound", said) if holds else failed("Rényi bound", said)


def _claimed(run: Path) -> tuple[float | None, str]:
    """The whole ε that the folder claims, and where: on the card, else in the plan."""
    for name, field in ((CARD_JSON, "epsilon"), (PLAN, "epsilon_with_count"), (PLAN, "epsilon")):
        found = _json(run / name).get(field) if (run / name).exists() else None
        if isinstance(found, float | int) and not isinstance(found, bool):
            return float(found), name
    return None, ""


def check_card(run: Path, transcript: Transcript) -> Check:
    """privacy_card.json and .md are, line for line, what the journal and the counted private uses render."""
    wanted = _pages(card_of_run(run, transcript), render_markdown)
    older = wanted
    if _may_be_old(run, transcript):  # the words of version 0.1.0, with the same facts
        older = _pages(_old_card(run, transcript), card_0_1.render_markdown)
    here = [name for name in wanted if (run / name).exists()]
    old = False
    for name in here:
        content = (run / name).read_bytes()
        bad = first_other_line(content, wanted[name])
        if bad is None:
            continue
        if first_other_line(content, older[name]) is not None:
            return failed("card", f"{name}, {bad}{_written_by(transcript)}")
        old = True
    if not here:
        return inapplicable("card", "not in the folder")
    said = ", in the wording of version 0.1.0" if old else ""
    return passed("card", f"{' and '.join(here)}: equal to what the journal gives, line for line{said}")


def _old_card(run: Path, transcript: Transcript) -> dict[str, Any]:
    """The card of version 0.1.0; a former accountant's name and its larger ε stay, as in `check_plan`."""
    card = card_0_1.build_card(transcript)
    shipped = _json(run / CARD_JSON) if (run / CARD_JSON).exists() else {}
    if FORMER.fullmatch(str(shipped.get("accountant", ""))):
        card["accountant"] = shipped["accountant"]
        epsilon = shipped.get("epsilon")
        if card["guarantee"] and isinstance(epsilon, float) and epsilon >= card["epsilon"]:
            plan = PrivacyPlan.from_dict(transcript.header["plan"])
            card |= {"epsilon": epsilon, "claim": card_0_1.claim(plan, epsilon, card["unit"])}
    return card


def _pages(card: Mapping[str, Any], render: Callable[[Mapping[str, Any]], str]) -> dict[str, str]:
    return {CARD_JSON: json.dumps(card, indent=2, ensure_ascii=False) + "\n", CARD_MARKDOWN: render(card)}


def _may_be_old(run: Path, transcript: Transcript) -> bool:
    """Whether version 0.1.0 can have written the card.

    It escaped less, so free text that needs it has no old card; and it did not count private uses.
    """
    header = transcript.header
    free = (header["tuning"], header["unit_column"] or "", header["base"]["name"])
    plain = all(markdown(text) == text for text in free)
    return plain and is_of_0_1(header) and not read_private_uses(run)


def check_plan(run: Path, transcript: Transcript, plan: PrivacyPlan) -> Check:
    """plan.json is what the header's plan gives."""
    if not (run / PLAN).exists():
        return inapplicable("plan", f"there is no {PLAN} in the folder")
    facts = plan_facts(plan, transcript.header) if "config" in transcript.header else plan_summary(plan)
    shipped = _json(run / PLAN)
    if FORMER.fullmatch(str(shipped.get("accountant", ""))):  # its ε is judged by `check_claim`
        facts["accountant"] = shipped["accountant"]
        stated = {name: shipped[name] for name in _EPSILONS if isinstance(shipped.get(name), float) and name in facts}
        facts |= {name: value for name, value in stated.items() if value >= facts[name]}
    bad = first_other_line((run / PLAN).read_bytes(), json.dumps(facts, indent=2) + "\n")
    if bad is not None:
        return failed("plan", f"{PLAN}, {bad}{_written_by(transcript)}")
    return passed("plan", f"{PLAN}: equal to what the journal's header gives, line for line")


_EPSILONS = ("epsilon", "epsilon_with_count")
_NUMBER = re.compile(r"(?:0|[1-9]\d*)(?:\.\d+)?(?:e[-+]?\d+)?")


def first_other_line(shipped: bytes, wanted: str) -> str | None:
    """Where two pages first differ, in words. On lines about ε, a number's last digits may be another machine's.

    >>> first_other_line(b"a\\nb\\n", "a\\nc\\n")
    "line 2: 'b', the journal gives 'c'"
    >>> first_other_line(b'"epsilon": 1.00000000001\\n', '"epsilon": 1.0\\n') is None
    True
    """
    ours, theirs = shipped.decode("utf-8", "backslashreplace").split("\n"), wanted.split("\n")
    for number in range(max(len(ours), len(theirs))):
        line, other = (page[number] if number < len(page) else None for page in (ours, theirs))
        if line == other:
            continue
        if line is None or other is None:
            return f"line {number + 1}: {_shown(line)}, the journal gives {_shown(other)}"
        if not _nearly(line, other):
            shorter = min(len(line), len(other))
            at = next((i for i in range(shorter) if line[i] != other[i]), shorter)
            place = f"line {number + 1}" if at < _CONTEXT else f"line {number + 1}, character {at + 1}"
            return f"{place}: {_shown(line, at)}, the journal gives {_shown(other, at)}"
    return None


_LONGEST_NUMBER = 25
"""Characters of a number that a page holds: more digits would be a place to hide something in."""


def _nearly(line: str, other: str) -> bool:
    if ("epsilon" not in line and "ε = " not in line) or _NUMBER.sub("#", line) != _NUMBER.sub("#", other):
        return False
    pairs = zip(_NUMBER.findall(line), _NUMBER.findall(other), strict=True)
    return all(
        a == b or (len(a) <= _LONGEST_NUMBER and math.isclose(float(a), float(b), rel_tol=SAME)) for a, b in pairs
    )


_CONTEXT = 30
"""Characters that are shown before the place where two lines differ."""


def _shown(line: str | None, at: int = 0) -> str:
    """An excerpt of a line that holds its character `at`."""
    if line is None:
        return "nothing"
    start = 0 if at < _CONTEXT else at - _CONTEXT
    text = line[start : start + 2 * _CONTEXT + 20]
    text = text if start else text.lstrip()
    return repr(("…" if start else "") + text + ("…" if start + 2 * _CONTEXT + 20 < len(line) else ""))


def _written_by(transcript: Transcript) -> str:
    """A word on the versions, where another dpzo or another accountant wrote the file."""
    import importlib.metadata

    from dpzo import __version__

    present = {"dpzo": __version__, "dp-accounting": importlib.metadata.version("dp-accounting")}
    versions = transcript.header.get("environment", {})
    names = [name for name, version in present.items() if versions.get(name) != version]
    stated = ", ".join(f"{name} {versions.get(name)}" for name in names)
    return f" (written by {stated}; verify with these versions)" if names else ""


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DpzoError(f"{path.name}: is not a JSON object")
    return found
