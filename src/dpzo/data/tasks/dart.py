"""DART: say in a sentence what a set of facts holds."""

from __future__ import annotations

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, frozen_map

_FIELDS = frozen_map(triples="triples", completion="text")

_FULL = Layout(
    name="full",
    files={
        "train": ("dart-v1.1.1-full-train.json",),
        "dev": ("dart-v1.1.1-full-dev.json",),
        "test": ("dart-v1.1.1-full-test.xml",),
    },
    num_examples={"train": 62659, "dev": 2768, "test": 5097},
    fields=_FIELDS,
    format="dart",
    group_by="entry",
)

# The development entries as training set: smaller than the standard one, and the tests stay the standard ones.
_SMALL = Layout(
    name="dev-as-train",
    files={
        "train": ("dart-v1.1.1-full-dev.json.gz", "dart/dart-v1.1.1-full-dev.json.gz"),
        "test": ("dart-v1.1.1-full-test.xml.gz", "dart/dart-v1.1.1-full-test.xml.gz"),
    },
    num_examples={"train": 6980, "test": 5097},
    fields=_FIELDS,
    format="dart",
    group_by="entry",
)

DART = Task(
    name="dart",
    kind="completion",
    template="{triples}\n",
    answer_template="{completion}\n",
    stop="\n",
    max_length=256,
    max_answer_tokens=96,
    max_new_tokens=96,
    metric="bleu",
    layouts=(_FULL, _SMALL),
    hub=HubSource("Yale-LILY/dart", frozen_map(triples="tripleset", completion="annotations.text")),
    example=frozen_map(
        triples="The Heron : food : Italian | The Heron : area : riverside",
        completion="The Heron serves Italian food by the river.",
    ),
    source="Nan et al. 2021; prompt: made for dpzo",
)
