"""The built-in tasks: one YAML file each, of the keys of a user's own task file, and where public copies are found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dpzo.config.plain import parse_yaml
from dpzo.data.tasks.base import Task
from dpzo.data.tasks.demo_data import DEMO
from dpzo.data.tasks.layouts import HubSource, Layout, k_shot_layouts
from dpzo.data.tasks.own import task_from

NAMES = (
    *("sst2", "sst5", "trec", "snli", "mnli", "rte", "qnli", "qqp", "mrpc", "boolq", "cb", "copa", "wic", "multirc"),
    *("wsc", "squad", "drop", "e2e", "dart"),
)
"""Every task that has a file here."""


class _BuiltInTasks(Mapping[str, Task]):
    """Tasks by name, each read on first access."""

    def __getitem__(self, name: str) -> Task:
        return DEMO if name == DEMO.name else _read(name)

    def __iter__(self) -> Iterator[str]:
        return iter((*NAMES, DEMO.name))

    def __len__(self) -> int:
        return len(NAMES) + 1

    def __contains__(self, name: object) -> bool:
        return name in NAMES or name == DEMO.name


TASKS: Mapping[str, Task] = _BuiltInTasks()
"""The built-in tasks by name."""


@lru_cache
def _read(name: str) -> Task:
    if name not in NAMES:
        raise KeyError(name)
    tree = parse_yaml(Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8"))
    found, hub = [_layouts(each) for each in tree.pop("layouts", [])], tree.pop("hub", None)
    return replace(
        task_from(tree),
        layouts=tuple(layout for few in found for layout in few),
        hub=None if hub is None else HubSource(**_frozen(hub)),
    )


def _layouts(tree: dict[str, Any]) -> tuple[Layout, ...]:
    """One layout, or with `k_shot` the ten few-shot splits in a folder of that name."""
    folder = tree.pop("k_shot", None)
    return (Layout(**_frozen(tree)),) if folder is None else k_shot_layouts(folder, **_frozen(tree))


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType({key: _frozen(inner) for key, inner in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
