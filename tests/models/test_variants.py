"""Several settings of the trainable part in one pass: the losses of each, records still isolated, chosen by a clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typer.testing import CliRunner

from dpzo.cli.app import app
from dpzo.config.reading import parse_config
from dpzo.config.schema import RunConfig
from dpzo.errors import DpzoError
from dpzo.models import eval_batch_choice as variant_choice
from dpzo.models import families as support
from dpzo.models import objectives
from dpzo.models.adapters import LoraSettings
from dpzo.models.encoding import encode_classes
from dpzo.models.eval_batch_choice import Work, candidates, settle_variants
from dpzo.models.families import FAMILIES, TEXTS, encode_tiny
from dpzo.models.initialiser import seeded_initialiser
from dpzo.models.isolation import RowShape, lively, synthetic_rows
from dpzo.models.models import LoadedModel, load_model
from dpzo.models.objectives import FeatureObjective, TokenObjective
from dpzo.models.shapes import Shapes, make_objective
from dpzo.models.storage import Storage
from dpzo.models.units import UnitObjective
from dpzo.models.virtual_tokens import unwrapped
from dpzo.run import folders as runs
from dpzo.run.journal import Journal, read
from dpzo.zo import ESTIMATORS, DirectionScheme, TrainableParameters, VariantObjective, Weights, shifted, stacked

LAYERS = 4
SHIFTS = [(0, 0.3), (0, -0.3), (1, 0.3), (0, 0.0)]
# Without refused families, mixtures of experts, and those that PEFT and functorch cannot serve here.
PLAIN = sorted(set(FAMILIES) - {"T5", "Mixtral", "Qwen2-MoE", "RecurrentGemma", "Mamba"})
Tiny = Callable[[str, str], Path]
Made = Callable[..., LoadedModel]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A shape that isolates on one thread may not on two, and is then rightly passed over: here it is the subject."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`made(family, trainable, …)` loads a random model of four layers."""
    folders: dict[str, Path] = {}

    def load(family: str, trainable: str = "lora", **options: Any) -> LoadedModel:
        if family not in folders:
            usual = FAMILIES[family]
            depth = "n_layer" if "n_layer" in usual.arguments else "num_hidden_layers"
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(FAMILIES, family, replace(usual, arguments={**usual.arguments, depth: LAYERS}))
                folders[family] = support.make_tiny(family, tmp_path_factory.mktemp(family))
        masked = FAMILIES[family].form == "masked"
        return load_model(
            folders[family],
            "classification" if masked else "completion",
            labels=("no", "yes") if masked else None,
            prompted=True,
            trainable=trainable,
            virtual_tokens=3,
            initialiser=seeded_initialiser(1),
            **options,
        )

    return load


def shape_of(loaded: LoadedModel) -> RowShape:
    return RowShape.of(encode_tiny(loaded), len(loaded.tokenizer), 2 if loaded.takes_masks else 1)


def scheme_of(parameters: TrainableParameters, directions: int = 2) -> DirectionScheme:
    return DirectionScheme("gaussian", 3, directions, parameters.sizes)


def one_by_one(objective: Any, parameters: TrainableParameters, units: NDArray[np.int64]) -> NDArray[np.float64]:
    at, rows = scheme_of(parameters).at(0), []
    for k, scale in SHIFTS:
        with shifted(parameters, at, k, scale):
            rows.append(objective.losses(units))
    return np.array(rows)


def together(objective: Any, parameters: TrainableParameters, units: NDArray[np.int64]) -> NDArray[np.float64]:
    with stacked(parameters, scheme_of(parameters).at(0), SHIFTS) as weights:
        result: NDArray[np.float64] = objective.variant_losses(units, weights)
    return result


CASES = [
    *((family, "lora") for family in PLAIN),
    *((family, trainable) for family in ("GPT-2", "OPT", "Llama") for trainable in ("prefix", "prompt", "ia3")),
    ("BERT", r"cls\.predictions\.transform|bias$"),
    ("Llama", r"layers\.3\.|^model\.norm"),
]


