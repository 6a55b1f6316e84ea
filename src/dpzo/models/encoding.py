"""Texts to token matrices: cut at the declared length, silent, and defined for every string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpzo.errors import DpzoError
from dpzo.models.batching import Encoded
from dpzo.models.quiet import silent_libraries

_CHUNK = 1024
"""Texts handed to the tokenizer at a time; it bounds memory and changes nothing else."""


def encode_classes(
    tokenizer: Any,
    texts: Sequence[str],
    targets: Sequence[int] | NDArray[np.int64],
    *,
    max_length: int,
    pairs: Sequence[str] | None = None,
) -> Encoded:
    """Texts (or pairs of texts) for an encoder or a sequence classifier; padding on the right.

    `max_length` is the width of every row; one column of it is always padding, so max_length − 1 tokens of a text are
    kept, special ones included, cut on the right. An empty or blank text is flagged.
    """
    special = tokenizer.num_special_tokens_to_add(pair=pairs is not None)
    if max_length - 1 < special + (1 if pairs is None else 2):
        raise DpzoError(f"--max-length {max_length}: too short, {special} special tokens and one of padding come first")
    matrix = _Matrix(len(texts), max_length, tokenizer.pad_token_id, left_padded=False)
    types = np.zeros((len(texts), max_length), dtype=np.int8) if pairs is not None else None
    with silent_libraries():
        for start in range(0, len(texts), _CHUNK):
            block = [_plain(text) for text in texts[start : start + _CHUNK]]
            other = [_plain(text) for text in pairs[start : start + _CHUNK]] if pairs is not None else None
            found = _tokenise(tokenizer, block, other, truncation=True, max_length=max_length - 1)
            for row, ids in enumerate(found["input_ids"], start):
                matrix.put(row, ids if ids else [tokenizer.pad_token_id])
                if types is not None and "token_type_ids" in found:
                    types[row, : len(ids)] = found["token_type_ids"][row - start]
    blank = np.fromiter((not text.strip() for text in texts), dtype=np.bool_, count=len(texts))
    if pairs is not None:
        blank &= np.fromiter((not text.strip() for text in pairs), dtype=np.bool_, count=len(texts))
    return Encoded(
        form="classes",
        tokens=matrix.tokens,
        token_types=types,
        lengths=matrix.lengths,
        answer_lengths=np.zeros(len(texts), dtype=np.int32),
        targets=np.asarray(targets, dtype=np.int64).reshape(len(texts)),
        empty=blank,
        options=1,
        max_answer_tokens=0,
        left_padded=False,
        pad_token_id=int(tokenizer.pad_token_id),
    )


def encode_completions(
    tokenizer: Any,
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    max_length: int,
    max_answer_tokens: int,
    end_of_text: bool = False,
) -> Encoded:
    """Prompt and answer for a causal model; padding on the left, so that answers end in the last column.

    An answer beyond `max_answer_tokens` is cut on the right; the prompt is cut on the left to what remains of
    max_length − 1 tokens, its leading special token kept. `end_of_text` appends the tokenizer's end token to an
    answer that does not end with it, before it is cut. An empty completion is flagged.
    """
    _check_widths(max_length, max_answer_tokens)
    matrix = _Matrix(len(prompts), max_length, tokenizer.pad_token_id, left_padded=True)
    answers = np.zeros(len(prompts), dtype=np.int32)
    end = [tokenizer.eos_token_id] if end_of_text and tokenizer.eos_token_id is not None else []
    _fill(tokenizer, prompts, completions, matrix, answers, max_answer_tokens, end)
    return Encoded(
        form="completion",
        tokens=matrix.tokens,
        token_types=None,
        lengths=matrix.lengths,
        answer_lengths=answers,
        targets=np.zeros(len(prompts), dtype=np.int64),
        empty=np.fromiter((not text for text in completions), dtype=np.bool_, count=len(prompts)) | (answers == 0),
        options=1,
        max_answer_tokens=max_answer_tokens,
        left_padded=True,
        pad_token_id=int(tokenizer.pad_token_id),
    )


def encode_options(
    tokenizer: Any,
    prompts: Sequence[str],
    label_words: Sequence[str],
    targets: Sequence[int] | NDArray[np.int64],
    *,
    max_length: int,
    empty: NDArray[np.bool_] | None = None,
    max_answer_tokens: int | None = None,
) -> Encoded:
    """Every prompt with every label word: a record becomes `len(label_words)` rows of one shape.

    `empty` flags records whose own text is empty although the template is not; without it, a blank prompt is flagged.
    `max_answer_tokens` defaults to the longest label word standing alone: a function of the public words only.
    """
    if len(label_words) < 2 or any(not word.strip() for word in label_words):
        raise DpzoError("label words: at least two are needed, none of them blank")
    options = len(label_words)
    if max_answer_tokens is None:
        with silent_libraries():
            alone = _tokenise(tokenizer, list(label_words), None, add_special_tokens=False)["input_ids"]
        max_answer_tokens = max(len(ids) for ids in alone)
    _check_widths(max_length, max_answer_tokens)
    rows = len(prompts) * options
    matrix = _Matrix(rows, max_length, tokenizer.pad_token_id, left_padded=True)
    answers = np.zeros(rows, dtype=np.int32)
    _fill(tokenizer, _Repeated(prompts, options), _Cycled(label_words, rows), matrix, answers, max_answer_tokens, [])
    if empty is None:
        empty = np.fromiter((not text.strip() for text in prompts), dtype=np.bool_, count=len(prompts))
    return Encoded(
        form="options",
        tokens=matrix.tokens,
        token_types=None,
        lengths=matrix.lengths,
        answer_lengths=answers,
        targets=np.asarray(targets, dtype=np.int64).reshape(len(prompts)),
        empty=empty,
        options=options,
        max_answer_tokens=max_answer_tokens,
        left_padded=True,
        pad_token_id=int(tokenizer.pad_token_id),
    )


def answer_width(tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]) -> int:
    """Tokens of the longest of `answers`, alone or in place after any of `prompts`. All of them are public."""
    with silent_libraries():
        alone = _tokenise(tokenizer, list(answers), None, add_special_tokens=False)["input_ids"]
        heads = [_plain(prompt) for prompt in prompts for _ in answers]
        placed = _split(tokenizer, heads, [_plain(answer) for answer in answers] * len(prompts))
    return max(max(len(ids) for ids in alone), *(len(answer) for _, _, answer in placed))


@dataclass(frozen=True, repr=False)
class _Repeated(Sequence[str]):
    """Each text `times` times in a row, without the copies."""

    texts: Sequence[str]
    times: int

    def __len__(self) -> int:
        return len(self.texts) * self.times

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.texts[index // self.times]


@dataclass(frozen=True, repr=False)
class _Cycled(Sequence[str]):
    """The texts over and over, `length` in all."""

    texts: Sequence[str]
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.length))]
        return self.texts[index % len(self.texts)]


class _Matrix:
    """Rows of one width, filled one by one."""

    def __init__(self, rows: int, width: int, pad_token_id: int, *, left_padded: bool) -> None:
        self.tokens = np.full((rows, width), pad_token_id, dtype=np.int32)
        self.lengths = np.zeros(rows, dtype=np.int32)
        self._left_padded = left_padded

    def put(self, row: int, ids: Sequence[int]) -> None:
        width = self.tokens.shape[1]
        first = width - len(ids) if self._left_padded else 0
        self.tokens[row, first : first + len(ids)] = ids
        self.lengths[row] = len(ids)


def _check_widths(max_length: int, max_answer_tokens: int) -> None:
    if max_answer_tokens < 1:
        raise DpzoError(f"max_answer_tokens is {max_answer_tokens}: it must be at least 1")
    if max_length < max_answer_tokens + 4:
        raise DpzoError(
            f"--max-length {max_length}: too short for answers of {max_answer_tokens} tokens; "
            f"it must be at least {max_answer_tokens + 4}"
        )


def _fill(
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str],
    matrix: _Matrix,
    answer_lengths: NDArray[np.int32],
    max_answer_tokens: int,
    end: list[int],
) -> None:
    """Tokenise prompt and answer as one text, split them by character offsets, cut, and store.

    One text, because a tokenizer may merge across the border: a token that reaches into the answer belongs to it.
    """
    context = next(
        token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if token is not None
    )
    room = matrix.tokens.shape[1] - 1
    with silent_libraries():
        for start in range(0, len(prompts), _CHUNK):
            heads = [_plain(text) for text in prompts[start : start + _CHUNK]]
            tails = [_plain(text) for text in answers[start : start + _CHUNK]]
            for row, (prefix, prompt, answer) in enumerate(_split(tokenizer, heads, tails), start):
                kept = [*answer, *(end if answer[-1:] != end else [])][:max_answer_tokens] if answer else []
                before = prefix if prefix or prompt else [context]  # the first answer token needs something before it
                space = room - len(before) - len(kept)
                ids = [*before, *(prompt[-space:] if space > 0 else []), *kept]
                matrix.put(row, ids)
                answer_lengths[row] = len(kept)


def _split(tokenizer: Any, heads: list[str], tails: list[str]) -> list[tuple[list[int], list[int], list[int]]]:
    """(leading special tokens, prompt, answer) of each text."""
    if not tokenizer.is_fast:  # no offsets: the two parts are tokenised apart
        first = _tokenise(tokenizer, heads, None, add_special_tokens=False)["input_ids"]
        second = _tokenise(tokenizer, tails, None, add_special_tokens=False)["input_ids"]
        lead = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        return [(lead, list(prompt), list(answer)) for prompt, answer in zip(first, second, strict=True)]
    whole = [head + tail for head, tail in zip(heads, tails, strict=True)]
    found = _tokenise(tokenizer, whole, None, return_offsets_mapping=True, return_special_tokens_mask=True)
    parts = []
    for head, ids, offsets, special in zip(
        heads, found["input_ids"], found["offset_mapping"], found["special_tokens_mask"], strict=True
    ):
        lead_count = sum(1 for _ in takewhile(bool, special))
        trail_count = sum(1 for _ in takewhile(bool, reversed(special))) if lead_count < len(ids) else 0
        stop = len(ids) - trail_count
        border = next((i for i in range(lead_count, stop) if offsets[i][1] > len(head)), stop)
        parts.append((list(ids[:lead_count]), list(ids[lead_count:border]), list(ids[border:stop])))
    return parts


def _tokenise(tokenizer: Any, texts: list[str], pairs: list[str] | None, **options: Any) -> Any:
    try:
        if pairs is None:
            return tokenizer(texts, verbose=False, **options)
        return tokenizer(texts, pairs, verbose=False, **options)
    except Exception as error:  # its message may quote a record
        kind = type(error).__name__
        raise DpzoError(f"the model's tokenizer failed on the data ({kind}); try a fast tokenizer") from None


def _plain(text: str) -> str:
    """The text with lone surrogates, which no tokenizer accepts, replaced by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
