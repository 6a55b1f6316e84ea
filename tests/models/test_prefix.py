"""Frozen lower layers run once, and no loss changes by a bit for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dpzo.errors import DpzoError
from dpzo.models import families as support
from dpzo.models import frozen_cache as prefix
from dpzo.models.adapters import LoraSettings
from dpzo.models.encoding import encode_classes
from dpzo.models.families import FAMILIES, TEXTS, encode_tiny
from dpzo.models.frozen_cache import FrozenPrefix, Keep, SharedPrefix, frozen_depth, layer_stack
from dpzo.models.initialiser import seeded_initialiser
from dpzo.models.isolation import RowShape, check_isolation, lively, moved, synthetic_rows
from dpzo.models.memory import kept_memory
from dpzo.models.models import LoadedModel, load_model
from dpzo.models.objectives import Indices, TokenObjective
from dpzo.models.shapes import Shapes, TokenProbe, isolated_shapes, make_objective, synthetic_objective
from dpzo.models.storage import Storage
from dpzo.zo import DirectionScheme, TrainableParameters, central_difference

Tiny = Callable[[str, str], Path]
Made = Callable[..., LoadedModel]
DEEP = sorted(set(FAMILIES) - {"T5"})
LAYERS = 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A shape that isolates on one thread may not on two, and is then rightly passed over: here it is the subject."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`folders(family)`: a random model of the family with four layers."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            usual = FAMILIES[family]
            depth = "n_layer" if "n_layer" in usual.arguments else "num_hidden_layers"
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(FAMILIES, family, replace(usual, arguments={**usual.arguments, depth: LAYERS}))
                made[family] = support.make_tiny(family, tmp_path_factory.mktemp(family))
        return made[family]

    return make


@pytest.fixture
def deep(folders: Callable[[str], Path]) -> Made:
    """`deep(family, trainable, …)` loads it; LoRA lies on the two topmost layers unless told."""

    def load(family: str, trainable: str = "lora", **options: Any) -> LoadedModel:
        masked = FAMILIES[family].form == "masked"
        return load_model(
            folders(family),
            "classification" if masked else "completion",
            labels=("no", "yes") if masked else None,
            prompted=True,
            trainable=trainable,
            initialiser=seeded_initialiser(1),
            **{"lora": LoraSettings(layers="top:2"), "virtual_tokens": 3, **options},
        )

    return load


def shape_of(loaded: LoadedModel) -> RowShape:
    encoded = encode_tiny(loaded)
    return RowShape.of(encoded, len(loaded.tokenizer), 2 if loaded.takes_masks else 1)


def depth_of(loaded: LoadedModel) -> int:
    objective = TokenObjective(loaded.module, encode_tiny(loaded), 2)
    return frozen_depth(loaded.module, loaded.trainable_names, lambda: objective.losses(np.arange(2)), 2)


def calls_of(loaded: LoadedModel, index: int) -> list[int]:
    """Grows by one with each call of the layer that computes (one that stands aside is called and does nothing)."""
    stack = layer_stack(loaded.module)
    assert stack is not None
    calls: list[int] = []
    norm = next(part for part in stack.layers[index].modules() if "norm" in type(part).__name__.lower())
    norm.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["batch", "run"])
@pytest.mark.parametrize("family", DEEP)
def test_slopes_are_those_of_the_whole_module_to_the_bit(deep: Made, family: str, keep: Keep) -> None:
    loaded = deep(family)
    shapes = isolated_shapes(loaded, shape_of(loaded), 4, keep)
    assert (shapes.prefix_layers, shapes.keep) == (2, keep)
    encoded = encode_tiny(loaded)
    shared, whole = make_objective(loaded, encoded, shapes), TokenObjective(loaded.module, encoded, 4)
    whole.microbatch_size = shapes.microbatch_size
    parameters = TrainableParameters(loaded.module, loaded.trainable_names)
    with lively(loaded.module, loaded.trainable_names):
        for step, units in enumerate(([0, 1, 2, 3, 4, 5], [5, 3, 0], [2], [1, 1, 4, 0, 2])):
            directions = DirectionScheme("gaussian", 3, 2, parameters.sizes).at(step)
            given = np.array(units, dtype=np.int64)
            slopes = [central_difference(each, parameters, given, directions, 1e-2) for each in (shared, whole)]
            assert slopes[0].tobytes() == slopes[1].tobytes()
            assert (slopes[0] != 0).any()
        assert shared.losses(np.zeros(0, dtype=np.int64)).shape == (0,)


@pytest.mark.parametrize("family", ["BERT", "Llama"])
def test_the_frozen_layers_run_once_a_step_or_once_a_record(deep: Made, family: str) -> None:
    loaded = deep(family)
    encoded = encode_tiny(loaded)
    below, above = calls_of(loaded, 1), calls_of(loaded, 2)

    def passes(objective: Any, *records: int) -> tuple[int, int]:
        before = len(below), len(above)
        objective.losses(np.array(records))
        return (len(below) - before[0]), (len(above) - before[1])

    step = make_objective(loaded, encoded, Shapes(4, None, 1, 2, "batch"))
    assert below == []
    assert passes(step, 0, 1, 2, 3, 4, 5) == (2, 2)
    assert passes(step, 0, 1, 2, 3, 4, 5) == (0, 2)
    assert passes(step, 5, 3, 0, 4, 2) == (2, 2)
    assert passes(step, 5, 3, 0, 4, 2) == (0, 2)
    assert passes(step, 0, 1, 2, 3, 4, 5) == (2, 2)
    step.forget()
    assert passes(step, 0, 1, 2, 3, 4, 5) == (2, 2)
    run = make_objective(loaded, encoded, Shapes(4, None, 1, 2, "run"))
    below.clear()  # dummy rows were looked at
    assert passes(run, 3, 1) == (1, 1)
    assert passes(run, 1, 3, 1, 3, 1) == (0, 2)
    run.forget()
    assert passes(run, 0, 1, 2, 3, 4) == (1, 2)
    assert passes(run, 5, 4, 3, 2, 1, 0) == (1, 2)
    assert passes(run, 2) == (0, 1)
    if loaded.takes_masks:
        below.clear()
        assert step.predict(np.arange(5)).tolist() == run.predict(np.arange(5)).tolist()
        assert len(below) == 4  # a prediction is asked for once and nothing is held for it


@pytest.mark.parametrize(
    ("family", "trainable", "expected"),
    [
        ("Llama", "full", 0),
        ("Llama", r"layers\.1\.mlp", 1),
        ("Llama", r"layers\.(3|2)\.", 2),
        ("Llama", r"layers\.3\.|embed_tokens", 0),
        ("Llama", r"^model\.norm|layers\.3\.", 3),
        ("Llama", "head", LAYERS),
        ("Llama", r"^model\.norm", LAYERS),
        ("Qwen2", "head", 0),  # tied to the embedding
        ("Llama", "prefix", 0),
        ("Llama", "prompt", 0),
        ("Llama", "ia3", 0),
        ("GPT-2", r"h\.3\.", 3),
        ("OPT", r"final_layer_norm", 0),  # one in each layer
        ("OPT", r"decoder\.final_layer_norm", LAYERS),
        ("BERT", r"^cls\.predictions\.transform", LAYERS),
        ("BERT", r"position_embeddings", 0),
        ("DeBERTa-v2", r"rel_embeddings", 0),
        ("RoBERTa", r"layer\.3\.|lm_head\.dense", 3),
    ],
)
def test_how_deep_the_frozen_part_reaches(deep: Made, family: str, trainable: str, expected: int) -> None:
    loaded = deep(family, trainable)
    assert depth_of(loaded) == expected
    if expected:
        shapes = isolated_shapes(loaded, shape_of(loaded), 4, "run")
        assert shapes.prefix_layers == expected
        encoded, records = encode_tiny(loaded), np.array([4, 1, 0, 5, 2])
        shared, whole = make_objective(loaded, encoded, shapes), TokenObjective(loaded.module, encoded, 4)
        with moved(loaded.module, loaded.trainable_names):
            assert shared.losses(records).tobytes() == whole.losses(records).tobytes()


def test_a_trained_classifier_above_frozen_layers(tiny: Tiny) -> None:
    for form, trainable, depth in (("classifier", "head", 2), ("bare", r"layer\.1\.|^head\.", 1), ("bare", "lora", 1)):
        loaded = load_model(
            tiny("bert", form),
            "classification",
            num_labels=3,
            trainable=trainable,
            lora=LoraSettings(layers="top:1"),
            initialiser=seeded_initialiser(1),
        )
        encoded = encode_classes(loaded.tokenizer, TEXTS, [0, 1, 2, 0, 1, 2], max_length=24)
        shapes = isolated_shapes(loaded, RowShape.of(encoded, 320, 3), 4, "batch")
        assert (shapes.prefix_layers, shapes.keep, shapes.head_block) == (depth, "batch", None)
        shared, whole = make_objective(loaded, encoded, shapes), TokenObjective(loaded.module, encoded, 4)
        with lively(loaded.module, loaded.trainable_names):
            before = shared.losses(np.arange(6))
            with moved(loaded.module, loaded.trainable_names):
                found = shared.losses(np.arange(6))
                assert found.tobytes() == whole.losses(np.arange(6)).tobytes()
        assert (found != before).all()


def test_a_head_keeps_features_whatever_is_asked(tiny: Tiny) -> None:
    loaded = load_model(
        tiny("bert", "bare"), "classification", num_labels=2, trainable="head", initialiser=seeded_initialiser(1)
    )
    encoded = encode_classes(loaded.tokenizer, TEXTS, [0, 1, 0, 1, 0, 1], max_length=24)
    for keep in ("none", "batch", "run"):
        shapes = isolated_shapes(loaded, RowShape.of(encoded, 320, 2), 4, keep)  # type: ignore[arg-type]
        assert shapes.head_block is not None
        assert shapes.prefix_layers == 0


def test_records_kept_for_the_run_do_not_feel_their_neighbours(deep: Made) -> None:
    loaded = deep("OPT")
    rows = synthetic_rows(shape_of(loaded), 12)
    with lively(loaded.module, loaded.trainable_names):
        kept = TokenObjective(loaded.module, rows, 6, prefix_layers=2, keep="run")
        assert check_isolation(kept, 6)
        alone = TokenObjective(loaded.module, rows, 6, prefix_layers=2, keep="run")
        single = np.concatenate([alone.losses(np.array([record])) for record in range(12)])
        assert kept.losses(np.arange(12)).tobytes() == single.tobytes()


def test_what_is_kept_for_the_run_is_checked_for_isolation_itself(deep: Made) -> None:
    """A frozen layer whose output feels the neighbours where no logit shows it."""
    loaded = deep("Llama")
    rows = synthetic_rows(shape_of(loaded), 8)

    def feel(_layer: nn.Module, _arguments: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[0, 0] += 1e-3  # the first place of a micro-batch; its padding, which no other place attends to
        return changed

    stack = layer_stack(loaded.module)
    assert stack is not None
    stack.layers[1].register_forward_hook(feel)
    with lively(loaded.module, loaded.trainable_names):
        assert check_isolation(TokenProbe(loaded.module, rows, 4), 4)
        assert not check_isolation(TokenProbe(loaded.module, rows, 4, states_of=2), 4)


def test_layers_that_feel_what_learns_are_not_shared(deep: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = deep("Llama")
    stack = layer_stack(loaded.module)
    assert stack is not None
    secretly = dict(loaded.module.named_parameters())[loaded.trainable_names[0]]
    lowest = stack.layers[0]
    original = lowest.forward
    monkeypatch.setattr(lowest, "forward", lambda hidden, **rest: original(hidden + secretly.sum(), **rest))
    assert depth_of(loaded) == 2  # nothing shows from outside
    assert isolated_shapes(loaded, shape_of(loaded), 4, "batch").prefix_layers == 0
    with pytest.raises(DpzoError, match=r"training\.frozen_cache run: no layer lies wholly below what learns"):
        isolated_shapes(loaded, shape_of(loaded), 4, "run")


def test_beyond_what_may_be_held_micro_batches_run_whole(deep: Made) -> None:
    loaded = deep("BERT")
    encoded = encode_tiny(loaded)
    objective = TokenObjective(loaded.module, encoded, 2)
    expected = [logits for _, logits in objective.run(np.arange(6))]
    size = 2 * encoded.max_length * 32 * 4
    below = calls_of(loaded, 0)
    for keep in ("batch", "run"):
        for limit, passes in ((0, 2), (size, 2), (2 * size, 1), (3 * size, 0)):
            frozen = FrozenPrefix(loaded.module, 2)
            shared = SharedPrefix(frozen, encoded, 2, torch.device("cpu"), held_at_most=limit)
            with torch.no_grad():
                if keep == "run":
                    shared.keep_for_run(objective.logits)
                for _ in range(3):
                    below.clear()
                    found = [logits for _, logits in shared.evaluate(np.arange(6), objective.logits)]
                    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            assert len(below) == (passes if keep == "batch" else 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_states_in_a_file_give_the_same_bits(deep: Made, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = deep("Llama", storage=Storage(dtype))
    encoded = encode_tiny(loaded)
    whole = TokenObjective(loaded.module, encoded, 4)
    monkeypatch.setattr(prefix, "STATES_ABOVE", 0)
    made: list[tuple[int, int, int]] = []

    class Seen(prefix.RowStore):
        def __init__(self, rows: int, width: int, map_above: int) -> None:
            super().__init__(rows, width, 0)
            made.append((rows, width, map_above))

    monkeypatch.setattr(prefix, "RowStore", Seen)
    kept = TokenObjective(loaded.module, encoded, 4, prefix_layers=2, keep="run")
    with lively(loaded.module, loaded.trainable_names):
        for records in ([3, 1], [0, 1, 2, 3, 4, 5], [5, 4, 1, 1, 0]):
            with moved(loaded.module, loaded.trainable_names):
                given: Indices = np.array(records)
                assert kept.losses(given).tobytes() == whole.losses(given).tobytes()
    assert made == [(6, encoded.max_length * 32 * (2 if dtype == "bfloat16" else 4), 1 << 29)]
    assert "tensor" not in repr(kept) + repr(kept._shared)


def test_memory_and_the_synthetic_twin_know_what_is_held(deep: Made) -> None:
    loaded = deep("Llama")
    shape = shape_of(loaded)
    shapes = isolated_shapes(loaded, shape, 4, "run")
    record = shape.max_length * 32 * 4
    assert kept_memory(loaded, shape, shapes, 6.0, 100) == (8 + 100) * record
    assert kept_memory(loaded, shape, replace(shapes, keep="batch"), 6.0, 100) == 8 * record
    assert kept_memory(loaded, shape, shapes, 6.0, 10**7) == 8 * record
    assert kept_memory(loaded, shape, replace(shapes, prefix_layers=0, keep="none"), 6.0, 100) == 0
    synthetic = synthetic_objective(loaded, shape, shapes)
    below = calls_of(loaded, 0)
    synthetic.losses(np.arange(4))
    assert len(below) == 1
    synthetic.losses(np.arange(4))
    assert len(below) == 1


def test_minilm_keeps_its_bits(minilm: Path) -> None:
    loaded = load_model(
        minilm,
        "classification",
        num_labels=2,
        trainable="lora",
        lora=LoraSettings(layers="top:2"),
        initialiser=seeded_initialiser(0),
    )
    encoded = encode_classes(loaded.tokenizer, TEXTS, [0, 1, 0, 1, 0, 1], max_length=32)
    whole = TokenObjective(loaded.module, encoded, 8)
    assert frozen_depth(loaded.module, loaded.trainable_names, lambda: whole.losses(np.arange(1)), 8) == 4
    for keep in ("batch", "run"):
        shared = make_objective(loaded, encoded, Shapes(8, None, 1, 4, keep))  # type: ignore[arg-type]
        with lively(loaded.module, loaded.trainable_names):
            shared.losses(np.arange(6))
            with moved(loaded.module, loaded.trainable_names):
                assert shared.losses(np.arange(6)).tobytes() == whole.losses(np.arange(6)).tobytes()
