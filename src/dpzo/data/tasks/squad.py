"""SQuAD: answer a question by words of a passage."""

from __future__ import annotations

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, frozen_map

_FIELDS = frozen_map(title="title", context="context", question="question", completion="answer")

_FULL = Layout(
    name="full",
    files={"train": ("train-v1.1.json",), "test": ("dev-v1.1.json",)},
    num_examples={"train": 87599, "test": 10570},
    fields=_FIELDS,
    format="squad",
)

# Only the development set is at hand, so it is cut by article: what is reported on it is not the standard figure.
_CARVED = Layout(
    name="carved",
    files=dict.fromkeys(("train", "dev", "test"), ("squad_v1.1_dev.json.gz", "squad/squad_v1.1_dev.json.gz")),
    num_examples={"train": 8343, "dev": 917, "test": 1310},
    fields=_FIELDS,
    format="squad",
    carve_by="title",
)

SQUAD = Task(
    name="squad",
    kind="completion",
    template="Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer:",
    answer_template=" {completion}\n",
    stop="\n",
    max_length=512,
    max_answer_tokens=32,
    max_new_tokens=50,
    metric="squad_f1",
    layouts=(_FULL, _CARVED),
    hub=HubSource(
        "rajpurkar/squad",
        frozen_map(title="title", context="context", question="question", completion="answers.text"),
        splits={"train": "train", "test": "validation"},
    ),
    example=frozen_map(
        title="Halden",
        context="Halden is a town by a river. It was founded in 1320.",
        question="When was Halden founded?",
        completion="1320",
    ),
    source="Rajpurkar et al. 2016; prompt: MeZO (Malladi et al. 2023), as in DPZero (2024)",
)
