"""What a run's options declare about its data: the kind of records, and that no option would be ignored."""

from __future__ import annotations

from dpzo.config.schema import RunConfig, with_values
from dpzo.data import kind_by_columns, refuse_unused
from dpzo.data.tasks.tables import Tell, untold
from dpzo.forecast.parts import refuse_unused_parts
from dpzo.run.build import task_of
from dpzo.run.local import DataSource


def without_ignored(config: RunConfig, source: DataSource, *, tell: Tell = untold) -> RunConfig:
    """The config with its kind of data known. Errors: DpzoError naming an option that this run would ignore."""
    config = with_kind(config, source, tell)
    refuse_ignored(config, from_folder=source.folder is not None)
    return config


def refuse_ignored(config: RunConfig, *, from_folder: bool) -> None:
    """Errors: DpzoError naming an option that a run would ignore; `from_folder`: it reads a built-in task's files."""
    refuse_unused(config.data, task_of(config), from_folder=from_folder)
    refuse_unused_parts(config)


def with_kind(config: RunConfig, source: DataSource, tell: Tell = untold) -> RunConfig:
    """The config with the kind that the columns name, where neither a kind nor a task nor labels are declared."""
    data = config.data
    if (data.kind, data.task, data.labels) != (None, None, None) or not source.places:
        return config
    kind = kind_by_columns(source.places[0], data, split=source.split, tell=tell)
    return config if kind is None else with_values(config, data={"kind": kind})
