"""The data options that each form of data uses. An option that was set but would be ignored is an error."""

from __future__ import annotations

from dpzo.config.schema import DataConfig, option_name
from dpzo.data.tasks import Task
from dpzo.errors import DpzoError

_ALWAYS = frozenset({"task", "kind", "objective", "max_length"})
_CLASSES = frozenset({"text_column", "label_column", "labels", "label_words", "template"})
_COMPLETIONS = frozenset({"prompt_column", "completion_column", "max_answer_tokens", "end_token"})


def used_fields(data: DataConfig, task: Task, *, from_folder: bool) -> frozenset[str]:
    """The fields of `data` that enter a run of this task; `from_folder`: the files of a built-in task are read."""
    fields = set(_ALWAYS)
    if data.task is None:
        own = {"chat": frozenset({"messages_column", "chat_template"}), "completion": _COMPLETIONS}
        fields |= own.get("classification" if data.kind is None else data.kind, _CLASSES)
    elif task.kind == "completion":
        fields |= {"completion_column", "max_answer_tokens", "end_token"}
    else:
        fields |= {"label_column"}
    if from_folder:  # its files determine the columns
        return frozenset(fields - {"label_column", "completion_column"} | {"layout"})
    if task.option_fields is not None:
        fields |= {"max_answer_tokens"}
    return frozenset(fields | {"unit_column", "max_records_per_unit"})


def refuse_unused(data: DataConfig, task: Task, *, from_folder: bool) -> None:
    """Errors: DpzoError naming an option that differs from its default and would be ignored."""
    if data.task is not None and data.kind not in (None, task.kind):
        raise DpzoError(f"{option_name('data.kind')}: the task is a {task.kind}; leave the option out")
    used = used_fields(data, task, from_folder=from_folder)
    for name, field in DataConfig.model_fields.items():
        value = getattr(data, name)
        derived = name == "max_answer_tokens" and value == task.max_answer_tokens  # as an older config.yaml has it
        if name not in used and value != field.default and not derived:
            where = _named(data, from_folder=from_folder)
            raise DpzoError(f"{option_name(f'data.{name}')}: is not used with {where}; leave it out")


def _named(data: DataConfig, *, from_folder: bool) -> str:
    if data.task is not None:
        return "--task and --data-dir" if from_folder else "--task, whose fields name the columns"
    return f"--kind {'classification' if data.kind is None else data.kind}"
