"""Label words at the mask: one token each, a mask that stays, and the vocabulary's logits nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpzo.errors import DpzoError
from dpzo.models.families import TEMPLATE, TEXTS, WORDS, encode_tiny, make_tiny, tiny_tokenizer
from dpzo.models.initialiser import seeded_initialiser
from dpzo.models.masking import encode_masked, template_pieces, word_tokens
from dpzo.models.models import LoadedModel, load_model
from dpzo.models.objectives import TokenObjective
from dpzo.models.saving import load_saved, save

TOKENIZER = tiny_tokenizer(masked=True)
MASK = TOKENIZER.mask_token_id


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("RoBERTa", tmp_path_factory.mktemp("roberta"))


def loaded_from(folder: Path, trainable: str = "full") -> LoadedModel:
    return load_model(
        folder,
        "classification",
        labels=("no", "yes"),
        trainable=trainable,
        prompted=True,
        initialiser=seeded_initialiser(1),
    )


def test_the_answer_is_the_models_own_head_at_the_mask(roberta: Path) -> None:
    loaded = loaded_from(roberta)
    assert (loaded.architecture, loaded.new_names) == ("masked", ())
    encoded = encode_tiny(loaded)
    model: Any = loaded.module
    widths: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda layer, given, out: widths.append(out.shape[1]))
    found = TokenObjective(model, encoded, 3).losses(np.arange(len(encoded)))
    assert set(widths) == {1}  # the vocabulary's logits exist in one column a record
    ids = TOKENIZER(f"{TEXTS[0]} It was <mask>.", return_tensors="pt")
    place = int((ids["input_ids"][0] == MASK).nonzero()[0, 0])
    with torch.no_grad():
        logits = model(**ids).logits[0, place]
    bad, great = (TOKENIZER(word, add_special_tokens=False)["input_ids"][0] for word in WORDS)
    expected = torch.logsumexp(logits[[bad, great]], 0) - logits[bad]
    assert found[0] == pytest.approx(float(expected), abs=1e-5)
    predicted = TokenObjective(model, encoded, 3).predict(np.arange(1))
    assert predicted[0] == int(logits[great] > logits[bad])


def test_a_masked_model_is_asked_by_its_mask_only_when_the_task_has_one(roberta: Path) -> None:
    plain = load_model(roberta, "classification", num_labels=2, initialiser=seeded_initialiser(0))
    assert plain.architecture == "sequence-classifier"


@pytest.mark.parametrize("trainable", ["full", "lora", "head", ".*bias$"])
def test_what_is_saved_answers_alike(roberta: Path, tmp_path: Path, trainable: str) -> None:
    loaded = loaded_from(roberta, trainable)
    parameters = dict(loaded.module.named_parameters())
    with torch.no_grad():
        for name in loaded.trainable_names:
            parameters[name].add_(0.05)
    save(loaded, tmp_path / "model", labels=("no", "yes"))
    again = load_saved(tmp_path / "model", "classification", num_labels=2, architecture="masked")
    encoded = encode_tiny(loaded)
    records = np.arange(len(encoded))
    expected = TokenObjective(loaded.module, encoded, 3).losses(records)
    assert TokenObjective(again.module, encoded, 3).losses(records).tobytes() == expected.tobytes()


@given(text=st.text(max_size=60), other=st.text(max_size=200), width=st.integers(16, 40))
@settings(max_examples=120, deadline=None)
def test_any_text_leaves_the_template_and_its_mask(text: str, other: str, width: int) -> None:
    template = "{first}?{mask}, {second}."
    fields = {"first": [text, text + "<mask>", "<mask> " * 40], "second": [other, other, "<mask>"]}
    encoded = encode_masked(TOKENIZER, template, fields, WORDS, [0, 1, 0], max_length=width)
    assert encoded.mask_positions is not None
    for row in range(3):
        length, place = int(encoded.lengths[row]), int(encoded.mask_positions[row])
        assert 1 <= length < width
        assert encoded.tokens[row, place] == MASK
        tail = TOKENIZER.decode(encoded.tokens[row, place + 1 : length].tolist())
        assert tail.startswith(",")  # the template's own mask, not one that a text spells
        assert tail.endswith("</s>")
    assert encoded.empty[0] == (not text.strip() and not other.strip())


def test_the_longest_text_is_cut_and_the_other_stays() -> None:
    fields = {"first": ["great " * 50], "second": ["my order"]}
    encoded = encode_masked(TOKENIZER, "{first}?{mask}, {second}", fields, WORDS, [0], max_length=24)
    said = TOKENIZER.decode(encoded.tokens[0, : encoded.lengths[0]].tolist())
    assert encoded.lengths[0] == 23
    assert said.endswith("?<mask>, my order</s>")
    assert said.startswith("<s>great great")


def test_label_words_are_one_token_where_they_stand() -> None:
    ids = word_tokens(TOKENIZER, TEMPLATE, WORDS)
    assert ids == word_tokens(TOKENIZER, TEMPLATE, ("bad", "great"))  # the template has a space before its mask
    assert ids != word_tokens(TOKENIZER, "{text}.{mask}", ("great", " bad"))
    cases = {
        (" great", " unbelievable"): "label word of several tokens",
        (" great", "great"): "share a token",
        (" great", "<pad>"): "several tokens|not a word",
        (" great",): "only one",
    }
    for words, message in cases.items():
        with pytest.raises(DpzoError, match=message) as caught:
            word_tokens(TOKENIZER, TEMPLATE, words)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{text} It was", "must hold {mask} once"),
        ("{mask} {text} {mask}", "must hold {mask} once"),
        ("It was {mask}", "names no field beside"),
        ("{text} {mask", "braces do not match"),
    ],
)
def test_templates_that_cannot_work_are_named(template: str, message: str) -> None:
    with pytest.raises(DpzoError, match=message):
        template_pieces(template)


def test_a_template_without_its_field_or_its_room_is_refused() -> None:
    with pytest.raises(DpzoError, match=r"no field \{premise\}; they have text"):
        encode_masked(TOKENIZER, "{premise} {mask}", {"text": ["a"]}, WORDS, [0], max_length=24)
    with pytest.raises(DpzoError, match="--max-length 8: too short"):
        encode_masked(TOKENIZER, TEMPLATE, {"text": ["a"]}, WORDS, [0], max_length=8)
