"""Which way of holding shifts serves a model: what is missed is named, and no copy of the weights is made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dpzo.zo import pieces
from dpzo.zo.directions import StepDirections
from dpzo.zo.initial import public_normal
from dpzo.zo.parameters import TrainableParameters
from dpzo.zo.shift_check import ShiftCheck, check_shift

TOKENS = torch.tensor([[1, 2, 3, 1], [4, 10, 0, 7]])


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy layers are treated as large ones are."""
    monkeypatch.setattr("dpzo.zo.parameters._SMALL_ELEMENTS", 0)


class Plain(nn.Module):
    def __init__(self, rows: int = 11) -> None:
        super().__init__()
        self.embed = nn.Embedding(rows, 6)
        self.head = nn.Linear(6, rows, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 6, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lstm(self.embed(tokens))[0]


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.attention(x, x, x, need_weights=False)[0]


class Uncalled(nn.Module):
    """Reads a child's weight without calling the child."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.child = nn.Linear(6, 6, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embed(tokens) @ self.child.weight


class After(nn.Module):
    """Reads a table once more when its owner has returned, through a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embed(tokens) @ self.embed.weight.T


class Listed(nn.Module):
    """Hands weights over in a list, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(6, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.child(torch.cat(tensors=[self.child.weight, torch.ones(1, 6)]))


def build(kind: Callable[[], nn.Module]) -> tuple[nn.Module, TrainableParameters]:
    module = kind().eval()
    for name, p in module.named_parameters():
        p.data.copy_(public_normal(1, name, p.numel(), 0.5).view(p.shape))
    return module, TrainableParameters(module, [name for name, _ in module.named_parameters()])


def check(kind: Callable[[], nn.Module]) -> ShiftCheck:
    module, parameters = build(kind)
    before = parameters.state()
    with torch.no_grad():
        found = check_shift(parameters, lambda: module(TOKENS))
    assert all(torch.equal(p, before[name]) for name, p in parameters.state().items())
    return found


@pytest.mark.parametrize("kind", [Plain, Recurrent, Attentive])
def test_models_that_call_their_layers_are_served(kind: Callable[[], nn.Module]) -> None:
    assert check(kind) == ShiftCheck((), (), ())
    assert check(kind).held == "slice"


@pytest.mark.parametrize(
    ("kind", "missed", "unvisited"),
    [
        (Uncalled, ("child.weight",), ("child.weight",)),
        (After, ("embed.weight",), ()),
        (Listed, ("child.weight",), ()),
    ],
)
def test_weights_read_by_hand_are_named(
    kind: Callable[[], nn.Module], missed: tuple[str, ...], unvisited: tuple[str, ...]
) -> None:
    found = check(kind)
    assert found.missed == missed
    assert found.unvisited == unvisited
    assert not found.layer_is_safe
    assert found.held == "all"


def test_a_product_whose_slices_have_other_bits_is_made_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_SLICE_BYTES", 64 * 6 * 4)
    wide = partial(Plain, 333)
    assert check(wide).held == "slice"
    shift = StepDirections.shift

    def by_length(
        self: StepDirections, k: int, parameter: int, base: Tensor, scale: float, out: Tensor, start: int = 0
    ) -> None:
        """As if a short product were rounded otherwise."""
        shift(self, k, parameter, base, scale, out, start)
        if len(base) == 333 % 64 * 6:
            out[0] = torch.nextafter(out[0], out[0] + 1)

    monkeypatch.setattr(StepDirections, "shift", by_length)
    found = check(wide)
    assert found.other_bits == ("embed.weight",)
    assert found.layer_is_safe
    assert found.held == "layer"


def test_no_copy_of_the_trainable_part_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(*[nn.Linear(64, 64) for _ in range(8)])
    parameters = TrainableParameters(module, [name for name, _ in module.named_parameters()])
    held: list[int] = []
    shift = StepDirections.shift

    def weigh(
        self: StepDirections, k: int, parameter: int, base: Tensor, scale: float, out: Tensor, start: int = 0
    ) -> None:
        shift(self, k, parameter, base, scale, out, start)
        homes = [p.data_ptr() for p in parameters]
        held.append(sum(p.numel() for p, home in zip(parameters, homes, strict=True) if home != places[id(p)]))

    places = {id(p): p.data_ptr() for p in parameters}
    monkeypatch.setattr(StepDirections, "shift", weigh)
    with torch.no_grad():
        assert check_shift(parameters, lambda: module(torch.ones(2, 64))).held == "slice"
    assert len(held) == 16
    assert max(held) <= 64 * 64 + 64
    assert parameters.scratch._free == []
