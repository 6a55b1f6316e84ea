"""COPA: which of two sentences is the cause, or the effect, of another?"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, Split, frozen_map

SPLITS: Mapping[Split, str] = {"train": "train", "dev": "dev32", "test": "val"}

_FEW = Layout(
    name="fewglue",
    files={
        split: (
            f"fewglue_32dev_boolq_copa_wic_multirc_wsc.tar.xz!FewGLUE_32dev/COPA/{name}.jsonl",
            f"COPA/{name}.jsonl",
        )
        for split, name in SPLITS.items()
    },
    num_examples={"train": 32, "dev": 32, "test": 100},
    fields=frozen_map(premise="premise", asked="question", choice1="choice1", choice2="choice2"),
    label_column="label",
    file_labels=("0", "1"),
)

COPA = Task(
    name="copa",
    kind="classification",
    template="{premise|drop_stop} {asked}",
    labels=("first", "second"),
    option_fields=("choice1", "choice2"),
    inputs=("{premise} {asked}", "{choice1} / {choice2}"),
    values=MappingProxyType({"asked": MappingProxyType({"effect": "so", "cause": "because"})}),
    answer_template=" {completion|lower_first}",
    max_length=64,
    metric="accuracy",
    layouts=(_FEW,),
    hub=HubSource(
        "aps/super_glue",
        frozen_map(premise="premise", asked="question", choice1="choice1", choice2="choice2"),
        config="copa",
        splits={"train": "train", "test": "validation"},
        label_column="label",
        label_values=("0", "1"),
    ),
    example=frozen_map(
        premise="The pavement was wet.",
        asked="cause",
        choice1="It had rained.",
        choice2="The shop was closed.",
        label="first",
    ),
    source="Roemmele et al. 2011; prompt: MeZO (Malladi et al. 2023), as in DPZero (2024)",
)
