"""`--constant-time`: the number of passes of an evaluation does not tell who is in the batch; no row changes by it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import dpzo
from dpzo.config.reading import parse_config, with_values
from dpzo.config.schema import RunConfig
from dpzo.config.solve import solve_plan
from dpzo.errors import DpzoError
from dpzo.experiments.recipes.running import make_baseline
from dpzo.forecast import planned_passes
from dpzo.forecast.planner import plan_run
from dpzo.models.encoding import encode_completions
from dpzo.models.eval_batch import num_settings
from dpzo.models.families import make_tiny
from dpzo.models.frozen_cache import layer_stack
from dpzo.models.objectives import FeatureObjective, TokenObjective
from dpzo.models.units import UnitObjective
from dpzo.run import folders as runs
from dpzo.run.build import RunFacts, start
from dpzo.run.journal import read
from dpzo.run.row_objective import RowObjective
from dpzo.zo import (
    DirectionScheme,
    ExceptionSafeEstimator,
    Objective,
    TrainableParameters,
    central_difference,
    forward_difference,
)

SIZE, PLANNED = 2, 3
"""Records of a micro-batch, and micro-batches of an evaluation."""
BATCHES: tuple[tuple[int, ...], ...] = ((), (), (0,), (2, 1, 3), (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5))
"""Empty, usual, and the largest within the plan; some twice, as what is held for a batch must not make it faster."""
BEYOND = (0, 1, 2, 3, 4, 5, 0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextmanager
def counted(*modules: nn.Module) -> Iterator[list[int]]:
    """How often the forward of each was really run: a layer that is passed by is called and not run."""
    counts = [0] * len(modules)
    kept = [module.forward for module in modules]

    def counting(place: int, run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*arguments: Any, **options: Any) -> Any:
            counts[place] += 1
            return run(*arguments, **options)

        return forward

    for place, module in enumerate(modules):
        module.forward = counting(place, kept[place])  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        for module, run in zip(modules, kept, strict=True):
            module.forward = run  # type: ignore[method-assign]


def llama(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    module: nn.Module = AutoModelForCausalLM.from_pretrained(make_tiny("Llama", folder)).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


Make = Callable[[int], Objective]


def tokens(module: nn.Module, tokenizer: Any, **options: Any) -> Make:
    texts = [f"once upon a time {place}" for place in range(6)]
    encoded = encode_completions(tokenizer, texts, ["there was a cat"] * 6, max_length=16, max_answer_tokens=4)
    return lambda planned: TokenObjective(module, encoded, SIZE, planned_passes=planned, **options)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[nn.Module, str, list[nn.Module], Make]]:
    """A module, what is trained of it, the modules whose forward is counted, and the objective at a planned number."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("llama")
    module = llama(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stack = layer_stack(module)
    assert stack is not None
    top = f"{stack.name}.{len(stack.layers) - 1}.mlp.up_proj.weight"
    layers = [stack.layers[0], stack.layers[-1]]
    head = Head()
    draw = torch.Generator().manual_seed(1)
    features, targets = torch.rand((6, 3), generator=draw), np.array([0, 1, 0, 1, 1, 0])
    pairs = tuple(np.array([place, (place + 1) % 6], dtype=np.int64) for place in range(6))
    line = nn.Linear(3, 1)

    def on_features(planned: int, variants: int = 1) -> Objective:
        return FeatureObjective(
            head, features, targets, np.zeros(6, dtype=np.bool_), SIZE, variants=variants, planned_passes=planned
        )

    def on_rows(planned: int) -> Objective:
        rows = {"x": features, "y": torch.from_numpy(targets).float()}
        return RowObjective(line, lambda m, b: (m(b["x"]).squeeze(-1) - b["y"]) ** 2, rows, SIZE, planned)

    return {
        "tokens": (module, top, layers, tokens(module, tokenizer)),
        "tokens, a shared prefix": (module, top, layers, tokens(module, tokenizer, prefix_layers=1)),
        "tokens, four at a time": (module, top, layers, tokens(module, tokenizer, variants=4)),
        "a head": (head, "head.weight", [head.head], on_features),
        "people": (head, "head.weight", [head.head], lambda planned: UnitObjective(on_features(planned), pairs)),
        "dpzo.fit": (line, "weight", [line], on_rows),
    }


KINDS = ["tokens", "tokens, a shared prefix", "tokens, four at a time", "a head", "people", "dpzo.fit"]


def rows_of(
    module: nn.Module, name: str, objective: Objective, units: tuple[int, ...], estimator: Any
) -> NDArray[np.float64]:
    parameters = TrainableParameters(module, [name])
    directions = DirectionScheme("rademacher", 0, 2, parameters.sizes).at(0)
    safe = ExceptionSafeEstimator(estimator, stop=KeyError)
    with torch.no_grad():
        return np.asarray(safe(objective, parameters, np.array(units, dtype=np.int64), directions, 1e-2))


@pytest.mark.parametrize("estimator", [central_difference, forward_difference])
@pytest.mark.parametrize("kind", KINDS)
def test_every_evaluation_within_the_plan_takes_the_same_passes(kinds: Any, kind: str, estimator: Any) -> None:
    module, name, watched, make = kinds[kind]
    planned = 2 * PLANNED if kind == "people" else PLANNED  # two records each
    padded, plain = make(planned), make(0)
    passes = set()
    for units in BATCHES:
        expected = rows_of(module, name, plain, units, estimator)
        with counted(*watched) as counts:
            found = rows_of(module, name, padded, units, estimator)
        assert found.tobytes() == expected.tobytes()
        assert found.shape == (len(units), 2)
        passes.add(tuple(counts))
    (each,) = passes
    assert min(each) >= planned
    with counted(*watched) as counts:
        beyond = rows_of(module, name, padded, BEYOND, estimator)
    assert beyond.tobytes() == rows_of(module, name, plain, BEYOND, estimator).tobytes()
    assert all(more > usual for more, usual in zip(counts, each, strict=True))


def test_without_it_passes_follow_the_batch(kinds: Any) -> None:
    module, name, watched, make = kinds["tokens"]
    passes = set()
    for units in ((), (0,), (2, 1, 3)):
        with counted(*watched) as counts:
            rows_of(module, name, make(0), units, central_difference)
        passes.add(tuple(counts))
    assert len(passes) == 3


def test_several_settings_of_a_head_go_together_in_every_block(kinds: Any) -> None:
    head, _, _, _ = kinds["a head"]
    features = FeatureObjective(
        head,
        torch.ones((6, 3)),
        np.zeros(6, np.int64),
        np.zeros(6, np.bool_),
        SIZE,
        variants=2,
        planned_passes=PLANNED,
    )
    weights = {"head.weight": torch.ones((2, 2, 3))}
    assert num_settings(weights) == 2
    calls: list[int] = []
    real = nn.functional.linear
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "linear", lambda *given: calls.append(1) or real(*given))
        for units in BATCHES:
            calls.clear()
            assert features.variant_losses(np.array(units, dtype=np.int64), weights).shape == (2, len(units))
            assert len(calls) == PLANNED


