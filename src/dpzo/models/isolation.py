"""The isolation check: a record's loss must not depend on the other records in its batch, not even in the last bit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpzo.errors import DpzoError
from dpzo.models.batching import Encoded, Form
from dpzo.models.objectives import Indices, Losses, RecordObjective
from dpzo.models.operators import same_course

_SYNTHETIC_SEED = 20_240_607
FULL_EVERY = 5
"""One synthetic record in this many fills its rows, and the one after it is as short as can be."""
SHUFFLED_ROWS = 48
"""Records evaluated in random places beside random neighbours, at least."""
COPIED = (0, 2)
"""Synthetic records, the first of full length, that are evaluated in every place beside their own copies."""
CANDIDATES = (16, 32, 8, 64, 48, 24, 4, 1)
"""Micro-batch sizes tried after the preferred one. A single record has no neighbours: the last resort."""


@dataclass(frozen=True)
class RowShape:
    """All that a micro-batch's shape depends on, every part of it declared: nothing is read from the data."""

    form: Form
    max_length: int
    vocabulary: int  # token numbers are drawn below it
    num_classes: int  # classes, or options a record; 1 for completions
    max_answer_tokens: int = 0
    left_padded: bool = False
    pad_token_id: int = 0
    with_token_types: bool = False
    word_ids: tuple[int, ...] = ()  # the label words' tokens, for `mask`
    mask_token_id: int = 0

    @classmethod
    def of(cls, encoded: Encoded, vocabulary: int, num_classes: int) -> RowShape:
        """The shape of `encoded`: of its declarations, not of its records."""
        return cls(
            form=encoded.form,
            max_length=encoded.max_length,
            vocabulary=vocabulary,
            num_classes=num_classes,
            max_answer_tokens=encoded.max_answer_tokens,
            left_padded=encoded.left_padded,
            pad_token_id=encoded.pad_token_id,
            with_token_types=encoded.token_types is not None,
            word_ids=encoded.word_ids,
        )


def synthetic_rows(shape: RowShape, records: int) -> Encoded:
    """Public random tokens of all lengths, the longest and the shortest among them, from a fixed local generator."""
    draw = np.random.Generator(np.random.PCG64(_SYNTHETIC_SEED))
    options = shape.num_classes if shape.form == "options" else 1
    rows, width = records * options, shape.max_length
    shortest = 1 if shape.form in ("classes", "mask") else 2
    lengths = draw.integers(shortest, width, size=rows, dtype=np.int32)
    by_record = lengths.reshape(records, options)
    by_record[::FULL_EVERY] = width - 1
    by_record[1::FULL_EVERY] = shortest
    tokens = draw.integers(0, shape.vocabulary, size=(rows, width), dtype=np.int32)
    columns = np.arange(width)
    first = (width - lengths if shape.left_padded else np.zeros_like(lengths))[:, None]
    tokens[(columns < first) | (columns >= first + lengths[:, None])] = shape.pad_token_id
    most = np.minimum(shape.max_answer_tokens, lengths - 1)
    answers = np.zeros(rows, dtype=np.int32)
    if shape.form in ("completion", "options"):
        answers = draw.integers(1, most + 1, size=rows, dtype=np.int32)
    classes = 1 if shape.form == "completion" else shape.num_classes
    masks: NDArray[np.int32] | None = None
    if shape.form == "mask":
        masks = draw.integers(0, lengths, dtype=np.int32)
        tokens[np.arange(rows), masks] = shape.mask_token_id
    return Encoded(
        form=shape.form,
        tokens=tokens,
        token_types=np.zeros((rows, width), dtype=np.int8) if shape.with_token_types else None,
        lengths=lengths,
        answer_lengths=answers,
        targets=draw.integers(0, classes, size=records),
        empty=np.zeros(records, dtype=np.bool_),
        options=options,
        max_answer_tokens=shape.max_answer_tokens,
        left_padded=shape.left_padded,
        pad_token_id=shape.pad_token_id,
        mask_positions=masks,
        word_ids=shape.word_ids,
    )


def check_isolation(objective: RecordObjective, microbatch_size: int, records: int | None = None) -> bool:
    """True if no arrangement of neighbours changes a record's loss by a single bit.

    `objective` is the production objective over `records` public synthetic records (2 · `microbatch_size` unless
    told). Every record is evaluated in several places of a micro-batch, beside other neighbours (longer, shorter,
    the very same, none but dummy rows), after an insertion and after removals; all results have to agree bit for bit.
    The operators and their shapes must not depend on the records.
    Ten micro-batches are run, and about `SHUFFLED_ROWS` records more. It is evidence on this machine, shape and
    thread count, not a proof; benchmarks/isolation.py measures what it misses (docs/isolation.md).
    """
    size = microbatch_size
    total = 2 * size if records is None else records
    if not keeps_bits(objective.losses, size, total):
        return False
    if size == 1:
        return True  # a single record may use a different sequence of operators
    half = np.arange(size, dtype=np.int64)
    courses = (np.full(size, 1, dtype=np.int64), half, total - 1 - half)  # short ones alone, two mixtures
    return same_course([partial(objective.losses, records) for records in courses])


