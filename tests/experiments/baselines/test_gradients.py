"""The clipped sum is the one a reader would write as a loop over records, whatever computes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpzo.errors import DpzoError
from dpzo.experiments.baselines import clipped_sums
from dpzo.experiments.baselines.differentiable import differentiable
from dpzo.experiments.baselines.gradients import Clipping, trainable_by_autograd
from dpzo.models import (
    FeatureObjective,
    TokenObjective,
    UnitObjective,
    encode_classes,
    encode_completions,
    encode_options,
    load_model,
    seeded_initialiser,
)
from dpzo.models.objectives import compute_features
from dpzo.zo import TrainableParameters

TEXTS = ["a fine day", "no", "rain again, and then some more of it", "", "why not", "so be it", "yes it is"]
LABELS = [1, 0, 0, 1, 1, 0, 1]


def by_hand(parameters: TrainableParameters, objective: Any, units: list[int], clip_norm: float) -> list[torch.Tensor]:
    """Σ g_i·min(1, C/‖g_i‖), one backward a unit."""
    source = differentiable(objective, 1)
    total = [torch.zeros_like(p).double() for p in parameters]
    with trainable_by_autograd(parameters):
        for unit in units:
            records, _, weights = source.owned(np.array([unit]))
            gradient = [torch.zeros_like(p).double() for p in parameters]
            for record, weight in zip(records, weights, strict=True):
                for part in source.objective.passes(np.array([record]), 1):
                    loss = part.losses().sum()
                    found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
                    for whole, one in zip(gradient, found, strict=True):
                        whole += 0.0 if one is None else weight * one
            norm = math.sqrt(sum(float(g.square().sum()) for g in gradient))
            if math.isfinite(norm) and norm > 0:
                for whole, one in zip(total, gradient, strict=True):
                    whole += one * min(1.0, clip_norm / norm)
    return total


def check(parameters: TrainableParameters, objective: Any, units: list[int], clip_norm: float, **options: Any) -> None:
    expected = by_hand(parameters, objective, units, clip_norm)
    size = options.pop("microbatch_size", None)
    modes = [module.training for module in parameters.module.modules()]
    with clipped_sums(parameters, differentiable(objective, size), clip_norm, **options) as clipped_sum:
        found = clipped_sum(np.array(units, dtype=np.int64))
        again = clipped_sum(np.array(units, dtype=np.int64))
    for one, other, third in zip(found, expected, again, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-3, atol=2e-5 * clip_norm)
        assert torch.allclose(one, third, rtol=1e-4, atol=1e-6)
    assert any(bool(one.any()) for one in found) == bool(units)
    assert modes == [module.training for module in parameters.module.modules()]
    for p in parameters.module.parameters():
        assert p.grad is None
        assert not p.requires_grad
        assert not hasattr(p, "grad_sample")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in parameters.module.modules())


@pytest.mark.parametrize("clipping", ["hooks", "ghost"])
@pytest.mark.parametrize("units", [[], [3], list(range(50))])
def test_sum_equals_a_loop(logistic: Callable[..., SimpleNamespace], clipping: Clipping, units: list[int]) -> None:
    small = logistic()
    with torch.no_grad():
        small.job.parameters.flat(0).copy_(torch.linspace(-1, 2, 5))
    for clip_norm in (0.05, 0.3, 10.0):
        check(small.job.parameters, small.objective, units, clip_norm, clipping=clipping, microbatch_size=7)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 63), unique=True, max_size=64), st.floats(1e-3, 10), st.integers(0, 63))
def test_one_unit_moves_the_sum_by_no_more_than_the_clip(
    logistic: Callable[..., SimpleNamespace], units: list[int], clip_norm: float, other: int
) -> None:
    small = logistic()
    members = np.array(sorted({*units} - {other}), dtype=np.int64)
    with clipped_sums(small.job.parameters, differentiable(small.objective, 16), clip_norm) as clipped_sum:
        without, with_it = clipped_sum(members), clipped_sum(np.sort(np.append(members, other)))
    moved = math.sqrt(sum(float((a - b).double().square().sum()) for a, b in zip(without, with_it, strict=True)))
    assert moved <= clip_norm * (1 + 1e-4) + 1e-5


@pytest.mark.parametrize("clipping", ["hooks", "ghost"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_unit_without_a_finite_gradient_counts_nothing(
    logistic: Callable[..., SimpleNamespace], clipping: Clipping, value: float
) -> None:
    small = logistic()
    small.objective.x[4, 2] = value
    units = np.arange(10)
    with clipped_sums(small.job.parameters, differentiable(small.objective), 0.2, clipping) as clipped_sum:
        poisoned, clean = clipped_sum(units), clipped_sum(np.delete(units, 4))
        alone = clipped_sum(np.array([4]))
    for one, other, nothing in zip(poisoned, clean, alone, strict=True):
        assert torch.isfinite(one).all()
        assert torch.allclose(one, other, atol=1e-6)
        assert not nothing.any()


def test_units_of_several_records_are_clipped_once(logistic: Callable[..., SimpleNamespace]) -> None:
    small = logistic()
    held = (np.array([0, 1, 2]), np.array([], dtype=np.int64), np.array([5]), np.arange(10, 30))
    people = UnitObjective(small.objective, held)
    check(small.job.parameters, people, [0, 1, 2, 3], 0.2, microbatch_size=4)
    with pytest.raises(DpzoError, match="several records"):
        check(small.job.parameters, people, [0, 2], 0.2, clipping="ghost")


def bert(folder: Path, trainable: str) -> tuple[Any, Any, TrainableParameters]:
    loaded = load_model(
        str(folder), "classification", initialiser=seeded_initialiser(0), labels=("a", "b"), trainable=trainable
    )
    encoded = encode_classes(loaded.tokenizer, TEXTS, LABELS, max_length=24)
    parameters = TrainableParameters(loaded.module, loaded.trainable_names)
    _lively(parameters)
    return loaded, encoded, parameters


def _lively(parameters: TrainableParameters) -> None:
    """LoRA's second matrix and the head start at zero and would hide the rest."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.randn(p.shape, generator=draw) * 0.05)


