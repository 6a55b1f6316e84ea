"""Two real checkpoints: the MiniLM encoder and the story-telling Llama of 260 000 weights."""

from __future__ import annotations

import lzma
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from dpzo.models.encoder import EncoderClassifier
from dpzo.models.encoding import encode_classes, encode_completions
from dpzo.models.initialiser import seeded_initialiser
from dpzo.models.isolation import RowShape
from dpzo.models.models import load_model
from dpzo.models.objectives import FeatureObjective, TokenObjective, compute_features
from dpzo.models.shapes import isolated_shapes, make_objective

TEXTS = ["a delight from the first scene", "dull and terrible", "", "the password does not work", "夜の映画"]


def test_minilm_features_are_the_published_sentence_vectors(minilm: Path) -> None:
    loaded = load_model(minilm, "classification", num_labels=2, trainable="head", initialiser=seeded_initialiser(0))
    assert isinstance(loaded.module, EncoderClassifier)
    assert loaded.trainable_names == ("head.weight", "head.bias")
    encoded = encode_classes(loaded.tokenizer, TEXTS, [1, 0, 1, 0, 1], max_length=24)
    shapes = isolated_shapes(loaded, RowShape.of(encoded, len(loaded.tokenizer), 2), 4)
    objective = make_objective(loaded, encoded, shapes)
    assert isinstance(objective, FeatureObjective)
    found = compute_features(loaded.module, encoded, shapes.microbatch_size)
    plain = AutoModel.from_pretrained(minilm, use_safetensors=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    for record, text in enumerate(TEXTS):
        ids = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            mean = plain(**ids).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(found[record], mean / mean.norm(), rtol=0.0, atol=2e-6)
    assert objective.losses(np.arange(5)) == pytest.approx(np.log(2) * np.array([1, 1, 0, 1, 1]), rel=1e-6)


def test_stories_model_knows_its_stories_and_isolates_them(stories: Path, shared_data: Path) -> None:
    with lzma.open(shared_data / "text" / "tinystories_lowercase_4MB.txt.xz", "rt", encoding="utf-8") as file:
        text = file.read(6000)
    pieces = [text[start : start + 120] for start in range(0, 1920, 120)]
    prompts, answers = [piece[:80] for piece in pieces], [piece[80:] for piece in pieces]
    loaded = load_model(stories, "completion", trainable="lora", initialiser=seeded_initialiser(0))
    encoded = encode_completions(loaded.tokenizer, prompts, answers, max_length=64, max_answer_tokens=24)
    objective = make_objective(loaded, encoded, isolated_shapes(loaded, RowShape.of(encoded, 512, 1), 8))
    losses = objective.losses(np.arange(16))
    assert 0.3 < losses.mean() < 3.0 < math.log(512)
    assert isinstance(objective, TokenObjective)
    for record in (0, 7, 15):
        assert objective.losses(np.array([record]))[0].tobytes() == losses[record].tobytes()
    jumbled = encode_completions(loaded.tokenizer, prompts, answers[::-1], max_length=64, max_answer_tokens=24)
    assert TokenObjective(loaded.module, jumbled, 8).losses(np.arange(16)).mean() > losses.mean() + 0.2
