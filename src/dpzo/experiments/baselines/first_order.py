"""Training with gradients: DP-SGD and DP-Adam with dpzo's Poisson batches and ε, and AdamW without privacy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpzo.errors import DpzoError
from dpzo.experiments.baselines.cards import FLOAT_NOISE_LACKS, GRADIENTS_IN_MEMORY, NO_PRIVACY_LACKS, baseline_card
from dpzo.experiments.baselines.differentiable import GradientSource, differentiable
from dpzo.experiments.baselines.gradients import Clipping, clipped_sums, trainable_by_autograd
from dpzo.experiments.baselines.method import Outcome, require_float32
from dpzo.experiments.baselines.noise import add_noise
from dpzo.experiments.baselines.tail import Tail
from dpzo.models.quiet import silent_libraries
from dpzo.noise.mixture_plan import MixturePlan
from dpzo.privacy import Gaussian, PrivacyPlan, Randomness, SecretRandom
from dpzo.run.loop import Job
from dpzo.zo import SCHEDULES, Objective, TrainableParameters

Rule = Literal["sgd", "adam"]


@dataclass(frozen=True)
class DpGradient:
    """DP-SGD or DP-Adam: θ ← U(θ, ĝ),  ĝ = (Σ_{i ∈ B_t} g_i·min(1, C/‖g_i‖₂) + σC·N(0, I_d)) / (qN).

    - `clip_norm` C: in gradient units (loss per unit step), in place of the plan's; σ, q, N, δ, T are the plan's, which
      has one Gaussian query of L2 sensitivity C per step, for any d.
    - Batches are Poisson and secret; an empty one releases noise; micro-batches split a large one; T steps exactly;
      the divisor is the public qN. Noise and batches come from the operating system.
    - `rule`: sgd with `momentum`, or adam (β = 0.9, 0.999). `average`: the last part of the iterates that is averaged.
    - `clipping`: `hooks` or `ghost`; see `gradients.clipped_sums`. `microbatch_size` None: the objective's.
    - `nonprivate_randomness`: for tests; the card then claims no guarantee.

    Guarantee: none on a computer (floating-point noise); (ε, δ) of the plan in real arithmetic. Raises DpzoError for a
    plan whose noise is not Gaussian, an objective without gradients, or a layer that Opacus does not support.
    Source: Abadi et al. 2016; ghost clipping of Li et al. 2022; hooks of Opacus (Yousefpour et al. 2021).
    """

    rule: Rule
    learning_rate: float
    clip_norm: float
    schedule: str = "constant"
    warmup_steps: int = 0
    momentum: float = 0.0
    average: float = 0.0
    clipping: Clipping = "hooks"
    microbatch_size: int | None = None
    nonprivate_randomness: Randomness | None = None

    @property
    def name(self) -> str:
        """dp-sgd or dp-adam."""
        return f"dp-{self.rule}"

    def run(self, job: Job, objective: Objective, num_units: int, /) -> Outcome:
        """Train in place; see the class."""
        plan = vector_plan(job.plan, self.clip_norm)
        descend(self, job, objective, num_units, plan, partial(_add_gaussian, plan.noise_scale))
        return Outcome(
            baseline_card(
                self.name,
                settings_of(self),
                plan,
                job.header,
                level="float-noise" if self.nonprivate_randomness is None else "none",
                lacks=(*FLOAT_NOISE_LACKS, GRADIENTS_IN_MEMORY),
                clip="L2 norm of a unit's gradient over all trainable elements",
            )
        )


@dataclass(frozen=True)
class AdamW:
    """First-order training without privacy, the upper reference: no clipping, no noise, public Poisson batches.

    The gradient is Σ_{i ∈ B_t} g_i / (qN), so that the difference to DP-Adam is the cost of clipping and noise.
    Batches use the plan's q; `seed`: public, of the batches. No guarantee: for public data only. Raises DpzoError for
    an objective without gradients. Source: Loshchilov and Hutter 2019.
    """

    learning_rate: float
    schedule: str = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    average: float = 0.0
    microbatch_size: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """adamw."""
        return "adamw"

    def run(self, job: Job, objective: Objective, num_units: int, /) -> Outcome:
        """Train in place; see the class."""
        plan, parameters = job.plan, job.parameters
        require_float32(parameters)
        source = differentiable(objective, self.microbatch_size)
        batches = np.random.Generator(np.random.PCG64(self.seed))
        optimiser = _optimiser("adamw", parameters, self.learning_rate, weight_decay=self.weight_decay)
        with (
            trainable_by_autograd(parameters),
            _stepping(job, optimiser, self.schedule, self.warmup_steps, self.average) as move,
        ):
            for step in range(plan.steps):
                units = np.flatnonzero(batches.random(num_units) < plan.sampler.sampling_prob)
                move(step, [whole / plan.expected_batch_size for whole in _gradient_sum(parameters, source, units)])
        return Outcome(
            baseline_card(self.name, settings_of(self), plan, job.header, level="none", lacks=NO_PRIVACY_LACKS)
        )


def descend(
    method: DpGradient,
    job: Job,
    objective: Objective,
    num_units: int,
    plan: PrivacyPlan | MixturePlan,
    add: Callable[[Tensor, Randomness], None],
    order: int = 2,
) -> None:
    """θ ← U(θ, (Σ_{i ∈ B_t} clip(g_i) + noise)/(qN)) for `plan.steps` steps, in place.

    `add` adds noise to a flat tensor. Rows are clipped to `plan.clip_norm` in the norm of `order`. Raises the errors of
    `DpGradient`.
    """
    secret = SecretRandom() if method.nonprivate_randomness is None else method.nonprivate_randomness
    source = differentiable(objective, method.microbatch_size)
    parameters = job.parameters
    require_float32(parameters)
    optimiser = _optimiser(method.rule, parameters, method.learning_rate, momentum=method.momentum)
    with (
        clipped_sums(parameters, source, plan.clip_norm, method.clipping, order) as clipped_sum,
        _stepping(job, optimiser, method.schedule, method.warmup_steps, method.average) as move,
    ):
        for step in range(plan.steps):
            released = clipped_sum(plan.sampler.draw(num_units, secret))
            for whole in released:
                add(whole.view(-1), secret)
            move(step, [whole / plan.expected_batch_size for whole in released])


def _add_gaussian(std: float, flat: Tensor, randomness: Randomness) -> None:
    add_noise(flat, std, randomness)


def vector_plan(plan: PrivacyPlan, clip_norm: float) -> PrivacyPlan:
    """The plan for releasing a vector with ‖row‖₂ ≤ clip_norm per unit, at the same ε. DpzoError unless Gaussian."""
    if not isinstance(plan.mechanism, Gaussian):
        raise DpzoError("--mechanism: a vector of all elements is released with Gaussian noise only; choose gaussian")
    return replace(plan, clip_norm=clip_norm, num_directions=1)


def settings_of(method: Any) -> dict[str, Any]:
    """A method's public fields."""
    return {name: value for name, value in asdict(method).items() if name != "nonprivate_randomness"}


