"""Kept features, units, and what an objective shows of itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpzo.errors import DpzoError
from dpzo.models.encoder import EncoderClassifier, pool
from dpzo.models.encoding import encode_classes
from dpzo.models.initialiser import seeded_initialiser
from dpzo.models.isolation import RowShape
from dpzo.models.models import LoadedModel, load_model
from dpzo.models.objectives import FeatureObjective, Indices, Losses, TokenObjective
from dpzo.models.shapes import isolated_shapes, make_objective
from dpzo.models.units import UnitObjective, group_units

Tiny = Callable[[str, str], Path]
TEXTS = ["the film was a delight", "great", " ", "a dull story " * 40, "my order never came"]
TARGETS = [0, 1, 1, 0, 1]


def head_model(tiny: Tiny) -> LoadedModel:
    return load_model(
        tiny("bert", "bare"), "classification", num_labels=2, trainable="head", initialiser=seeded_initialiser(1)
    )


def test_features_are_computed_once_and_give_the_whole_modules_losses(tiny: Tiny) -> None:
    loaded = head_model(tiny)
    assert isinstance(loaded.module, EncoderClassifier)
    encoded = encode_classes(loaded.tokenizer, TEXTS, TARGETS, max_length=24)
    objective = make_objective(loaded, encoded, isolated_shapes(loaded, RowShape.of(encoded, 40, 2), 4))
    assert isinstance(objective, FeatureObjective)
    calls: list[int] = []
    handle = loaded.module.encoder.register_forward_hook(lambda *args: calls.append(1))
    assert objective.losses(np.arange(5)).tolist() == pytest.approx(
        [math.log(2), math.log(2), 0.0, math.log(2), math.log(2)], rel=1e-6
    )
    with torch.no_grad():
        loaded.module.head.weight.copy_(torch.linspace(-3, 3, 64).reshape(2, 32))
        loaded.module.head.bias.copy_(torch.tensor([0.5, -0.25]))
    records = np.array([4, 0, 2, 3, 3])
    found, classes = objective.losses(records), objective.predict(records)
    assert calls == []
    handle.remove()
    whole = TokenObjective(loaded.module, encoded, 4)
    assert found == pytest.approx(whole.losses(records), abs=1e-6)
    assert found[3] == found[4] != math.log(2)
    assert found[2] == 0.0
    assert np.array_equal(classes, whole.predict(records))
    assert objective.losses(np.zeros(0, dtype=np.int64)).shape == (0,)
    assert "tensor" not in repr(objective)


def test_kept_features_isolate_records_at_a_busy_head(tiny: Tiny) -> None:
    loaded = head_model(tiny)
    assert isinstance(loaded.module, EncoderClassifier)
    encoded = encode_classes(loaded.tokenizer, TEXTS, TARGETS, max_length=24)
    objective = make_objective(loaded, encoded, isolated_shapes(loaded, RowShape.of(encoded, 40, 2)))
    with torch.no_grad():
        loaded.module.head.weight.copy_(torch.linspace(-3, 3, 64).reshape(2, 32))
    whole = objective.losses(np.arange(5))
    for record in range(5):
        assert objective.losses(np.array([record]))[0].tobytes() == whole[record].tobytes()
    many = np.concatenate((np.full(300, 1), np.arange(5)))
    assert objective.losses(many)[300:].tobytes() == whole.tobytes()


def test_pooling_counts_only_the_records_tokens() -> None:
    hidden = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    hidden[0, 2] = float("nan")
    expected = torch.stack((hidden[0, :2].mean(dim=0), hidden[1, 0]))
    expected = expected / expected.norm(dim=-1, keepdim=True)
    assert torch.allclose(pool(hidden, mask), expected)
    assert torch.equal(pool(torch.zeros(1, 2, 3), torch.zeros(1, 2)), torch.zeros(1, 3))
    assert pool(hidden.bfloat16(), mask).dtype == torch.float32


class Table:
    """Losses read from a list."""

    def __init__(self, values: list[float]) -> None:
        self.values = np.array(values, dtype=np.float64)

    def losses(self, records: Indices) -> Losses:
        result: Losses = self.values[records]
        return result


finite = st.floats(0, 1e6, allow_nan=False)


@given(values=st.lists(finite, min_size=1, max_size=30), data=st.data())
def test_a_units_loss_is_the_exact_mean_and_feels_no_other_unit(values: list[float], data: st.DataObject) -> None:
    owners = np.array(data.draw(st.lists(st.integers(0, 4), min_size=len(values), max_size=len(values))))
    units = UnitObjective(Table(values), group_units(owners, 5))
    whole = units.losses(np.arange(5))
    order = np.array(data.draw(st.permutations(range(5))))
    assert units.losses(order).tobytes() == whole[order].tobytes()
    for unit in range(5):
        own = [value for value, owner in zip(values, owners, strict=True) if owner == unit]
        assert whole[unit] == (math.fsum(own) / len(own) if own else 0.0)
        assert units.losses(np.array([unit])).tobytes() == whole[unit : unit + 1].tobytes()
    shuffled = np.array(data.draw(st.permutations(range(len(values)))))
    moved = UnitObjective(Table([values[i] for i in shuffled]), group_units(owners[shuffled], 5))
    assert moved.losses(np.arange(5)).tobytes() == whole.tobytes()


@given(values=st.lists(finite, min_size=1, max_size=30), most=st.integers(1, 4), data=st.data())
def test_a_cap_keeps_a_units_first_records_and_looks_at_no_other_unit(
    values: list[float], most: int, data: st.DataObject
) -> None:
    owners = np.array(data.draw(st.lists(st.integers(0, 4), min_size=len(values), max_size=len(values))))
    groups = group_units(owners, 5, most)
    for unit in range(5):
        own = [place for place, owner in enumerate(owners) if owner == unit]
        assert groups[unit].tolist() == own[:most]
    gone = data.draw(st.integers(0, 4))
    there = np.flatnonzero(owners != gone)
    without = group_units(owners[there], 5, most)
    assert without[gone].tolist() == []
    for unit in set(range(5)) - {gone}:
        assert there[without[unit]].tolist() == groups[unit].tolist()


def test_a_non_finite_record_spoils_its_own_unit_only() -> None:
    units = UnitObjective(Table([1.0, math.inf, -math.inf, 3.0, math.nan]), group_units(np.array([0, 1, 1, 0, 2]), 4))
    found = units.losses(np.arange(4))
    assert found[0] == 2.0
    assert np.isnan(found[1:3]).all()
    assert found[3] == 0.0
    assert units.losses(np.zeros(0, dtype=np.int64)).shape == (0,)


def test_units_are_numbered_from_zero() -> None:
    for numbers in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match="numbered") as caught:
            group_units(np.array(numbers), 3)
        assert "3" not in str(caught.value)


def test_an_impossible_microbatch_is_an_error(tiny: Tiny) -> None:
    loaded = head_model(tiny)
    encoded = encode_classes(loaded.tokenizer, TEXTS, TARGETS, max_length=24)
    with pytest.raises(DpzoError, match="microbatch_size is 0"):
        TokenObjective(loaded.module, encoded, 0)
