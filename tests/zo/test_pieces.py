"""Wide matrices under a shift: a slice of rows at a time, the same bits, and never the whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dpzo.zo import pieces
from dpzo.zo.directions import DirectionScheme, StepDirections
from dpzo.zo.initial import public_normal
from dpzo.zo.parameters import TrainableParameters
from dpzo.zo.scratch import Scratch
from dpzo.zo.shift import shifted

ROWS, WIDTH = 333, 20


class Tied(nn.Module):
    """A table that is looked up and, as the output layer, multiplied by; the product has a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(ROWS, WIDTH)
        self.head = nn.Linear(WIDTH, ROWS)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


class Transposed(nn.Linear):
    """Multiplies by hand as well, after its own product and before it."""

    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x) @ self.weight + x) @ self.weight.T + super().forward(x)


TOKENS = torch.tensor([[1, 2, 3, 1, 332], [4, 10, 0, 7, 9]])


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy layers are treated as large ones are."""
    monkeypatch.setattr("dpzo.zo.parameters._SMALL_ELEMENTS", 0)


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> int:
    """64 rows of the tests' matrices, so that one of 333 is wide."""
    monkeypatch.setattr(pieces, "_SLICE_BYTES", 64 * WIDTH * 4)
    return 64


def make(kind: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    module = Tied() if kind == "tied" else nn.Sequential(Transposed(WIDTH, ROWS, bias=kind == "by hand"))
    for name, p in module.named_parameters():
        p.data.copy_(public_normal(1, name, p.numel(), 0.5).view(p.shape))
    rows = TOKENS if kind == "tied" else public_normal(2, "x", 7 * WIDTH, 1.0).view(7, WIDTH).to(dtype)
    return module.eval().to(dtype), rows


def under(module: nn.Module, rows: Tensor, held: str, law: str) -> Tensor:
    names = [name for name, _ in module.named_parameters()]
    parameters = TrainableParameters(module, names, held)  # type: ignore[arg-type]
    at = DirectionScheme(law, 7, 2, parameters.sizes).at(4)
    with torch.inference_mode(), shifted(parameters, at, 1, 0.3) as shift:
        found = module(rows)
    assert shift.visited == set(range(len(names)))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("law", ["rademacher", "gaussian", "sphere", "orthogonal"])
@pytest.mark.parametrize("kind", ["tied", "by hand", "by hand, no bias"])
def test_slices_have_the_bits_of_the_whole(kind: str, law: str, dtype: torch.dtype, small_slices: int) -> None:
    module, rows = make(kind, dtype)
    assert torch.equal(under(module, rows, "slice", law), under(module, rows, "all", law))


def test_the_whole_is_never_made(small_slices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int, int]] = []
    taken: list[int] = []
    shift, take = StepDirections.shift, Scratch.take

    def note(
        self: StepDirections, k: int, parameter: int, base: Tensor, scale: float, out: Tensor, start: int = 0
    ) -> None:
        made.append((parameter, start // WIDTH, base.numel() // WIDTH))
        shift(self, k, parameter, base, scale, out, start)

    def weigh(self: Scratch, size: int, device: torch.device, dtype: torch.dtype, **options: bool) -> Tensor:
        taken.append(size)
        return take(self, size, device, dtype, **options)

    monkeypatch.setattr(StepDirections, "shift", note)
    monkeypatch.setattr(Scratch, "take", weigh)
    under(*make("tied", torch.float32), "slice", "rademacher")
    assert [row for row in made if row[0] == 0] == [(0, first, min(64, ROWS - first)) for first in range(0, ROWS, 64)]
    assert max(taken) == max(64 * WIDTH, ROWS)  # a slice, and the bias


@pytest.mark.parametrize(
    ("held", "rows", "sliced"), [("slice", ROWS, True), ("layer", ROWS, False), ("slice", 63, False)]
)
def test_only_wide_matrices_are_sliced_and_only_if_asked(held: str, rows: int, sliced: bool, small_slices: int) -> None:
    linear = nn.Linear(WIDTH, rows)
    own = pieces.piecewise(linear, [linear.bias, linear.weight], (0, 1), held)  # type: ignore[arg-type]
    assert own == (1 if sliced else None)


def test_a_slice_fits_a_cache_and_is_tiled() -> None:
    for shape, dtype in (((50272, 768), torch.float32), ((128256, 4096), torch.bfloat16), ((300, 1 << 20), torch.half)):
        matrix = torch.empty(shape, dtype=dtype, device="meta")
        height = pieces.slice_height(matrix)
        assert pieces.is_wide(matrix)
        assert height % 64 == 0
        assert height == 64 or height * shape[1] * matrix.element_size() <= 6 << 20
    assert not pieces.is_wide(torch.empty((3072, 768), device="meta"))


@pytest.mark.parametrize("break_at", ["shift", "product"])
def test_an_error_in_a_slice_leaves_nothing_behind(
    break_at: str, small_slices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, rows = make("tied", torch.float32)
    before = module(rows)
    homes = [p.data_ptr() for p in module.parameters()]
    calls: list[int] = []

    def broken(real: Callable[..., None]) -> Callable[..., None]:
        def act(*arguments: object, **options: object) -> None:
            calls.append(1)
            if len(calls) == 4:
                raise MemoryError
            real(*arguments, **options)

        return act

    if break_at == "shift":
        monkeypatch.setattr(StepDirections, "shift", broken(StepDirections.shift))
    else:
        monkeypatch.setattr(nn.Linear, "forward", lambda self, x: [][0])
    parameters = TrainableParameters(module, [name for name, _ in module.named_parameters()], "slice")
    directions = DirectionScheme("rademacher", 7, 1, parameters.sizes).at(0)
    with (
        torch.no_grad(),
        pytest.raises((MemoryError, IndexError)),
        shifted(parameters, directions, 0, 0.3),
    ):
        module(rows)
    monkeypatch.undo()
    held = parameters.scratch.held
    parameters.scratch.clear()
    assert held > parameters.scratch.held == 0
    assert [p.data_ptr() for p in module.parameters()] == homes
    with torch.no_grad():
        assert torch.equal(module(rows), before)
