"""QNLI: does a sentence answer a question?"""

from __future__ import annotations

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, frozen_map, k_shot_layouts

_SUBSET = Layout(
    name="subset",
    files={
        "train": ("glue_train_subsets.tar.xz!glue_subsets/QNLI/train.json", "QNLI/train.json"),
        "dev": ("glue_train_subsets.tar.xz!glue_subsets/QNLI/dev.json", "QNLI/dev.json"),
    },
    num_examples={"train": 8999, "dev": 1000},
    fields=frozen_map(question="text_a", sentence="text_b"),
    label_column="label",
    file_labels=("entailment", "not_entailment"),
    format="numbered-json",
)

QNLI = Task(
    name="qnli",
    kind="classification",
    template='{sentence}\nDoes this sentence answer the question "{question}"? Yes or No?\n',
    labels=("entailment", "not_entailment"),
    label_words=("Yes", "No"),
    mask_template="{question|drop_last}?{mask}, {sentence|lower_first}",
    mask_words=(" Yes", " No"),
    inputs=("{question}", "{sentence}"),
    max_length=256,
    metric="accuracy",
    layouts=(
        *k_shot_layouts(
            "QNLI",
            {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"},
            fields=frozen_map(question="question", sentence="sentence"),
            num_examples={512: {"train": 1024, "dev": 1024, "test": 1000}, 16: {"train": 32, "dev": 32, "test": 1000}},
            label_column="label",
            file_labels=("entailment", "not_entailment"),
        ),
        _SUBSET,
    ),
    hub=HubSource(
        "nyu-mll/glue",
        frozen_map(question="question", sentence="sentence"),
        config="qnli",
        splits={"train": "train", "test": "validation"},
        label_column="label",
        label_values=("0", "1"),
    ),
    example=frozen_map(
        question="When was the bridge built?", sentence="The bridge was built in 1874.", label="entailment"
    ),
    source="Wang et al. 2018; prompt for RoBERTa: LM-BFF (Gao et al. 2021); for causal models: made for dpzo",
)
