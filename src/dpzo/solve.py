"""From what people declare to a privacy plan: ε → noise, or noise → ε.

Outside the audit core on purpose: whatever is chosen here, the plan it ends in computes its own ε from its own event.
"""

from __future__ import annotations

from dpzo.errors import DpzoError
from dpzo.privacy import MECHANISMS, FullBatch, NeighboringRelation, PoissonSampling, PrivacyPlan, accounting
from dpzo.privacy.mechanisms import UNIT_STD


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
    """The plan for `epsilon` (the noise is solved for) or for `noise_multiplier`; give exactly one of them.

    The solved noise is the smallest, to 0.1 % in ε, whose ε does not exceed the one asked for. An expected batch of all
    units means every unit in every step, without a claim of sampling. Raises DpzoError on anything out of range,
    unsupported, or out of reach.

    >>> plan = solve_plan(num_examples=50, expected_batch_size=50, steps=4, delta=0, epsilon=2, mechanism="laplace")
    >>> plan.mechanism.scale  # b/C = T/ε for a full batch under pure ε
    2.0
    """
    if (epsilon is None) == (noise_multiplier is None):
        raise DpzoError("give exactly one of --epsilon and --noise-multiplier")
    if isinstance(num_examples, bool) or not isinstance(num_examples, int) or num_examples < 1:
        raise DpzoError("--num-examples must be a whole number of at least 1")
    if not 0 < expected_batch_size <= num_examples:
        raise DpzoError("--expected-batch-size must lie between 0 and --num-examples")
    if mechanism not in MECHANISMS:
        raise DpzoError(f"--mechanism must be one of {', '.join(sorted(MECHANISMS))}")
    full = expected_batch_size == num_examples
    sampler = FullBatch() if full else PoissonSampling(expected_batch_size / num_examples)

    def plan_at(scale: float) -> PrivacyPlan:
        return PrivacyPlan(
            num_examples, sampler, MECHANISMS[mechanism](scale), clip_norm, steps, num_directions, delta, relation
        )

    if noise_multiplier is not None:
        return plan_at(noise_multiplier / UNIT_STD[mechanism])
    assert epsilon is not None
    plan_at(1.0)  # refuses what is out of range or unsupported before any search
    return plan_at(accounting.calibrate.noise(lambda scale: plan_at(scale).event, epsilon, delta, relation))
