"""Losses against what plain transformers computes for one record at a time, without padding and with all logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from dpzo.errors import DpzoError
from dpzo.models.encoding import encode_classes, encode_completions, encode_options
from dpzo.models.initialiser import seeded_initialiser
from dpzo.models.losses import answer_log_probs, class_cross_entropy, mean_answer_log_prob
from dpzo.models.models import load_model
from dpzo.models.objectives import TokenObjective

Tiny = Callable[[str, str], Path]
CAUSAL = ["gpt2", "opt", "llama", "qwen2"]
PROMPTS = ["the film was", "a dull and terrible story", "", "my order never came " * 20, "ночь и туман 夜"]
ANSWERS = [" great", " that nobody will remember", "please reset", " and the invoice is wrong", " okay"]


def plain_answer_nll(model: torch.nn.Module, ids: list[int], scored: int) -> float:
    """Mean negative log-likelihood of the last `scored` tokens, from all logits of one unpadded row."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    log_probs = torch.log_softmax(logits, dim=-1)
    places = range(len(ids) - scored, len(ids))
    return -sum(float(log_probs[place - 1, ids[place]]) for place in places) / scored


@pytest.mark.parametrize("family", CAUSAL)
def test_completion_loss_is_the_mean_over_the_records_own_answer(tiny: Tiny, family: str) -> None:
    folder = tiny(family, "causal")
    loaded = load_model(folder, "completion", trainable="full", initialiser=seeded_initialiser(1))
    encoded = encode_completions(loaded.tokenizer, PROMPTS, ANSWERS, max_length=40, max_answer_tokens=12)
    found = TokenObjective(loaded.module, encoded, 4).losses(np.arange(5))
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    for record in range(5):
        length, scored = int(encoded.lengths[record]), int(encoded.answer_lengths[record])
        ids = encoded.tokens[record, 40 - length :].tolist()
        assert found[record] == pytest.approx(plain_answer_nll(plain, ids, scored), abs=3e-6, rel=3e-6)
    assert found.dtype == np.float64


@pytest.mark.parametrize("family", CAUSAL)
def test_only_the_needed_logits_are_asked_for(tiny: Tiny, family: str) -> None:
    loaded = load_model(tiny(family, "causal"), "completion", trainable="lora", initialiser=seeded_initialiser(1))
    encoded = encode_completions(loaded.tokenizer, PROMPTS, ANSWERS, max_length=40, max_answer_tokens=7)
    shapes: list[tuple[int, ...]] = []
    head = loaded.module.get_base_model().get_output_embeddings()  # type: ignore[operator]
    pieces: list[bool] = []

    def seen(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        shapes.append(tuple(output.shape))
        pieces.append(inputs[0].is_contiguous())

    handle = head.register_forward_hook(seen)
    TokenObjective(loaded.module, encoded, 2).losses(np.arange(5))
    handle.remove()
    assert shapes == [(2, 8, 328)] * 3
    assert all(pieces)  # else the vocabulary's matrix is read once a row
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("family", CAUSAL)
def test_options_are_scored_by_their_mean_log_probability(tiny: Tiny, family: str) -> None:
    folder = tiny(family, "causal")
    words = [" terrible", " great", " okay and good"]
    loaded = load_model(folder, "classification", num_labels=3, trainable="full", initialiser=seeded_initialiser(1))
    prompts = [f"{text} it was" for text in PROMPTS]
    encoded = encode_options(loaded.tokenizer, prompts, words, [0, 1, 2, 0, 1], max_length=40)
    objective = TokenObjective(loaded.module, encoded, 2)
    found, classes = objective.losses(np.arange(5)), objective.predict(np.arange(5))
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    for record in range(5):
        scores = []
        for row in range(record * 3, record * 3 + 3):
            ids = encoded.tokens[row, 40 - int(encoded.lengths[row]) :].tolist()
            scores.append(-plain_answer_nll(plain, ids, int(encoded.answer_lengths[row])))
        expected = -float(torch.log_softmax(torch.tensor(scores), dim=0)[[0, 1, 2, 0, 1][record]])
        assert found[record] == pytest.approx(expected, abs=5e-6, rel=5e-6)
        assert classes[record] == int(np.argmax(scores))


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
def test_classifier_loss_is_that_of_an_unpadded_record(tiny: Tiny, family: str) -> None:
    folder = tiny(family, "classifier")
    loaded = load_model(folder, "classification", num_labels=3, trainable="full", initialiser=seeded_initialiser(1))
    assert loaded.new_names == ()
    texts = ["the film was a delight", "great", "a dull and terrible story " * 30, "夜 and ночь"]
    encoded = encode_classes(loaded.tokenizer, texts, [0, 1, 2, 1], max_length=24)
    objective = TokenObjective(loaded.module, encoded, 3)
    found, classes = objective.losses(np.arange(4)), objective.predict(np.arange(4))
    plain = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for record, text in enumerate(texts):
        ids = tokenizer(text, truncation=True, max_length=23, return_tensors="pt")
        with torch.no_grad():
            logits = plain(**ids).logits[0]
        expected = -float(torch.log_softmax(logits.double(), dim=-1)[[0, 1, 2, 1][record]])
        assert found[record] == pytest.approx(expected, abs=3e-6, rel=3e-6)
        assert classes[record] == int(logits.argmax())


def test_empty_records_cost_nothing_wherever_the_weights_are(tiny: Tiny) -> None:
    loaded = load_model(tiny("opt", "causal"), "completion", trainable="full", initialiser=seeded_initialiser(1))
    encoded = encode_completions(loaded.tokenizer, ["a", "b"], ["", " great"], max_length=16, max_answer_tokens=4)
    objective = TokenObjective(loaded.module, encoded, 2)
    assert objective.losses(np.array([0]))[0] == 0.0
    with torch.no_grad():
        next(loaded.module.parameters()).fill_(float("nan"))
    found = objective.losses(np.array([1, 0]))
    assert np.isnan(found[0])
    assert found[1] == 0.0
    assert objective.losses(np.zeros(0, dtype=np.int64)).shape == (0,)
    with pytest.raises(DpzoError, match="no classes"):
        objective.predict(np.array([0]))


logit_rows = st.lists(st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3), min_size=1, max_size=6)


