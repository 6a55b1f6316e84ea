"""Solve a privacy plan from declared values: ε → noise, or noise → ε.

This module need not be in the audit core: the resulting plan computes its own ε from its own event.
"""

from __future__ import annotations

from typing import Any

from dpzo.errors import DpzoError
from dpzo.noise.tabled import Tabled
from dpzo.privacy import MECHANISMS, FullBatch, Mechanism, NeighboringRelation, PoissonSampling, PrivacyPlan
from dpzo.privacy.accounting import calibrate
from dpzo.privacy.accounting.second_opinion import check_epsilon

AUTO = "auto"
"""Selects the mechanism by a search. A plan holds the mechanism that was found, never this word."""


def solve_plan(
    *,
    num_examples: int,
    expected_batch_size: float,
    steps: int,
    delta: float,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    clip_norm: float = 1.0,
    num_directions: int = 1,
    mechanism: str = "gaussian",
    relation: NeighboringRelation = NeighboringRelation.ZERO_OUT,
) -> PrivacyPlan:
    """Return the plan for `epsilon` (solving for the noise) or for `noise_multiplier`; set exactly one of them.

    Args:
        num_examples: N, the number of privacy units.
        expected_batch_size: q·N, the expected number of units per batch. N means every unit in every step, without
            privacy amplification by sampling.
        steps: T, the number of releases.
        delta: δ of the guarantee.
        epsilon: The privacy budget. The solved noise is the smallest, to 0.1 % in ε, whose ε does not exceed it.
        noise_multiplier: Noise standard deviation ÷ clip_norm.
        clip_norm: C, in slope units.
        num_directions: K, directions per step.
        mechanism: gaussian, laplace, or auto: the noise of least variance that `noise.search` certifies where a table
            is proved (one direction, not replace_one), and Gaussian elsewhere.
        relation: The neighboring relation.

    Returns:
        The plan.

    Raises:
        DpzoError: if a value is out of range, unsupported or infeasible.

    >>> plan = solve_plan(num_examples=50, expected_batch_size=50, steps=4, delta=0, epsilon=2, mechanism="laplace")
    >>> plan.mechanism.scale  # b/C = T/ε for a full batch under pure ε
    2.0
    """
    if (epsilon is None) == (noise_multiplier is None):
        raise DpzoError("give exactly one of `epsilon` and `noise_multiplier`")
    if isinstance(num_examples, bool) or not isinstance(num_examples, int) or num_examples < 1:
        raise DpzoError("`num_examples` must be a whole number of at least 1")
    if not 0 < expected_batch_size <= num_examples:
        raise DpzoError("`expected_batch_size` must lie between 0 and `num_examples`")
    if mechanism not in (*MECHANISMS, AUTO):
        raise DpzoError(f"`mechanism` must be one of {', '.join(sorted((*MECHANISMS, AUTO)))}")
    if mechanism == AUTO and epsilon is None:
        raise DpzoError("`mechanism` auto searches the noise for an ε: give `epsilon` and not `noise_multiplier`")
    full = expected_batch_size == num_examples
    sampler = FullBatch() if full else PoissonSampling(expected_batch_size / num_examples)

    def plan_with(noise: Mechanism) -> PrivacyPlan:
        return PrivacyPlan(num_examples, sampler, noise, clip_norm, steps, num_directions, delta, relation)

    searched, mechanism = mechanism == AUTO, "gaussian" if mechanism == AUTO else mechanism

    def plan_at(scale: float) -> PrivacyPlan:
        return plan_with(MECHANISMS[mechanism](scale))

    if noise_multiplier is not None:
        return plan_at(noise_multiplier / MECHANISMS[mechanism](1.0).noise_multiplier)
    assert epsilon is not None
    plan_at(1.0)  # rejects what is out of range or unsupported before any search
    if searched and not _not_searched(num_directions, relation):
        from dpzo.noise.search import search

        for keep in (True, False):  # a kept result that is not within ε was changed on disk
            found = search(epsilon, delta, sampler.sampling_prob, steps, keep=keep)
            if found.noise is None:
                break
            plan = plan_with(Tabled(found.noise))
            if plan.epsilon <= epsilon:
                return plan
    plan = plan_at(calibrate.noise(lambda scale: plan_at(scale).event, epsilon, delta, relation))
    check_epsilon(plan.event, delta, relation, plan.epsilon)
    return plan


def plan_summary(plan: PrivacyPlan) -> dict[str, Any]:
    """A plan's inputs and everything derived from them: the content of plan.json and of `dpzo plan --json`."""
    return {
        **plan.to_dict(),
        "epsilon": plan.epsilon,
        "noise_multiplier": plan.noise_multiplier,
        "noise_scale": plan.noise_scale,
        "expected_batch_size": plan.expected_batch_size,
        "accountant": plan.accountant,
    }


def auto_note(plan: PrivacyPlan) -> str:
    """The mechanism that --mechanism auto selected, in one line."""
    if isinstance(plan.mechanism, Tabled):
        return f"--mechanism auto: {plan.mechanism.noise.origin} (dpzo noise compares the families)"
    return "--mechanism auto: gaussian; " + (
        _not_searched(plan.num_directions, plan.relation) or "no noise of 1 % less variance was found"
    )


def _not_searched(num_directions: int, relation: NeighboringRelation) -> str:
    """Why no table is searched for; empty if one is."""
    if num_directions > 1:
        return "for rows of several directions no other noise is proved with its own ε (--num-directions 1 searches)"
    if relation is NeighboringRelation.REPLACE_ONE:
        return "under replace_one no other noise is searched"
    return ""