@pytest.mark.parametrize(("family", "trainable"), CASES)
def test_the_losses_are_those_of_each_setting(made: Made, family: str, trainable: str) -> None:
    loaded = made(family, trainable)
    objective = TokenObjective(loaded.module, encode_tiny(loaded), 4, variants=4)
    parameters, units = TrainableParameters(loaded.module, loaded.trainable_names), np.array([5, 0, 3, 3, 1])
    before = parameters.state()
    with lively(loaded.module, loaded.trainable_names):
        expected, found = one_by_one(objective, parameters, units), together(objective, parameters, units)
    assert found.shape == (4, 5)
    assert np.abs(expected - expected[3]).max() > 1e-3, "the settings matter"
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    assert all(torch.equal(before[name], value) for name, value in parameters.state().items())
    assert together(objective, parameters, units[:0]).shape == (4, 0)


@pytest.mark.parametrize("keep", ["batch", "run"])
@pytest.mark.parametrize("family", ["BERT", "GPT-2", "Llama"])
def test_frozen_layers_are_passed_by_for_all_settings(made: Made, family: str, keep: Any) -> None:
    loaded = made(family, lora=LoraSettings(layers="top:2"))
    encoded, units = encode_tiny(loaded), np.array([4, 0, 2, 5, 1, 1])
    whole = TokenObjective(loaded.module, encoded, 4, variants=4)
    shared = TokenObjective(loaded.module, encoded, 4, prefix_layers=2, keep=keep, variants=4)
    parameters = TrainableParameters(loaded.module, loaded.trainable_names)
    with lively(loaded.module, loaded.trainable_names):
        expected = together(whole, parameters, units)
        first, again = together(shared, parameters, units), together(shared, parameters, units)
        alone = one_by_one(shared, parameters, units)
    assert expected.tobytes() == first.tobytes() == again.tobytes()
    np.testing.assert_allclose(alone, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_slopes_agree_whatever_goes_together(made: Made, name: str) -> None:
    """Six or four evaluations in fours: the last pass is filled up."""
    loaded = made("OPT")
    encoded, units, rows = encode_tiny(loaded), np.array([2, 0, 5]), {}
    parameters = TrainableParameters(loaded.module, loaded.trainable_names)
    with lively(loaded.module, loaded.trainable_names):
        for count in (1, 2, 4):
            objective = TokenObjective(loaded.module, encoded, 2, variants=count)
            at = scheme_of(parameters, 3).at(1)
            rows[count] = ESTIMATORS[name](objective, parameters, units, at, 1e-1)
            assert ESTIMATORS[name](objective, parameters, units[:0], at, 1e-1).shape == (0, 3)
    assert rows[1].shape == (3, 3)
    assert np.abs(rows[1]).min() > 1e-4
    for count in (2, 4):
        np.testing.assert_allclose(rows[count], rows[1], rtol=1e-3, atol=2e-4)


def head_model(tiny: Tiny) -> LoadedModel:
    return load_model(
        tiny("bert", "bare"), "classification", num_labels=3, trainable="head", initialiser=seeded_initialiser(1)
    )


def head_objective(loaded: LoadedModel, variants: int = 4) -> FeatureObjective:
    texts = [*TEXTS, " "]
    encoded = encode_classes(loaded.tokenizer, texts, [0, 1, 2, 0, 1, 2, 0], max_length=24)
    objective = make_objective(loaded, encoded, Shapes(4, 4, 1, variants=variants))
    assert isinstance(objective, FeatureObjective)
    return objective


@pytest.mark.parametrize("names", [("head.weight", "head.bias"), ("head.weight",), ("head.bias",)])
def test_a_head_multiplies_its_features_once_for_all_settings(tiny: Tiny, names: tuple[str, ...]) -> None:
    loaded = head_model(tiny)
    objective, parameters = head_objective(loaded), TrainableParameters(loaded.module, names)
    units = np.array([6, 1, 1, 5, 0, 2])
    with lively(loaded.module, ("head.weight", "head.bias")):
        expected, found = one_by_one(objective, parameters, units), together(objective, parameters, units)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert (found[:, 0] == 0).all(), "nothing is learnt from an empty record"
    assert np.ptp(found[:, 1:], axis=0).min() > 1e-3


def test_people_own_several_records_at_each_setting(tiny: Tiny) -> None:
    loaded = head_model(tiny)
    by_record, parameters = head_objective(loaded), TrainableParameters(loaded.module, loaded.trainable_names)
    empty = np.zeros(0, dtype=np.int64)
    people = UnitObjective(by_record, [np.array([0, 1, 3]), np.array([5]), empty])
    assert isinstance(people, VariantObjective)
    assert people.variants == 4
    units = np.array([2, 0, 1, 0])
    found = together(people, parameters, units)
    np.testing.assert_allclose(found, one_by_one(people, parameters, units), rtol=1e-5, atol=1e-6)
    assert (found[:, 1] == found[:, 3]).all()
    assert (found[:, 0] == 0).all()
    assert together(people, parameters, units[:0]).shape == (4, 0)


class Plain:
    """A researcher's objective: `losses` and nothing else."""

    def losses(self, records: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(records, dtype=np.float64)


def test_an_objective_of_losses_alone_is_evaluated_one_by_one() -> None:
    people = UnitObjective(Plain(), [np.array([0, 4])])
    assert people.variants == 1
    with pytest.raises(TypeError, match="one setting at a time"):
        people.variant_losses(np.zeros(1, dtype=np.int64), {"w": torch.zeros(2, 1)})
    parameters = TrainableParameters(nn.Linear(1, 1), ["weight"])
    at = scheme_of(parameters).at(0)
    assert not ESTIMATORS["central"](Plain(), parameters, np.arange(3), at, 0.1).any()


class Wrong:
    """Answers with one loss too few."""

    variants = 2

    def losses(self, records: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.zeros(len(records))

    def variant_losses(self, records: NDArray[np.int64], weights: Weights) -> NDArray[np.float64]:
        return np.zeros((2, len(records) - 1))


def test_a_wrong_number_of_losses_is_refused_without_a_figure() -> None:
    parameters = TrainableParameters(nn.Linear(1, 1), ["weight"])
    with pytest.raises(ValueError, match=r"^the objective must return one loss a setting and unit$"):
        ESTIMATORS["central"](Wrong(), parameters, np.arange(37), scheme_of(parameters).at(0), 0.1)


@pytest.mark.parametrize("family", ["BERT", "OPT", "Llama"])
@pytest.mark.parametrize("top", [None, "top:2"])
def test_a_records_losses_do_not_feel_its_neighbours(made: Made, family: str, top: str | None) -> None:
    """Permuted, inserted, removed, changed, NaN: bit for bit, at every setting."""
    loaded = made(family, lora=LoraSettings(layers=top))
    depth = 0 if top is None else 2
    rows = synthetic_rows(shape_of(loaded), 16)
    parameters = TrainableParameters(loaded.module, loaded.trainable_names)
    objective = TokenObjective(loaded.module, rows, 8, prefix_layers=depth, variants=4)
    order = np.array([11, 3, 7, 0, 15, 2, 5, 9])
    with lively(loaded.module, loaded.trainable_names):
        first = together(objective, parameters, np.arange(16))
        for units in (order, order[::-1], np.insert(order, 2, 12), order[:1], np.full(8, 3), np.delete(order, 4)):
            assert together(objective, parameters, units).tobytes() == first[:, units].tobytes()
        changed = replace(rows, tokens=rows.tokens.copy())
        changed.tokens[1::2, :] = rows.tokens[1::2, ::-1]
        other = TokenObjective(loaded.module, changed, 8, prefix_layers=depth, variants=4)
        assert together(other, parameters, np.arange(16))[:, ::2].tobytes() == first[:, ::2].tobytes()


def test_a_heads_losses_do_not_feel_their_neighbours(tiny: Tiny) -> None:
    loaded = head_model(tiny)
    parameters, objective = TrainableParameters(loaded.module, loaded.trainable_names), head_objective(loaded)
    first = together(objective, parameters, np.arange(7))
    for units in (np.array([4, 2, 5, 0]), np.array([0]), np.array([5, 5, 3, 2, 1, 0])):
        assert together(objective, parameters, units).tobytes() == first[:, units].tobytes()
    objective.features[3] = torch.nan
    objective.forget()
    spoilt = together(objective, parameters, np.arange(7))
    assert np.isnan(spoilt[:, 3]).all()
    assert np.delete(spoilt, 3, axis=1).tobytes() == np.delete(first, 3, axis=1).tobytes()


@pytest.mark.parametrize("trainable", ["lora", "prompt"])
@pytest.mark.parametrize("family", sorted(set(PLAIN) - {"BERT", "RoBERTa", "DeBERTa-v2"}))
def test_no_logit_is_computed_that_is_not_asked_for(made: Made, family: str, trainable: str) -> None:
    """By `logits_to_keep`, and without it by the columns that reach the output layer."""
    loaded = made(family, trainable)
    encoded = encode_tiny(loaded)
    columns: list[int] = []
    layer = unwrapped(loaded.module).get_output_embeddings()  # type: ignore[operator]
    layer.register_forward_hook(lambda _layer, given, _output: columns.append(given[0].shape[-2]))
    with_it, without = (TokenObjective(loaded.module, encoded, 2) for _ in range(2))
    without._accepted = without._accepted - {"logits_to_keep"}
    bits = {objective.losses(np.arange(6)).tobytes() for objective in (with_it, without)}
    assert columns == [encoded.max_answer_tokens + 1] * 6
    assert len(bits) == 1


# Which number is taken


def settle(
    loaded: LoadedModel, asked: Any, evaluations: int = 8, passes: int = 10**6, **options: Any
) -> tuple[int, Shapes]:
    head = options.pop("head", False)
    shape = RowShape("classes", 24, 320, 3) if head else shape_of(loaded)
    shapes = Shapes(4, 4 if head else None, 1)
    parameters = TrainableParameters(loaded.module, loaded.trainable_names)
    work = Work(evaluations, 1e-2, passes)
    found = settle_variants(loaded, shape, shapes, parameters, scheme_of(parameters, 4), work, asked, **options)
    assert replace(found, variants=1) == shapes
    return found.variants, found


@pytest.mark.parametrize(("family", "trainable"), [("Llama", "lora"), ("OPT", "prefix"), ("BERT", "lora")])
def test_a_number_that_is_asked_for_is_taken_and_isolates(made: Made, family: str, trainable: str) -> None:
    loaded = made(family, trainable)
    count, found = settle(loaded, 3)
    assert count == make_objective(loaded, synthetic_rows(shape_of(loaded), 8), found).variants == 3
    assert settle(loaded, 1)[0] == 1
    assert settle(loaded, 100, evaluations=2)[0] == 2, "no more than there are evaluations"


def test_a_heads_number_too(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = head_model(tiny)
    assert settle(loaded, 16, 16, head=True)[0] == 16
    clock(monkeypatch, {1: 4.0, 2: 4.2, 4: 4.4, 8: 5.0, 16: 6.0})
    assert settle(loaded, "auto", 16, head=True)[0] == 16


def clock(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]) -> list[int]:
    """Seconds of a pass at each number of settings; returns the numbers that were timed."""
    seen: list[int] = []

    def timed(_self: Any, _objective: Any, _units: Any, count: int) -> float:
        seen.append(count)
        return seconds[count]

    monkeypatch.setattr(variant_choice._Trial, "_seconds", timed)
    return seen


@pytest.mark.parametrize(
    ("seconds", "chosen", "timed"),
    [
        ({1: 1.0, 2: 1.5, 4: 2.0, 8: 5.0}, 4, [1, 2, 4, 8]),
        ({1: 1.0, 2: 1.95, 4: 3.85, 8: 7.7}, 1, [1, 2, 4, 8]),  # less than five in a hundred
        ({1: 1.0, 2: 2.5, 4: 5.0, 8: 0.1}, 1, [1, 2, 4]),  # two in turn bring nothing
        ({1: 1.0, 2: 2.5, 4: 2.0, 8: 2.0}, 8, [1, 2, 4, 8]),
    ],
)
def test_auto_takes_what_the_clock_says(
    made: Made, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], chosen: int, timed: list[int]
) -> None:
    seen = clock(monkeypatch, seconds)
    assert settle(made("OPT"), "auto")[0] == chosen
    assert seen == timed


def test_auto_looks_only_where_it_may_pay(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = clock(monkeypatch, {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0})
    loaded = made("OPT")
    assert settle(loaded, "auto", passes=99)[0] == 1, "the run is too short to repay the look"
    assert settle(loaded, "auto", evaluations=1)[0] == 1
    monkeypatch.setattr(variant_choice, "BYTES_AT_MOST", 1000)
    assert settle(loaded, "auto")[0] == 1
    assert seen == []
    monkeypatch.undo()
    seen = clock(monkeypatch, {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0})
    assert settle(loaded, "auto", passes=100)[0] == 2
    assert settle(loaded, "auto", passes=200)[0] == 4
    assert seen == [1, 2, 1, 2, 4]


def test_the_clock_is_real(made: Made) -> None:
    """Sixteen passes of one record through a tiny model, or one: a difference that no busy machine hides."""
    shapes = settle(made("Llama"), "auto", evaluations=16)[1]
    assert shapes.variants in (2, 4, 8, 16)


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("Mixtral", {}, "a mixture of experts takes one setting at a time"),
        ("Llama", {"trainable": "full"}, "several copies of so large a trainable part are not made"),
    ],
)
def test_what_takes_one_setting_at_a_time(made: Made, family: str, options: dict[str, Any], reason: str) -> None:
    loaded = made(family, **options)
    assert settle(loaded, "auto")[0] == 1
    assert settle(loaded, 2, strict=False)[0] == 1
    with pytest.raises(DpzoError, match=rf"^training\.eval_batch 2: {reason}; choose auto or 1$"):
        settle(loaded, 2)


def test_a_quantised_base_takes_one_setting_at_a_time(made: Made) -> None:
    pytest.importorskip("torchao")
    loaded = made("Llama", storage=Storage("float32", "int8"))
    assert settle(loaded, "auto")[0] == 1
    with pytest.raises(DpzoError, match="a quantised base takes one setting at a time"):
        settle(loaded, 4)


def refused(loaded: LoadedModel, reason: str) -> None:
    assert settle(loaded, "auto")[0] == 1
    with pytest.raises(DpzoError, match=reason):
        settle(loaded, 2)


def test_a_module_whose_course_hangs_on_values_is_refused(made: Made) -> None:
    loaded = made("OPT")
    layers = [part for part in loaded.module.modules() if type(part).__name__ == "OPTDecoderLayer"]

    def curious(_layer: nn.Module, _given: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if float(states.sum()) > 1e9:
            raise AssertionError

    layers[-1].register_forward_hook(curious)
    refused(loaded, r"cannot be run at several settings \(RuntimeError\)")


def test_losses_that_are_others_are_refused(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model does that reads a weight in a way that `functional_call` does not reach."""

    def deaf(_module: nn.Module, run: Callable[[], Tensor], weights: Weights) -> Tensor:
        return torch.stack([run()] * len(next(iter(weights.values()))))

    monkeypatch.setattr(objectives, "over_variants", deaf)
    refused(made("OPT"), "the model's losses at several settings are not those at each")


def test_records_that_feel_their_neighbours_are_refused(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A last bit that shows only where several settings go together."""
    real = objectives.over_variants

    def leaky(module: nn.Module, run: Callable[[], Tensor], weights: Weights) -> Tensor:
        logits = real(module, run, weights)
        return logits + 1e-6 * logits.mean()

    monkeypatch.setattr(objectives, "over_variants", leaky)
    clock(monkeypatch, {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0})
    refused(made("OPT"), "would not be isolated from each other")


def test_heads_that_feel_their_neighbours_are_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, real = head_model(tiny), FeatureObjective.variant_losses

    def leaky(self: FeatureObjective, records: NDArray[np.int64], weights: Weights) -> NDArray[np.float64]:
        losses = real(self, records, weights)
        return losses + 1e-12 * losses[:, :1]

    monkeypatch.setattr(FeatureObjective, "variant_losses", leaky)
    with pytest.raises(DpzoError, match="would not be isolated"):
        settle(loaded, 4, head=True)


def test_candidates_cut_the_evaluations_evenly() -> None:
    for evaluations in range(2, 70):
        found = candidates(evaluations, evaluations)
        assert found[-1] == evaluations
        assert min(found) > 1
        for count in found:
            passes = -(-evaluations // count)
            assert (count - 1) * passes < evaluations, "one fewer would take more passes"


# Whole runs


LINES = ["my order never came", "great film", "a dull story", "please reset the password", "okay", "the end"] * 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "data.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": line, "completion": f" {line}"}) for line in LINES))
    return file


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return support.make_tiny("Llama", tmp_path_factory.mktemp("Llama"))


