"""dpzo: private fine-tuning of language models with forward passes only.

The names below are imported when they are first used, so that `import dpzo`, `import dpzo.privacy` and `dpzo --help`
load no deep-learning library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpzo.config.schema import RunConfig, load_config, parse_config
    from dpzo.config.solve import solve_plan
    from dpzo.errors import DpzoError
    from dpzo.privacy import NeighboringRelation, PrivacyPlan, PrivateChannel, Release
    from dpzo.run.folders import resume
    from dpzo.run.folders import train as finetune
    from dpzo.run.local import DataSource
    from dpzo.run.modules import Settings, fit, replay
    from dpzo.run.trained_model import evaluate, generate

__version__ = "0.2.0"

_HOME = {
    "DataSource": "dpzo.run.local",
    "DpzoError": "dpzo.errors",
    "NeighboringRelation": "dpzo.privacy",
    "PrivacyPlan": "dpzo.privacy",
    "PrivateChannel": "dpzo.privacy",
    "Release": "dpzo.privacy",
    "RunConfig": "dpzo.config.schema",
    "Settings": "dpzo.run.modules",
    "evaluate": "dpzo.run.trained_model",
    "finetune": "dpzo.run.folders",
    "fit": "dpzo.run.modules",
    "generate": "dpzo.run.trained_model",
    "load_config": "dpzo.config.schema",
    "parse_config": "dpzo.config.schema",
    "replay": "dpzo.run.modules",
    "resume": "dpzo.run.folders",
    "solve_plan": "dpzo.config.solve",
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
    # `dpzo.run.loop` is the module of the loop, so its text-model entry goes by another name here.
    return getattr(import_module(_HOME[name]), {"finetune": "train"}.get(name, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