def keeps_bits(evaluate: Callable[[Indices], Losses], size: int, total: int, most: int | None = None) -> bool:
    """Whether a record's number, or row of numbers, has the same bits in each (or the first `most`) arrangement."""
    seen: dict[int, bytes] = {}
    for arrangement in _arrangements(size, total)[:most]:
        rows = np.ascontiguousarray(evaluate(arrangement), dtype=np.float64)
        for record, row in zip(arrangement.tolist(), rows, strict=True):
            if seen.setdefault(record, row.tobytes()) != row.tobytes():
                return False
    return True


def _arrangements(size: int, total: int) -> list[NDArray[np.int64]]:
    first = np.arange(size, dtype=np.int64)
    other = np.arange(total - size, total, dtype=np.int64)
    mixed = first[::-1].copy()
    mixed[::2] = other[::2]  # the rest move, and every second neighbour is another record, of another length
    draw = np.random.Generator(np.random.PCG64(_SYNTHETIC_SEED + 1))
    return [
        first,
        mixed,
        np.concatenate((other[:1], first[: size - 1])),  # one inserted before all, the last one removed
        np.arange(1, 2, dtype=np.int64),  # a short one alone among dummy rows
        np.resize(np.arange(0, total, FULL_EVERY, dtype=np.int64), size),  # no row shorter than the longest
        draw.permutation(total)[: max(1, 3 * size // 4)],  # partly filled
        *[np.full(size, record, dtype=np.int64) for record in COPIED if record < total],  # all places at once
        # The places that round differently depend on the shape; small micro-batches are cheap, so more are drawn.
        *[draw.permutation(total)[:size] for _ in range(-(-SHUFFLED_ROWS // size))],
    ]


def choose_microbatch(
    make_objective: Callable[[Encoded, int], RecordObjective],
    shape: RowShape,
    preferred: int | None = None,
    candidates: Sequence[int] = CANDIDATES,
) -> int:
    """The first micro-batch size that passes `check_isolation`, the preferred one first.

    `make_objective(synthetic, microbatch_size)` builds the production objective over synthetic records. The answer
    holds for the present thread count: keep it for the run. Errors: `DpzoError` when even one record at a time does
    not repeat its own bits.
    """
    order = [*([] if preferred is None else [preferred]), *candidates]
    for size in dict.fromkeys(order):
        if check_isolation(make_objective(synthetic_rows(shape, 2 * size), size), size):
            return size
    raise DpzoError(
        f"--model: its losses do not repeat bit for bit on {torch.get_num_threads()} threads, "
        "so one record could show in another; use another model or a single thread (OMP_NUM_THREADS=1)"
    )


@contextmanager
def lively(module: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Give every all-zero parameter among `names` public random values for the length of a check.

    A head or a LoRA matrix that is still zero hides whatever precedes it: each record would have the same loss and
    every check would pass. The parameters' own storage is set aside and put back, not written.
    """
    with _replaced(module, names, lambda parameter, values: None if parameter.any() else values()):
        yield


@contextmanager
def moved(module: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Move every parameter among `names` by public random values for the length of a check, as `lively` does."""
    with _replaced(module, names, lambda parameter, values: parameter.data + 0.1 * values()):
        yield


@contextmanager
def _replaced(
    module: nn.Module,
    names: Collection[str],
    choose: Callable[[nn.Parameter, Callable[[], torch.Tensor]], torch.Tensor | None],
) -> Iterator[None]:
    """Stand-ins for some parameters, chosen from them and from public values on [−½, ½); None leaves one as it is."""
    draw = torch.Generator().manual_seed(_SYNTHETIC_SEED)
    aside: list[tuple[nn.Parameter, torch.Tensor]] = []
    try:
        for name, parameter in module.named_parameters():
            if name in names:
                chosen = choose(parameter, partial(_public_values, parameter, draw))
                if chosen is not None:
                    aside.append((parameter, parameter.data))
                    parameter.data = chosen
        yield
    finally:
        for parameter, data in aside:
            parameter.data = data


def _public_values(like: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    values = torch.rand(like.shape, generator=draw) - 0.5
    return values.to(device=like.device, dtype=like.dtype)
