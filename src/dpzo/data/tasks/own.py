"""A user's own task: one YAML or JSON file of declarations, nothing of it executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dpzo.config.plain import PLAIN, parse_yaml
from dpzo.data.tasks.base import Task
from dpzo.data.tasks.tables import shown
from dpzo.errors import DpzoError

SUFFIXES = (".yaml", ".yml", ".json")
_TEXTS = frozenset({"name", "kind", "template", "mask_template", "answer_template", "stop", "metric", "source"})
_COUNTS = frozenset({"max_length", "max_answer_tokens", "max_new_tokens", "version"})
_LISTS = frozenset({"labels", "label_words", "option_fields", "mask_words", "inputs"})
_MAPS = frozenset({"example"})
_NESTED = frozenset({"values"})
KEYS = tuple(part.name for part in dataclass_fields(Task) if part.name in _TEXTS | _COUNTS | _LISTS | _MAPS | _NESTED)
"""What a task file may hold, in the order of `Task`."""


def is_task_file(name: str) -> bool:
    """Whether `--task` names a file rather than a built-in task: by its ending alone."""
    return name.lower().endswith(SUFFIXES)


def read_task_file(path: str | Path) -> dict[str, Any]:
    """The declarations of a task file, checked to make a task. They go into the run's config, so a run needs no file.

    Errors: DpzoError naming the file, the key and the fix.
    """
    place = Path(path)
    try:
        text = place.read_text(encoding="utf-8")
        tree = json.loads(text) if place.suffix.lower() == ".json" else parse_yaml(text)
    except OSError as error:
        raise DpzoError(f"--task {shown(place)}: {error.strerror or 'cannot be read'}") from None
    except (ValueError, RecursionError):
        raise DpzoError(f"--task {shown(place)}: is not a YAML file {PLAIN}; see docs/tasks.md") from None
    if not isinstance(tree, dict):
        raise DpzoError(f"--task {shown(place)}: expected lines such as 'kind: classification'; see docs/tasks.md")
    tree.setdefault("name", place.stem)
    try:
        task_from(tree)
    except DpzoError as error:
        raise DpzoError(f"--task {shown(place)}: {error}") from None
    return tree


def task_from(tree: Mapping[str, Any]) -> Task:
    """The task that a mapping of plain values declares. Errors: DpzoError naming the key and the fix."""
    made: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in KEYS:
            near = get_close_matches(str(key), KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(KEYS)}"
            raise DpzoError(f"task: no key {str(key)!r}; {hint}")
        if value is not None:
            made[key] = _value(key, value)
    for needed in ("name", "kind", "template"):
        if needed not in made:
            raise DpzoError(f"task: the key {needed} is missing")
    if made["kind"] not in ("classification", "completion"):
        raise DpzoError("task: kind must be classification or completion")
    if made["kind"] == "completion":
        made.setdefault("metric", "loss")
    return Task(**made)


def _value(key: str, value: Any) -> Any:
    if key in _TEXTS:
        return _text(key, value)
    if key in _COUNTS:
        if not isinstance(value, int) or isinstance(value, bool):
            raise DpzoError(f"task: {key} must be a whole number")
        return value
    if key in _LISTS:
        if not isinstance(value, list | tuple):
            raise DpzoError(f"task: {key} must be a list of texts")
        return tuple(_text(key, item) for item in value)
    if not isinstance(value, Mapping):
        raise DpzoError(f"task: {key} must be names with their values")
    if key in _NESTED:
        return {_text(key, name): _value("example", inner) for name, inner in value.items()}
    return {_text(key, name): _text(key, text) for name, text in value.items()}


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        # YAML reads a bare yes, no or 1 as something else, and the label would never be met.
        raise DpzoError(f'task: {key} must hold texts; put quotes around words such as "yes", "no" and numbers')
    return value
