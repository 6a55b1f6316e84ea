"""The noise of least cost at (ε, δ) for T releases: families, a free form, and a certificate for the sampled table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from decimal import Context, Decimal, localcontext
from typing import Any, cast

import numpy as np

from dpzo.errors import DpzoError
from dpzo.noise import families, lattice_pld
from dpzo.noise.search import free
from dpzo.noise.search.direct import certified_epsilon
from dpzo.noise.search.parametric import Candidate, SearchTask, calibrated, candidates, polished
from dpzo.noise.search.result import NO_GAIN, Found, SearchResult, cached
from dpzo.noise.shape import Array, Shape
from dpzo.noise.table import LatticeNoise
from dpzo.noise.tabulate import DIGITS, RESOLUTION, Side, tabulate
from dpzo.privacy import accounting
from dpzo.privacy.accounting import calibrate
from dpzo.privacy.events import ComposedEvent, GaussianEvent, NeighboringRelation, PoissonSampledEvent

RELATION = NeighboringRelation.ZERO_OUT
MARGIN = 2e-5
"""A table aims this share below ε; what does not certify is stretched by twice that, and again."""
ATTEMPTS = 60
SHOULDER = 1.15
"""Power of a second start of the free form: its losses have no corner, so the slope of δ says something."""

Noise = Callable[[float], Shape]
"""A noise on cells with its scale times a factor; more means less ε."""


def search(
    epsilon: float, delta: float, sampling_prob: float, steps: int, objective: str = "variance", *, keep: bool = True
) -> SearchResult:
    """Every family at (ε, δ) after `steps` releases at sampling probability q, and the one of least cost.

    `objective`: "variance", "absolute" (E|X|) or "usefulness:γ" (P(|X| ≤ γ), γ in clip norms). For one scalar release
    at a time, under zero_out or add_or_remove_one. `keep`: use the user's cache.
    Guarantee: the ε of the winner's table is at most the requested one by two accountants that share no code.
    Errors: DpzoError on a number out of range, an unknown objective, or an ε that no Gaussian meets.
    """
    task = _task(epsilon, delta, sampling_prob, steps, objective)
    asked = {**asdict(task), "task": objective}
    return cached(asked, lambda: _search(task, objective)) if keep else _search(task, objective)


def _task(epsilon: float, delta: float, sampling_prob: float, steps: int, objective: str) -> SearchTask:
    if not 0.0 < epsilon < math.inf:
        raise DpzoError(f"`epsilon` is {epsilon:g}, must be positive and finite")
    if not 1e-30 <= delta < 1.0:
        raise DpzoError(f"`delta` is {delta:g}, must be at least 1e-30 and below 1: Gaussian noise, with which others "
                        "are compared, has no pure ε; use `mechanism` laplace for `delta` 0")  # fmt: skip
    if not 0.0 < sampling_prob <= 1.0:
        raise DpzoError(f"`sampling_prob` is {sampling_prob:g}, must be above 0 and at most 1")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 10**7:
        raise DpzoError("`steps` must be a whole number from 1 to 10000000")
    name, _, number = objective.partition(":")
    try:
        gamma = float(number) if name == "usefulness" else 1.0
    except ValueError:
        gamma = math.nan
    if name not in ("variance", "absolute", "usefulness") or (number and name != "usefulness"):
        raise DpzoError("`objective` must be variance, absolute or usefulness:γ, as in usefulness:0.9")
    if not 0.0 < gamma < math.inf:
        raise DpzoError("`objective` usefulness:γ needs γ, a positive number of clip norms, as in usefulness:0.9")
    return SearchTask(epsilon, delta, sampling_prob, steps, name, gamma)


def _search(task: SearchTask, objective: str) -> SearchResult:
    sigma, found = _gaussian(task)
    known, refused, tables = {"gaussian": found}, {}, {}
    chosen: list[Candidate] = []
    for name, find in candidates(task, sigma):
        try:
            candidate = polished(task, find())
            noise, certified = _certified(task, candidate.shape, candidate.member.name)
        except DpzoError as error:
            refused[name] = str(error)
            continue
        chosen.append(candidate)
        tables[name] = noise
        known[name] = _found(task, sigma, noise, certified, asdict(cast(Any, candidate.member)))
    if _worth_a_free_form(task, sigma):
        try:
            noise, certified, start = _free(task, sorted(chosen, key=lambda one: one.cost), sigma)
            parameters = {"cells": noise.cells_per_bound, "weights": len(noise.weights), "start": start}
            found = _found(task, sigma, noise, certified, parameters)
            if found.ratio >= min(other.ratio for other in known.values()):
                refused["free form"] = f"none better than the best family was found ({found.ratio:.4g})"
            else:
                known["free form"], tables["free form"] = found, noise
        except DpzoError as error:
            refused["free form"] = str(error)
    winner = min(known, key=lambda name: known[name].ratio)
    if known[winner].ratio > NO_GAIN:
        winner = "gaussian"
    return SearchResult(
        task.epsilon, task.delta, task.sampling_prob, task.steps, objective, known, refused, winner, tables.get(winner)
    )


def _gaussian(task: SearchTask) -> tuple[float, Found]:
    def event(noise_multiplier: float) -> ComposedEvent:
        one = GaussianEvent(noise_multiplier)
        sampled = one if task.sampling_prob == 1.0 else PoissonSampledEvent(task.sampling_prob, one)
        return ComposedEvent(sampled, task.steps)

    sigma = calibrate.noise(event, task.epsilon, task.delta, RELATION)
    spent = accounting.epsilon(event(sigma), task.delta, RELATION)
    return sigma, Found(1.0, 1.0, sigma**2, {"noise_multiplier": sigma}, spent)


def _found(task: SearchTask, sigma: float, noise: LatticeNoise, certified: float, parameters: dict[str, Any]) -> Found:
    cost = noise.variance if task.objective == "variance" else task.cost(noise.shape)
    return Found(cost / task.gaussian_cost(sigma), noise.variance / sigma**2, noise.variance, parameters, certified)


def _certified(task: SearchTask, at: Noise, origin: str) -> tuple[LatticeNoise, float]:
    """The integer table of the least noise, in steps of MARGIN, whose ε is within budget by both accountants."""
    factor = 1.0
    for attempt in range(ATTEMPTS):
        noise = tabulated(at(factor), origin)
        spent = certified_epsilon(noise.shape, task.delta, task.sampling_prob, task.steps)
        if spent <= task.epsilon:
            own = lattice_pld.epsilon(noise.shape, task.delta, task.sampling_prob, task.steps)
            if own <= task.epsilon:
                return noise, spent
            spent = own
        over = min(spent / task.epsilon - 1.0, 1.0)
        factor *= 1.0 + max(2.0 * MARGIN, 0.5 * over) * (1.0 if attempt < 20 else 2.0)
    raise DpzoError(f"{origin}: no table of this noise is certified at `epsilon` {task.epsilon:g}")


def tabulated(shape: Shape, origin: str) -> LatticeNoise:
    """The integer table of a shape in floats; if its end is geometric to 1e-12, the table's tail replaces it."""
    masses, ratio, period = shape.masses, shape.ratio, shape.period
    end = len(masses)
    if ratio > 0.0:
        kept = np.abs(masses[period:] - ratio * masses[:-period]) <= 1e-12 * masses[period:]
        geometric = int(np.argmin(kept[::-1])) if not kept.all() else len(kept)
        # Whole periods: otherwise the end could be within a step, which is flat except for rounding.
        end -= max(0, min(geometric, end - period - 1)) // period * period
    # If the shape is flat up to its tail, rounding to integers must not raise the tail: it is lowered by 1e-12.
    weights = np.concatenate([masses[: end - period], masses[end - period : end] * (1.0 - 1e-12)])
    block = math.ceil(RESOLUTION / shape.shift) | 1
    with localcontext(Context(prec=DIGITS)):
        return tabulate(
            Side([Decimal(mass) for mass in weights.tolist()], Decimal(ratio), period), shape.shift, block, origin
        )


