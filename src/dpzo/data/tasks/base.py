"""A task: a public, declarative description of a data set and of the prompts for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dpzo.data.tasks.files import Columns, Kind, check_labels, records_from_tables
from dpzo.data.tasks.layouts import HubSource, Layout, Split, frozen_map
from dpzo.data.tasks.records import COMPLETION, PROMPT, Records
from dpzo.data.tasks.tables import read_table, shown
from dpzo.data.tasks.templates import MASK, fields_of, names_in, render, slots_in
from dpzo.errors import DpzoError

__all__ = ["HubSource", "Layout", "Metric", "Split", "Task", "frozen_map", "own_classification", "own_completion"]

Metric = Literal["accuracy", "f1", "macro_f1", "loss", "squad_f1", "drop_f1", "bleu", "rouge_l"]
ANSWER_METRICS: frozenset[str] = frozenset({"loss", "squad_f1", "drop_f1", "bleu", "rouge_l"})


@dataclass(frozen=True)
class Task:
    """A data set and its prompts. All of it is public: it is printed, hashed and published.

    - `template`: a text with named fields, `{text} It was`, for a causal model; a record's prompt is the template with
      its texts put in, each through the filters that follow its name (`{question|question}`; see `templates.FILTERS`).
    - `labels`: the declared label set, in the order of the indices; None for completion.
    - `label_words`: what a causal model says for each label, joined to the prompt as it stands (so with its leading
      space); None where a classification is for a head only, or where each record brings its own options.
    - `option_fields`: fields that hold a record's own options, one a label; their number is public, their texts are
      not. `{completion}` in `answer_template` stands for the option.
    - `mask_template`, `mask_words`: the same for a masked language model; `{mask}` is where it answers.
    - `inputs`: one template, or two for a pair, of what an encoder or a sequence classifier reads.
    - `values`: field → {text: what a prompt says in its place}, for fields that hold codes.
    - `answer_template`: what follows the prompt in training, around `{completion}`; a model generates up to `stop`.
    - `max_length`: default length in tokens to which every record is padded and cut; `max_answer_tokens` likewise of a
      completion or an option; `max_new_tokens` when generating.
    - `example`: a made-up record, for `dpzo tasks show`: fields, and `label` or `completion`.

    A task is one YAML file, built in (`dpzo.data.tasks.builtin`) or a user's own.
    Errors: DpzoError when the parts do not fit each other.
    """

    name: str
    kind: Kind
    template: str
    labels: tuple[str, ...] | None = None
    label_words: tuple[str, ...] | None = None
    option_fields: tuple[str, ...] | None = None
    mask_template: str | None = None
    mask_words: tuple[str, ...] | None = None
    inputs: tuple[str, ...] = ()
    values: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    answer_template: str = "{completion}"
    stop: str | None = None
    max_length: int = 128
    max_answer_tokens: int = 32
    max_new_tokens: int = 50
    metric: Metric = "accuracy"
    layouts: tuple[Layout, ...] = ()
    hub: HubSource | None = None
    example: Mapping[str, str] | None = None
    version: int = 1
    source: str = ""
    fields: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", fields_of(self.template))
        if min(self.max_length, self.max_answer_tokens, self.max_new_tokens) < 1:
            raise DpzoError(f"task {self.name}: max_length and the other lengths must be 1 or more")
        if fields_of(self.answer_template, "answer_template") != (COMPLETION,):
            raise DpzoError(f"task {self.name}: answer_template must name {{completion}} and no other field")
        if self.kind == "completion":
            self._check_completion()
        else:
            self._check_classification()

    def _check_completion(self) -> None:
        if (self.labels, self.label_words, self.option_fields, self.mask_template) != (None, None, None, None):
            raise DpzoError(f"task {self.name}: a completion has no labels, options or mask")
        if self.metric not in ANSWER_METRICS:
            raise DpzoError(f"task {self.name}: a completion has no labels, and its metric is 'loss' or of texts")

    def _check_classification(self) -> None:
        if self.labels is None or self.metric in ANSWER_METRICS:
            raise DpzoError(f"task {self.name}: a classification needs labels, and a metric of labels")
        object.__setattr__(self, "labels", check_labels(self.labels))
        labels = len(self.labels)
        if self.metric == "f1" and labels != 2:
            raise DpzoError(f"task {self.name}: f1 is for two labels; use macro_f1")
        if self.label_words is not None and not _one_word_each(self.label_words, labels):
            raise DpzoError(f"task {self.name}: give each label one word of its own")
        if self.option_fields is not None and (
            self.label_words is not None or len(set(self.option_fields)) != labels or len(self.option_fields) != labels
        ):
            raise DpzoError(f"task {self.name}: name one option field a label, and no label words beside them")
        if (self.mask_template is None) != (self.mask_words is None):
            raise DpzoError(f"task {self.name}: mask_template and mask_words belong together")
        if self.mask_template is not None and self.mask_words is not None:
            if MASK not in fields_of(self.mask_template, "mask_template") or self.mask_template.count("{mask}") != 1:
                raise DpzoError(f"task {self.name}: mask_template must hold {{mask}} once, where the model answers")
            if not _one_word_each(self.mask_words, labels):
                raise DpzoError(f"task {self.name}: give each label one mask word of its own")
        if not self.inputs:
            object.__setattr__(self, "inputs", tuple(f"{{{name}}}" for name in self.fields)[:2])
        if len(self.inputs) > 2:
            raise DpzoError(f"task {self.name}: inputs are one text or a pair")
        for template in self.inputs:
            fields_of(template, "inputs")

    @property
    def text_fields(self) -> tuple[str, ...]:
        """Every field of a record that any form of the prompt reads, each once."""
        forms = (self.template, *self.inputs, *(() if self.mask_template is None else (self.mask_template,)))
        named = (name for form in forms for name in fields_of(form) if name != MASK)
        return tuple(dict.fromkeys((*named, *(self.option_fields or ()))))

    def prompts(self, records: Records) -> Sequence[str]:
        """The n prompts of a causal model: the template with each record's texts put in."""
        return self._rendered(self.template, records)

    def texts(self, records: Records) -> Sequence[str]:
        """The n texts that an encoder reads: the first of `inputs`."""
        return self._rendered(self.inputs[0], records)

    def pairs(self, records: Records) -> Sequence[str] | None:
        """The n second texts of a pair task; None for single texts."""
        return self._rendered(self.inputs[1], records) if len(self.inputs) == 2 else None

    def mask_fields(self, records: Records) -> Mapping[str, Sequence[str]]:
        """What stands in each pair of braces of `mask_template`, filters applied: {slot: n texts}, without `{mask}`.

        Slots instead of prompts, so that the caller knows the mask's position whatever a text contains.
        """
        if self.mask_template is None:
            raise DpzoError(f"task {self.name}: has no mask_template, so a masked language model cannot be asked")
        slots = (slot for slot in slots_in(self.mask_template) if slot != MASK)
        return {slot: self._rendered(f"{{{slot}}}", records) for slot in slots}

    def options(self, records: Records) -> tuple[tuple[str, ...], ...]:
        """The options of each of the n records, as they follow its prompt; (n, number of labels)."""
        assert self.option_fields is not None
        columns = [self._column(name, records) for name in self.option_fields]
        answers = [render(self.answer_template, {COMPLETION: column}, len(records)) for column in columns]
        return tuple(zip(*answers, strict=True))

    def answers(self, records: Records) -> Sequence[str]:
        """The n texts that follow the prompts in training."""
        if self.answer_template == f"{{{COMPLETION}}}":
            return records.completions
        return render(self.answer_template, {COMPLETION: records.completions}, len(records))

    def blank(self, records: Records) -> NDArray[np.bool_]:
        """Which records have no text in any field; shape (n,)."""
        columns = [self._column(name, records) for name in self.text_fields]
        return np.array([not any(text.strip() for text in row) for row in zip(*columns, strict=True)], np.bool_)

    def _rendered(self, template: str, records: Records) -> Sequence[str]:
        if template[1:-1] in records.fields and template == f"{{{template[1:-1]}}}":
            return self._column(template[1:-1], records)  # as it is: a million texts need no copy
        return render(template, {name: self._column(name, records) for name in names_in(template)}, len(records))

    def _column(self, name: str, records: Records) -> Sequence[str]:
        if name not in records.fields:
            raise DpzoError(f"task {self.name}: its template names a field that these records do not have")
        said = self.values.get(name)
        return records.fields[name] if said is None else [said.get(text, text) for text in records.fields[name]]

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
        firsts = (names[0] for layout in self.layouts for names in list(layout.files.values())[:1])
        wanted = " or ".join(list(dict.fromkeys(firsts))[:4])
        raise DpzoError(f"{shown(folder)}: holds no file of task {self.name}; it should hold {wanted or 'none'}")

    def load(self, data_dir: str | Path, split: Split, layout: str | None = None) -> Records:
        """The records of a split. Errors: DpzoError for a folder, split or file that is not there, or a bad row."""
        chosen = self.layout(data_dir, layout)
        path = chosen.find(Path(data_dir), split)
        if path is None:
            names = " or ".join(chosen.files.get(split, ()))
            mend = f"add {names}" if names else f"this layout has {', '.join(chosen.files)}"
            raise DpzoError(f"{shown(Path(data_dir))}: no {split} split of task {self.name} ({chosen.name}); {mend}")
        return chosen.read(path, split)

    def load_file(self, path: str | Path, *, label_column: str = "label", unit_column: str | None = None) -> Records:
        """The records of a user's own file whose columns bear the names of the task's fields. Errors: as `load`.

        A completion's file has `completion`; and `references`, a list, where several answers count as right.
        """
        fields = {name: name for name in self.text_fields}
        if self.kind == "completion":
            fields[COMPLETION] = COMPLETION
        columns = Columns(
            fields,
            label=label_column if self.labels is not None else None,
            labels=() if self.labels is None else self.labels,
            unit=unit_column,
            references="references" if self.kind == "completion" else None,
        )
        return records_from_tables([(Path(path), read_table(path))], columns)

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


def _one_word_each(words: Sequence[str], labels: int) -> bool:
    return len(words) == labels and len(set(words)) == labels
