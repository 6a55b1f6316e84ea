"""Padding to the longest row of a batch: one record's length decides how another's loss is rounded."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dpzo.models.initialiser import seeded_initialiser
from dpzo.models.isolation import RowShape, choose_microbatch, synthetic_rows
from dpzo.models.models import load_model
from dpzo.models.objectives import TokenObjective

SHAPE = RowShape("completion", max_length=40, vocabulary=264, num_classes=1, max_answer_tokens=6)
RECORDS = 24


class PaddedToTheLongest(nn.Module):
    """A model that is handed each micro-batch cut to its longest row, as collating loaders do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, use_cache: bool = False) -> Any:
        width, longest = input_ids.shape[1], int(attention_mask.sum(dim=1).max())
        cut = slice(width - longest, None) if bool(attention_mask[:, -1].all()) else slice(0, longest)
        output = self.inner(
            input_ids=input_ids[:, cut],
            attention_mask=attention_mask[:, cut],
            position_ids=position_ids[:, cut],
            use_cache=use_cache,
        )
        logits = output.logits.new_zeros((len(input_ids), width, output.logits.shape[-1]))
        logits[:, cut] = output.logits
        output.logits = logits
        return output


@pytest.mark.parametrize("left_padded", [False, True])
def test_padding_to_the_longest(checks: ModuleType, tiny_llama: Path, left_padded: bool) -> None:
    loaded = load_model(tiny_llama, "completion", trainable="full", initialiser=seeded_initialiser(1))
    shape = RowShape(**{**vars(SHAPE), "left_padded": left_padded})
    rows = synthetic_rows(shape, RECORDS)

    def rows_of(objective: TokenObjective) -> Any:
        return lambda records: objective.losses(np.ascontiguousarray(records))[:, None]

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Which sizes are isolated hangs on the machine; with one record at a time there is no neighbour to feel.
        size = choose_microbatch(lambda some, size: TokenObjective(loaded.module, some, size), shape, 8, (16, 32, 4))
        checks.check_rows_are_isolated(rows_of(TokenObjective(loaded.module, rows, size)), RECORDS)
        with pytest.raises(checks.Caught, match="other units"):
            checks.check_rows_are_isolated(
                rows_of(TokenObjective(PaddedToTheLongest(loaded.module), rows, size)), RECORDS
            )
    finally:
        torch.set_num_threads(before)
