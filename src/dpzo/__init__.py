"""dpzo: private fine-tuning of language models with forward passes only.

The names below are imported when they are first used, so that `import dpzo`, `import dpzo.privacy` and `dpzo --help`
load no deep-learning library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpzo.config.reading import load_config, parse_config
    from dpzo.config.schema import RunConfig
    from dpzo.config.solve import solve_plan
    from dpzo.errors import DpzoError
    from dpzo.privacy import NeighboringRelation, PrivacyPlan, PrivateChannel, Release
    from dpzo.run.finetune import finetune
    from dpzo.run.local import DataSource
    from dpzo.run.loop import Stopped
    from dpzo.run.modules import Settings, fit
    from dpzo.run.run import Run, load, replay, resume
    from dpzo.run.trained_model import evaluate, generate

__version__ = "0.2.0"

_HOME = {
    "DataSource": "dpzo.run.local",
    "DpzoError": "dpzo.errors",
    "NeighboringRelation": "dpzo.privacy",
    "PrivacyPlan": "dpzo.privacy",
    "PrivateChannel": "dpzo.privacy",
    "Release": "dpzo.privacy",
    "Run": "dpzo.run.run",
    "RunConfig": "dpzo.config.schema",
    "Settings": "dpzo.run.modules",
    "Stopped": "dpzo.run.loop",
    "evaluate": "dpzo.run.trained_model",
    "finetune": "dpzo.run.finetune",
    "fit": "dpzo.run.modules",
    "generate": "dpzo.run.trained_model",
    "load": "dpzo.run.run",
    "load_config": "dpzo.config.reading",
    "parse_config": "dpzo.config.reading",
    "replay": "dpzo.run.run",
    "resume": "dpzo.run.run",
    "solve_plan": "dpzo.config.solve",
}

__all__ = [
    "DataSource",
    "DpzoError",
    "NeighboringRelation",
    "PrivacyPlan",
    "PrivateChannel",
    "Release",
    "Run",
    "RunConfig",
    "Settings",
    "Stopped",
    "evaluate",
    "finetune",
    "fit",
    "generate",
    "load",
    "load_config",
    "parse_config",
    "replay",
    "resume",
    "solve_plan",
]


def __getattr__(name: str) -> Any:
    if name == "train":
        raise AttributeError("module 'dpzo' has no attribute 'train': use dpzo.finetune, or dpzo.fit for an nn.Module")
    if name not in _HOME:
        raise AttributeError(f"module 'dpzo' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
