"""QQP: do two questions ask the same?"""

from __future__ import annotations

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, frozen_map, k_shot_layouts

_SUBSET = Layout(
    name="subset",
    files={
        "train": ("glue_train_subsets.tar.xz!glue_subsets/QQP/train.json", "QQP/train.json"),
        "dev": ("glue_train_subsets.tar.xz!glue_subsets/QQP/dev.json", "QQP/dev.json"),
    },
    num_examples={"train": 8999, "dev": 1000},
    fields=frozen_map(first="text_a", second="text_b"),
    label_column="label",
    file_labels=("0", "1"),
    format="numbered-json",
)

QQP = Task(
    name="qqp",
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
            "QQP",
            {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"},
            fields=frozen_map(first="question1", second="question2"),
            num_examples={512: {"train": 1024, "dev": 1024, "test": 1000}, 16: {"train": 32, "dev": 32, "test": 1000}},
            label_column="is_duplicate",
            file_labels=("0", "1"),
        ),
        _SUBSET,
    ),
    hub=HubSource(
        "nyu-mll/glue",
        frozen_map(first="question1", second="question2"),
        config="qqp",
        splits={"train": "train", "test": "validation"},
        label_column="label",
        label_values=("0", "1"),
    ),
    example=frozen_map(first="How do I bake bread?", second="How is bread baked?", label="same"),
    source="Iyer et al. 2017; prompt for RoBERTa: LM-BFF (Gao et al. 2021); for causal models: made for dpzo",
)
