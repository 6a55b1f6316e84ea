"""TREC: what kind of answer does a question ask for?"""

from __future__ import annotations

from collections.abc import Mapping

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, Split, frozen_map, k_shot_layouts

# 512 a class would be 3072; two classes are smaller.
_K_SHOT: Mapping[int, Mapping[Split, int]] = {
    512: {"train": 2646, "dev": 2243, "test": 500},
    16: {"train": 96, "dev": 96, "test": 500},
}

_COARSE = Layout(
    name="coarse",
    files={
        "train": ("qc.zip!qc/train.txt", "trec/qc.zip!qc/train.txt", "train_5500.label"),
        "test": ("qc.zip!qc/test.txt", "trec/qc.zip!qc/test.txt", "TREC_10.label"),
    },
    num_examples={"train": 5452, "test": 500},
    fields=frozen_map(text="text"),
    label_column="label",
    file_labels=("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM"),
    format="trec",
)

_SUBSET = Layout(
    name="subset",
    files={
        "train": ("glue_train_subsets.tar.xz!glue_subsets/trec/train.json", "trec/train.json"),
        "dev": ("glue_train_subsets.tar.xz!glue_subsets/trec/dev.json", "trec/dev.json"),
    },
    num_examples={"train": 4906, "dev": 546},
    fields=frozen_map(text="text_a"),
    label_column="label",
    file_labels=("0", "1", "2", "3", "4", "5"),
    format="numbered-json",
)

TREC = Task(
    name="trec",
    kind="classification",
    template="{text} The answer is a",
    labels=("description", "entity", "abbreviation", "human", "location", "number"),
    label_words=(" description", " thing", " abbreviation", " person", " place", " number"),
    mask_template="{mask}: {text}",
    mask_words=(" Description", " Entity", " Expression", " Human", " Location", " Number"),
    max_length=128,
    metric="accuracy",
    layouts=(
        *k_shot_layouts(
            "trec",
            {"train": "train.csv", "dev": "dev.csv", "test": "test.csv"},
            fields=frozen_map(text="text"),
            num_examples=_K_SHOT,
            label_column="label",
            file_labels=("0", "1", "2", "3", "4", "5"),
            header=("label", "text"),
            quoted=True,
        ),
        _COARSE,
        _SUBSET,
    ),
    hub=HubSource(
        "CogComp/trec",
        frozen_map(text="text"),
        splits={"train": "train", "test": "test"},
        label_column="coarse_label",
        label_values=("2", "1", "0", "3", "4", "5"),
    ),
    example=frozen_map(text="How tall is the lighthouse ?", label="number"),
    source="Li and Roth 2002; prompt for RoBERTa: LM-BFF (Gao et al. 2021); for causal models: made for dpzo",
)
