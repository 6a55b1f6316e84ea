"""Papers' numbers in our units: worked figures, inverses, and the claims on which a conversion rests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpzo.errors import DpzoError
from dpzo.experiments.recipes import conversions
from dpzo.privacy import Gaussian, Laplace, lattice
from dpzo.privacy.mechanisms import clip_rows
from dpzo.report import card
from dpzo.zo import SCHEDULES, DirectionScheme, Sgd, TrainableParameters, central_difference

ROWS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "golden" / "conversions.json").read_text(encoding="utf-8")
)
POSITIVE = st.floats(1e-6, 1e6)
COUNTS = st.integers(1, 4096)


def dpzero_std_on_mean(code_multiplier: float, expected_batch_size: float) -> float:
    """Std ÷ C of DPZero's mean, by way of our multiplier."""
    return conversions.mean_slope_noise(
        conversions.dpzero_noise_multiplier(code_multiplier), 1.0, expected_batch_size=expected_batch_size
    )


@pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])
def test_golden(row: dict[str, Any]) -> None:
    function = globals().get(row["quantity"]) or getattr(conversions, row["quantity"])
    assert row["source"]
    assert function(**row["inputs"]) == pytest.approx(row["expected"], rel=row["rel_tol"])


@given(value=POSITIVE, smoothing=st.floats(1e-6, 1.0), count=COUNTS, estimator=st.sampled_from(["central", "forward"]))
def test_every_conversion_has_its_inverse(value: float, smoothing: float, count: int, estimator: str) -> None:
    close = pytest.approx(value, rel=1e-12)
    slope = conversions.slope_clip(value, smoothing, estimator)
    assert conversions.loss_difference_clip(slope, smoothing, estimator) == close
    assert conversions.mean_row_clip(conversions.joint_clip(value, count), count) == close
    assert conversions.dpzero_code_multiplier(conversions.dpzero_noise_multiplier(value)) == close
    assert conversions.laplace_noise_multiplier(conversions.laplace_scale(value)) == close
    assert conversions.clip_per_direction(value, 1) == value


@given(scale=st.floats(1e-3, 1e3))
def test_multipliers_are_the_mechanisms_own(scale: float) -> None:
    assert conversions.laplace_noise_multiplier(scale) == Laplace(scale).noise_multiplier
    assert Laplace(conversions.laplace_scale(scale)).noise_multiplier == pytest.approx(scale)


@given(
    rows=st.lists(st.lists(st.floats(-50, 50), min_size=4, max_size=4), min_size=1, max_size=6),
    clip=st.floats(0.1, 50),
)
def test_a_clipped_mean_row_is_the_joint_clip_of_the_row(rows: list[list[float]], clip: float) -> None:
    """clip(D/K, c) = clip(D, K·c)/K: by the formula, and by the channel's own clip up to its lattice."""
    drawn = np.array(rows)
    mean = drawn / 4
    length = np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-300)
    theirs = mean * np.minimum(1.0, clip / length)
    joint = conversions.joint_clip(clip, 4)
    grid = lattice(Gaussian(1.0), joint, 4)
    ours = clip_rows(drawn, grid) * grid.unit / 4
    assert np.abs(ours - theirs).max() <= 1.001 * grid.unit / 4 + 1e-3 * clip * 4**-0.5


class Raw:
    """Losses w·x of each unit: the raw difference of two evaluations is seen as DP-ZO would clip it."""

    def __init__(self, module: torch.nn.Linear, x: NDArray[np.float64]) -> None:
        self.module, self.x, self.seen = module, x, list[NDArray[np.float64]]()

    def losses(self, units: NDArray[np.int64]) -> NDArray[np.float64]:
        weight = self.module.weight.detach().double().numpy()[0]
        self.seen.append(self.x[units] @ weight)
        return self.seen[-1]


def test_clipping_the_slope_is_clipping_the_raw_difference() -> None:
    module = torch.nn.utils.skip_init(torch.nn.Linear, 5, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    raw = Raw(module, np.random.default_rng(2).standard_normal((40, 5)) * 3)
    parameters = TrainableParameters(module, ["weight"])
    smoothing, difference_clip = 0.01, 0.05
    scheme = DirectionScheme("gaussian", 4, 1, parameters.sizes)
    slopes = central_difference(raw, parameters, np.arange(40), scheme.at(0), smoothing)[:, 0]
    difference = raw.seen[0] - raw.seen[1]
    bound = conversions.slope_clip(difference_clip, smoothing)
    theirs = np.clip(difference, -difference_clip, difference_clip) / (2 * smoothing)
    assert np.allclose(np.clip(slopes, -bound, bound), theirs)
    assert 5 < (np.abs(slopes) > bound).sum() < 40  # the clip was at work


@pytest.mark.parametrize("count", [1, 9])
def test_noise_moves_a_parameter_as_far_as_stated(count: int) -> None:
    """4000 parameters, 25 steps of pure noise: RMS within 4 % (a 10 % error would be seen)."""
    module = torch.nn.utils.skip_init(torch.nn.Linear, 4000, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    parameters = TrainableParameters(module, ["weight"])
    scheme = DirectionScheme("rademacher", 6, count, parameters.sizes)
    update = Sgd(SCHEDULES["constant"](0.3, 25, 0), 16.0)
    draw = np.random.default_rng(5)
    multiplier, clip = 7.0, 2.5
    for step in range(25):
        noise = multiplier * clip * draw.choice([-1.0, 1.0], size=count)
        update.apply(parameters, {}, scheme.at(step), noise, step)
    moved = float(parameters.flat(0).double().square().mean().sqrt())
    stated = conversions.noise_displacement(0.3, multiplier, clip, 16.0, 25, count)
    assert moved == pytest.approx(stated, rel=0.04)


def test_the_card_uses_the_same_widths() -> None:
    assert card._SPANS == conversions.WIDTHS


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conversions.slope_clip(0.05, 0.0), "--smoothing"),
        (lambda: conversions.slope_clip(-0.05, 0.1), "difference_clip"),
        (lambda: conversions.loss_difference_clip(math.inf, 0.1), "--clip-norm"),
        (lambda: conversions.slope_clip(0.05, 0.1, "sideways"), "central, forward"),
        (lambda: conversions.joint_clip(5.0, 0), "--num-directions"),
        (lambda: conversions.joint_clip(5.0, True), "--num-directions"),
        (lambda: conversions.laplace_scale(math.nan), "--noise-multiplier"),
        (lambda: conversions.mean_slope_noise(1.0, 1.0, 0.0), "--expected-batch-size"),
        (lambda: conversions.noise_displacement(1.0, 1.0, 1.0, 1.0, 0), "--steps"),
    ],
)
def test_nonsense_is_refused(call: Any, message: str) -> None:
    with pytest.raises(DpzoError, match=message):
        call()
