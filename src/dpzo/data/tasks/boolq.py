"""BoolQ: a question of yes or no about a passage."""

from __future__ import annotations

from collections.abc import Mapping

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, Split, frozen_map

SPLITS: Mapping[Split, str] = {"train": "train", "dev": "dev32", "test": "val"}

_FEW = Layout(
    name="fewglue",
    files={
        split: (
            f"fewglue_32dev_boolq_copa_wic_multirc_wsc.tar.xz!FewGLUE_32dev/BoolQ/{name}.jsonl",
            f"BoolQ/{name}.jsonl",
        )
        for split, name in SPLITS.items()
    },
    num_examples={"train": 32, "dev": 32, "test": 3270},
    fields=frozen_map(passage="passage", question="question"),
    label_column="label",
    file_labels=("false", "true"),
)

# One public file only, so it is cut by passage: a passage and its questions are on one side.
_CARVED = Layout(
    name="carved",
    files=dict.fromkeys(
        SPLITS,
        (
            "fewglue_32dev_boolq_copa_wic_multirc_wsc.tar.xz!FewGLUE_32dev/BoolQ/val.jsonl",
            "BoolQ/val.jsonl",
            "val.jsonl",
        ),
    ),
    num_examples={"train": 2605, "dev": 341, "test": 324},
    fields=frozen_map(passage="passage", question="question"),
    label_column="label",
    file_labels=("false", "true"),
    carve_by="passage",
)

BOOLQ = Task(
    name="boolq",
    kind="classification",
    template="{passage} {question|upper_first|question}\n",
    labels=("no", "yes"),
    label_words=("No", "Yes"),
    inputs=("{question}", "{passage}"),
    max_length=256,
    metric="accuracy",
    layouts=(
        _CARVED,
        _FEW,
    ),
    hub=HubSource(
        "aps/super_glue",
        frozen_map(passage="passage", question="question"),
        config="boolq",
        splits={"train": "train", "test": "validation"},
        label_column="label",
        label_values=("0", "1"),
    ),
    example=frozen_map(
        passage="Halden is a town by a river. It was founded in 1320.",
        question="is halden older than 100 years",
        label="yes",
    ),
    source="Clark et al. 2019; prompt: MeZO (Malladi et al. 2023), as in DPZero (2024)",
)
