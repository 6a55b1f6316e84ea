"""The software environment of a run: versions for the card and for bug reports."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

import dpzo

_INSTALLED = ("torch", "transformers", "peft", "safetensors", "numpy", "scipy", "numba", "dp-accounting")
PACKAGES = ("python", "dpzo", *_INSTALLED, "threads")
"""The keys that an environment may have."""


def environment() -> dict[str, str]:
    """Package versions and the thread count, for bug reports and the card."""
    found = {"python": platform.python_version(), "dpzo": dpzo.__version__}
    for name in _INSTALLED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found | {"threads": str(torch.get_num_threads())}
