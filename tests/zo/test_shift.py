"""Shifted evaluation: the right numbers, and weights that were never written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dpzo.errors import DpzoError
from dpzo.zo.directions import DirectionScheme, StepDirections
from dpzo.zo.initial import public_normal
from dpzo.zo.parameters import TrainableParameters
from dpzo.zo.shift import shifted

MODES: list[str] = ["all", "layer", "slice"]


class Tied(nn.Module):
    """Embedding, a block that owns a gain and runs children inside its own call, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.block = Block()
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.block(self.embed(tokens)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(6))
        self.inner = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + torch.tanh(self.inner(x * self.gain)) * self.gain)


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


TOKENS = torch.tensor([[1, 2, 3, 1], [4, 10, 0, 7]])


def build(kind: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        module = kind()
    module = module.to_empty(device="cpu").eval()
    if isinstance(module, Tied):
        module.head.weight = module.embed.weight
    for name, p in module.named_parameters():
        p.data.copy_(public_normal(1, name, p.numel(), 0.5).view(p.shape))
    return module


def everything(module: nn.Module, materialise: str = "auto") -> TrainableParameters:
    names = [name for name, _ in module.named_parameters()]
    return TrainableParameters(module, names, materialise)  # type: ignore[arg-type]


def directions_for(parameters: TrainableParameters, kind: str = "gaussian") -> StepDirections:
    return DirectionScheme(kind, 7, 2, parameters.sizes).at(4)


def oracle(kind: Callable[[], nn.Module], k: int, scale: float, direction_kind: str) -> Tensor:
    """The output of another copy of the model whose weights were written."""
    module = build(kind)
    parameters = everything(module)
    at = directions_for(parameters, direction_kind)
    for index in range(len(parameters)):
        flat = parameters.flat(index)
        at.add(k, index, flat.clone(), scale, flat)
    with torch.no_grad():
        return module(TOKENS)


@pytest.mark.parametrize("materialise", MODES)
@pytest.mark.parametrize("direction_kind", ["rademacher", "gaussian", "sphere"])
@pytest.mark.parametrize("kind", [Tied, Recurrent, Attentive])
def test_shifted_evaluation_equals_a_written_copy(
    kind: Callable[[], nn.Module], direction_kind: str, materialise: str
) -> None:
    module = build(kind)
    parameters = everything(module, materialise)
    at = directions_for(parameters, direction_kind)
    with torch.inference_mode():
        plain = module(TOKENS).clone()
        for k, scale in ((0, 0.3), (1, -0.3), (0, 1e-3)):
            with shifted(parameters, at, k, scale):
                got = module(TOKENS)
            assert torch.equal(got, oracle(kind, k, scale, direction_kind))
            assert not torch.equal(got, plain)
        assert torch.equal(module(TOKENS), plain)


def snapshot(parameters: TrainableParameters) -> list[tuple[int, int, int]]:
    return [(id(p), p.data_ptr(), p._version) for p in parameters.module.parameters()]


@pytest.mark.parametrize("materialise", MODES)
def test_weights_keep_memory_version_identity_and_bits(materialise: str) -> None:
    parameters = everything(build(Tied), materialise)
    before, bits = snapshot(parameters), parameters.state()
    theta = [p.data for p in parameters]
    with torch.no_grad(), shifted(parameters, directions_for(parameters), 0, 0.1):
        parameters.module(TOKENS)
        assert all(torch.equal(t, b) for t, b in zip(theta, bits.values(), strict=True))
    assert snapshot(parameters) == before
    assert all(torch.equal(p, b) for p, b in zip(parameters, bits.values(), strict=True))
    assert all(isinstance(p, nn.Parameter) and not p.requires_grad and p.grad is None for p in parameters)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in parameters.module.modules())


@pytest.mark.parametrize("materialise", MODES)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_a_layer_restores_everything(materialise: str, error: type[BaseException]) -> None:
    module = build(Tied)
    parameters = everything(module, materialise)
    before = snapshot(parameters)

    def fail(*_: object) -> None:
        raise error

    handle = module.block.inner.register_forward_hook(fail)  # type: ignore[union-attr]
    with torch.no_grad(), pytest.raises(error), shifted(parameters, directions_for(parameters), 0, 0.1):
        module(TOKENS)
    handle.remove()
    assert snapshot(parameters) == before
    with torch.no_grad(), shifted(parameters, directions_for(parameters), 0, 0.1):
        assert torch.equal(module(TOKENS), oracle(Tied, 0, 0.1, "gaussian"))