def _worth_a_free_form(task: SearchTask, sigma: float) -> bool:
    """Whether theory allows a gain: T = 1 has a known optimum, and the central limit bounds the possible gain.

    V/V_gauss ≥ ln(1 + c)/c, c = e^{1/σ²} − 1, once T is several times ln(1/δ) (Hammersley, Chapman and Robbins).
    """
    if task.steps == 1:
        return False
    c = math.expm1(min(1.0 / sigma**2, 500.0))
    return math.log1p(c) / c < NO_GAIN or task.steps < 5.0 * math.log(1.0 / task.delta)


def _free(task: SearchTask, ranked: list[Candidate], sigma: float) -> tuple[LatticeNoise, float, str]:
    """The best free form, started from the best family and from a distribution without corners."""
    cost = free.Cost(task.objective, task.gamma)
    unit = math.sqrt(families.GeneralisedNormal(1.0, SHOULDER).variance)
    starts = list(ranked[:1])
    try:
        std = math.sqrt(starts[0].member.variance) if starts else sigma
        starts.append(
            calibrated(task, "generalised normal", lambda s: families.GeneralisedNormal(s, SHOULDER), std / unit)
        )
    except DpzoError:
        pass
    if not starts:
        raise DpzoError("free form: no family to start from")
    best: tuple[float, LatticeNoise, float, str] | None = None
    for start in starts:
        improved = free.improve(_cut(task, start), task.epsilon, task.delta, task.sampling_prob, task.steps, cost)
        shape = _tempered_within(task, improved)
        noise, certified = _certified(task, _temperable(shape), f"free form, from {start.member.name}")
        value = task.cost(noise.shape)
        if best is None or value < best[0]:
            best = value, noise, certified, start.member.name
    assert best is not None
    return best[1:]


