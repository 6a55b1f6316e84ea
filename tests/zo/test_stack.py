"""Shifted copies side by side have the bits of one shift at a time, and θ is only read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpzo.zo import DirectionScheme, TrainableParameters, shifted, stacked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sphere"])
def test_each_entry_has_the_bits_of_its_shift(kind: str, dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).to(dtype)
    parameters = TrainableParameters(module, [name for name, _ in module.named_parameters()])
    at = DirectionScheme(kind, 4, 3, parameters.sizes).at(6)
    before = parameters.state()
    shifts = [(0, 0.1), (2, -0.1), (1, 0.25), (0, 0.0)]
    with stacked(parameters, at, shifts, 6) as weights:
        assert list(weights) == list(parameters.names)
        kept = {name: stack.clone() for name, stack in weights.items()}
    for place, (k, scale) in enumerate(shifts):
        with shifted(parameters, at, k, scale, "all"):
            for name, parameter in module.named_parameters():
                assert torch.equal(kept[name][place], parameter.data)
                assert kept[name].dtype == dtype
    for name, value in before.items():
        assert kept[name].shape == (6, *value.shape)
        assert torch.equal(kept[name][4], value), "filled by θ itself"
        assert torch.equal(kept[name][5], value)
        assert torch.equal(dict(module.named_parameters())[name].data, value)


def test_memory_is_lent_once_and_comes_back() -> None:
    module = nn.Linear(4, 4)
    parameters = TrainableParameters(module, ["weight", "bias"])
    at = DirectionScheme("rademacher", 0, 1, parameters.sizes).at(0)
    with stacked(parameters, at, [(0, 1.0)], 2) as weights:
        places = {name: stack.data_ptr() for name, stack in weights.items()}
        with pytest.raises(RuntimeError, match="already shifted"), shifted(parameters, at, 0, 1.0):
            pass
        with pytest.raises(RuntimeError, match="already shifted"), stacked(parameters, at, [(0, 1.0)]):
            pass
    with stacked(parameters, at, [(0, -1.0)], 2) as weights:
        assert {name: stack.data_ptr() for name, stack in weights.items()} == places
    with pytest.raises(ZeroDivisionError), stacked(parameters, at, [(0, 1.0)]):
        raise ZeroDivisionError
    with shifted(parameters, at, 0, 1.0):
        pass