def test_an_exception_that_the_model_catches_restores_that_layer() -> None:
    class Forgiving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            try:
                self.first(x[:, :2])
            except RuntimeError:
                assert self.first.weight.data_ptr() == home
            return self.second(x)

    module = build(Forgiving)
    home = module.first.weight.data_ptr()  # type: ignore[union-attr, operator]
    parameters = everything(module, "layer")
    with torch.no_grad(), shifted(parameters, directions_for(parameters), 0, 0.1) as shift:
        module(torch.ones(2, 6))
    assert shift.visited == {0, 1, 2, 3}


def test_layer_mode_holds_only_what_runs() -> None:
    module = build(lambda: nn.Sequential(*[nn.Linear(8, 8) for _ in range(10)]))
    parameters = everything(module, "layer")
    held: list[int] = []
    home = {id(p): p.data_ptr() for p in parameters}

    def count(*_: object) -> None:
        held.append(sum(p.data_ptr() != home[id(p)] for p in parameters))

    for layer in module:  # type: ignore[union-attr]
        layer.register_forward_hook(count)
    with torch.no_grad(), shifted(parameters, directions_for(parameters), 0, 0.1):
        module(torch.ones(1, 8))
    assert held == [2] * 10
    assert sum(b.numel() for b in parameters.scratch._free) <= 2 * 64


@pytest.mark.parametrize(
    ("x", "rests"), [((256, 192), True), ((4, 64, 192), True), ((255, 192), False), ((192,), False)]
)
def test_buffers_rest_after_products_of_many_rows(x: tuple[int, ...], rests: bool) -> None:
    """After one of few rows the last buffer, still in the cache, serves again."""
    module = build(lambda: nn.Sequential(*[nn.Linear(192, 192, bias=False) for _ in range(6)], nn.Linear(192, 4096)))
    parameters = everything(module, "layer")
    used: list[int] = []
    for layer in module:  # type: ignore[union-attr]
        layer.register_forward_hook(lambda layer, *_: used.append(layer.weight.data_ptr()))
    with torch.no_grad(), shifted(parameters, directions_for(parameters), 0, 0.1):
        module(torch.ones(x))
        module[0](input=torch.ones(x))  # type: ignore[index, operator]
    assert len(set(used[:6])) == (4 if rests else 1)
    assert used[7] == used[6]  # rows that are not seen count as few


def test_auto_takes_all_for_small_trainable_parts() -> None:
    big = nn.Sequential(nn.Linear(1200, 1200), nn.Linear(1200, 1200), nn.Linear(1200, 10)).requires_grad_(False)
    assert everything(big).effective_materialise() == "slice"
    assert TrainableParameters(big, ["2.weight"]).effective_materialise() == "all"
    assert everything(build(Tied)).effective_materialise() == "all"
    assert everything(build(Tied), "layer").effective_materialise() == "layer"


