"""k examples of each label, drawn by a public seed: the small training sets of the few-shot papers."""

from __future__ import annotations

from random import Random

import numpy as np
from numpy.typing import NDArray

from dpzo.data.tasks.records import Records
from dpzo.errors import DpzoError


def k_shot(records: Records, k: int, seed: int) -> tuple[Records, Records]:
    """(train, dev): the records shuffled by `seed`; of each label the first k train and the next k are dev.

    - Order: as shuffled, label by label, in the order of the labels' indices. N of train is k · labels if every label
      has k records; a label with fewer gives what it has.
    - The order is that of `numpy.random.seed(seed); numpy.random.shuffle(…)`, as the papers' scripts draw it, written
      out here: a seed means the same records in every version, and no global state is touched.
    - Which records are drawn depends on all of them: declare a unit's data public before it is drawn from, or draw
      first and take what was drawn as the private set.

    Errors: DpzoError for records without labels, k < 1, or a seed that numpy does not accept.
    Source: LM-BFF (Gao et al. 2021).
    """
    if records.labels is None:
        raise DpzoError("k-shot sampling needs labels; a completion task has none")
    if k < 1:
        raise DpzoError("k-shot sampling needs k of 1 or more")
    if not 0 <= seed < 2**32:
        raise DpzoError("k-shot sampling needs a seed of 0 to 2³² − 1")
    order = _shuffled(len(records), seed)
    found = records.labels[order]
    train: list[int] = []
    dev: list[int] = []
    for label in np.unique(records.labels):
        mine = order[found == label].tolist()
        train += mine[:k]
        dev += mine[k : 2 * k]
    return records.subset(train), records.subset(dev)


def _shuffled(count: int, seed: int) -> NDArray[np.int64]:
    """0 … count − 1 as numpy's legacy shuffle leaves them: Fisher–Yates from the end, indices by masked rejection."""
    words, value = [], seed
    for place in range(624):  # the Mersenne Twister's state, seeded as its authors do
        words.append(value)
        value = (1812433253 * (value ^ (value >> 30)) + place + 1) & 0xFFFFFFFF
    # Python's generator is the same twister; only its own way of seeding is another.
    twister = Random()
    twister.setstate((3, (*words, 624), None))
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        mask = (1 << last.bit_length()) - 1
        chosen = twister.getrandbits(32) & mask
        while chosen > last:
            chosen = twister.getrandbits(32) & mask
        order[last], order[chosen] = order[chosen], order[last]
    return np.array(order, dtype=np.int64)
