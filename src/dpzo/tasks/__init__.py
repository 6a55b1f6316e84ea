"""Data sets and tasks: files to records, records to prompts, predictions to scores."""

from __future__ import annotations

from collections.abc import Mapping

from dpzo.tasks.base import Layout, Task, own_classification, own_completion
from dpzo.tasks.demo_data import DEMO, demo_messages, write_csv
from dpzo.tasks.files import Kind, load_records
from dpzo.tasks.metrics import METRICS
from dpzo.tasks.records import Records
from dpzo.tasks.sst2 import SST2
from dpzo.tasks.tables import read_table

TASKS: Mapping[str, Task] = {task.name: task for task in (SST2, DEMO)}
"""The built-in tasks by name."""

__all__ = [
    "DEMO",
    "METRICS",
    "SST2",
    "TASKS",
    "Kind",
    "Layout",
    "Records",
    "Task",
    "demo_messages",
    "load_records",
    "own_classification",
    "own_completion",
    "read_table",
    "write_csv",
]
