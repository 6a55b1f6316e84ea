"""MRPC: do two sentences of the news say the same?"""

from __future__ import annotations

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, frozen_map, k_shot_layouts

_SUBSET = Layout(
    name="subset",
    files={
        "train": ("glue_train_subsets.tar.xz!glue_subsets/MRPC/train.json", "MRPC/train.json"),
        "dev": ("glue_train_subsets.tar.xz!glue_subsets/MRPC/dev.json", "MRPC/dev.json"),
    },
    num_examples={"train": 3300, "dev": 367},
    fields=frozen_map(first="text_a", second="text_b"),
    label_column="label",
    file_labels=("0", "1"),
    format="numbered-json",
)

MRPC = Task(
    name="mrpc",
    kind="classification",
    template="{first}\n{second}\nDo these two say the same? Yes or No?\n",
    labels=("different", "same"),
    label_words=("No", "Yes"),
    mask_template="{first}{mask}, {second|lower_first}",
    mask_words=(" No", " Yes"),
    inputs=("{first}", "{second}"),
    max_length=128,
    metric="f1",
    layouts=(
        *k_shot_layouts(
            "MRPC",
            {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"},
            fields=frozen_map(first="#1 String", second="#2 String"),
            num_examples={512: {"train": 1024, "dev": 1024, "test": 408}, 16: {"train": 32, "dev": 32, "test": 408}},
            label_column="Quality",
            file_labels=("0", "1"),
        ),
        _SUBSET,
    ),
    hub=HubSource(
        "nyu-mll/glue",
        frozen_map(first="sentence1", second="sentence2"),
        config="mrpc",
        splits={"train": "train", "test": "validation"},
        label_column="label",
        label_values=("0", "1"),
    ),
    example=frozen_map(first="The firm hired ten people .", second="Ten people were hired by the firm .", label="same"),
    source="Dolan and Brockett 2005; prompt for RoBERTa: LM-BFF (Gao et al. 2021); for causal models: made for dpzo",
)
