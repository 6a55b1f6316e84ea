"""RTE: does a sentence follow from a passage?"""

from __future__ import annotations

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, frozen_map, k_shot_layouts

_SUPERGLUE = Layout(
    name="superglue",
    files={
        "train": ("rte_train.jsonl.gz", "superglue/rte_train.jsonl.gz", "train.jsonl"),
        "test": ("rte_val.jsonl.gz", "superglue/rte_val.jsonl.gz", "val.jsonl"),
    },
    num_examples={"train": 2490, "test": 277},
    fields=frozen_map(premise="premise", hypothesis="hypothesis"),
    label_column="label",
    file_labels=("entailment", "not_entailment"),
)

_SUBSET = Layout(
    name="subset",
    files={
        "train": ("glue_train_subsets.tar.xz!glue_subsets/RTE/train.json", "RTE/train.json"),
        "dev": ("glue_train_subsets.tar.xz!glue_subsets/RTE/dev.json", "RTE/dev.json"),
    },
    num_examples={"train": 2240, "dev": 249},
    fields=frozen_map(premise="text_a", hypothesis="text_b"),
    label_column="label",
    file_labels=("entailment", "not_entailment"),
    format="numbered-json",
)

RTE = Task(
    name="rte",
    kind="classification",
    template='{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n',
    labels=("entailment", "not_entailment"),
    label_words=("Yes", "No"),
    mask_template="{premise|drop_last}?{mask}, {hypothesis|lower_first}",
    mask_words=(" Yes", " No"),
    inputs=("{premise}", "{hypothesis}"),
    max_length=256,
    metric="accuracy",
    layouts=(
        *k_shot_layouts(
            "RTE",
            {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"},
            fields=frozen_map(premise="sentence1", hypothesis="sentence2"),
            num_examples={512: {"train": 1024, "dev": 1024, "test": 277}, 16: {"train": 32, "dev": 32, "test": 277}},
            label_column="label",
            file_labels=("entailment", "not_entailment"),
        ),
        _SUPERGLUE,
        _SUBSET,
    ),
    hub=HubSource(
        "nyu-mll/glue",
        frozen_map(premise="sentence1", hypothesis="sentence2"),
        config="rte",
        splits={"train": "train", "test": "validation"},
        label_column="label",
        label_values=("0", "1"),
    ),
    example=frozen_map(
        premise="The museum reopened on Monday after two years of repairs.",
        hypothesis="The museum was closed.",
        label="entailment",
    ),
    source=(
        "Dagan et al. 2006 and later; "
        "prompts for OPT: MeZO (Malladi et al. 2023); for RoBERTa: LM-BFF (Gao et al. 2021), as in DPZero (2024)"
    ),
)
