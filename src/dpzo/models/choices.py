"""Records with their own options, such as COPA's two sentences: every prompt with each option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpzo.errors import DpzoError
from dpzo.models.batching import Encoded
from dpzo.models.encoding import encode_completions


def encode_choices(
    tokenizer: Any,
    prompts: Sequence[str],
    choices: Sequence[Sequence[str]],
    targets: Sequence[int] | NDArray[np.int64],
    *,
    max_length: int,
    max_answer_tokens: int,
    empty: NDArray[np.bool_],
) -> Encoded:
    """Option j of record i is row i·options + j, as `encode_options` lays them out for label words.

    The options are private texts, so the width kept for them is a declared one: longer ones are cut on the right. The
    number of options is public and the same for every record. `empty` flags the records that lose their say; so does
    an option without a token. Errors: DpzoError for unequal numbers or fewer than two.
    """
    counts = {len(options) for options in choices}
    if len(counts) > 1 or (counts and min(counts) < 2):
        raise DpzoError("options: every record needs one and the same number of them, two or more")
    count = counts.pop() if counts else 2
    rows = encode_completions(
        tokenizer,
        [prompt for prompt in prompts for _ in range(count)],
        [option for options in choices for option in options],
        max_length=max_length,
        max_answer_tokens=max_answer_tokens,
    )
    unsaid = (rows.answer_lengths == 0).reshape(len(prompts), count).any(axis=1)
    return replace(
        rows,
        form="options",
        targets=np.asarray(targets, dtype=np.int64).reshape(len(prompts)),
        empty=np.asarray(empty, dtype=np.bool_) | unsaid,
        options=count,
    )