def _cut(task: SearchTask, start: Candidate) -> Shape:
    """The start on at most 64 cells per clip norm, cut off where mass is negligible, with a simple geometric tail."""
    shape = start.member.shape(min(start.cells, 64))
    rare = 1e-3 * task.delta / (task.steps * task.sampling_prob)
    last = int(np.count_nonzero(shape.masses > shape.masses[0] * rare)) - 1
    last = min(max(last, 2), len(shape.masses) - 1)
    masses = shape.masses[: last + 1]
    back = min(shape.shift, last)
    ratio = float((masses[-1] / masses[-1 - back]) ** (1.0 / back))
    return Shape.normalised(masses, min(ratio, 1.0 - 1e-9), shape.shift)


def tempered(shape: Shape, factor: float) -> Shape:
    """f^factor, normalised: every loss of a full batch times the factor."""
    logs: Array = np.log(shape.masses / shape.masses[0])
    return Shape.normalised(np.exp(factor * logs), shape.ratio**factor, shape.shift)


def _temperable(shape: Shape) -> Noise:
    return lambda factor: tempered(shape, 1.0 / factor)


def _tempered_within(task: SearchTask, shape: Shape) -> Shape:
    """The steepest power of the shape that is within budget, to 1e-5 in ε or in the power."""

    def over(factor: float) -> bool:
        return task.spent(tempered(shape, factor), 1e-4) > task.epsilon * (1.0 - MARGIN)

    low = high = 1.0
    while over(low):
        low, high = low / 1.02, low
        if low < 0.2:
            raise DpzoError(f"free form: no law reaches `epsilon` {task.epsilon:g}")
    while high < 5.0 and not over(high):
        low, high = high, high * 1.005
    while high / low > 1.0 + 1e-5:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if over(middle) else (middle, high)
    return tempered(shape, low)
