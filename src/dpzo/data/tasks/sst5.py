"""SST-5: how good does a sentence of a film review find the film, in five steps?"""

from __future__ import annotations

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, frozen_map, k_shot_layouts

_SENTENCE = Layout(
    name="sentence",
    files={"dev": ("stsa.fine.dev.gz", "stsa.fine.dev"), "test": ("stsa.fine.test.gz", "stsa.fine.test")},
    num_examples={"dev": 1101, "test": 2210},
    fields=frozen_map(text="text"),
    label_column="label",
    file_labels=("0", "1", "2", "3", "4"),
    format="labelled-lines",
)

# The training sentences in two parts, as they are handed on: nine tenths to train on.
_RESPLIT = Layout(
    name="resplit",
    files={
        "train": ("train_90pct.json.gz", "train_90pct.json"),
        "dev": ("train_10pct.json.gz", "train_10pct.json"),
    },
    num_examples={"train": 7689, "dev": 855},
    fields=frozen_map(text="text_a"),
    label_column="label",
    file_labels=("0", "1", "2", "3", "4"),
    format="numbered-json",
)

SST5 = Task(
    name="sst5",
    kind="classification",
    template="{text} It was",
    labels=("very negative", "negative", "neutral", "positive", "very positive"),
    label_words=(" terrible", " bad", " okay", " good", " great"),
    mask_template="{text} It was{mask}.",
    mask_words=(" terrible", " bad", " okay", " good", " great"),
    max_length=128,
    metric="accuracy",
    layouts=(
        *k_shot_layouts(
            "sst-5",
            {"train": "train.csv", "dev": "dev.csv", "test": "test.csv"},
            fields=frozen_map(text="text"),
            num_examples={512: {"train": 2560, "dev": 2560, "test": 1000}, 16: {"train": 80, "dev": 80, "test": 1000}},
            label_column="label",
            file_labels=("0", "1", "2", "3", "4"),
            header=("label", "text"),
            quoted=True,
        ),
        _RESPLIT,
        _SENTENCE,
    ),
    hub=HubSource("SetFit/sst5", frozen_map(text="text"), label_column="label", label_values=("0", "1", "2", "3", "4")),
    example=frozen_map(text="the songs carry it , the plot does not .", label="neutral"),
    source="Socher et al. 2013; prompt: LM-BFF (Gao et al. 2021), as in DPZero (2024)",
)
