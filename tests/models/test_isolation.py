"""Isolation per family, and planted faults that the check has to notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpzo.errors import DpzoError
from dpzo.models.batching import Encoded
from dpzo.models.encoding import encode_classes, encode_completions, encode_options
from dpzo.models.initialiser import seeded_initialiser
from dpzo.models.isolation import RowShape, check_isolation, choose_microbatch, lively, synthetic_rows
from dpzo.models.models import LoadedModel, load_model
from dpzo.models.objectives import Indices, Losses, TokenObjective
from dpzo.models.shapes import TokenProbe, isolated_shapes, make_objective

Tiny = Callable[[str, str], Path]
TEXTS = ["the film was a delight", "great", "", "a dull story " * 40, "my order never came", "夜 and ночь"]

CASES = [
    *[(family, "causal", kind) for family in ("gpt2", "opt", "llama", "qwen2") for kind in ("completion", "options")],
    *[(family, form, "classes") for family in ("bert", "roberta") for form in ("bare", "classifier")],
    ("gpt2", "classifier", "classes"),
]


def prepare(tiny: Tiny, family: str, form: str, kind: str, trainable: str) -> tuple[LoadedModel, Encoded]:
    loaded = load_model(
        tiny(family, form),
        "completion" if kind == "completion" else "classification",
        num_labels=3 if kind != "completion" else None,
        trainable=trainable,
        initialiser=seeded_initialiser(1),
    )
    targets = [0, 1, 2, 0, 1, 2]
    if kind == "completion":
        encoded = encode_completions(loaded.tokenizer, TEXTS, TEXTS[::-1], max_length=24, max_answer_tokens=9)
    elif kind == "options":
        words = [" terrible", " great", " okay and good"]
        encoded = encode_options(loaded.tokenizer, TEXTS, words, targets, max_length=24)
    else:
        encoded = encode_classes(loaded.tokenizer, TEXTS, targets, max_length=24)
    return loaded, encoded


@pytest.mark.parametrize("trainable", ["full", "lora"])
@pytest.mark.parametrize(("family", "form", "kind"), CASES)
def test_no_neighbour_shows_in_a_records_loss(tiny: Tiny, family: str, form: str, kind: str, trainable: str) -> None:
    loaded, encoded = prepare(tiny, family, form, kind, trainable)
    shapes = isolated_shapes(
        loaded, RowShape.of(encoded, len(loaded.tokenizer), 3 if encoded.form != "completion" else 1), 4
    )
    assert shapes.microbatch_size == 4
    assert shapes.num_threads == torch.get_num_threads()
    with lively(loaded.module, loaded.trainable_names):
        objective = make_objective(loaded, encoded, shapes)
        whole = objective.losses(np.arange(6))
        for record in range(6):
            assert objective.losses(np.array([record]))[0].tobytes() == whole[record].tobytes()
        backwards = objective.losses(np.arange(6)[::-1].copy())
        assert backwards[::-1].tobytes() == whole.tobytes()
        assert len(set(whole.tolist())) >= 5


@given(records=st.lists(st.integers(0, 5), max_size=12), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_company_leaves_a_record_as_it_is(tiny: Tiny, records: list[int], seed: int) -> None:
    loaded, encoded = prepare(tiny, "llama", "causal", "completion", "full")
    objective = TokenObjective(loaded.module, encoded, 4)
    alone = np.concatenate([objective.losses(np.array([record])) for record in range(6)])
    found = objective.losses(np.array(records, dtype=np.int64))
    assert found.tobytes() == alone[np.array(records, dtype=np.int64)].tobytes()


def test_one_records_garbage_changes_only_its_own_loss(tiny: Tiny) -> None:
    loaded, encoded = prepare(tiny, "opt", "causal", "completion", "full")
    objective = TokenObjective(loaded.module, encoded, 6)
    before = objective.losses(np.arange(6))
    encoded.tokens[1, -int(encoded.lengths[1]) :] = 327
    after = objective.losses(np.arange(6))
    assert before[1] != after[1]
    assert np.delete(before, 1).tobytes() == np.delete(after, 1).tobytes()


class Faulty:
    """An objective with a planted leak between neighbours; its true losses are a function of the record."""

    def __init__(self, rows: Encoded, size: int, fault: Callable[[Losses, Encoded, Indices], Losses]) -> None:
        self.rows, self.size, self.fault = rows, size, fault

    def losses(self, records: Indices) -> Losses:
        found = []
        for start in range(0, len(records), self.size):
            chosen = records[start : start + self.size]
            true = self.rows.tokens[chosen].astype(np.float64).sum(axis=1)
            found.append(self.fault(true, self.rows, chosen))
        return np.concatenate(found)


SHAPE = RowShape("classes", max_length=12, vocabulary=50, num_classes=2)
BIT = 2.0**-40


@pytest.mark.parametrize(
    "fault",
    [
        lambda true, rows, chosen: true + BIT * true.mean(),
        lambda true, rows, chosen: true + BIT * rows.lengths[chosen].max(),
        lambda true, rows, chosen: true + BIT * (rows.lengths[chosen].min() == 11),
        lambda true, rows, chosen: true + BIT * np.arange(len(true)),
        lambda true, rows, chosen: true + BIT * (np.arange(len(true)) == 7),
        lambda true, rows, chosen: true + BIT * len(true),
        lambda true, rows, chosen: np.concatenate((true[:1], true[1:] + BIT * true[:-1])),
    ],
    ids=[
        "batch mean",
        "padded to the longest",
        "path without padding",
        "place",
        "last place",
        "size",
        "left neighbour",
    ],
)
def test_planted_leaks_are_noticed(fault: Callable[[Losses, Encoded, Indices], Losses]) -> None:
    def make(rows: Encoded, size: int) -> Faulty:
        return Faulty(rows, size, fault)

    assert not check_isolation(make(synthetic_rows(SHAPE, 16), 8), 8)
    sound = Faulty(synthetic_rows(SHAPE, 16), 8, lambda true, rows, chosen: true)
    assert check_isolation(sound, 8)


def test_the_first_sound_shape_is_chosen_and_none_is_an_error() -> None:
    def make(rows: Encoded, size: int) -> Faulty:
        return Faulty(rows, size, lambda true, rows, chosen: true + (0.0 if size == 8 else BIT * np.arange(len(true))))

    assert choose_microbatch(make, SHAPE, preferred=5) == 8
    calls = iter(range(10**6))

    def restless(rows: Encoded, size: int) -> Faulty:
        return Faulty(rows, size, lambda true, rows, chosen: true + next(calls))

    with pytest.raises(DpzoError, match="do not repeat bit for bit"):
        choose_microbatch(restless, SHAPE)


class Mixed(nn.Module):
    """A model that normalises over the batch: the classical way for records to meet."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 4)
        self.norm = nn.BatchNorm1d(4, affine=False, track_running_stats=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mean = (self.embedding(input_ids) * attention_mask[..., None]).sum(1)
        logits: Tensor = self.norm(mean)
        return logits


def test_a_batch_norm_is_found_out_and_falls_back_to_single_records() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mixed()

    def make(rows: Encoded, size: int) -> TokenObjective:
        return TokenObjective(model, rows, size)

    shape = RowShape("classes", max_length=12, vocabulary=50, num_classes=4)
    assert not check_isolation(make(synthetic_rows(shape, 16), 8), 8)


@pytest.mark.parametrize(("family", "form"), [("llama", "causal"), ("opt", "causal"), ("bert", "classifier")])
def test_attention_keeps_its_mask_when_every_record_is_too_long(
    tiny: Tiny, family: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library drops the mask for a batch without padding: another kernel, chosen by the others' lengths."""
    loaded, _ = prepare(tiny, family, form, "completion" if form == "causal" else "classes", "full")
    long = ["a dull story " * 40] * 4
    if form == "causal":
        encoded = encode_completions(loaded.tokenizer, long, long, max_length=24, max_answer_tokens=9)
    else:
        encoded = encode_classes(loaded.tokenizer, long, [0] * 4, max_length=24)
    assert (encoded.lengths == 23).all()
    real = torch.nn.functional.scaled_dot_product_attention
    masks: list[bool] = []

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        masks.append(kwargs.get("attn_mask") is not None)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    TokenObjective(loaded.module, encoded, 4).losses(np.arange(4))
    assert masks == [True, True]
    with torch.no_grad():
        loaded.module(torch.ones(4, 23, dtype=torch.int64), attention_mask=torch.ones(4, 23, dtype=torch.int64))
    assert masks == [True, True, False, False]  # the meta-test: what the spare column spares


def test_zero_parameters_are_enlivened_for_the_check_only(tiny: Tiny) -> None:
    loaded, encoded = prepare(tiny, "bert", "bare", "classes", "lora")
    parameters = dict(loaded.module.named_parameters())
    pointers = {name: parameter.data_ptr() for name, parameter in parameters.items()}
    with lively(loaded.module, loaded.trainable_names):
        assert all(parameters[name].any() for name in loaded.trainable_names)
    assert {name: parameter.data_ptr() for name, parameter in parameters.items()} == pointers
    assert not parameters["head.weight"].any()
    state = torch.get_rng_state()
    isolated_shapes(loaded, RowShape.of(encoded, len(loaded.tokenizer), 3 if encoded.form != "completion" else 1))
    assert torch.equal(state, torch.get_rng_state())
    assert not parameters["head.weight"].any()


@pytest.mark.parametrize("form", ["classes", "completion", "options"])
def test_synthetic_rows_hold_the_extremes_and_repeat(form: Any) -> None:
    answers = 0 if form == "classes" else 4
    shape = RowShape(form, 16, 40, 3, max_answer_tokens=answers, left_padded=form != "classes")
    one, two = synthetic_rows(shape, 20), synthetic_rows(shape, 20)
    assert np.array_equal(one.tokens, two.tokens)
    assert one.lengths.max() == 15
    assert one.lengths.min() == (1 if form == "classes" else 2)
    assert len(one) == 20


def test_a_probe_sees_bits_that_a_loss_rounds_away(tiny: Tiny) -> None:
    loaded, _ = prepare(tiny, "opt", "causal", "completion", "full")
    shape = RowShape("completion", 16, 300, 1, max_answer_tokens=4, left_padded=True)
    rows = synthetic_rows(shape, 8)
    probe, objective = TokenProbe(loaded.module, rows, 4), TokenObjective(loaded.module, rows, 4)
    records = np.arange(8)
    sums, losses = probe.losses(records), objective.losses(records)
    assert probe.losses(records).tobytes() == sums.tobytes()
    assert len(set(sums.view(np.int64).tolist())) == 8

    head = loaded.module.get_output_embeddings()  # type: ignore[operator]

    def nudge(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        moved = output.clone()
        low = moved[..., -1].clone()
        moved[..., -1] = torch.nextafter(low, torch.zeros(()))
        return moved

    handle = head.register_forward_hook(nudge)
    assert (probe.losses(records).view(np.int64) != sums.view(np.int64)).all()
    assert np.abs(objective.losses(records) - losses).max() < 1e-6
    handle.remove()


@pytest.mark.parametrize(("size", "width", "sound"), [(5, 50, False), (7, 33, False), (8, 48, True), (1, 50, True)])
def test_known_shapes_on_two_threads(stories: Path, size: int, width: int, sound: bool) -> None:
    """A fixed shape is not enough: at 5 × 50 on two threads a product's rounding hangs on the record's place."""
    loaded = load_model(stories, "completion", trainable="full", initialiser=seeded_initialiser(0))
    shape = RowShape("completion", width, 512, 1, max_answer_tokens=16, left_padded=True, pad_token_id=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        passed = check_isolation(TokenProbe(loaded.module, synthetic_rows(shape, 2 * size), size), size)
    finally:
        torch.set_num_threads(threads)
    # Where the library's kernels differ, an unsound shape may be sound: only the sound ones are promised.
    assert passed or not sound
