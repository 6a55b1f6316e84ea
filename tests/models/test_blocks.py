"""Blocks and mapped files change where records lie, and not a bit of what they are."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from dpzo.data.tasks import Records
from dpzo.models.batching import Encoded
from dpzo.models.blocks import encode_in_blocks
from dpzo.models.encoder import EncoderClassifier
from dpzo.models.encoding import encode_classes, encode_options
from dpzo.models.shapes import kept_features

WIDTH = 12


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(tiny_llama)


def same(one: Encoded, other: Encoded) -> None:
    for field in fields(Encoded):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


@settings(max_examples=15, deadline=None)
@given(
    texts=st.lists(st.text(max_size=15), min_size=1, max_size=20),
    block=st.integers(1, 7),
    map_above=st.sampled_from([0, 100, 1 << 20]),
    options=st.booleans(),
)
def test_blocks_give_what_the_whole_gives(
    tokenizer: transformers.PreTrainedTokenizerBase, texts: list[str], block: int, map_above: int, options: bool
) -> None:
    records = Records(fields={"text": texts}, labels=np.arange(len(texts)) % 2)
    firsts: list[int] = []

    def encode(part: Records, first: int) -> Encoded:
        firsts.append(first)
        assert part.labels is not None
        if options:
            return encode_options(tokenizer, part.texts, (" no", " yes"), part.labels, max_length=WIDTH)
        return encode_classes(tokenizer, part.texts, part.labels, max_length=WIDTH)

    found = encode_in_blocks(records, encode, block, map_above)
    assert firsts == list(range(0, len(texts), block))
    same(found, encode(records, 0))


def test_a_declaration_that_changes_between_blocks_is_noticed(
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> None:
    records = Records(fields={"text": ["a", "b"]}, labels=np.zeros(2, np.int64))

    def encode(part: Records, first: int) -> Encoded:
        assert part.labels is not None
        words = (" no", " yes") if first == 0 else (" no", " yes", " perhaps")
        return encode_options(tokenizer, part.texts, words, part.labels, max_length=20, max_answer_tokens=9)

    with pytest.raises(ValueError, match="other declarations"):
        encode_in_blocks(records, encode, 1)


def test_features_in_a_mapped_file_are_the_same(tiny_bert: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    module = EncoderClassifier(transformers.AutoModel.from_pretrained(tiny_bert).eval(), 32, 2)
    texts = [f"text {number}" for number in range(200)]
    encoded = encode_classes(tokenizer, texts, np.zeros(200, np.int64), max_length=WIDTH)
    mapped = kept_features(module, encoded, 2, map_above=0)
    assert torch.equal(mapped, kept_features(module, encoded, 2))
    assert mapped.dtype == torch.float32
