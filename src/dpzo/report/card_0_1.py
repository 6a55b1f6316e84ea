"""The privacy card in the words of version 0.1.0, kept as it was: what an old run's card is compared with.

Not for new runs. The present card is `dpzo.report.card`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dpzo.config.plain import refusing
from dpzo.noise.tabled import Tabled
from dpzo.privacy import PrivacyPlan
from dpzo.privacy.events import NeighboringRelation
from dpzo.run.journal import Transcript
from dpzo.run.private_count import PrivateCount

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
    "several runs on the same data: their guarantees add up",
    "groups of units: a group of k is protected at k times ε, and more δ",
    "the memory of the training machine, co-tenants who time its steps, and operators who copy and roll back a run",
    "the owner-only file local.yaml in the run folder, which names where the data lies: do not publish it",
)


@dataclass(frozen=True)
class _Assumption:
    """One thing the claim rests on. `assumed` is for what no program can check."""

    statement: str
    verdict: Verdict


def build_card(transcript: Transcript) -> dict[str, Any]:
    """The card of a journal as plain data. Reads no data, no weights, nothing but the verified transcript.

    DpzoError for a header that lacks what a card states: a verified journal may still be someone else's invention.
    """
    with refusing(f"{transcript.path}: line 1 is not the header of a run; it is damaged or of another version"):
        card = _card(transcript)
        render_markdown(card)  # what cannot be shown is no card
    return card


def _card(transcript: Transcript) -> dict[str, Any]:
    header = transcript.header
    plan = PrivacyPlan.from_dict(header["plan"])
    assumptions = _assumptions(transcript, plan)
    sound = all(assumption.verdict != "fail" for assumption in assumptions)
    unit = _unit(header)
    count = None if header.get("count") is None else PrivateCount.from_dict(header["count"])
    epsilon = plan.epsilon + (0.0 if count is None else count.epsilon)
    return {
        "claim": claim(plan, epsilon, unit) if sound else _NO_GUARANTEE,
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
            "burnt": sum(1 for entry, _ in transcript.entries() if not hasattr(entry, "values")),
            "note": "the claim is that of the whole plan, also for a run that stopped early",
        },
        "accountant": plan.accountant,
        "assumptions": [{"statement": a.statement, "verdict": a.verdict} for a in assumptions],
        "tuning": header["tuning"],
        "held": held_records(header["evaluation"]),
        "not_covered": list(NOT_COVERED),
        "nonprivate_uses": list(header["nonprivate_uses"]),
        "base_model": header["base"],
        "journal_hash": transcript.last_hash,
        "versions": header["environment"],
    }


_NO_GUARANTEE = "No guarantee: at least one assumption below fails, so this run claims nothing about privacy."


def _entropy(header: Mapping[str, Any]) -> str:
    return "operating-system entropy" if header["secret_randomness"] is True else "a test double, which is no secret"


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
    place = "in memory or in a nameless, owner-only file, until the process ends"
    if evaluation.get("head_block") is not None:
        return f"the frozen encoder's features of every record, {place}"
    layers, keep = (evaluation.get("prefix", {}).get(name) for name in ("layers", "keep"))
    if keep == "run":
        return f"what the lowest {layers} layers, which are frozen, give for every record drawn, {place}"
    if keep == "batch":
        return f"what the lowest {layers} layers, which are frozen, give for a step's records, in memory, for the step"
    return "nothing"


def claim(plan: PrivacyPlan, epsilon: float, unit: str) -> str:
    """The claim in words; `epsilon` that of the whole run."""
    level = f"ε = {_round_up(epsilon)}" + (f", δ = {plan.delta!r}" if plan.delta > 0 else " (pure)")
    return (
        f"Whatever the run published (weights, journal and logs) is differentially private at {level} for every "
        f"{unit}, under the relation {plan.relation.value} ({RELATIONS[plan.relation]})."
    )


def _round_up(epsilon: float) -> str:
    """Four decimals, never below the true value."""
    shown = f"{epsilon:.4f}"
    return shown if float(shown) >= epsilon else f"{epsilon + 0.5e-4:.4f}"


def _unit(header: Mapping[str, Any]) -> str:
    column = header["unit_column"]
    return "single record" if column is None else f"set of all records that share a value of column {column!r}"


def _assumptions(transcript: Transcript, plan: PrivacyPlan) -> list[_Assumption]:
    header = transcript.header

    def checked(statement: str, holds: bool) -> _Assumption:
        return _Assumption(statement, "pass" if holds else "fail")

    return [
        checked("Noise and batches come from operating-system entropy", header["secret_randomness"] is True),
        checked(
            "The number of units was declared, or counted with noise that the ε above pays for, and not read from the "
            "private file",
            header["num_examples_source"] in ("declared", "task", "private-count"),
        ),
        checked(
            "A record's loss does not depend on the other records of its batch (checked bit for bit at start-up)",
            header["evaluation"]["isolation"] == "passed",
        ),
        checked("No more releases were made than the plan accounts for", transcript.num_steps <= plan.steps),
        checked("No non-private diagnostic was switched on", not header["nonprivate_uses"]),
        _Assumption("Labels, lengths and all other options were chosen without looking at the private data", "assumed"),
        _Assumption(
            "The unit above is what needs protection: a unit's records do not reappear under another", "assumed"
        ),
        _Assumption("The operating system's entropy is unpredictable and the training machine is trusted", "assumed"),
    ]


def render_markdown(card: Mapping[str, Any]) -> str:
    """The card as a page for people."""
    mechanism, sampling, steps, base = card["mechanism"], card["sampling"], card["steps"], card["base_model"]
    uses = [f"- {_cell(use)}" for use in card["nonprivate_uses"]]
    lines = [
        "# Privacy card",
        "",
        f"**{card['claim']}**",
        "",
        "| | |",
        "|---|---|",
        f"| relation | `{card['relation']['name']}`: {card['relation']['meaning']} |",
        f"| unit | {_cell(card['unit'])} |",
        f"| mechanism | {mechanism['name']}; clip: {mechanism['clip']} ≤ {mechanism['clip_norm']:g}"
        f"{_in_losses(mechanism)} |",
        f"| noise | multiplier {mechanism['noise_multiplier']:.6g}, scale {mechanism['noise_scale']:.6g} (slope); "
        f"{mechanism['sampler']} |",
        f"| sampling | {sampling['name']}, probability {sampling['sampling_prob']:.6g}, "
        f"N = {sampling['num_examples']} ({_source(sampling)}) |",
        f"| normaliser | {sampling['normaliser']}: {sampling['expected_batch_size']:g} |",
        f"| steps | {steps['planned']} planned, {steps['spent']} spent, {steps['burnt']} burnt; {steps['note']} |",
        f"| accountant | {card['accountant']} |",
        f"| tuning | {_cell(card['tuning'])} |",
        f"| held beside the tokens | {card['held']} |",
        f"| base model | {_cell(base['name'])} (fingerprint `{base['fingerprint'][:16]}…`) |",
        "",
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
        ", ".join(f"{name} {version}" for name, version in card["versions"].items()),
        "",
    ]
    return "\n".join(lines)


def _source(sampling: Mapping[str, Any]) -> str:
    cost = sampling["count_epsilon"]
    return str(sampling["num_examples_source"]) + ("" if cost is None else f", for ε = {_round_up(cost)} of the above")


def _in_losses(mechanism: Mapping[str, Any]) -> str:
    """The clip once more, as papers that clip loss differences state it."""
    bound = mechanism.get("loss_difference_clip")
    if bound is None:
        return ""
    return f", = {bound:g} in raw loss differences at smoothing φ = {mechanism['smoothing']:g}"


def _cell(text: str) -> str:
    """A user's words on one line of a table: they may not end the row, open another or start a heading."""
    return " ".join(text.split()).replace("|", "\\|")