def test_a_loss_that_refuses_zero_rows_changes_no_row() -> None:
    """Filling is evaluated and its outcome dropped, an exception with it."""
    line = nn.Linear(3, 1)

    def loss(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        if not batch["x"].any():
            raise ValueError
        values: Tensor = module(batch["x"]).squeeze(-1)
        return values

    rows, units = {"x": torch.ones((4, 3))}, np.arange(4)
    plain = RowObjective(line, loss, rows, SIZE).losses(units)
    assert RowObjective(line, loss, rows, SIZE, PLANNED).losses(units).tobytes() == plain.tobytes()


# --- whole runs


def config_of(model: Path, constant_time: bool, **data: Any) -> RunConfig:
    privacy = {"noise_multiplier": 2.0, "delta": 1e-3, "num_examples": 20, "expected_batch_size": 4, "steps": 3}
    return parse_config(
        {
            "model": {"name": str(model), "lora_rank": 2},
            "data": {"max_length": 16, **data},
            "privacy": {**privacy, "num_directions": 2},
            "training": {"microbatch_size": 4, "learning_rate": 1e-2, "constant_time": constant_time, "eval_batch": 1},
        }
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("private") / "records.jsonl"
    rows = [
        {
            "prompt": f"once {number}",
            "completion": " a cat",
            "text": f"number {number}",
            "label": "ab"[number % 2],
            "person": f"p{number // 2}",
        }
        for number in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


COMPLETION = {"kind": "completion", "max_answer_tokens": 4}
HEAD = {"labels": ["a", "b"], "unit_column": "person", "max_records_per_unit": 2}


@pytest.mark.parametrize("head", [True, False], ids=["a head, by person", "lora"])
def test_the_journal_is_the_same(
    head: bool, tiny_bert: Path, tiny_llama: Path, data: Path, tmp_path: Path, linear: ModuleType
) -> None:
    made = []
    for constant in (False, True):
        config = config_of(tiny_bert, constant, **HEAD) if head else config_of(tiny_llama, constant, **COMPLETION)
        run = tmp_path / str(constant)
        runs.train(config, runs.DataSource(file=data), run, nonprivate_randomness=linear.Noise)
        made.append(read(run))
    plain, padded = made
    assert [entry for entry, _ in plain.entries()] == [entry for entry, _ in padded.entries()]
    assert "planned_passes" not in plain.header["evaluation"]
    rows = padded.header["evaluation"]["head_block"] or padded.header["evaluation"]["microbatch_size"]
    assert padded.header["evaluation"]["planned_passes"] == planned_passes(4, 20, 3, rows, 2 if head else 1)
    assert padded.header["config"]["training"]["constant_time"] is True


X = torch.randn((40, 3), generator=torch.Generator().manual_seed(2))


def test_dpzo_fit_takes_it_and_headers_without_it_are_as_before(tmp_path: Path, linear: ModuleType) -> None:
    plan = solve_plan(num_examples=40, expected_batch_size=6, steps=12, delta=1e-3, epsilon=4, num_directions=2)
    headers, entries, calls = [], [], []
    for constant in (False, True):
        line = nn.Linear(3, 1)
        nn.init.constant_(line.weight, 0.1)
        nn.init.constant_(line.bias, 0.0)
        settings = dpzo.Settings(learning_rate=0.1, microbatch_size=4, constant_time=constant)
        run = tmp_path / str(constant)
        made: list[int] = []

        def loss(module: nn.Module, batch: dict[str, Tensor], made: list[int] = made) -> Tensor:
            made.append(1)
            return (module(batch["x"]).squeeze(-1) - 1) ** 2

        at: list[int] = []
        dpzo.fit(
            line,
            loss,
            {"x": X},
            plan=plan,
            settings=settings,
            output=run,
            observe=lambda release, made=made, at=at: at.append(len(made)),
            nonprivate_randomness=linear.Noise,
        )
        calls.append(set(np.diff(at).tolist()))
        headers.append(read(run).header)
        entries.append([entry for entry, _ in read(run).entries()])
    assert entries[0] == entries[1]
    assert "constant_time" not in headers[0]["settings"]
    assert headers[1]["settings"]["constant_time"] is True
    assert calls[1] == {2 * 2 * planned_passes(6, 40, 12, 4)}
    assert len(calls[0]) > 1


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_it_is_a_truth_value(value: Any, tiny_llama: Path) -> None:
    with pytest.raises(DpzoError, match="constant_time"):
        dpzo.Settings(learning_rate=0.1, constant_time=value)
    with pytest.raises(DpzoError, match="constant-time"):
        with_values(config_of(tiny_llama, False), training={"constant_time": value})


@pytest.mark.parametrize(
    ("group", "values", "said"),
    [
        ("data", {"max_records_per_unit": None}, "--constant-time: with --unit-column .* give --max-records-per-unit"),
        ("training", {"frozen_cache": "run"}, "--constant-time: training.frozen_cache run"),
    ],
)
def test_what_cannot_hold_is_refused_in_a_line(
    group: str, values: dict[str, Any], said: str, tiny_bert: Path, data: Path, tmp_path: Path
) -> None:
    config = with_values(config_of(tiny_bert, True, **HEAD), **{group: values})
    with pytest.raises(DpzoError, match=said) as error:
        runs.train(config, runs.DataSource(file=data), tmp_path / "run")
    assert "\n" not in str(error.value)
    with pytest.raises(DpzoError, match=said):
        plan_run(config, 20)
    assert not (tmp_path / "run").exists()


def test_the_forecast_counts_the_planned_passes(tiny_llama: Path) -> None:
    padded = plan_run(config_of(tiny_llama, True, **COMPLETION), 20)
    size = padded.sized.microbatch_size
    assert padded.time.passes == planned_passes(4, 20, 3, size)
    plain = plan_run(config_of(tiny_llama, False, **COMPLETION), 20)
    assert padded.time.passes > plain.time.passes
    assert padded.time.per_step == pytest.approx(
        padded.time.passes * (padded.time.first + (padded.time.evaluations - 1) * padded.time.further)
        + padded.time.update
        + padded.time.release
    )


@pytest.mark.parametrize("name", ["mezo", "dp-sgd"])
def test_a_baseline_says_that_it_has_no_such_thing(name: Any, tiny_llama: Path) -> None:
    config = config_of(tiny_llama, True, **COMPLETION)
    parts = start(config, RunFacts(20, "declared"))
    with pytest.raises(DpzoError, match=f"--constant-time: the baseline {name}"):
        make_baseline(name, parts, config)