def _gradient_sum(parameters: TrainableParameters, source: GradientSource, units: NDArray[np.int64]) -> list[Tensor]:
    records, _, weights = source.owned(units)
    start = 0
    for parameter in parameters:
        parameter.grad = None
    with silent_libraries():
        for part in source.objective.passes(records, source.microbatch_size):
            losses = part.losses()
            scale = torch.from_numpy(weights[start : start + part.count]).to(losses)
            (losses * scale).sum().backward()  # type: ignore[no-untyped-call]
            start += part.count
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


def _optimiser(
    rule: str, parameters: TrainableParameters, learning_rate: float, momentum: float = 0.0, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    if rule != "sgd" and momentum != 0:
        raise DpzoError("momentum: is for the rule sgd; Adam has its own")
    if rule == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum, foreach=False)
    if rule == "adam":
        return torch.optim.Adam(parameters, lr=learning_rate, foreach=False)
    if rule == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, foreach=False)
    raise DpzoError(f"rule: {rule!r} is unknown; choose sgd or adam")


@contextmanager
def _stepping(
    job: Job, optimiser: torch.optim.Optimizer, schedule: str, warmup_steps: int, average: float
) -> Iterator[Callable[[int, list[Tensor]], None]]:
    """Within the block: (step, gradient) → one step of the optimiser; at its end, the mean of the last iterates."""
    if schedule not in SCHEDULES:
        raise DpzoError(f"schedule: must be one of {', '.join(SCHEDULES)}")
    rate = SCHEDULES[schedule](optimiser.param_groups[0]["lr"], job.plan.steps, warmup_steps)
    tail = Tail(job, average)

    def move(step: int, gradient: list[Tensor]) -> None:
        for parameter, whole in zip(job.parameters, gradient, strict=True):
            parameter.grad = whole
        for group in optimiser.param_groups:
            group["lr"] = rate(step)
        optimiser.step()
        tail.add(step)

    yield move
    tail.finish()
