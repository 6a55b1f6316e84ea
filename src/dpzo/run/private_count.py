"""A private number of units: one more release through the channel, paid from the run's ε.

If N itself is private, a run spends a share of ε on Ñ = N + Laplace(1/ε_count) and uses Ñ in place of N: for the
sampling probability, defaults and the card. The remaining ε is spent on training, whose mechanism depends on Ñ alone,
so the two add up (adaptive composition): (ε_count, 0) + (ε_training, δ).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpzo.config.plain import refusing
from dpzo.config.schema import PRIVATE, PrivacyConfig
from dpzo.errors import DpzoError
from dpzo.privacy import FullBatch, Laplace, NeighboringRelation, PrivacyPlan, PrivateChannel, Randomness, lattice
from dpzo.privacy.plan import relation_named


@dataclass(frozen=True)
class PrivateCount:
    """The public result of counting: `values` (1,), the lattice integers of the single release of `plan`."""

    plan: PrivacyPlan
    values: tuple[int, ...]

    @property
    def num_examples(self) -> int:
        """Ñ, at least 1: the released integer divided by the integer of one unit, to avoid bias."""
        bound = lattice(self.plan.mechanism, self.plan.clip_norm, self.plan.num_directions).bound
        return max(1, round(self.values[0] / bound))

    @property
    def epsilon(self) -> float:
        """The ε that the count spent."""
        return self.plan.epsilon

    def to_dict(self) -> dict[str, Any]:
        """For the journal's header. Public: a release."""
        return {"plan": self.plan.to_dict(), "values": list(self.values)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> PrivateCount:
        """The count that `to_dict` wrote. DpzoError for anything else."""
        with refusing("count: not a private count as a journal's header holds it; the journal is damaged"):
            (value,) = fields["values"]
            return cls(PrivacyPlan.from_dict(fields["plan"]), (int(value),))


def count_text(count: PrivateCount) -> str:
    """The content of count.json."""
    return json.dumps(count.to_dict()) + "\n"


def check_private_count(privacy: PrivacyConfig) -> None:
    """Reject `num_examples = private` if the privacy budget cannot cover it or it would protect nothing."""
    if privacy.num_examples != PRIVATE:
        return
    if privacy.epsilon is None:
        raise DpzoError("--num-examples private: takes its share of --epsilon; give that and not --noise-multiplier")
    if relation_named(privacy.relation) is not NeighboringRelation.ADD_OR_REMOVE_ONE:
        raise DpzoError(
            f"--num-examples private: under {privacy.relation} the number of units is public; add --relation "
            "add_or_remove_one, or declare the number"
        )


def release_count(
    num_units: int, epsilon: float, *, nonprivate_randomness: Callable[[int], Randomness] | None = None
) -> PrivateCount:
    """Count `num_units` (secret) with ε = `epsilon` under add_or_remove_one: each unit is a row of 1, clipped to 1.

    Pure ε, exact noise of scale 1/ε. Write the result to disk before using it: a second draw spends ε again.
    Source: the private n of Bao et al., DP-AggZO, USENIX Security 2025 (there 5 % of ε, floating-point noise).
    """
    plan = PrivacyPlan(
        num_examples=1,  # unknown; a full batch does not use it for sampling or division
        sampler=FullBatch(),
        mechanism=Laplace(1 / epsilon),
        clip_norm=1.0,
        steps=1,
        num_directions=1,
        delta=0.0,
        relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )
    channel = PrivateChannel(plan, nonprivate_randomness=nonprivate_randomness)
    units = channel.draw_batch(num_units)
    return PrivateCount(plan, channel.release(np.ones((len(units), 1))).values)
