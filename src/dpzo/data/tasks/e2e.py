"""E2E: say in a sentence what a restaurant's record holds."""

from __future__ import annotations

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.layouts import HubSource, Layout, frozen_map

_FIELDS = frozen_map(record="mr", completion="ref")

_FULL = Layout(
    name="full",
    files={"train": ("trainset.csv",), "dev": ("devset.csv",), "test": ("testset_w_refs.csv",)},
    num_examples={"train": 42061, "dev": 547, "test": 630},
    fields=_FIELDS,
    quoted=True,
    group_by="mr",
)

# The development sentences as training set: smaller than the standard one, and the tests stay the standard ones.
_SMALL = Layout(
    name="dev-as-train",
    files={
        "train": ("devset.csv.gz", "e2e/devset.csv.gz"),
        "test": ("testset_w_refs.csv.gz", "e2e/testset_w_refs.csv.gz"),
    },
    num_examples={"train": 4672, "test": 630},
    fields=_FIELDS,
    quoted=True,
    group_by="mr",
)

E2E = Task(
    name="e2e",
    kind="completion",
    template="{record}\n",
    answer_template="{completion}\n",
    stop="\n",
    max_length=192,
    max_answer_tokens=96,
    max_new_tokens=96,
    metric="bleu",
    layouts=(_FULL, _SMALL),
    hub=HubSource("tuetschek/e2e_nlg", frozen_map(record="meaning_representation", completion="human_reference")),
    example=frozen_map(
        record="name[The Heron], food[Italian], area[riverside]",
        completion="The Heron serves Italian food by the river.",
    ),
    source="Novikova et al. 2017; prompt: made for dpzo",
)
