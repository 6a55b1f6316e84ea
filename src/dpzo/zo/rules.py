"""Build an update from names: the rules by name, and the order in which their parts are combined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dpzo.errors import DpzoError
from dpzo.zo.averaging import ExponentialAverage, TailAverage
from dpzo.zo.moments import Adam, Momentum
from dpzo.zo.schedules import Schedule
from dpzo.zo.shaping import MEAN_ABSOLUTE, Shrinkage, SignRelease
from dpzo.zo.updates import Sgd, Update


@dataclass(frozen=True)
class RuleSettings:
    """The public inputs of a rule; each rule uses those that it needs.

    `noise_std`: standard deviation of the noise on each released number, slope units (noise_multiplier · clip_norm).
    """

    schedule: Schedule
    expected_batch_size: float
    noise_std: float
    momentum: float = 0.9
    master: bool = False


def _sgd(given: RuleSettings) -> Update:
    return Sgd(given.schedule, given.expected_batch_size, given.master)


def _momentum(given: RuleSettings) -> Update:
    return Momentum(given.schedule, given.expected_batch_size, given.momentum, given.master)


def _adam(given: RuleSettings) -> Update:
    return Adam(given.schedule, given.expected_batch_size, given.momentum, master=given.master)


def _sign(given: RuleSettings) -> Update:
    return SignRelease(_sgd(given), given.noise_std)


UPDATES: dict[str, Callable[[RuleSettings], Update]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "adam": _adam,
    "sign": _sign,
}

SHRINKAGE = ("none", "snr")

_SCALE_FREE = {
    "adam": "Adam divides a step by the size of the steps before it, so a common factor cancels",
    "sign": "a sign has no size to shrink",
}


def build_update(
    rule: str,
    *,
    schedule: Schedule,
    expected_batch_size: float,
    steps: int,
    noise_std: float,
    momentum: float = 0.9,
    shrinkage: str = "none",
    ema: float | None = None,
    average: float = 0.0,
    master: bool = False,
) -> Update:
    """Build the update that a config names: shrinkage, then the rule, then an average.

    Shrinkage scales each release before the rule (`sign` takes signs first), the rule moves θ, and the average of the
    iterates is released. Every part reads only releases and public numbers: plan, event and ε are those of plain `Sgd`.

    Args:
        rule: A key of `UPDATES`.
        schedule: The learning rate, in parameter units per unit slope.
        expected_batch_size: q·N.
        steps: T, the number of steps.
        noise_std: As for `RuleSettings`, in slope units.
        momentum: Decay of `momentum` and of Adam's first moment; other rules ignore it.
        shrinkage: Shrinkage of the released row; "none" for none.
        ema: Decay of an average over all iterates; None for none.
        average: Fraction of `steps` whose iterates, the last ones, are averaged; 0 for none.
        master: Keep an fp32 copy of each 16-bit parameter.

    Returns:
        The update.

    Raises:
        DpzoError: for an unknown name, a value out of range, both averages at once, or shrinkage for a rule on which a
            factor has no effect.
    """
    if rule not in UPDATES:
        raise DpzoError(f"training.update: {rule!r} is unknown; choose one of {', '.join(UPDATES)}")
    if shrinkage not in SHRINKAGE:
        raise DpzoError(f"training.shrinkage: {shrinkage!r} is unknown; choose one of {', '.join(SHRINKAGE)}")
    if shrinkage != "none" and rule in _SCALE_FREE:
        raise DpzoError(f"training.shrinkage: {_SCALE_FREE[rule]}; use none, or training.update sgd or momentum")
    if ema is not None and average != 0:
        raise DpzoError("training.ema: only one average can be released; leave it out or set training.average to 0")
    update = UPDATES[rule](RuleSettings(schedule, expected_batch_size, noise_std, momentum, master))
    if shrinkage == "snr":
        update = Shrinkage(update, noise_std)
    if ema is not None:
        return ExponentialAverage(update, ema)
    return update if average == 0 else TailAverage(update, steps, average)


def update_facts(
    rule: str, *, momentum: float = 0.9, shrinkage: str = "none", ema: float | None = None
) -> dict[str, Any]:
    """The update's facts for a journal's header besides rate, schedule, average and master; θ_T depends on them.

    The rule and every constant that it and its wrappers use. For plain `sgd` only the rule, so that headers of older
    versions remain valid.

    >>> update_facts("momentum", momentum=0.5)
    {'rule': 'momentum', 'momentum': 0.5}
    """
    facts: dict[str, Any] = {"rule": rule}
    if rule in ("momentum", "adam"):
        facts["momentum"] = momentum
    if rule == "adam":
        facts |= {"second": Adam.second, "stabiliser": Adam.stabiliser}
    if rule == "sign":
        facts["sign_scale"] = MEAN_ABSOLUTE
    if shrinkage != "none":
        facts |= {"shrinkage": shrinkage, "shrinkage_decay": Shrinkage.decay, "shrinkage_floor": Shrinkage.floor}
    if ema is not None:
        facts["ema"] = ema
    return facts
