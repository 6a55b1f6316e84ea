"""Embeddings under a shift: the rows that are looked up, never the whole table, and the same bits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dpzo.zo.directions import DirectionScheme, StepDirections
from dpzo.zo.initial import public_normal
from dpzo.zo.parameters import TrainableParameters
from dpzo.zo.shift import shifted

TOKENS = torch.tensor([[1, 2, 3, 1], [4, 10, 0, 7]])


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy layers are treated as large ones are."""
    monkeypatch.setattr("dpzo.zo.parameters._SMALL_ELEMENTS", 0)


class Offset(nn.Embedding):
    """Positions that begin at 2, as in OPT."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens + 2) * 3.0


class Scaled(nn.Embedding):
    """By a number that hangs on the table's shape and dtype, as in Gemma."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * torch.tensor(self.weight.shape[1] ** 0.5, dtype=self.weight.dtype)


class ByHand(nn.Embedding):
    """Reads the table without a lookup function, after one."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) + functional.linear(self.weight[tokens], self.weight[:6])


class ByHandFirst(nn.Embedding):
    """Reads the table without a lookup function, before one."""

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.linear(self.weight[tokens], self.weight[:6]) + super().forward(tokens)


class Rescaled(nn.Embedding):
    """Writes to its table while it looks rows up."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width, max_norm=0.5)


KINDS: list[Callable[[int, int], nn.Embedding]] = [nn.Embedding, Offset, Scaled, ByHand, ByHandFirst, Rescaled]


def model(kind: Callable[[int, int], nn.Embedding], dtype: torch.dtype = torch.float32) -> nn.Module:
    module = nn.Sequential(kind(13, 6), nn.Linear(6, 6)).eval()
    for name, p in module.named_parameters():
        p.data.copy_(public_normal(1, name, p.numel(), 0.5).view(p.shape))
    return module.to(dtype)


def under(module: nn.Module, materialise: str, kind: str = "gaussian") -> tuple[Tensor, set[int]]:
    names = [name for name, _ in module.named_parameters()]
    parameters = TrainableParameters(module, names, materialise)  # type: ignore[arg-type]
    with torch.no_grad(), shifted(parameters, DirectionScheme(kind, 7, 2, parameters.sizes).at(4), 1, 0.3) as shift:
        return module(TOKENS), shift.visited


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_are_those_of_a_whole_shift(kind: Callable[[int, int], nn.Embedding], dtype: torch.dtype) -> None:
    for law in ("rademacher", "gaussian", "sphere", "orthogonal"):
        whole, _ = under(model(kind, dtype), "all", law)
        rows, visited = under(model(kind, dtype), "layer", law)
        assert torch.equal(whole, rows)
        assert visited == {0, 1, 2}


@pytest.mark.parametrize(("kind", "whole_tables"), [(nn.Embedding, 0), (Offset, 0), (Scaled, 0), (ByHand, 1)])
def test_a_table_is_made_only_where_it_is_read_by_hand(
    kind: Callable[[int, int], nn.Embedding], whole_tables: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    looked_up: list[list[int]] = []
    shift, shift_rows = StepDirections.shift, StepDirections.shift_rows

    def count(
        self: StepDirections, k: int, parameter: int, base: Tensor, scale: float, out: Tensor, start: int = 0
    ) -> None:
        made.append(parameter)
        shift(self, k, parameter, base, scale, out, start)

    def note(self: StepDirections, k: int, parameter: int, base: Tensor, scale: float, rows: Tensor) -> Tensor:
        looked_up.append(rows.tolist())
        return shift_rows(self, k, parameter, base, scale, rows)

    monkeypatch.setattr(StepDirections, "shift", count)
    monkeypatch.setattr(StepDirections, "shift_rows", note)
    under(model(kind), "layer")
    offset = 2 if kind is Offset else 0
    assert made.count(0) == whole_tables
    assert looked_up == [[row + offset for row in (0, 1, 2, 3, 4, 7, 10)]]


def test_a_failing_lookup_leaves_nothing_behind() -> None:
    module = model(nn.Embedding)
    before = module(TOKENS)
    parameters = TrainableParameters(module, ["0.weight"], "layer")
    directions = DirectionScheme("rademacher", 7, 1, parameters.sizes).at(0)
    with torch.no_grad(), shifted(parameters, directions, 0, 0.3):
        with pytest.raises(IndexError):
            module(TOKENS + 100)
        assert not torch.equal(module(TOKENS), before)
    with torch.no_grad():
        assert torch.equal(module(TOKENS), before)
