"""What computed a run: versions for the card and for bug reports."""

from __future__ import annotations

import importlib.metadata
import platform

import torch


def environment() -> dict[str, str]:
    """Versions of what computes, and the thread count: for bug reports and the card."""
    names = ("dpzo", "torch", "transformers", "peft", "safetensors", "numpy", "scipy", "numba", "dp-accounting")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found | {"threads": str(torch.get_num_threads())}
