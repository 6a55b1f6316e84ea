"""WSC: does a pronoun stand for a name?"""

from __future__ import annotations

from collections.abc import Mapping

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, Split, frozen_map

SPLITS: Mapping[Split, str] = {"train": "train", "dev": "dev32", "test": "val"}

_FEW = Layout(
    name="fewglue",
    files={
        split: (f"fewglue_32dev_boolq_copa_wic_multirc_wsc.tar.xz!FewGLUE_32dev/WSC/{name}.jsonl", f"WSC/{name}.jsonl")
        for split, name in SPLITS.items()
    },
    num_examples={"train": 32, "dev": 32, "test": 104},
    fields=frozen_map(text="text", span1="span1", span2="span2"),
    label_column="label",
    file_labels=("false", "true"),
    format="wsc",
)

WSC = Task(
    name="wsc",
    kind="classification",
    template='{text}\nIn the previous sentence, does the pronoun "{span2|lower}" refer to {span1}? Yes or No?\n',
    labels=("no", "yes"),
    label_words=("No", "Yes"),
    inputs=("{text}", "{span2}: {span1}"),
    max_length=128,
    metric="accuracy",
    layouts=(_FEW,),
    hub=HubSource(
        "aps/super_glue",
        frozen_map(text="text", span1="span1_text", span2="span2_text"),
        config="wsc.fixed",
        splits={"train": "train", "test": "validation"},
        label_column="label",
        label_values=("0", "1"),
    ),
    example=frozen_map(
        text="The jug fell off the shelf because it was narrow.", span1="The jug", span2="it", label="no"
    ),
    source="Levesque et al. 2012; prompt: MeZO (Malladi et al. 2023), as in DPZero (2024)",
)
