"""k examples of each label, drawn by a public seed: the small training sets of the few-shot papers."""

from __future__ import annotations

import numpy as np

from dpzo.errors import DpzoError
from dpzo.tasks.records import Records


def k_shot(records: Records, k: int, seed: int) -> tuple[Records, Records]:
    """(train, dev): the records shuffled by `seed`; of each label the first k train and the next k are dev.

    - Order: as shuffled, label by label, in the order of the labels' indices. N of train is k · labels if every label
      has k records; a label with fewer gives what it has.
    - The generator is numpy's legacy one, for its stream is frozen: a seed means the same records in every version. It
      is local; numpy's global state is not touched.
    - Which records are drawn depends on all of them: declare a unit's data public before it is drawn from, or draw
      first and take what was drawn as the private set.

    Errors: DpzoError for records without labels or k < 1. Source: LM-BFF (Gao et al. 2021).
    """
    if records.labels is None:
        raise DpzoError("k-shot sampling needs labels; a completion task has none")
    if k < 1:
        raise DpzoError("k-shot sampling needs k of 1 or more")
    order = np.random.RandomState(seed).permutation(len(records))
    found = records.labels[order]
    train: list[int] = []
    dev: list[int] = []
    for label in np.unique(records.labels):
        mine = order[found == label].tolist()
        train += mine[:k]
        dev += mine[k : 2 * k]
    return records.subset(train), records.subset(dev)
