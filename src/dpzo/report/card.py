"""The privacy card: what a run claims, on which assumptions, and what it does not cover.

A card is a function of the journal and of the counted uses of private data beside it (`private_uses`), so anyone who
holds them can rebuild and compare it. An assumption that fails turns the claim into "no guarantee"; it never turns it
into another number. A finding limits a claim that holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpzo.config.plain import markdown, refusing
from dpzo.noise.tabled import Tabled
from dpzo.privacy import PrivacyPlan
from dpzo.privacy.events import NeighboringRelation
from dpzo.report.findings import plan_findings
from dpzo.report.private_uses import private_use_findings, read_private_uses
from dpzo.run.journal import Transcript, write_durably
from dpzo.run.private_count import PrivateCount

CARD_JSON = "privacy_card.json"
CARD_MARKDOWN = "privacy_card.md"

Verdict = Literal["pass", "fail", "assumed"]

RELATIONS = {
    NeighboringRelation.ZERO_OUT: "one unit's contribution is replaced by nothing; the number of units is public",
    NeighboringRelation.ADD_OR_REMOVE_ONE: "one unit is added or removed; the number of units is declared, not counted",
    NeighboringRelation.REPLACE_ONE: "one unit is exchanged for another; the number of units is public",
}

NOT_COVERED = (
    "whatever the base model already knew, or was trained on, before this run",
    "hyper-parameters, task design or declarations that were chosen by looking at the private data",
    "evaluations on private data, and any use of the data outside this run",
    "several runs on the same data: their ε and δ add up",
    "groups of units: a group of k units is protected at k times ε and a larger δ",
    "the memory of the training machine, co-tenants who time its steps, and operators who copy and roll back a run",
)
_LOCAL_FILE = "local.yaml (the location of the data)"
_KEY_FILE = "while the run is unfinished, journal.key (the secret key of the step in flight)"


@dataclass(frozen=True)
class Assumption:
    """One thing the claim rests on. `assumed` is for what no program can check."""

    statement: str
    verdict: Verdict


def card_of_run(folder: Path, transcript: Transcript) -> dict[str, Any]:
    """The card of the run in `folder`: of its journal, and of the uses of private data that are counted beside it."""
    return build_card(transcript, read_private_uses(folder))


def build_card(transcript: Transcript, uses: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The card of a journal as plain data. Reads no data, no weights, nothing but the verified transcript.

    `uses`: what `private_uses.read_private_uses` gives. DpzoError for a header that lacks what a card states: a
    verified journal may still be someone else's invention.
    """
    with refusing(f"{transcript.path}: line 1 is not the header of a run; it is damaged or of another version"):
        card = _card(transcript, {} if uses is None else uses)
        render_markdown(card)  # what cannot be shown is no card
    return card


def _card(transcript: Transcript, uses: Mapping[str, int]) -> dict[str, Any]:
    header = transcript.header
    plan = PrivacyPlan.from_dict(header["plan"])
    assumptions = _assumptions(transcript, plan)
    sound = all(assumption.verdict != "fail" for assumption in assumptions)
    unit = _unit(header)
    count = None if header.get("count") is None else PrivateCount.from_dict(header["count"])
    epsilon = plan.epsilon + (0.0 if count is None else count.epsilon)
    limits = [str(finding) for finding in plan_findings(plan, epsilon)] if sound else []
    findings = [*limits, *private_use_findings(uses)]
    return {
        "claim": _claim(plan, epsilon, unit) + (_LIMITED if findings else "") if sound else _NO_GUARANTEE,
        "guarantee": sound,
        "epsilon": epsilon if sound else None,
        "delta": plan.delta if sound else None,
        "relation": {"name": plan.relation.value, "meaning": RELATIONS[plan.relation]},
        "unit": unit,
        "mechanism": {
            "name": plan.mechanism.name,
            "clip": f"L{plan.mechanism.order} norm of a unit's {plan.num_directions} slopes",
            "clip_norm": plan.clip_norm,
            **_raw_clip(header, plan),
            "noise_multiplier": plan.noise_multiplier,
            "noise_scale": plan.noise_scale,
            "lattice_unit": header["lattice_unit"],
            "sampler": _sampler(header, plan),
        },
        "sampling": {
            "name": plan.sampler.name,
            "sampling_prob": plan.sampler.sampling_prob,
            "expected_batch_size": plan.expected_batch_size,
            "num_examples": plan.num_examples,
            "num_examples_source": header["num_examples_source"],
            "count_epsilon": None if count is None else count.epsilon,
            "normaliser": "the expected batch size, a public constant",
        },
        "steps": {
            "planned": plan.steps,
            "spent": transcript.num_steps,
            "burnt": _burnt(transcript),
            "note": "the claim covers the whole plan, even if the run stopped early",
        },
        "accountant": plan.accountant,
        "assumptions": [{"statement": a.statement, "verdict": a.verdict} for a in assumptions],
        "findings": findings,
        "tuning": header["tuning"],
        "held": held_records(header["evaluation"]),
        "not_covered": _not_covered(header),
        "nonprivate_uses": list(header["nonprivate_uses"]),
        "base_model": header["base"],
        "journal_hash": transcript.last_hash,
        "versions": header["environment"],
    }