@given(rows=logit_rows, data=st.data())
@settings(max_examples=60, deadline=None)
def test_cross_entropy_is_per_row_and_exact(rows: list[list[float]], data: st.DataObject) -> None:
    targets = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    found = class_cross_entropy(torch.tensor(rows), torch.tensor(targets))
    assert found.shape == (len(rows),)
    assert found.dtype == torch.float32
    for row, target, value in zip(rows, targets, found.tolist(), strict=True):
        exact = float(np.log(np.sum(np.exp(np.array(row) - max(row)))) + max(row) - row[target])
        assert value == pytest.approx(exact, abs=1e-5)


def test_losses_are_fp32_even_for_half_precision_logits() -> None:
    logits = torch.tensor([[3.0, 1.0], [0.5, 0.25]], dtype=torch.bfloat16)
    assert class_cross_entropy(logits, torch.tensor([0, 1])).dtype == torch.float32


def test_a_non_finite_row_stays_alone() -> None:
    logits = torch.tensor([[float("nan"), 1.0], [2.0, 1.0], [float("inf"), 0.0]])
    found = class_cross_entropy(logits, torch.tensor([0, 0, 1]))
    assert torch.isnan(found[0])
    assert float(found[1]) == pytest.approx(np.log1p(np.exp(-1.0)))
    assert not torch.isfinite(found[2])


def test_columns_outside_the_answer_do_not_count_even_when_they_are_nan() -> None:
    logits = torch.zeros(2, 4, 5)
    logits[0, :2] = float("nan")  # scores of columns before a one-token answer
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]])
    lengths = torch.tensor([1, 3])
    table = answer_log_probs(logits, ids, lengths)
    assert table.shape == (2, 3)
    assert table[0].tolist() == [0.0, 0.0, pytest.approx(-np.log(5.0))]
    assert mean_answer_log_prob(logits, ids, lengths).tolist() == pytest.approx([-np.log(5.0)] * 2)
    assert mean_answer_log_prob(logits[1:], ids[1:], torch.tensor([0])).tolist() == [0.0]
