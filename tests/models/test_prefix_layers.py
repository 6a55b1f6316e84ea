"""Which layers of a bare module may stand aside, and that they come back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertForMaskedLM

from dpzo.models.frozen_cache import FrozenPrefix, frozen_depth, layer_stack


def test_models_of_another_build_are_left_whole() -> None:
    class Layer(nn.Module):
        def __init__(self, extra: bool = False) -> None:
            super().__init__()
            self.inner, self.extra = nn.Linear(3, 3), extra

        def forward(self, hidden: Tensor) -> Any:
            found = self.inner(hidden)
            return (found, hidden) if self.extra else found

    class Model(nn.Module):
        def __init__(self, layers: list[nn.Module], order: tuple[int, ...]) -> None:
            super().__init__()
            self.layers, self.order = nn.ModuleList(layers), order
            self.between, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(3))

        def forward(self, hidden: Tensor) -> Tensor:
            for index in self.order:
                found = self.layers[index](hidden)
                hidden = found[0] if isinstance(found, tuple) else found
                if index == 1:
                    hidden = self.between(hidden)
            return hidden * self.scale

    rows = torch.ones(2, 3)

    def depth(layers: list[nn.Module], order: tuple[int, ...], *names: str) -> int:
        model = Model(layers, order)
        return frozen_depth(model, names, lambda: model(rows), 2)

    plain: list[nn.Module] = [Layer(), Layer(), Layer()]
    assert depth(plain, (0, 1, 2), "layers.2.inner.weight") == 2
    assert depth(plain, (0, 1, 2), "between.weight", "layers.2.inner.bias") == 2  # it stands above layer 1
    assert depth(plain, (0, 1, 1, 2), "layers.2.inner.weight") == 0  # a layer that is used twice
    assert depth(plain, (0, 2, 1), "layers.2.inner.weight") == 0  # another order
    assert depth(plain, (0, 1), "layers.2.inner.weight") == 0  # a layer that is not used
    assert depth(plain, (0, 1, 2), "scale") == 0  # read without a call of a module of its own
    assert depth([Layer(extra=True), Layer(), Layer()], (0, 1, 2), "layers.2.inner.weight") == 0
    assert depth([Layer(), Layer(), Layer(extra=True)], (0, 1, 2), "layers.2.inner.weight") == 2
    model = Model(plain, (0, 1, 2))
    assert frozen_depth(model, ["layers.2.inner.weight"], lambda: model(rows), 3) == 0  # not a row of states a row
    assert layer_stack(nn.Linear(2, 2)) is None
    assert frozen_depth(nn.Linear(2, 2), ["weight"], lambda: None, 1) == 0
    albert = AlbertForMaskedLM(
        AlbertConfig(vocab_size=20, embedding_size=8, hidden_size=8, num_hidden_layers=3, num_attention_heads=2)
    )
    ids = torch.ones(1, 4, dtype=torch.int64)
    assert frozen_depth(albert, ["predictions.bias"], lambda: albert(ids), 1) == 0
    for wrong in (0, 4):
        with pytest.raises(ValueError, match="not that many layers"):
            FrozenPrefix(model, wrong)


def test_a_later_layer_that_writes_in_place_does_not_spoil_what_is_held() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, hidden: Tensor) -> Tensor:
            return hidden.add_(self.weight)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Adds(), Adds(), Adds()])

        def forward(self, hidden: Tensor) -> Tensor:
            for layer in self.layers:
                hidden = layer(hidden)
            return hidden

    model = Model()
    frozen = FrozenPrefix(model, 2)
    with torch.no_grad():
        result, states = frozen.record(lambda: model(torch.zeros(1)))
        assert (float(result), float(states)) == (3.0, 2.0)
        for _ in range(2):
            assert float(frozen.resume(lambda: model(torch.zeros(1)), states)) == 3.0
        assert float(frozen.states(lambda: model(torch.zeros(1)))) == 2.0

        def fails() -> None:
            model(torch.zeros(1))
            raise RuntimeError("in the middle")

        for act in (lambda: frozen.record(fails), lambda: frozen.resume(fails, states)):
            with pytest.raises(RuntimeError, match="in the middle"):
                act()
    assert float(model(torch.zeros(1)).detach()) == 3.0
    assert not any("forward" in layer.__dict__ or layer._forward_hooks for layer in model.layers)