_LIMITED = " The findings below limit this claim."
_NO_GUARANTEE = "No guarantee: at least one assumption below fails, so this run claims nothing about privacy."


def _not_covered(header: Mapping[str, Any]) -> list[str]:
    """`NOT_COVERED`, and the owner-only files of this kind of run: one of `dpzo.fit` has no local.yaml."""
    files = _KEY_FILE if "settings" in header else f"{_LOCAL_FILE} and, {_KEY_FILE}"
    return [*NOT_COVERED, f"files of the run folder that are private to the owner, not to be published: {files}"]


def _entropy(header: Mapping[str, Any]) -> str:
    return "operating-system entropy" if header["secret_randomness"] is True else "a test double, which is not secret"


def _sampler(header: Mapping[str, Any], plan: PrivacyPlan) -> str:
    """What the noise is and where it comes from."""
    if isinstance(plan.mechanism, Tabled):
        noise = plan.mechanism.noise
        return (
            f"{noise.origin}: integers of noise table {noise.fingerprint[:12]}, drawn exactly from {_entropy(header)}; "
            "the scale is the standard deviation"
        )
    return f"exact continuous noise from {_entropy(header)}, floored to the lattice"


_SPANS = {"central": 2.0, "forward": 1.0}
"""Smoothing radii between an estimator's two evaluations."""


def _raw_clip(header: Mapping[str, Any], plan: PrivacyPlan) -> dict[str, float | None]:
    """φ, and the clip as a bound on raw loss differences: 2φ·clip_norm (forward: φ·clip_norm); None when unknown.

    φ stands in the header's config (text models) or settings (any module).
    """
    training = header.get("config", {}).get("training") or header.get("settings") or {}
    smoothing, span = training.get("smoothing"), _SPANS.get(training.get("estimator", "central"))
    bound = None if smoothing is None or span is None else span * smoothing * plan.clip_norm
    return {"smoothing": smoothing, "loss_difference_clip": bound}


def held_records(evaluation: Mapping[str, Any]) -> str:
    """What is made of the private records and kept in the process, beside their tokens."""
    place = "in memory or in an unnamed file that only the owner can read, until the process ends"
    if evaluation.get("head_block") is not None:
        return f"the frozen encoder's features of every record, {place}"
    layers, keep = (evaluation.get("prefix", {}).get(name) for name in ("layers", "keep"))
    if keep == "run":
        return f"the output of the lowest {layers} layers, which are frozen, for every record drawn, {place}"
    if keep == "batch":
        return (
            f"the output of the lowest {layers} layers, which are frozen, for a step's records, in memory, for the step"
        )
    return "nothing"


def _claim(plan: PrivacyPlan, epsilon: float, unit: str) -> str:
    level = f"ε = {round_up(epsilon)}" + (f", δ = {plan.delta!r}" if plan.delta > 0 else " (pure)")
    return (
        f"Whatever the run published (weights, journal and logs) is differentially private at {level} for every "
        f"{unit}, under the relation {plan.relation.value} ({RELATIONS[plan.relation]})."
    )


def round_up(epsilon: float) -> str:
    """Four decimals, never below the true value."""
    shown = f"{epsilon:.4f}"
    return shown if float(shown) >= epsilon else f"{epsilon + 0.5e-4:.4f}"


def _unit(header: Mapping[str, Any]) -> str:
    column = header["unit_column"]
    if column is None:
        return "single record"
    most = header.get("config", {}).get("data", {}).get("max_records_per_unit")
    used = "" if most is None else f" (the first {most} of them are used)"
    return f"set of all records that share a value of column {column!r}{used}"


def _assumptions(transcript: Transcript, plan: PrivacyPlan) -> list[Assumption]:
    header = transcript.header

    def checked(statement: str, holds: bool) -> Assumption:
        return Assumption(statement, "pass" if holds else "fail")

    return [
        checked("Noise and batches come from operating-system entropy", header["secret_randomness"] is True),
        checked(
            "The number of units was declared, or counted with noise that the ε above pays for, and not read from the "
            "private file",
            header["num_examples_source"] in ("declared", "task", "private-count"),
        ),
        _isolation(header["evaluation"]["isolation"]),
        checked("No more releases were made than the plan accounts for", transcript.num_steps <= plan.steps),
        checked("No non-private diagnostic was switched on", not header["nonprivate_uses"]),
        Assumption("Labels, lengths and all other options were chosen without looking at the private data", "assumed"),
        Assumption("The unit above is what needs protection: no unit's records appear under another unit", "assumed"),
        Assumption("The operating system's entropy is unpredictable and the training machine is trusted", "assumed"),
        *_timing(transcript, plan),
    ]


