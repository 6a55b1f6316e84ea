"""CB: does a speaker who says this believe the clause, deny it, or neither?"""

from __future__ import annotations

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, frozen_map

_SUPERGLUE = Layout(
    name="superglue",
    files={"train": ("train.jsonl", "CB/train.jsonl"), "test": ("val.jsonl", "CB/val.jsonl")},
    num_examples={"train": 250, "test": 56},
    fields=frozen_map(premise="premise", hypothesis="hypothesis"),
    label_column="label",
    file_labels=("entailment", "contradiction", "neutral"),
)

CB = Task(
    name="cb",
    kind="classification",
    template='Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n',
    labels=("entailment", "contradiction", "neutral"),
    label_words=("Yes", "No", "Maybe"),
    inputs=("{premise}", "{hypothesis}"),
    max_length=256,
    metric="accuracy",
    layouts=(_SUPERGLUE,),
    hub=HubSource(
        "aps/super_glue",
        frozen_map(premise="premise", hypothesis="hypothesis"),
        config="cb",
        splits={"train": "train", "test": "validation"},
        label_column="label",
        label_values=("0", "1", "2"),
    ),
    example=frozen_map(
        premise="Tom did not know that the shop had moved.", hypothesis="the shop had moved", label="entailment"
    ),
    source="de Marneffe et al. 2019; prompt: MeZO (Malladi et al. 2023), as in DPZero (2024)",
)
