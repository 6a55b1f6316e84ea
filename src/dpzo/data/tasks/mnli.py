"""MNLI: does a sentence follow from another, contradict it, or neither? Many genres."""

from __future__ import annotations

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, frozen_map, k_shot_layouts

_SUBSET = Layout(
    name="subset",
    files={
        "train": ("glue_train_subsets.tar.xz!glue_subsets/MNLI/train.json", "MNLI/train.json"),
        "dev": ("glue_train_subsets.tar.xz!glue_subsets/MNLI/dev.json", "MNLI/dev.json"),
    },
    num_examples={"train": 8999, "dev": 1000},
    fields=frozen_map(premise="text_a", hypothesis="text_b"),
    label_column="label",
    file_labels=("entailment", "neutral", "contradiction"),
    format="numbered-json",
)

MNLI = Task(
    name="mnli",
    kind="classification",
    template='Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n',
    labels=("entailment", "neutral", "contradiction"),
    label_words=("Yes", "Maybe", "No"),
    mask_template="{premise|drop_last}?{mask}, {hypothesis|lower_first}",
    mask_words=(" Yes", " Maybe", " No"),
    inputs=("{premise}", "{hypothesis}"),
    max_length=256,
    metric="accuracy",
    layouts=(
        *k_shot_layouts(
            "MNLI",
            {"train": "train.tsv", "dev": "dev_matched.tsv", "test": "test_matched.tsv"},
            fields=frozen_map(premise="sentence1", hypothesis="sentence2"),
            num_examples={512: {"train": 1536, "dev": 1536, "test": 1000}, 16: {"train": 48, "dev": 48, "test": 1000}},
            label_column="gold_label",
            file_labels=("entailment", "neutral", "contradiction"),
        ),
        _SUBSET,
    ),
    hub=HubSource(
        "nyu-mll/glue",
        frozen_map(premise="premise", hypothesis="hypothesis"),
        config="mnli",
        splits={"train": "train", "dev": "validation_matched", "test": "validation_mismatched"},
        label_column="label",
        label_values=("0", "1", "2"),
    ),
    example=frozen_map(
        premise="Two children are kicking a ball in the rain.", hypothesis="Children are outside.", label="entailment"
    ),
    source=(
        "Williams et al. 2018; "
        "prompt for causal models: that of CB in MeZO (Malladi et al. 2023); for RoBERTa: LM-BFF (Gao et al. 2021)"
    ),
)
