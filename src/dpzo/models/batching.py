"""Records as token matrices of one declared width, and micro-batches of one fixed shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpzo.errors import DpzoError

Form = Literal["classes", "completion", "options", "mask"]
"""How a record is scored: by class logits, its own answer, the best of several answers, or a word at the mask."""


@dataclass(frozen=True, repr=False)
class Encoded:
    """Tokenised records in memory; the width, the answer's width and the options' number are public declarations.

    `tokens` is int32, shape (records · options, max_length): the options of a record are consecutive rows. Content
    is contiguous, on the left of a row or (`left_padded`) on its right. **At least one column of every row is
    padding.** Transformers drops the attention mask, and so takes another kernel, for a batch in which no row is
    padded: a record's kernel would depend on the length of the others. The spare column keeps all records on one path.
    """

    form: Form
    tokens: NDArray[np.int32]  # (rows, max_length)
    token_types: NDArray[np.int8] | None  # (rows, max_length), for encoders of text pairs
    lengths: NDArray[np.int32]  # (rows,), tokens that are not padding: 1 … max_length − 1
    answer_lengths: NDArray[np.int32]  # (rows,), tokens at the row's end that are scored; 0 for classes
    targets: NDArray[np.int64]  # (records,), class or option; 0 for completions
    empty: NDArray[np.bool_]  # (records,), nothing to learn from: the loss is 0 at every θ
    options: int  # rows per record
    max_answer_tokens: int  # 0 for classes
    left_padded: bool
    pad_token_id: int
    mask_positions: NDArray[np.int32] | None = None  # (rows,), the column of the mask; for `mask` only
    scored: NDArray[np.bool_] | None = None  # (rows, max_answer_tokens), if an answer has several pieces
    word_ids: tuple[int, ...] = ()  # the token of each class's label word; for `mask` only

    def __post_init__(self) -> None:
        rows, width = self.tokens.shape
        records = self.targets.shape[0]
        if rows != records * self.options or self.lengths.shape != (rows,) or self.answer_lengths.shape != (rows,):
            raise ValueError("rows, lengths and targets do not belong together")
        if self.empty.shape != (records,):
            raise ValueError("one flag a record is needed")
        if rows and (self.lengths.min() < 1 or self.lengths.max() >= width):
            raise ValueError("a row needs one token and one column of padding")
        if rows and (self.answer_lengths.max() > self.max_answer_tokens or (self.answer_lengths >= self.lengths).any()):
            raise ValueError("an answer is longer than declared, or nothing precedes it")
        if self.scored is not None and (self.form, *self.scored.shape) != ("completion", rows, self.max_answer_tokens):
            raise ValueError("which tokens are scored is for completions, one flag a column of the answer")
        if (self.form == "mask") != (self.mask_positions is not None) or (self.form == "mask") != bool(self.word_ids):
            raise ValueError("a mask needs its column and its label words, and nothing else does")
        if self.mask_positions is not None and (
            self.mask_positions.shape != (rows,) or (self.mask_positions >= self.lengths).any()
        ):
            raise ValueError("a mask lies outside its row")

    def __repr__(self) -> str:
        return f"Encoded({self.form}, max_length={self.max_length})"

    def __len__(self) -> int:
        """Number of records."""
        return int(self.targets.shape[0])

    @property
    def max_length(self) -> int:
        """Columns of a row, padding included."""
        return int(self.tokens.shape[1])


@dataclass(frozen=True, repr=False)
class MicroBatch:
    """`microbatch_size` records, options in consecutive rows; records beyond `count` are padding."""

    input_ids: Tensor  # (rows, max_length) int64
    attention_mask: Tensor  # (rows, max_length) int64, 0 on padding
    position_ids: Tensor  # (rows, max_length) int64, from 0 at the first token
    token_types: Tensor | None  # (rows, max_length) int64
    answer_lengths: Tensor  # (rows,) int64
    targets: Tensor  # (records,) int64
    mask_positions: Tensor | None  # (rows,) int64; 0 for filling
    start: int  # position of its records in the request
    count: int  # how many of them are real
    scored: Tensor | None = None  # (rows, max_answer_tokens) bool; the last columns, where not all of them count


def microbatches(
    encoded: Encoded, records: NDArray[np.int64], microbatch_size: int, device: torch.device, least: int = 0
) -> Iterator[MicroBatch]:
    """Cut `records` (indices, any order, repeats allowed) into micro-batches of one shape, at least `least` of them.

    Shapes do not depend on any record: after the last record, dummy rows of one token each fill the micro-batch.
    """
    if microbatch_size < 1:
        raise DpzoError(f"microbatch_size is {microbatch_size}: it must be at least 1")
    for start in range(0, max(len(records), least * microbatch_size), microbatch_size):
        chosen = np.asarray(records[start : start + microbatch_size], dtype=np.int64)
        yield _microbatch(encoded, chosen, microbatch_size, start, device)


def filling(encoded: Encoded, microbatch_size: int, device: torch.device) -> MicroBatch:
    """A micro-batch of dummy rows alone."""
    return _microbatch(encoded, np.zeros(0, dtype=np.int64), microbatch_size, 0, device)


def _microbatch(
    encoded: Encoded, chosen: NDArray[np.int64], microbatch_size: int, start: int, device: torch.device
) -> MicroBatch:
    options, width, count = encoded.options, encoded.max_length, len(chosen)
    columns = torch.arange(width, dtype=torch.int64)
    rows = (chosen[:, None] * options + np.arange(options)).reshape(-1)
    real = len(rows)
    total = microbatch_size * options
    tokens = np.full((total, width), encoded.pad_token_id, dtype=np.int64)
    tokens[:real] = encoded.tokens[rows]
    lengths = np.ones(total, dtype=np.int64)
    lengths[:real] = encoded.lengths[rows]
    answers = np.zeros(total, dtype=np.int64)
    answers[:real] = encoded.answer_lengths[rows]
    targets = np.zeros(microbatch_size, dtype=np.int64)
    targets[:count] = encoded.targets[chosen]
    masks: Tensor | None = None
    if encoded.mask_positions is not None:
        places = np.zeros(total, dtype=np.int64)
        places[:real] = encoded.mask_positions[rows]
        masks = torch.from_numpy(places).to(device)
    flags: Tensor | None = None
    if encoded.scored is not None:
        pieces = np.zeros((total, encoded.max_answer_tokens), dtype=np.bool_)
        pieces[:real] = encoded.scored[rows]
        flags = torch.from_numpy(pieces).to(device)
    types: Tensor | None = None
    if encoded.token_types is not None:
        kinds = np.zeros((total, width), dtype=np.int64)
        kinds[:real] = encoded.token_types[rows]
        types = torch.from_numpy(kinds).to(device)
    length = torch.from_numpy(lengths)[:, None]
    first = width - length if encoded.left_padded else torch.zeros_like(length)
    mask = (columns >= first) & (columns < first + length)
    position = torch.where(mask, columns - first, torch.zeros((), dtype=torch.int64))
    return MicroBatch(
        input_ids=torch.from_numpy(tokens).to(device),
        attention_mask=mask.to(torch.int64).to(device),
        position_ids=position.to(device),
        token_types=types,
        answer_lengths=torch.from_numpy(answers).to(device),
        targets=torch.from_numpy(targets).to(device),
        mask_positions=masks,
        start=start,
        count=count,
        scored=flags,
    )
