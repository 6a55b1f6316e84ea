"""Data sets and tasks: files to records, records to prompts, predictions to scores."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from dpzo.data.tasks.base import HubSource, Layout, Task, own_classification, own_completion
from dpzo.data.tasks.builtin import TASKS
from dpzo.data.tasks.demo_data import DEMO, demo_messages, write_csv
from dpzo.data.tasks.few_shot import k_shot
from dpzo.data.tasks.files import Kind, load_records
from dpzo.data.tasks.metrics import METRICS
from dpzo.data.tasks.own import is_task_file, read_task_file, task_from
from dpzo.data.tasks.records import Records
from dpzo.data.tasks.tables import read_table
from dpzo.errors import DpzoError


def find_task(task: str | Mapping[str, Any]) -> Task:
    """A built-in task by its name, or the task that a mapping declares. Errors: DpzoError with what was meant."""
    if not isinstance(task, str):
        return task_from(task)
    if task in TASKS:
        return TASKS[task]
    near = [name for name in TASKS if task and name.startswith(task)] or get_close_matches(task, TASKS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(TASKS))}"
    raise DpzoError(f"--task {task}: no such task; {hint} (dpzo tasks lists them)")


__all__ = [
    "DEMO",
    "METRICS",
    "TASKS",
    "HubSource",
    "Kind",
    "Layout",
    "Records",
    "Task",
    "demo_messages",
    "find_task",
    "is_task_file",
    "k_shot",
    "load_records",
    "own_classification",
    "own_completion",
    "read_table",
    "read_task_file",
    "task_from",
    "write_csv",
]
