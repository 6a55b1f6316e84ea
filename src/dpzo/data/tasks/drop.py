"""DROP: answer a question about a passage by reasoning over its numbers, dates and names."""

from __future__ import annotations

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, frozen_map

# Only the development set is at hand, so it is cut by passage: what is reported on it is not the standard figure.
_CARVED = Layout(
    name="carved",
    files=dict.fromkeys(("train", "dev", "test"), ("drop_v0_dev.jsonl.gz", "drop/drop_v0_dev.jsonl.gz")),
    num_examples={"train": 7863, "dev": 740, "test": 933},
    fields=frozen_map(passage="passage", question="question", completion="answer"),
    format="drop-prompts",
    carve_by="passage",
)

DROP = Task(
    name="drop",
    kind="completion",
    template="Passage: {passage}\nQuestion: {question}\nAnswer:",
    answer_template=" {completion}\n",
    stop="\n",
    max_length=512,
    max_answer_tokens=32,
    max_new_tokens=50,
    metric="drop_f1",
    layouts=(_CARVED,),
    hub=HubSource(
        "ucinlp/drop",
        frozen_map(passage="passage", question="question", completion="answers_spans.spans"),
        splits={"train": "train", "test": "validation"},
    ),
    example=frozen_map(
        passage="The home side scored 14 points in the first half and 10 in the second.",
        question="How many points did the home side score?",
        completion="24",
    ),
    source="Dua et al. 2019; prompt: MeZO (Malladi et al. 2023), as in DPZero (2024)",
)
