"""The papers' numbers in dpzo's units: slopes, noise on the sum ÷ clip_norm, rows that are not divided by K.

Pure functions of public numbers; a recipe states its paper's figures and converts them with these functions.
"""

from __future__ import annotations

import math

from dpzo.errors import DpzoError

WIDTHS = {"central": 2.0, "forward": 1.0}
"""How many smoothing radii apart an estimator's two evaluations lie."""


def slope_clip(difference_clip: float, smoothing: float, estimator: str = "central") -> float:
    """DP-ZO's clip on the raw loss difference ℓ⁺ − ℓ⁻ → `clip_norm` of the slope: C/(2φ) (forward: C/φ).

    >>> slope_clip(0.05, 0.01), slope_clip(0.05, 1e-3)  # its LoRA setting; the usual full-parameter one
    (2.5, 25.0)
    """
    return _positive("difference_clip", difference_clip) / _span(smoothing, estimator)


def loss_difference_clip(clip_norm: float, smoothing: float, estimator: str = "central") -> float:
    """`clip_norm` of the slope → the bound on raw loss differences: 2φ·clip_norm (forward: φ·clip_norm).

    For K directions it bounds the same norm of a unit's K differences, and therefore each of them.
    """
    return _positive("--clip-norm", clip_norm) * _span(smoothing, estimator)


def joint_clip(mean_row_clip: float, num_directions: int) -> float:
    """DP-AggZO's c on rows divided by K → `clip_norm` of the row itself: K·c, as clip(D/K, c) = clip(D, K·c)/K.

    The learning rate is unchanged: updates divide by K here.

    >>> joint_clip(5.0, 64)
    320.0
    """
    return _positive("mean_row_clip", mean_row_clip) * _count("--num-directions", num_directions)


def mean_row_clip(clip_norm: float, num_directions: int) -> float:
    """`clip_norm` → DP-AggZO's c: clip_norm/K."""
    return _positive("--clip-norm", clip_norm) / _count("--num-directions", num_directions)


def clip_per_direction(clip_norm: float, num_directions: int) -> float:
    """The equivalent clip of one direction for a joint clip: clip_norm/√K = c·√K. Equal to clip_norm at K = 1.

    >>> clip_per_direction(joint_clip(5.0, 64), 64)  # against 100 to 400 at K = 1
    40.0
    """
    return _positive("--clip-norm", clip_norm) / math.sqrt(_count("--num-directions", num_directions))


def dpzero_noise_multiplier(code_multiplier: float) -> float:
    """DPZero's code multiplier m → `noise_multiplier` 2m: its noise on the mean has std 2m·C/B."""
    return 2.0 * _positive("code_multiplier", code_multiplier)


def dpzero_code_multiplier(noise_multiplier: float) -> float:
    """`noise_multiplier` → DPZero's m: half of it."""
    return _positive("--noise-multiplier", noise_multiplier) / 2.0


def laplace_scale(noise_multiplier: float) -> float:
    """`noise_multiplier` (std ÷ clip_norm) → Laplace scale b ÷ clip_norm: σ/√2."""
    return _positive("--noise-multiplier", noise_multiplier) / math.sqrt(2.0)


def laplace_noise_multiplier(scale: float) -> float:
    """Laplace scale b ÷ clip_norm → `noise_multiplier`: √2·b, the standard deviation."""
    return math.sqrt(2.0) * _positive("scale", scale)


def mean_slope_noise(noise_multiplier: float, clip_norm: float, expected_batch_size: float) -> float:
    """Noise std of one direction's averaged slope: σC/(qN), slope units.

    >>> mean_slope_noise(16.4, 2.5, 16)  # DP-ZO at ε = 1: the noise exceeds the largest signal, 2.5
    2.5625
    """
    noise = _positive("--noise-multiplier", noise_multiplier) * _positive("--clip-norm", clip_norm)
    return noise / _positive("--expected-batch-size", expected_batch_size)


def noise_displacement(
    learning_rate: float,
    noise_multiplier: float,
    clip_norm: float,
    expected_batch_size: float,
    steps: int,
    num_directions: int = 1,
) -> float:
    """RMS displacement of one parameter by noise alone after T steps of SGD: η·σC/(qN)·√(T/K), parameter units.

    Each step adds (η/(K·qN))·Σ_k noise_k·z_kj with E[z_kj²] = 1; steps and directions are independent.
    """
    noise = mean_slope_noise(noise_multiplier, clip_norm, expected_batch_size)
    walk = math.sqrt(_count("--steps", steps) / _count("--num-directions", num_directions))
    return _positive("--learning-rate", learning_rate) * noise * walk


def _span(smoothing: float, estimator: str) -> float:
    if estimator not in WIDTHS:
        raise DpzoError(f"estimator must be one of {', '.join(WIDTHS)}")
    return WIDTHS[estimator] * _positive("--smoothing", smoothing)


def _positive(option: str, number: float) -> float:
    if not 0.0 < number < math.inf:
        raise DpzoError(f"{option} must be a positive finite number")
    return float(number)


def _count(option: str, number: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise DpzoError(f"{option} must be a whole number of at least 1")
    return number