def config_of(base: Path, variants: Any, **training: Any) -> RunConfig:
    return parse_config(
        {
            "model": {"name": str(base), "lora_layers": "top:1"},
            "data": {"kind": "completion", "max_length": 24, "max_answer_tokens": 8},
            "privacy": {"noise_multiplier": 0.5, "delta": 1e-3, "num_examples": 24, "expected_batch_size": 6}
            | {"steps": 5, "num_directions": 3},
            "training": {"learning_rate": 1e-2, "microbatch_size": 4, "eval_batch": variants, **training},
        }
    )


def test_a_private_run_of_four_at_a_time_replays(llama: Path, data: Path, tmp_path: Path) -> None:
    def command(*arguments: Any) -> dict[str, Any]:
        done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        assert done.exit_code == 0, done.output
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    run = tmp_path / "run"
    command(
        *("train", "--model", llama, "--data", data, "--output", run, "--num-examples", 24, "--kind", "completion"),
        *("--noise-multiplier", 2, "--delta", 1e-3, "--steps", 3, "--expected-batch-size", 6, "--num-directions", 4),
        *("--max-length", 24, "--set", "data.max_answer_tokens=8", "--set", "training.eval_batch=4"),
    )
    assert read(run).header["evaluation"]["variants"] == 4
    assert command("replay", run, "--output", tmp_path / "again")["equals_run"] is True


