"""Learning rates as pure functions of the step, the same float64 on every machine.

Steps count from 0. Warm-up is linear and never 0, because a step at rate 0 would spend privacy budget without effect:
rate·(step + 1)/(warmup_steps + 1) for step < warmup_steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from dpzo.errors import DpzoError


class Schedule(Protocol):
    """step (0-based) → learning rate in parameter units per unit slope. Pure, and bitwise equal everywhere."""

    def __call__(self, step: int) -> float: ...


@dataclass(frozen=True)
class Constant:
    """`learning_rate` after the warm-up. Like the other two, raises DpzoError for values out of range."""

    learning_rate: float
    steps: int
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _check(self.learning_rate, self.steps, self.warmup_steps)

    def __call__(self, step: int) -> float:
        return float(Fraction(self.learning_rate) * _warmup(step, self.warmup_steps))


@dataclass(frozen=True)
class Linear:
    """rate·(1 − p) after the warm-up, p = (step − warmup)/(steps − warmup): reaches 0 one step after the last.

    >>> [Linear(1.0, steps=4)(step) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """

    learning_rate: float
    steps: int
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _check(self.learning_rate, self.steps, self.warmup_steps)

    def __call__(self, step: int) -> float:
        remaining = 1 - _progress(step, self.steps, self.warmup_steps)
        return float(Fraction(self.learning_rate) * _warmup(step, self.warmup_steps) * remaining)


@dataclass(frozen=True)
class Cosine:
    """rate·(1 + cos πp)/2 after the warm-up, p as for `Linear`."""

    learning_rate: float
    steps: int
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _check(self.learning_rate, self.steps, self.warmup_steps)

    def __call__(self, step: int) -> float:
        half_wave = (1 + cos_pi(_progress(step, self.steps, self.warmup_steps))) / 2
        return float(Fraction(self.learning_rate) * _warmup(step, self.warmup_steps) * half_wave)


SCHEDULES: dict[str, Callable[[float, int, int], Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
}

_BITS = 96
_PI = 0x3243F6A8885A308D313198A2E037073
"""⌊π·2¹²⁰⌋ (first hexadecimal digits of π)."""


def cos_pi(p: Fraction) -> Fraction:
    """cos(πp) for 0 ≤ p ≤ 1, error below 2⁻⁸⁰: Taylor's series in integers of 96 fractional bits.

    The C library's cosine differs between systems in the last bit; integers do not. For p > 1/2, −cos(π(1 − p)).
    """
    if 2 * p > 1:
        return -cos_pi(1 - p)
    x = _PI * p.numerator // (p.denominator << (120 - _BITS))
    square = x * x >> _BITS
    term = total = 1 << _BITS
    for n in range(1, 20):
        term = -(term * square >> _BITS) // ((2 * n - 1) * 2 * n)
        total += term
    return Fraction(max(total, 0), 1 << _BITS)


def _warmup(step: int, warmup_steps: int) -> Fraction:
    return Fraction(min(step, warmup_steps) + 1, warmup_steps + 1)


def _progress(step: int, steps: int, warmup_steps: int) -> Fraction:
    """0 until the warm-up ends, then up to 1 at `steps`."""
    return min(Fraction(max(step - warmup_steps, 0), steps - warmup_steps), Fraction(1))


def _check(learning_rate: float, steps: int, warmup_steps: int) -> None:
    if not 0 < learning_rate < float("inf"):
        raise DpzoError(f"learning_rate: {learning_rate} is not a positive number; choose one above 0")
    if steps < 1:
        raise DpzoError(f"steps: {steps} is less than 1; choose at least 1")
    if not 0 <= warmup_steps < steps:
        raise DpzoError(f"warmup_steps: {warmup_steps} is outside 0 … steps − 1; choose a smaller warm-up")
