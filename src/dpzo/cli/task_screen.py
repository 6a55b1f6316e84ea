"""Tasks on the screen: the list, and one of them with its made-up example as each kind of model would read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpzo.cli.screen import print_json, print_line
from dpzo.data.tasks import TASKS, Layout, Records, Task, find_task, is_task_file, read_task_file

LABEL = "label"


def show_tasks(as_json: bool) -> None:
    """The built-in tasks, a line or two each."""
    if as_json:
        print_json({"tasks": [_facts(task) for task in TASKS.values()]})
        return
    for task in TASKS.values():
        print_line(f"{task.name}: {_kind(task)}, metric {task.metric}, up to {task.max_length} tokens")
    print_line("dpzo tasks show NAME renders one with a made-up example; a task of your own is a YAML file")


def show_task(name: str, as_json: bool) -> None:
    """One task: facts, layouts with their published sizes, and its example in every form. Nothing private is read."""
    task = find_task(read_task_file(name) if is_task_file(name) else name)
    forms = _rendered(task)
    if as_json:
        print_json({**_facts(task), "template": task.template, "layouts": _sizes(task.layouts), "example": forms})
        return
    print_line(f"{task.name}, version {task.version}: {_kind(task)}")
    print_line(f"metric {task.metric}, up to {task.max_length} tokens; fields {', '.join(task.text_fields)}")
    if task.source:
        print_line(f"source: {task.source}")
    for layout in _few(task.layouts):
        print_line(f"layout {layout.name}: {_told(layout)}")
    if task.hub is not None:
        print_line(f"hub: {task.hub.name}" + ("" if task.hub.config is None else f", {task.hub.config}"))
    for form, text in forms.items():
        print_line(f"--- {form}")
        for line in text if isinstance(text, list) else [text]:
            print_line(line)


def _rendered(task: Task) -> dict[str, Any]:
    """The task's own example as a causal model, a masked one and a classifier read it: {form: text or texts}."""
    if task.example is None:
        return {}
    records = Records(
        fields={name: [text] for name, text in task.example.items() if name != LABEL},
        labels=None if task.labels is None else np.zeros(1, np.int64),
    )
    (prompt,) = task.prompts(records)
    forms: dict[str, Any] = {}
    if task.kind == "completion":
        (answer,) = task.answers(records)
        return {"prompt": prompt, "answer": answer}
    options: Sequence[str] | None = task.label_words
    if task.option_fields is not None:
        (options,) = task.options(records)
    if options is not None:
        forms["causal model, one line per option"] = [prompt + option for option in options]
    if task.mask_template is not None:
        filled = {slot: texts[0] for slot, texts in task.mask_fields(records).items()}
        forms["masked model"] = task.mask_template.format_map({**filled, "mask": "<mask>"})
        forms["masked model's words"] = list(task.mask_words or ())
    pair = task.pairs(records)
    forms["classifier"] = [task.texts(records)[0], *([] if pair is None else [pair[0]])]
    forms["label"] = task.example.get(LABEL, "")
    return forms


def _kind(task: Task) -> str:
    return task.kind if task.labels is None else f"{task.kind}, {len(task.labels)} labels: {', '.join(task.labels)}"


def _facts(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "version": task.version,
        "kind": task.kind,
        "labels": None if task.labels is None else list(task.labels),
        "fields": list(task.text_fields),
        "max_length": task.max_length,
        "metric": task.metric,
        "source": task.source,
    }


def _few(layouts: Sequence[Layout]) -> list[Layout]:
    """One of the ten k-shot layouts stands for all of its k."""
    kept: dict[str, Layout] = {}
    for layout in layouts:
        kept.setdefault(layout.name.partition("/seed-")[0], layout)
    return list(kept.values())


def _told(layout: Layout) -> str:
    sizes = ", ".join(f"{split} {count}" for split, count in layout.num_examples.items())
    return f"{next(iter(layout.files.values()))[0]} ({sizes}, published)"


def _sizes(layouts: Sequence[Layout]) -> list[dict[str, Any]]:
    return [{"name": layout.name, "num_examples": dict(layout.num_examples)} for layout in layouts]