class Mixed(nn.Module):
    """Biases and norms beside a matrix that is larger than all of them; one is read where no layer of its own runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(40, 40)
        self.norms = nn.Sequential(nn.LayerNorm(40), nn.LayerNorm(40))
        self.last = nn.Linear(40, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norms(self.first(x)) * self.norms[0].weight)


@pytest.fixture
def vectors_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpzo.zo.parameters._SMALL_ELEMENTS", 80)


@pytest.mark.parametrize("direction_kind", ["rademacher", "gaussian", "sphere", "orthogonal"])
@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.bfloat16,), (torch.float16,), (torch.float32, torch.half)])
@pytest.mark.parametrize("materialise", MODES)
def test_small_parameters_are_shifted_together_and_to_the_same_bits(
    materialise: str, dtypes: tuple[torch.dtype, ...], direction_kind: str, vectors_are_small: None
) -> None:
    module = build(Mixed)
    for place, p in enumerate(module.parameters()):
        p.data = p.data.to(dtypes[place % len(dtypes)])
    parameters = everything(module, materialise)
    groups = parameters.together(parameters.effective_materialise())
    assert [len(group) for group in groups] == ([7] if len(dtypes) == 1 else [4, 3])
    at, bits = directions_for(parameters, direction_kind), parameters.state()
    homes = [p.data_ptr() for p in parameters]
    calls: list[str] = []
    with torch.no_grad(), shifted(parameters, at, 1, 0.3, "all"):
        for index, p in enumerate(parameters):
            wanted = torch.empty_like(p).view(-1)
            at.shift(1, index, bits[parameters.names[index]].view(-1), 0.3, wanted)
            assert torch.equal(p.view(-1), wanted)
            calls.append(parameters.names[index])
    assert len(calls) == 8
    assert [p.data_ptr() for p in parameters] == homes
    assert all(torch.equal(p, bits[name]) for name, p in parameters.state().items())


@pytest.mark.parametrize("materialise", MODES)
def test_one_call_serves_all_small_parameters(
    materialise: str, vectors_are_small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = build(Mixed)
    parameters = everything(module, materialise)
    shift, single = StepDirections.shift, list[int]()

    def note(self: StepDirections, k: int, parameter: int, *arguments: object) -> None:
        single.append(parameter)
        shift(self, k, parameter, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(StepDirections, "shift", note)
    x = public_normal(3, "x", 80, 1.0).view(2, 40)
    with torch.no_grad():
        with shifted(parameters, directions_for(parameters), 0, 0.1) as shift_:
            got = module(x)
        assert single == [0]
        assert shift_.visited == set(range(8))
        other = build(Mixed)
        written = everything(other)
        for index in range(len(written)):
            flat = written.flat(index)
            directions_for(written).add(0, index, flat.clone(), 0.1, flat)
        assert torch.equal(got, other(x))


def test_small_parameters_that_outweigh_the_largest_are_not_held_together() -> None:
    module = nn.Sequential(*[nn.LayerNorm(8) for _ in range(3)])
    parameters = everything(module)
    assert parameters.together("layer") == ()
    assert parameters.together("all") == (tuple(range(6)),)


def test_blocks_do_not_nest() -> None:
    parameters = everything(build(Tied))
    at = directions_for(parameters)
    before = snapshot(parameters)
    with shifted(parameters, at, 0, 0.1), pytest.raises(RuntimeError, match="nest"), shifted(parameters, at, 1, 0.1):
        raise AssertionError("unreachable")
    assert snapshot(parameters) == before


def test_order_is_the_modules_and_tied_weights_come_once() -> None:
    module = build(Tied)
    parameters = TrainableParameters(module, ["head.weight", "block.norm.bias", "block.gain"])
    assert parameters.names == ("embed.weight", "block.gain", "block.norm.bias")
    assert parameters.sizes == (66, 6, 6)
    assert parameters.shapes == ((11, 6), (6,), (6,))
    assert parameters.dimension == 78


def test_state_round_trip_writes_in_place() -> None:
    parameters = everything(build(Tied))
    state, places = parameters.state(), [p.data_ptr() for p in parameters]
    for index in range(len(parameters)):
        parameters.flat(index).add_(1)
    assert not torch.equal(next(iter(parameters)), next(iter(state.values())))
    parameters.load(state)
    assert all(torch.equal(p, state[name]) for name, p in zip(parameters.names, parameters, strict=True))
    assert [p.data_ptr() for p in parameters] == places
    with pytest.raises(DpzoError, match="not the ones chosen"):
        parameters.load({})
    with pytest.raises(DpzoError, match="another shape"):
        parameters.load({**state, "block.gain": torch.zeros(7)})


def test_parameters_that_cannot_be_trained_are_refused() -> None:
    module = build(Tied)
    with pytest.raises(DpzoError, match="no parameter 'nope'"):
        TrainableParameters(module, ["nope"])
    with pytest.raises(DpzoError, match="choose at least one"):
        TrainableParameters(module, [])
    with pytest.raises(DpzoError, match="float32"):
        everything(build(Tied).to(torch.float64))
    linear = nn.Linear(3, 4)
    linear.weight = nn.Parameter(torch.zeros(3, 4).T)
    with pytest.raises(DpzoError, match="contiguous"):
        TrainableParameters(linear, ["weight"])
    pair = nn.ParameterList([nn.Parameter(linear.bias.data), nn.Parameter(linear.bias.data)])
    with pytest.raises(DpzoError, match="share memory"):
        TrainableParameters(pair, ["0", "1"])
