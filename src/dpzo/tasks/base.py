"""What a task is: a public, declarative description of a data set and of how a model is asked about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from types import MappingProxyType
from typing import Literal

from dpzo.errors import DpzoError
from dpzo.tasks.files import Kind, check_labels, records_from_rows
from dpzo.tasks.records import COMPLETION, PROMPT, TEXT, Records
from dpzo.tasks.tables import read_table, shown

Metric = Literal["accuracy", "f1", "macro_f1", "loss"]
Split = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Layout:
    """One form in which a public data set is passed around: file names, columns, and the sizes of its splits.

    - `files`: split → names under the data folder, any of which may hold it; the first that exists is read.
    - `fields`: template field → column. `header`: columns of files that have no header line of their own.
    - `file_labels`: a label's text in the files, in the order of the task's labels.
    - `num_examples`: split → its published number of records. A public fact, so N need not be declared.
    """

    name: str
    files: Mapping[Split, tuple[str, ...]]
    num_examples: Mapping[Split, int]
    fields: Mapping[str, str]
    label_column: str | None = None
    file_labels: tuple[str, ...] = ()
    header: tuple[str, ...] | None = None
    quoted: bool = False

    def find(self, folder: Path, split: Split) -> Path | None:
        """The file of a split, or None if the folder holds none."""
        candidates = (folder / name for name in self.files.get(split, ()))
        return next((path for path in candidates if path.is_file()), None)


@dataclass(frozen=True)
class Task:
    """A data set and how a model is asked about it. All of it is public: it is printed, hashed and published.

    - `template`: a text with named fields, `{text} It was`; a record's prompt is the template with its texts put in.
    - `labels`: the declared label set, in the order of the indices; None for completion.
    - `label_words`: what a language model says for each label, joined to the prompt as it stands (so with its leading
      space); None where a classification is for a head only.
    - `max_length`: default length in tokens to which every record is padded and cut.

    A new task is one file that builds one `Task`, and one line in `dpzo.tasks.TASKS`; or any `Task` of a user's own.
    Errors: DpzoError when the parts do not fit each other.
    """

    name: str
    kind: Kind
    template: str
    labels: tuple[str, ...] | None = None
    label_words: tuple[str, ...] | None = None
    max_length: int = 128
    metric: Metric = "accuracy"
    layouts: tuple[Layout, ...] = ()
    version: int = 1
    source: str = ""
    fields: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", _template_fields(self.template))
        if self.max_length < 1:
            raise DpzoError(f"task {self.name}: max_length must be 1 or more")
        if self.kind == "completion":
            if self.labels is not None or self.label_words is not None or self.metric != "loss":
                raise DpzoError(f"task {self.name}: a completion has no labels, and its metric is 'loss'")
            return
        if self.labels is None or self.metric == "loss":
            raise DpzoError(f"task {self.name}: a classification needs labels, and a metric other than 'loss'")
        object.__setattr__(self, "labels", check_labels(self.labels))
        if self.metric == "f1" and len(self.labels) != 2:
            raise DpzoError(f"task {self.name}: f1 is for two labels; use macro_f1")
        if self.label_words is not None and len(set(self.label_words)) != len(self.labels):
            raise DpzoError(f"task {self.name}: give each label one word of its own")

    def prompts(self, records: Records) -> tuple[str, ...]:
        """The n prompts: the template with each record's texts put in, braces in a text left as they are."""
        columns = [records.fields.get(name) for name in self.fields]
        if any(column is None for column in columns):
            raise DpzoError(f"task {self.name}: its template names a field that these records do not have")
        rows = zip(*(column for column in columns if column is not None), strict=True)
        return tuple(self.template.format_map(dict(zip(self.fields, row, strict=True))) for row in rows)

    def layout(self, data_dir: str | Path, name: str | None = None) -> Layout:
        """The layout of this name, or the first of the task's layouts that the folder holds. Decided by names alone."""
        folder = Path(data_dir)
        if name is not None:
            for layout in self.layouts:
                if layout.name == name:
                    return layout
            known = ", ".join(layout.name for layout in self.layouts)
            raise DpzoError(f"task {self.name}: no layout {name!r}; it has {known or 'none'}")
        if not self.layouts:
            raise DpzoError("--data-dir: is for built-in tasks; a task of your own reads one file, given by --data")
        if not folder.is_dir():
            raise DpzoError(f"{shown(folder)}: no such folder; --data-dir must hold the files of task {self.name}")
        for layout in self.layouts:
            if any(layout.find(folder, split) for split in layout.files):
                return layout
        wanted = " or ".join(names[0] for layout in self.layouts for names in list(layout.files.values())[:1])
        raise DpzoError(f"{shown(folder)}: holds no file of task {self.name}; it should hold {wanted or 'none'}")

    def load(self, data_dir: str | Path, split: Split, layout: str | None = None) -> Records:
        """The records of a split. Errors: DpzoError for a folder, split or file that is not there, or a bad row."""
        chosen = self.layout(data_dir, layout)
        path = chosen.find(Path(data_dir), split)
        if path is None:
            names = " or ".join(chosen.files.get(split, ()))
            mend = f"add {names}" if names else f"this layout has {', '.join(chosen.files)}"
            raise DpzoError(f"{shown(Path(data_dir))}: no {split} split of task {self.name} ({chosen.name}); {mend}")
        return records_from_rows(
            path,
            read_table(path, columns=chosen.header, quoted=chosen.quoted),
            fields=chosen.fields,
            label_column=chosen.label_column,
            labels=chosen.file_labels,
            strip=True,
        )

    def public_num_examples(self, data_dir: str | Path, split: Split, layout: str | None = None) -> int | None:
        """The published size of a split, never counted; None where none is published."""
        return self.layout(data_dir, layout).num_examples.get(split)


def own_classification(
    labels: tuple[str, ...],
    *,
    template: str = "{text}",
    label_words: tuple[str, ...] | None = None,
    max_length: int = 128,
    metric: Metric = "accuracy",
) -> Task:
    """The task of a user's own file of texts and labels. Errors: as `Task`."""
    return Task(
        name="own-classification",
        kind="classification",
        template=template,
        labels=labels,
        label_words=label_words,
        max_length=max_length,
        metric=metric,
    )


def own_completion(*, max_length: int = 256) -> Task:
    """The task of a user's own file of prompts and completions. Errors: as `Task`."""
    return Task(
        name="own-completion", kind="completion", template=f"{{{PROMPT}}}", max_length=max_length, metric="loss"
    )


def frozen_map(**items: str) -> Mapping[str, str]:
    """A mapping that cannot be changed, for the fields of a layout."""
    return MappingProxyType(items)


def _template_fields(template: str) -> tuple[str, ...]:
    """Names of a template's fields. Only plain names: an attribute or an index would reach into Python objects."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        raise DpzoError("template: braces do not match; write a brace of the text as {{ or }}") from None
    names: list[str] = []
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if not name.isidentifier() or spec or conversion:
            raise DpzoError("template: a field must be a plain name in braces, such as {text}")
        if name == COMPLETION:
            raise DpzoError("template: {completion} is the answer and cannot be part of the prompt")
        if name not in names:
            names.append(name)
    if not names:
        raise DpzoError(f"template: it names no field; write {{{TEXT}}} where the text belongs")
    return tuple(names)
