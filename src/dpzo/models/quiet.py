"""Silence the libraries, and preserve the state of the global random generators."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import huggingface_hub.utils
import numpy as np
import torch
import transformers.utils.logging

_TRANSFORMERS: Any = transformers.utils.logging
_HUB: Any = huggingface_hub.utils
_NOISY = (
    "transformers",
    "peft",
    "huggingface_hub",
    "tokenizers",
    "safetensors",
    "accelerate",
    "bitsandbytes",
    "torchao",
    "torch.utils._pytree",  # it speaks while torchao is imported, as PEFT does where torchao is installed
)


_SILENCED = ContextVar("silenced", default=False)
"""Whether a block further out holds already: setting a level clears the caches of every logger, 20 ms a time."""


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Run a block in which the model libraries print, log and warn nothing.

    A tokenizer prints the length of a record that is too long, and a loader draws progress bars: the first is a leak,
    the second breaks `--json`. Levels, handlers and bars are restored afterwards. Exceptions propagate. A block within
    such a block costs nothing.
    """
    if _SILENCED.get():
        yield
        return
    token = _SILENCED.set(True)
    try:
        with _silenced():
            yield
    finally:
        _SILENCED.reset(token)


@contextmanager
def _silenced() -> Iterator[None]:
    verbosity = _TRANSFORMERS.get_verbosity()
    transformers_bar = _TRANSFORMERS.is_progress_bar_enabled()
    hub_bar_off = _HUB.are_progress_bars_disabled()
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    try:
        _TRANSFORMERS.set_verbosity(logging.CRITICAL)
        _TRANSFORMERS.disable_progress_bar()
        _HUB.disable_progress_bars()
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _TRANSFORMERS.set_verbosity(verbosity)
        if transformers_bar:
            _TRANSFORMERS.enable_progress_bar()
        if not hub_bar_off:
            _HUB.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def global_generators_kept() -> Iterator[None]:
    """Run a block that may draw from torch's, numpy's or Python's global generators, and put their states back.

    Libraries initialise fresh layers from the global generators. Every such value is overwritten by the public
    initialiser, so the draws themselves are of no use; only their trace on the user's program has to go.
    """
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002  the legacy global state is the thing being protected
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