def test_what_cannot_be_had_is_said_in_a_line(llama: Path, data: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app,
        [
            *("train", "--model", str(llama), "--data", str(data), "--output", str(tmp_path / "run")),
            *("--num-examples", "24", "--kind", "completion", "--noise-multiplier", "2", "--delta", "1e-3"),
            *("--steps", "2", "--trainable", "full", "--max-length", "48", "--set", "training.eval_batch=4"),
        ],
    )
    assert isinstance(done.exception, DpzoError)
    assert str(done.exception).startswith("training.eval_batch 4: several copies of so large a trainable part")
    assert not (tmp_path / "run").exists()


class Died(Exception):
    pass


@pytest.mark.parametrize("estimator", ["central", pytest.param("forward", marks=pytest.mark.slow)])
def test_a_resume_takes_the_number_of_the_header(
    llama: Path, data: Path, tmp_path: Path, linear: ModuleType, monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    """Chosen by a clock, written down, and not chosen anew; the steps after are those of a run that was not stopped."""
    source, whole, folder = runs.DataSource(file=data), tmp_path / "whole", tmp_path / "run"
    asked, measured = (config_of(llama, count, estimator=estimator) for count in (2, "auto"))
    runs.train(asked, source, whole, nonprivate_randomness=linear.Noise)
    real = Journal.append

    def append(self: Journal, release: Any) -> None:
        if release.step == 2:
            raise Died
        real(self, release)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", append)
        patch.setattr(variant_choice, "SHARE_OF_RUN", 1e3)
        seen = clock(patch, {1: 1.0, 2: 1.0, 3: 3.0, 4: 4.0, 6: 6.0})
        with pytest.raises(Died):
            runs.train(measured, source, folder, nonprivate_randomness=linear.Noise)
        assert seen[:2] == [1, 2]
    assert read(folder).header["evaluation"]["variants"] == 2
    monkeypatch.setattr(variant_choice._Trial, "faster", None)  # whoever measures again fails
    counts: list[int] = []
    evaluate = TokenObjective.variant_losses

    def counted(self: TokenObjective, records: Any, weights: Weights) -> Any:
        counts.append(len(next(iter(weights.values()))))
        return evaluate(self, records, weights)

    monkeypatch.setattr(TokenObjective, "variant_losses", counted)
    runs.resume(folder, nonprivate_randomness=linear.Noise)
    assert set(counts) == {2}
    entries, expected = ([entry for entry, _ in read(path).entries()] for path in (folder, whole))
    assert entries[:2] == expected[:2]
    assert len(entries) == 5
    assert runs.replay(folder, tmp_path / "again").equals_run is True


def test_a_short_run_is_not_measured(llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variant_choice._Trial, "faster", None)
    runs.train(config_of(llama, "auto"), runs.DataSource(file=data), tmp_path / "run")
    assert read(tmp_path / "run").header["evaluation"]["variants"] == 1


@pytest.mark.parametrize("value", [0, -2, "fast", 1.5, True])
def test_the_number_is_auto_or_a_count(llama: Path, value: Any) -> None:
    with pytest.raises(DpzoError, match=r"training\.eval_batch"):
        config_of(llama, value)