def _burnt(transcript: Transcript) -> int:
    return sum(1 for entry, _ in transcript.entries() if not hasattr(entry, "values"))


def _timing(transcript: Transcript, plan: PrivacyPlan) -> list[Assumption]:
    """What a run assumes of clocks: nothing once it is whole and no step of it is burnt."""
    rows = []
    if _burnt(transcript):
        rows.append(
            "Which steps are burnt (in flight when the process died, their keys lost) does not depend on the data, as "
            "it may where batches take unequal time"
        )
    if transcript.num_steps < plan.steps:
        rows.append(
            "The step at which this unfinished run stopped does not depend on how long its steps took, as it may if a "
            "clock stopped it (a finished run does not need this assumption)"
        )
    return [Assumption(statement, "assumed") for statement in rows]


def _isolation(found: object) -> Assumption:
    """A pass is for losses and estimators of dpzo: they can be read, and the check looks for what a machine rounds."""
    statement = "A record's loss does not depend on the other records of its batch"
    if found == "assumed":
        return Assumption(
            f"{statement} (checked on synthetic rows: the loss or the estimator is not one of dpzo's, so it may behave "
            "otherwise on other rows, at other weights or later in the run)",
            "assumed",
        )
    return Assumption(f"{statement} (checked bit for bit at start-up)", "pass" if found == "passed" else "fail")


def render_markdown(card: Mapping[str, Any]) -> str:
    """The card as a page for people."""
    mechanism, sampling, steps, base = card["mechanism"], card["sampling"], card["steps"], card["base_model"]
    uses = [f"- {markdown(use)}" for use in card["nonprivate_uses"]]
    findings = [f"- {item}." for item in card.get("findings", ())]
    lines = [
        "# Privacy card",
        "",
        f"**{markdown(card['claim'])}**",
        "",
        "| | |",
        "|---|---|",
        f"| relation | `{card['relation']['name']}`: {card['relation']['meaning']} |",
        f"| unit | {markdown(card['unit'])} |",
        f"| mechanism | {mechanism['name']}; clip: {mechanism['clip']} ≤ {mechanism['clip_norm']:g}"
        f"{_in_losses(mechanism)} |",
        f"| noise | multiplier {mechanism['noise_multiplier']:.6g}, scale {mechanism['noise_scale']:.6g} (slope); "
        f"{markdown(mechanism['sampler'])} |",
        f"| sampling | {sampling['name']}, probability {sampling['sampling_prob']:.6g}, "
        f"N = {sampling['num_examples']} ({_source(sampling)}) |",
        f"| normaliser | {sampling['normaliser']}: {sampling['expected_batch_size']:g} |",
        f"| steps | {steps['planned']} planned, {steps['spent']} spent, {steps['burnt']} burnt; {steps['note']} |",
        f"| accountant | {card['accountant']} |",
        f"| tuning | {markdown(card['tuning'])} |",
        f"| kept in addition to the tokens | {markdown(card['held'])} |",
        f"| base model | {markdown(base['name'])} (fingerprint `{base['fingerprint'][:16]}…`) |",
        "",
        *(["## Findings", "", *findings, ""] if findings else []),
        "## Assumptions",
        "",
        *(f"- **{a['verdict']}**: {a['statement']}." for a in card["assumptions"]),
        "",
        "## Not covered",
        "",
        *(f"- {item}" for item in card["not_covered"]),
        "",
        *(["## Non-private uses", "", *uses, ""] if uses else []),
        "## Versions",
        "",
        ", ".join(f"{markdown(name)} {markdown(version)}" for name, version in card["versions"].items()),
        "",
    ]
    return "\n".join(lines)


def _source(sampling: Mapping[str, Any]) -> str:
    cost = sampling["count_epsilon"]
    return str(sampling["num_examples_source"]) + ("" if cost is None else f", at ε = {round_up(cost)}, included above")


def _in_losses(mechanism: Mapping[str, Any]) -> str:
    """The clip once more, as papers that clip loss differences state it."""
    bound = mechanism.get("loss_difference_clip")
    if bound is None:
        return ""
    return f", = {bound:g} in raw loss differences at smoothing φ = {mechanism['smoothing']:g}"


def write_card(folder: Path, transcript: Transcript) -> dict[str, Any]:
    """Write privacy_card.json and .md of a run; returns the card."""
    card = card_of_run(folder, transcript)
    write_durably(folder / CARD_JSON, (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode())
    write_durably(folder / CARD_MARKDOWN, render_markdown(card).encode())
    return card
