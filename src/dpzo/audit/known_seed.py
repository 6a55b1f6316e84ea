"""Seed every global generator with the public seed, as published training scripts do.

Anyone with the program and the seed can run it again. If noise or batches come from a generator that the seed
determines, the second run draws the same values; the audit makes that second run and subtracts it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def seed_public_generators(seed: int) -> None:
    """Seed Python's, NumPy's and (where it is loaded) torch's global generators, as a training script does."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the global generator is the subject
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@contextmanager
def generators_put_back() -> Iterator[None]:
    """The global generators after the block are what they were before it."""
    torch = sys.modules.get("torch")
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    theirs = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if torch is not None:
            torch.set_rng_state(theirs)
