"""Texts to matrices: total on every string, cut where declared, silent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpzo.config.schema import DataConfig
from dpzo.data.tasks import Task
from dpzo.errors import DpzoError
from dpzo.models.batching import Encoded, microbatches
from dpzo.models.encoding import encode_classes, encode_completions, encode_options
from dpzo.run.subject import end_token

Tokenizers = dict[str, Any]
ANY_TEXT = st.text(st.characters(codec=None), max_size=60)  # lone surrogates included
SHARED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def row_of(encoded: Encoded, row: int) -> list[int]:
    width, length = encoded.max_length, int(encoded.lengths[row])
    content = encoded.tokens[row, width - length :] if encoded.left_padded else encoded.tokens[row, :length]
    return [int(token) for token in content]


@SHARED
@given(texts=st.lists(ANY_TEXT, max_size=6), width=st.integers(4, 40))
def test_any_text_makes_a_row_of_the_declared_width(tokenizers: Tokenizers, texts: list[str], width: int) -> None:
    encoded = encode_classes(tokenizers["bert"], texts, [0] * len(texts), max_length=width)
    assert encoded.tokens.shape == (len(texts), width)
    assert encoded.tokens.dtype == np.int32
    assert ((encoded.lengths >= 1) & (encoded.lengths < width)).all()
    assert (encoded.tokens[:, -1] == 0).all()
    assert [bool(flag) for flag in encoded.empty] == [not text.strip() for text in texts]
    for row in range(len(texts)):
        content = row_of(encoded, row)
        assert content[0] == 1
        assert content[-1] == 2


@SHARED
@given(
    records=st.lists(st.tuples(ANY_TEXT, ANY_TEXT), max_size=5),
    answer=st.integers(1, 9),
    extra=st.integers(4, 30),
    family=st.sampled_from(["gpt2", "opt", "llama", "qwen2"]),
)
def test_any_prompt_and_answer_make_a_right_aligned_row(
    tokenizers: Tokenizers, records: list[tuple[str, str]], answer: int, extra: int, family: str
) -> None:
    prompts, completions = [a for a, _ in records], [b for _, b in records]
    width = answer + extra
    encoded = encode_completions(tokenizers[family], prompts, completions, max_length=width, max_answer_tokens=answer)
    assert encoded.tokens.shape == (len(records), width)
    assert (encoded.tokens[:, 0] == encoded.pad_token_id).all()
    assert (encoded.answer_lengths <= answer).all()
    assert (encoded.answer_lengths < encoded.lengths).all()
    assert all(flag for flag, text in zip(encoded.empty, completions, strict=True) if not text)
    if family in ("opt", "llama"):
        assert all(row_of(encoded, row)[0] == 1 for row in range(len(records)))


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen2"])
def test_prompt_and_answer_join_into_the_text(tokenizers: Tokenizers, family: str) -> None:
    tokenizer = tokenizers[family]
    prompt, answer = "the film was", " great acting"
    encoded = encode_completions(tokenizer, [prompt], [answer], max_length=40, max_answer_tokens=12)
    content = row_of(encoded, 0)
    scored = int(encoded.answer_lengths[0])
    assert content == tokenizer(prompt + answer)["input_ids"]
    assert tokenizer.decode(content[-scored:]) == answer
    ended = encode_completions(tokenizer, [prompt], [answer], max_length=40, max_answer_tokens=12, end_of_text=True)
    assert row_of(ended, 0) == [*content, 2]
    assert int(ended.answer_lengths[0]) == scored + 1


def test_a_token_that_crosses_the_border_belongs_to_the_answer(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["llama"]
    ids = tokenizer("the film")["input_ids"]
    assert len(ids) < 2 + len("the film")  # the tokenizer merges, so a border can fall inside a token
    encoded = encode_completions(tokenizer, ["the fi"], ["lm"], max_length=30, max_answer_tokens=8)
    assert row_of(encoded, 0) == ids
    answer = tokenizer.decode(ids[-int(encoded.answer_lengths[0]) :])
    assert answer.endswith("lm")
    assert len(answer) >= 2


def test_a_long_prompt_loses_its_beginning_but_not_its_first_token_nor_the_answer(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["llama"]
    prompt, answer = "great music " * 50 + "it was", " terrible"
    whole = tokenizer(prompt + answer)["input_ids"]
    encoded = encode_completions(tokenizer, [prompt], [answer], max_length=16, max_answer_tokens=6)
    assert row_of(encoded, 0) == [1, *whole[-14:]]
    assert int(encoded.lengths[0]) == 15


def test_a_long_answer_is_cut_at_the_public_bound(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["opt"]
    encoded = encode_completions(tokenizer, ["the film was"], [" great" * 99], max_length=20, max_answer_tokens=5)
    assert int(encoded.answer_lengths[0]) == 5
    prompt = tokenizer("the film was")["input_ids"]
    assert row_of(encoded, 0)[: len(prompt)] == prompt


def test_an_answer_without_a_prompt_has_something_before_it(tokenizers: Tokenizers) -> None:
    encoded = encode_completions(tokenizers["gpt2"], ["", ""], ["great", ""], max_length=12, max_answer_tokens=6)
    assert row_of(encoded, 0)[0] == 1
    assert int(encoded.answer_lengths[0]) == int(encoded.lengths[0]) - 1
    assert encoded.empty.tolist() == [False, True]


def test_options_are_consecutive_rows(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["qwen2"]
    words = [" terrible", " great"]
    prompts = ["a dull story it was", "great it was"]
    encoded = encode_options(tokenizer, prompts, words, [0, 1], max_length=32)
    assert encoded.tokens.shape == (4, 32)
    assert encoded.options == 2
    assert encoded.max_answer_tokens == max(len(tokenizer(word)["input_ids"]) for word in words)
    texts = [tokenizer.decode(row_of(encoded, row)[-int(encoded.answer_lengths[row]) :]) for row in range(4)]
    assert texts == words * 2
    with pytest.raises(DpzoError, match="label words"):
        encode_options(tokenizer, prompts, [" a"], [0, 0], max_length=32)


def test_pairs_carry_their_kinds(tokenizers: Tokenizers) -> None:
    encoded = encode_classes(tokenizers["bert"], ["the film", ""], [0, 1], max_length=32, pairs=["was great", " "])
    assert encoded.token_types is not None
    assert set(encoded.token_types[0]) == {0, 1}
    assert encoded.empty.tolist() == [False, True]


def test_widths_that_hold_nothing_are_refused(tokenizers: Tokenizers) -> None:
    with pytest.raises(DpzoError, match="--max-length 3"):
        encode_classes(tokenizers["bert"], ["a"], [0], max_length=3)
    with pytest.raises(DpzoError, match=r"--max-length 8.*at least 9"):
        encode_completions(tokenizers["opt"], ["a"], ["b"], max_length=8, max_answer_tokens=5)
    with pytest.raises(DpzoError, match="max_answer_tokens is 0"):
        encode_completions(tokenizers["opt"], ["a"], ["b"], max_length=8, max_answer_tokens=0)


def test_nothing_about_a_record_is_printed_or_kept_in_an_error(
    tokenizers: Tokenizers, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    secret = "MEGALOPOLIS-7741 "
    encode_classes(tokenizers["bert"], [secret * 400, "\ud800" + secret], [0, 1], max_length=16)
    encoded = encode_completions(tokenizers["llama"], [secret * 400], [secret], max_length=16, max_answer_tokens=4)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert "7741" not in repr(encoded)

    class Broken:
        pad_token_id, is_fast = 0, True

        def num_special_tokens_to_add(self, pair: bool) -> int:
            return 0

        def __call__(self, texts: list[str], **options: Any) -> Any:
            raise ValueError(f"cannot digest {texts[0]}")

    with pytest.raises(DpzoError, match="ValueError") as caught:
        encode_classes(Broken(), [secret], [0], max_length=8)
    assert "7741" not in str(caught.value)
    assert caught.value.__suppress_context__


@given(count=st.integers(0, 11), size=st.integers(1, 5), left=st.booleans(), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_microbatches_have_one_shape_and_lose_nothing(count: int, size: int, left: bool, seed: int) -> None:
    draw = np.random.default_rng(seed)
    width, options, total = 7, 2, 6
    lengths = draw.integers(2, width, size=total * options, dtype=np.int32)
    encoded = Encoded(
        form="options",
        tokens=draw.integers(5, 90, size=(total * options, width), dtype=np.int32),
        token_types=None,
        lengths=lengths,
        answer_lengths=np.ones(total * options, dtype=np.int32),
        targets=np.arange(total),
        empty=np.zeros(total, dtype=np.bool_),
        options=options,
        max_answer_tokens=2,
        left_padded=left,
        pad_token_id=0,
    )
    records = draw.integers(0, total, size=count)
    seen: list[int] = []
    for batch in microbatches(encoded, records, size, torch.device("cpu")):
        assert batch.input_ids.shape == batch.attention_mask.shape == batch.position_ids.shape == (size * 2, width)
        assert batch.targets.shape == (size,)
        assert (batch.attention_mask.sum(dim=1) >= 1).all()
        spare = batch.attention_mask[:, 0 if left else -1]
        assert not spare.any()
        for row in range(batch.count * options):
            index = int(records[batch.start + row // options]) * options + row % options
            mask = batch.attention_mask[row].bool()
            assert int(mask.sum()) == lengths[index]
            assert batch.position_ids[row][mask].tolist() == list(range(lengths[index]))
            assert batch.input_ids[row].tolist() == encoded.tokens[index].tolist()
        seen += batch.targets[: batch.count].tolist()
    assert seen == records.tolist()


def test_rows_without_spare_padding_are_refused() -> None:
    with pytest.raises(ValueError, match="one column of padding"):
        Encoded(
            form="classes",
            tokens=np.ones((1, 4), dtype=np.int32),
            token_types=None,
            lengths=np.full(1, 4, dtype=np.int32),
            answer_lengths=np.zeros(1, dtype=np.int32),
            targets=np.zeros(1, dtype=np.int64),
            empty=np.zeros(1, dtype=np.bool_),
            options=1,
            max_answer_tokens=0,
            left_padded=False,
            pad_token_id=0,
        )


def test_an_end_token_follows_an_answer_once(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["llama"]
    mark = tokenizer.eos_token
    answers = [" great", f" great{mark}", f" a{mark} b", "", " long" * 30]
    encoded = encode_completions(
        tokenizer, ["it was"] * 5, answers, max_length=40, max_answer_tokens=12, end_of_text=True
    )
    tails = [
        list(row[-length:]) if length else []
        for row, length in zip(encoded.tokens, encoded.answer_lengths, strict=True)
    ]
    end = tokenizer.eos_token_id
    assert tails[0] == tails[1]
    assert [tail.count(end) for tail in tails] == [1, 1, 2, 0, 0]  # what is cut does not end
    assert all(tail[-1] == end for tail in tails[:3])
    assert encoded.empty.tolist() == [False, False, False, True, False]


@pytest.mark.parametrize(
    ("data", "answer", "stop", "expected"),
    [
        ({"kind": "completion"}, "{completion}", None, "append"),
        ({"kind": "completion", "end_token": "none"}, "{completion}", None, "none"),
        ({"task": "t"}, " {completion}\n", "\n", "none"),
        ({"task": "t"}, " {completion}", "\n", "append"),
        ({"task": "t", "end_token": "append"}, " {completion}\n", "\n", "append"),
        ({"kind": "chat"}, "{completion}", None, None),
    ],
)
def test_whether_an_end_token_follows_is_a_matter_of_declarations(
    tokenizers: dict[str, Any], data: dict[str, Any], answer: str, stop: str | None, expected: str | None
) -> None:
    task = Task(name="t", kind="completion", template="{p}", answer_template=answer, stop=stop, metric="loss")
    assert end_token(DataConfig(**data), task, tokenizers["llama"]) == expected
    without = SimpleNamespace(eos_token_id=None)
    if data.get("end_token") == "append":
        with pytest.raises(DpzoError, match=r"data\.end_token append: the model's tokenizer has no end token"):
            end_token(DataConfig(**data), task, without)
    elif expected is not None:
        assert end_token(DataConfig(**data), task, without) == "none"