@pytest.mark.parametrize("trainable", ["lora", "full"])
@pytest.mark.parametrize("clipping", ["hooks", "ghost"])
def test_an_encoder(tiny_bert: Path, trainable: str, clipping: Clipping) -> None:
    loaded, encoded, parameters = bert(tiny_bert, trainable)
    objective = TokenObjective(loaded.module, encoded, 4)
    check(parameters, objective, [0, 1, 2, 3, 4, 5, 6], 0.3, clipping=clipping)


@pytest.mark.parametrize("clipping", ["hooks", "ghost"])
def test_a_head_on_kept_features(tiny_bert: Path, clipping: Clipping) -> None:
    loaded, encoded, parameters = bert(tiny_bert, "head")
    features = compute_features(loaded.module, encoded, 4)
    objective = FeatureObjective(loaded.module, features, encoded.targets, encoded.empty, 4)
    check(parameters, objective, [0, 1, 2, 3, 4, 5, 6], 0.3, clipping=clipping, microbatch_size=3)


@pytest.mark.parametrize("form", ["options", "completion"])
def test_a_causal_model(tiny_llama: Path, form: str) -> None:
    kind = "classification" if form == "options" else "completion"
    for trainable in ("lora", "full"):  # the whole model has tied embeddings
        labels = ("a", "b") if form == "options" else None
        loaded = load_model(
            str(tiny_llama), kind, initialiser=seeded_initialiser(0), labels=labels, trainable=trainable
        )
        if form == "options":
            encoded = encode_options(loaded.tokenizer, TEXTS, (" bad", " good"), LABELS, max_length=48)
        else:
            encoded = encode_completions(loaded.tokenizer, TEXTS, TEXTS[::-1], max_length=48, max_answer_tokens=8)
        parameters = TrainableParameters(loaded.module, loaded.trainable_names)
        _lively(parameters)
        objective = TokenObjective(loaded.module, encoded, 3)
        check(parameters, objective, [0, 2, 4, 5, 6], 0.5)
        if form == "options" or trainable == "full":
            with pytest.raises(DpzoError, match="use hooks"):
                check(parameters, objective, [0, 2], 0.5, clipping="ghost")


@pytest.mark.parametrize("trainable", ["prefix", "prompt"])
def test_virtual_tokens(tiny_llama: Path, trainable: str) -> None:
    loaded = load_model(str(tiny_llama), "completion", initialiser=seeded_initialiser(0), trainable=trainable)
    encoded = encode_completions(loaded.tokenizer, TEXTS, TEXTS[::-1], max_length=48, max_answer_tokens=8)
    parameters = TrainableParameters(loaded.module, loaded.trainable_names)
    objective = TokenObjective(loaded.module, encoded, 3)
    if trainable == "prefix":
        check(parameters, objective, [0, 2, 4, 5, 6], 0.05)
    else:
        with pytest.raises(DpzoError, match="once for a whole batch"):
            check(parameters, objective, [0, 2, 4, 5, 6], 0.05)


class Outside(torch.nn.Module):
    """Uses a weight outside its layer: Opacus's hooks see half of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.utils.skip_init(torch.nn.Linear, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + x @ self.inner.weight.t() * 0.5


@pytest.mark.parametrize("clipping", ["hooks", "ghost"])
def test_a_weight_that_opacus_does_not_see_is_refused(
    logistic: Callable[..., SimpleNamespace], clipping: Clipping
) -> None:
    small = logistic()
    module = Outside()
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(0.1)
    objective = type(small.objective)(module, small.objective.x, small.objective.y)
    parameters = TrainableParameters(module, ["inner.weight", "inner.bias"])
    with (
        pytest.raises(DpzoError, match="other gradients"),
        clipped_sums(parameters, differentiable(objective), 1.0, clipping) as clipped_sum,
    ):
        clipped_sum(np.arange(8))


def test_refusals(logistic: Callable[..., SimpleNamespace]) -> None:
    small = logistic()

    class ValuesOnly:
        def losses(self, units: Any) -> Any:
            return np.zeros(len(units))

    with pytest.raises(DpzoError, match="no gradients"):
        differentiable(ValuesOnly())
    with (
        pytest.raises(DpzoError, match="choose hooks or ghost"),
        clipped_sums(small.job.parameters, differentiable(small.objective), 1.0, "book"),  # type: ignore[arg-type]
    ):
        pass


def test_accuracy_as_an_objective_is_refused(tiny_bert: Path) -> None:
    loaded, encoded, _ = bert(tiny_bert, "full")
    with pytest.raises(DpzoError, match="no gradient"):
        differentiable(TokenObjective(loaded.module, encoded, 4, "accuracy"))
