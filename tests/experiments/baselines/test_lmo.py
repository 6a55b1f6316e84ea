"""DP-SGD with LMO noise: the law that is drawn, the ε that it is worth, and what the card says of the paper's label."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from dpzo.errors import DpzoError
from dpzo.experiments.baselines import DpGradient, LmoGradient
from dpzo.experiments.baselines.lmo import add_mixture, float_mixture
from dpzo.noise.mixture import LaplaceMixture
from dpzo.noise.mixture_plan import mixture_noise
from dpzo.noise.mixture_vectors import vector_epsilon
from dpzo.noise.published import published
from dpzo.privacy import NeighboringRelation, PoissonSampling, SecretRandom
from dpzo.report.card import render_markdown

DRAWS = 1_000_000
Make = Callable[..., SimpleNamespace]
SGD = DpGradient("sgd", learning_rate=0.5, clip_norm=0.3)
METHODS = [
    LmoGradient(SGD, "lmo-0.3", "l1"),
    LmoGradient(SGD, "lmo-0.3", "l2"),
    LmoGradient(replace(SGD, clipping="ghost"), "lmo-0.7-as-coded", "l2"),
    LmoGradient(DpGradient("adam", learning_rate=0.1, clip_norm=0.3, average=0.5), "lmo-2", "l2"),
]
LAWS = {
    **{label: published(label).mixture for label in ("0.3", "3", "5", "useful 3")},
    "0.3 as coded": published("0.3").mixture.sampled_as_scale(),
    "a gamma of any shape": LaplaceMixture(0.3, 3.4, 1.0, 0.0, 1.0, 0.2, 0.5, 1.0),
    "a gamma alone, nearly a fixed scale": LaplaceMixture(1.0, 1832.0, 5.586e-4, 0.0, 1.0, 0.0, 0.0, 1.0),
}


def label(method: LmoGradient) -> str:
    return f"{method.name}-{method.mechanism}-{method.descent.clipping}"


def cells_p_value(sample: np.ndarray, law: LaplaceMixture) -> float:
    """χ² on cells of equal mass under the law, from its closed survival function, both signs apart."""
    grid = np.geomspace(1e-4, 1e4, 4001)
    below = 1.0 - np.array([law.survival(x) for x in grid.tolist()])
    edges = np.interp(np.arange(1, 40) / 40, below, grid)
    masses = -np.diff([1.0, *(law.survival(x) for x in edges.tolist()), 0.0]) / 2.0
    counts = [np.histogram(sign * sample[sign * sample > 0], [0.0, *edges, np.inf])[0] for sign in (1, -1)]
    return float(stats.chisquare(np.concatenate(counts), len(sample) * np.tile(masses, 2)).pvalue)


@pytest.mark.parametrize("name", LAWS)
def test_the_law_by_cells_with_power(name: str) -> None:
    law = LAWS[name]
    sample = float_mixture(DRAWS, law, SecretRandom())
    assert cells_p_value(sample, law) > 1e-7
    assert cells_p_value(sample, law.scaled(0.97)) < 1e-7
    assert cells_p_value(sample, law.scaled(1.03)) < 1e-7


def test_the_written_law_is_told_from_the_coded_one() -> None:
    """The rate and the scale of the exponential are not the same: a sampler that mixes them up is seen at once."""
    law = published("0.3").mixture
    sample = float_mixture(100_000, law, SecretRandom())
    assert abs(sample.mean()) < 6 * math.sqrt(law.variance / 100_000)
    assert cells_p_value(sample, law) > 1e-7
    assert cells_p_value(sample, law.sampled_as_scale()) < 1e-100


def test_coordinates_are_independent() -> None:
    """A scale shared by neighbours would leave their sizes correlated: the paper draws one for each coordinate."""
    sample = np.abs(float_mixture(DRAWS, published("5").mixture, SecretRandom()))
    assert abs(np.corrcoef(np.log(sample[::2]), np.log(sample[1::2]))[0, 1]) < 6 / math.sqrt(DRAWS / 2)


class Extremes:
    """Words of all zeros and all ones in turn: the ends of the deviates."""

    def __init__(self) -> None:
        self.calls = 0

    def words(self) -> Any:
        raise AssertionError("whole arrays only")

    def word_array(self, size: int) -> np.ndarray:
        self.calls += 1
        return np.where(np.arange(size) // self.calls % 2 == 0, np.uint64(0), np.uint64(2**64 - 1))


@pytest.mark.parametrize("name", LAWS)
def test_the_ends_of_the_deviates_are_finite_in_single_precision(name: str) -> None:
    sample = float_mixture(64, LAWS[name], Extremes()).astype(np.float32)
    assert np.isfinite(sample).all()
    assert (sample > 0).any()
    assert (sample < 0).any()


@pytest.mark.parametrize("size", [0, 1, 70_001])
def test_noise_lands_on_every_element_and_is_fresh(size: int) -> None:
    law = published("3").mixture
    first, second = torch.full((size,), 5.0), torch.full((size,), 5.0)
    if size == 1:  # beside 5, floats are so far apart that two may meet by chance
        first, second = torch.zeros(1), torch.zeros(1)
    add_mixture(first, law, 2.0, SecretRandom())
    add_mixture(second, law, 2.0, SecretRandom())
    assert size == 0 or float((first != second).double().mean()) > 0.999  # two floats of many may meet by chance
    if size > 1:
        # Not by the deviation: of a law with such tails it is itself too random.
        near = float(((first - 5.0).abs() <= 2.0).double().mean())
        expected = law.usefulness(1.0)
        assert abs(near - expected) < 6 * math.sqrt(expected * (1 - expected) / size)


def test_one_step_is_the_formula_in_either_norm(logistic: Make) -> None:
    for order, route in ((1, "l1"), (2, "l2")):
        small = logistic(steps=1, units=30, batch=30.0, noise=1e-4)
        gradient = torch.zeros(6, dtype=torch.float64)
        clipped = 0
        for x, y in zip(small.objective.x.double(), small.objective.y.double(), strict=True):
            whole = torch.cat((-0.5 * y * x, (-0.5 * y)[None]))
            length = float(torch.linalg.vector_norm(whole, order))
            clipped += length > 0.8
            gradient += whole * min(1.0, 0.8 / length)
        descent = DpGradient("sgd", 2.0, 0.8, microbatch_size=4)
        LmoGradient(descent, "lmo-0.3", route).run(small.job, small.objective, 30)  # type: ignore[arg-type]
        moved = torch.cat([small.job.parameters.flat(i) for i in range(2)]).double()
        assert torch.allclose(moved, -2.0 * gradient / 30, atol=1e-4)
        assert (clipped > 0) == (order == 1)  # L2 norms are ½√2, L1 norms above 1


def test_a_poisoned_unit_counts_nothing_in_l1(logistic: Make) -> None:
    small = logistic(steps=1, units=30, batch=30.0, noise=1e-4)
    small.objective.x[3] = math.nan
    LmoGradient(SGD, "lmo-0.3", "l1").run(small.job, small.objective, 30)
    other = logistic(steps=1, units=30, batch=30.0, noise=1e-4)
    other.objective.x[3], other.objective.y[3] = 0.0, 0.0
    LmoGradient(SGD, "lmo-0.3", "l1").run(other.job, other.objective, 30)
    assert torch.allclose(small.job.parameters.flat(0), other.job.parameters.flat(0), atol=1e-4)


@pytest.mark.parametrize("method", METHODS[:3], ids=label)
def test_an_empty_batch_releases_noise_of_the_published_law(logistic: Make, method: LmoGradient) -> None:
    """With next to no sampling every batch is empty: what moves θ is C·X/(qN), of the law that is accounted."""
    noise = mixture_noise(method.mechanism)
    small = logistic(steps=1, units=64, batch=1e-9, dimension=40_000, noise=noise.noise_multiplier)
    method = replace(method, descent=replace(method.descent, learning_rate=1.0, average=0.0))
    method.run(small.job, small.objective, small.units)
    sample = small.job.parameters.flat(0).double().numpy() * small.plan.expected_batch_size / 0.3
    assert cells_p_value(sample, noise.law) > 1e-8
    assert cells_p_value(sample, noise.law.scaled(1.15)) < 1e-8
    other = published(noise.label).mixture
    assert cells_p_value(sample, other if noise.as_coded else other.sampled_as_scale()) < 1e-8


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_t_batches_are_drawn_from_the_plans_sampler(
    logistic: Make, method: LmoGradient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    draw = PoissonSampling.draw

    def counted(self: PoissonSampling, num_units: int, randomness: Any) -> Any:
        batch = draw(self, num_units, randomness)
        sizes.append(len(batch))
        return batch

    monkeypatch.setattr(PoissonSampling, "draw", counted)
    small = logistic(steps=60, units=48, batch=12.0)
    before = torch.get_rng_state()
    method.run(small.job, small.objective, small.units)
    assert len(sizes) == 60
    total = stats.binom(60 * 48, 0.25)
    assert total.ppf(1e-9) <= sum(sizes) <= total.ppf(1 - 1e-9)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.isfinite(p).all() and p.grad is None for p in small.job.parameters)


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_the_card_says_what_the_noise_gives(logistic: Make, method: LmoGradient) -> None:
    small = logistic(noise=mixture_noise(method.mechanism).noise_multiplier, steps=7)
    card = json.loads(json.dumps(method.run(small.job, small.objective, small.units).card, allow_nan=False))
    law = mixture_noise(method.mechanism).law
    found = vector_epsilon(law, method.route, 1e-5, 0.25, 7)
    assert (card["level"], card["guarantee"], card["epsilon"]) == ("float-noise", False, None)
    assert card["in_real_arithmetic"] == {"epsilon": found.epsilon, "delta": 1e-5}
    assert card["accountant"] == card["noise"]["bound"]
    assert ("RDP" if method.route == "l1" else "zCDP") in card["accountant"]
    assert card["mechanism"]["name"] == f"{method.mechanism} (floating point)"
    assert card["mechanism"]["clip"].startswith("L1" if method.route == "l1" else "L2")
    assert card["mechanism"]["clip_norm"] == 0.3
    assert "Laplace deviates of a random scale" in card["mechanism"]["sampler"]
    noise = card["noise"]
    labelled = published(noise["published_set"]).claimed_epsilon
    assert noise["label"]["epsilon"] == labelled
    assert noise["label"]["proved"] == vector_epsilon(law, method.route, 1e-10).epsilon
    assert noise["stretch"] == pytest.approx(1.0, rel=1e-12)
    assert noise["price"] == found.price > 2.0
    assert noise["gaussian_of_same_deviation"] == small.plan.epsilon < found.epsilon
    assert "as coded" in noise["drawn"] if method.mechanism.endswith("coded") else noise["drawn"] == "as written"
    if method.route == "l1":
        assert noise["spread_rows"] is None
    else:  # the truth for L2 rows lies between their limit and the bound
        assert noise["label"]["proved"] > labelled
        assert noise["gaussian_of_same_deviation"] < noise["spread_rows"] < found.epsilon
    assert card["claim"] in render_markdown(card)
    assert (card["settings"]["route"], card["settings"]["mechanism"]) == (method.route, method.mechanism)


def test_a_test_double_claims_nothing(logistic: Make, recorded: type) -> None:
    small = logistic()
    descent = replace(SGD, nonprivate_randomness=recorded(4))
    card = LmoGradient(descent, "lmo-0.3", "l2").run(small.job, small.objective, small.units).card
    assert (card["level"], card["in_real_arithmetic"], card["noise"]) == ("none", None, None)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (LmoGradient(SGD, "lmo-0.3", "l2_scalar"), "do not have the scalar's epsilon.*clip in L1"),  # type: ignore[arg-type]
        (LmoGradient(SGD, "lmo-0.3", "equivalent_gaussian"), "bounds nothing after composition"),  # type: ignore[arg-type]
        (LmoGradient(SGD, "lmo-0.3", "linf"), "use l1 or l2"),  # type: ignore[arg-type]
        (LmoGradient(SGD, "lmo-0.35", "l1"), "`mechanism` lmo-0.35: no published set.*lmo-0.3,"),
        (LmoGradient(SGD, "gaussian", "l1"), "`mechanism` gaussian"),
        (LmoGradient(replace(SGD, clipping="ghost"), "lmo-0.3", "l1"), "L2 norms only; use hooks"),
        (LmoGradient(replace(SGD, clip_norm=math.inf), "lmo-0.3", "l1"), "`clip_norm`"),
    ],
)
def test_what_has_no_proof_is_refused_before_a_record_is_read(logistic: Make, method: LmoGradient, said: str) -> None:
    small = logistic()
    start = small.job.parameters.state()
    with pytest.raises(DpzoError, match=said):
        method.run(small.job, small.objective, small.units)
    assert all(torch.equal(a, b) for a, b in zip(start.values(), small.job.parameters.state().values(), strict=True))


def test_a_replaced_unit_is_refused(logistic: Make) -> None:
    small = logistic()
    job = replace(small.job, plan=replace(small.plan, relation=NeighboringRelation.REPLACE_ONE))
    with pytest.raises(DpzoError, match="`relation` replace_one: not proved"):
        METHODS[1].run(job, small.objective, small.units)


def test_it_learns_where_its_epsilon_is_high(logistic: Make) -> None:
    """Pilot runs: accuracy 0.9925 … 0.996 at ε = 20.9 by zCDP (a Gaussian of that deviation would have 9.4)."""
    small = logistic(units=2000, batch=400.0, steps=60, noise=1.1)
    descent = DpGradient("sgd", learning_rate=20.0, clip_norm=0.5, average=0.5, microbatch_size=512)
    LmoGradient(descent, "lmo-3", "l2").run(small.job, small.objective, small.units)
    with torch.no_grad():
        right = small.objective.module(small.objective.x)[:, 0].sign() == small.objective.y
    assert float(right.float().mean()) > 0.95
