"""The card of a baseline: the format of a run's privacy card, so that tables can hold both, without its guarantee.

`guarantee` is False and `epsilon` None for every baseline, so no card of a baseline states an ε. The guarantee that a
method with noise would have if its floats were real numbers is separate, under `in_real_arithmetic`, and `level` gives
the kind: `float-noise`, `none` (no noise, or noise from a test double) or `zero-shot` (no record was read).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from dpzo.privacy.events import NeighboringRelation
from dpzo.privacy.sampling import Sampler
from dpzo.report.card import RELATIONS, held_records
from dpzo.run.environment import environment

Level = Literal["float-noise", "none", "zero-shot"]

FLOAT_NOISE_LACKS = (
    "exact noise: sums and noise are floating point, whose gaps can give a record away; the ε below assumes real "
    "numbers",
    "one private channel: a vector of all trainable elements is released a step, not a few integers",
    "exact replay: nothing is journalled, and the weights cannot be rebuilt from what was released",
    "no second draw: a run that dies cannot be resumed, and what it had drawn has to be counted as spent",
    "isolation: that a record's gradient does not feel its neighbours is not checked bit for bit",
)
GRADIENTS_IN_MEMORY = "inference memory: activations, gradients and (with hooks) one gradient a record are held"
NO_PRIVACY_LACKS = ("privacy of any kind: for data that is public",)

NOT_COVERED = (
    "whatever the base model already knew, or was trained on, before this run",
    "hyper-parameters, task design or declarations that were chosen by looking at the data",
    "evaluations on private data, and any use of the data outside this run",
    "several runs on the same data: their ε and δ add up",
)


class Named(Protocol):
    """The part of a mechanism that a card reads."""

    @property
    def name(self) -> str:
        """The mechanism's name."""
        ...


class Accounted(Protocol):
    """The part of a plan that a card reads: `PrivacyPlan`, or a plan for noise that has no exact sampler."""

    @property
    def num_examples(self) -> int: ...
    @property
    def clip_norm(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def delta(self) -> float: ...
    @property
    def mechanism(self) -> Named: ...
    @property
    def sampler(self) -> Sampler: ...
    @property
    def relation(self) -> NeighboringRelation: ...
    @property
    def epsilon(self) -> float: ...
    @property
    def accountant(self) -> str: ...
    @property
    def expected_batch_size(self) -> float: ...
    @property
    def noise_multiplier(self) -> float: ...
    @property
    def noise_scale(self) -> float: ...


def baseline_card(
    method: str,
    settings: Mapping[str, Any],
    plan: Accounted,
    header: Mapping[str, Any],
    *,
    level: Level,
    lacks: tuple[str, ...],
    clip: str = "nothing is clipped",
    draws: str = "normals",
) -> dict[str, Any]:
    """The card as plain data. Public: built only from the plan, the method's settings and the header's public facts.

    `clip`: what is clipped, in words; `draws`: the source of the noise. `lacks`: the guarantees of dpzo that the method
    does not give.
    """
    private = level == "float-noise"
    return {
        "method": method,
        "settings": dict(settings),
        "level": level,
        "claim": _claim(method, plan, level),
        "guarantee": False,
        "epsilon": None,
        "delta": None,
        "in_real_arithmetic": {"epsilon": plan.epsilon, "delta": plan.delta} if private else None,
        "lacks": list(lacks),
        "relation": {"name": plan.relation.value, "meaning": RELATIONS[plan.relation]},
        "unit": _unit(header.get("unit_column")),
        "mechanism": {
            "name": f"{plan.mechanism.name} (floating point)" if private else "none",
            "clip": clip,
            "clip_norm": plan.clip_norm if private else 0.0,
            "smoothing": None,
            "loss_difference_clip": None,
            "noise_multiplier": plan.noise_multiplier if private else 0.0,
            "noise_scale": plan.noise_scale if private else 0.0,
            "lattice_unit": None,
            "sampler": f"floating-point {draws} from operating-system entropy" if private else "no secret noise",
        },
        "sampling": {
            "name": plan.sampler.name,
            "sampling_prob": plan.sampler.sampling_prob,
            "expected_batch_size": plan.expected_batch_size,
            "num_examples": plan.num_examples,
            "num_examples_source": header.get("num_examples_source", "not declared"),
            "count_epsilon": None,
            "normaliser": "the expected batch size, a public constant",
        },
        "steps": {
            "planned": 0 if level == "zero-shot" else plan.steps,
            "spent": 0 if level == "zero-shot" else plan.steps,
            "burnt": 0,
            "note": "a baseline runs to its end or not at all",
        },
        "accountant": plan.accountant if private else "none",
        "assumptions": _assumptions(level, header),
        "findings": [],
        "tuning": header.get("tuning", "not declared"),
        "held": held_records(header.get("evaluation", {})),
        "not_covered": list(NOT_COVERED),
        "nonprivate_uses": list(header.get("nonprivate_uses", [])),
        "base_model": header.get("base", {"name": "not named", "fingerprint": ""}),
        "journal_hash": None,
        "versions": environment(),
    }


def _claim(method: str, plan: Accounted, level: Level) -> str:
    if level == "zero-shot":
        return f"{method}: no training; no record was read, so there is nothing to protect and nothing to claim."
    if level == "none":
        return f"No guarantee: {method} was run without secret noise."
    return (
        f"No guarantee on a computer: {method} adds floating-point noise. Assuming real arithmetic, its last weights "
        f"would be ({_round_up(plan.epsilon)}, {plan.delta!r})-differentially private under {plan.relation.value}."
    )


def _round_up(epsilon: float) -> str:
    shown = f"{epsilon:.4f}"
    return shown if float(shown) >= epsilon else f"{epsilon + 0.5e-4:.4f}"


def _unit(column: str | None) -> str:
    return "single record" if column is None else f"set of all records that share a value of column {column!r}"


def _assumptions(level: Level, header: Mapping[str, Any]) -> list[dict[str, str]]:
    declared = header.get("num_examples_source") in ("declared", "task")
    rows = [
        ("Noise is exact, so that arithmetic on a computer gives nothing away", "fail"),
        (
            "Noise and batches come from operating-system entropy",
            "pass" if level == "float-noise" else "fail",
        ),
        ("The number of units was declared and not read from the private file", "pass" if declared else "fail"),
        ("A record's gradient does not depend on the other records of its batch", "assumed"),
        ("Labels, lengths and all other options were chosen without looking at the private data", "assumed"),
    ]
    return [{"statement": statement, "verdict": verdict} for statement, verdict in rows]
