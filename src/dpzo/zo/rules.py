"""From names to an update: the rules by name, and the one order in which their parts are put together."""

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
    """What a rule is made from, all public; a rule takes what it needs.

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
    """The update that a config names, from the inside out: rule, then shrinkage of the row before it, then an average.

    So a release goes through shrinkage into the rule (`sign` takes signs first), the rule moves θ, the iterate enters
    the average, and the average is what is released: of the last `average`·`steps` iterates (0: none), or over all of
    them with decay `ema` (None: none). `momentum` is the decay of `momentum` and Adam's first; other rules ignore it.
    `noise_std` as for `RuleSettings`.

    Every part reads releases and public numbers alone: plan, event and ε are those of plain `Sgd`. Raises DpzoError
    for an unknown name, a value out of range, both averages at once, or shrinkage for a rule that no factor reaches.
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
    """What a journal's header says of an update beside rate, schedule, average and master: θ_T depends on all of it.

    The rule and every constant that it and what is around it use. For plain `sgd` the rule alone, so that what older
    versions wrote still reads.

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
