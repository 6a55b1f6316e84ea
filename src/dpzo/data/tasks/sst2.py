"""SST-2: is a sentence of a film review negative or positive?"""

from __future__ import annotations

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, frozen_map, k_shot_layouts

_SENTENCE = Layout(
    name="sentence",
    files={
        "train": ("sentence_train.tsv.gz", "sentence_train.tsv"),
        "dev": ("sentence_dev.tsv.gz", "sentence_dev.tsv"),
        "test": ("sentence_test.tsv.gz", "sentence_test.tsv"),
    },
    num_examples={"train": 6920, "dev": 872, "test": 1821},
    fields=frozen_map(text="text"),
    label_column="label",
    file_labels=("0", "1"),
    header=("label", "text"),
)

# GLUE hides the labels of its test set, so what others call "test" is its development set.
_GLUE = Layout(
    name="glue",
    files={"train": ("train.tsv", "train.tsv.gz"), "dev": ("dev.tsv", "dev.tsv.gz")},
    num_examples={"train": 67349, "dev": 872},
    fields=frozen_map(text="sentence"),
    label_column="label",
    file_labels=("0", "1"),
)

# The resplit in common use: GLUE's training set in two, and GLUE's development set as the test.
_GLUE_RESPLIT = Layout(
    name="glue-resplit",
    files={
        "train": ("glue_train.tsv.gz", "glue_train.tsv"),
        "dev": ("glue_dev.tsv.gz", "glue_dev.tsv"),
        "test": ("glue_test.tsv.gz", "glue_test.tsv"),
    },
    num_examples={"train": 60614, "dev": 6735, "test": 872},
    fields=frozen_map(text="sentence"),
    label_column="label",
    file_labels=("0", "1"),
)

SST2 = Task(
    name="sst2",
    kind="classification",
    template="{text} It was",
    labels=("negative", "positive"),
    label_words=(" terrible", " great"),
    mask_template="{text} It was{mask}.",
    mask_words=(" terrible", " great"),
    max_length=128,
    metric="accuracy",
    layouts=(
        _SENTENCE,
        _GLUE,
        _GLUE_RESPLIT,
        *k_shot_layouts(
            "SST-2",
            {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"},
            fields=frozen_map(text="sentence"),
            num_examples={512: {"train": 1024, "dev": 1024, "test": 872}, 16: {"train": 32, "dev": 32, "test": 872}},
            label_column="label",
            file_labels=("0", "1"),
        ),
    ),
    hub=HubSource(
        "nyu-mll/glue",
        frozen_map(text="sentence"),
        config="sst2",
        splits={"train": "train", "test": "validation"},
        label_column="label",
        label_values=("0", "1"),
    ),
    example=frozen_map(text="a warm and funny film .", label="positive"),
    source="Socher et al. 2013; template and label words: LM-BFF (Gao et al. 2021); length: DPZero (Zhang et al. 2024)",
)
