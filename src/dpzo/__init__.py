"""dpzo: private fine-tuning of language models with forward passes only.

The names below are imported when they are first used, so that `import dpzo`, `import dpzo.privacy` and `dpzo --help`
load no deep-learning library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpzo.config import RunConfig, load_config, parse_config
    from dpzo.errors import DpzoError
    from dpzo.local import DataSource
    from dpzo.modules import Settings, fit, replay
    from dpzo.privacy import NeighboringRelation, PrivacyPlan, PrivateChannel, Release
    from dpzo.runs import resume
    from dpzo.runs import train as finetune
    from dpzo.solve import solve_plan
    from dpzo.trained_model import evaluate, generate

__version__ = "0.1.0"

_HOME = {
    "DataSource": "dpzo.local",
    "DpzoError": "dpzo.errors",
    "NeighboringRelation": "dpzo.privacy",
    "PrivacyPlan": "dpzo.privacy",
    "PrivateChannel": "dpzo.privacy",
    "Release": "dpzo.privacy",
    "RunConfig": "dpzo.config",
    "Settings": "dpzo.modules",
    "evaluate": "dpzo.trained_model",
    "finetune": "dpzo.runs",
    "fit": "dpzo.modules",
    "generate": "dpzo.trained_model",
    "load_config": "dpzo.config",
    "parse_config": "dpzo.config",
    "replay": "dpzo.modules",
    "resume": "dpzo.runs",
    "solve_plan": "dpzo.solve",
}

__all__ = [
    "DataSource",
    "DpzoError",
    "NeighboringRelation",
    "PrivacyPlan",
    "PrivateChannel",
    "Release",
    "RunConfig",
    "Settings",
    "evaluate",
    "finetune",
    "fit",
    "generate",
    "load_config",
    "parse_config",
    "replay",
    "resume",
    "solve_plan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dpzo' has no attribute {name!r}")
    # `dpzo.train` is the module of the loop, so its text-model entry goes by another name here.
    return getattr(import_module(_HOME[name]), {"finetune": "train"}.get(name, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
