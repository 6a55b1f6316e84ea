"""WiC: does a word mean the same in two sentences?"""

from __future__ import annotations

from collections.abc import Mapping

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, Split, frozen_map

SPLITS: Mapping[Split, str] = {"train": "train", "dev": "dev32", "test": "val"}

_FEW = Layout(
    name="fewglue",
    files={
        split: (f"fewglue_32dev_boolq_copa_wic_multirc_wsc.tar.xz!FewGLUE_32dev/WiC/{name}.jsonl", f"WiC/{name}.jsonl")
        for split, name in SPLITS.items()
    },
    num_examples={"train": 32, "dev": 32, "test": 638},
    fields=frozen_map(word="word", first="sentence1", second="sentence2"),
    label_column="label",
    file_labels=("false", "true"),
)

WIC = Task(
    name="wic",
    kind="classification",
    template='Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n{first}\n{second}\n',
    labels=("different", "same"),
    label_words=("No", "Yes"),
    inputs=("{word}: {first}", "{second}"),
    max_length=128,
    metric="accuracy",
    layouts=(_FEW,),
    hub=HubSource(
        "aps/super_glue",
        frozen_map(word="word", first="sentence1", second="sentence2"),
        config="wic",
        splits={"train": "train", "test": "validation"},
        label_column="label",
        label_values=("0", "1"),
    ),
    example=frozen_map(
        word="bank", first="We sat on the bank of the river.", second="The bank lends money.", label="different"
    ),
    source="Pilehvar and Camacho-Collados 2019; prompt: MeZO (Malladi et al. 2023), as in DPZero (2024)",
)
