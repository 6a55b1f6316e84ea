"""MultiRC: is a proposed answer to a question about a passage right?"""

from __future__ import annotations

from collections.abc import Mapping

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, Split, frozen_map

SPLITS: Mapping[Split, str] = {"train": "train", "dev": "dev32", "test": "val"}

_FEW = Layout(
    name="fewglue",
    files={
        split: (
            f"fewglue_32dev_boolq_copa_wic_multirc_wsc.tar.xz!FewGLUE_32dev/MultiRC/{name}.jsonl",
            f"MultiRC/{name}.jsonl",
        )
        for split, name in SPLITS.items()
    },
    num_examples={"train": 154, "dev": 167, "test": 4848},
    fields=frozen_map(passage="passage", question="question", answer="answer"),
    label_column="label",
    file_labels=("0", "1"),
    format="multirc",
)

# One public file only, so it is cut by passage: a passage and its questions are on one side.
_CARVED = Layout(
    name="carved",
    files=dict.fromkeys(
        SPLITS,
        (
            "fewglue_32dev_boolq_copa_wic_multirc_wsc.tar.xz!FewGLUE_32dev/MultiRC/val.jsonl",
            "MultiRC/val.jsonl",
            "val.jsonl",
        ),
    ),
    num_examples={"train": 3529, "dev": 847, "test": 472},
    fields=frozen_map(passage="passage", question="question", answer="answer"),
    label_column="label",
    file_labels=("0", "1"),
    format="multirc",
    carve_by="passage",
)

MULTIRC = Task(
    name="multirc",
    kind="classification",
    template='{passage}\nQuestion: {question}\nI found this answer "{answer}". Is that correct? Yes or No?\n',
    labels=("wrong", "right"),
    label_words=("No", "Yes"),
    inputs=("{question} {answer}", "{passage}"),
    max_length=512,
    metric="f1",
    layouts=(
        _CARVED,
        _FEW,
    ),
    hub=HubSource(
        "aps/super_glue",
        frozen_map(passage="paragraph", question="question", answer="answer"),
        config="multirc",
        splits={"train": "train", "test": "validation"},
        label_column="label",
        label_values=("0", "1"),
    ),
    example=frozen_map(
        passage="Ana fed the cat, then the dog.", question="Whom did Ana feed last?", answer="The dog", label="right"
    ),
    source="Khashabi et al. 2018; prompt: MeZO (Malladi et al. 2023), as in DPZero (2024)",
)
