"""One validated description of a run. Public by law: it holds declarations and choices, never a path to private data.

Four groups, the same in YAML, in `--set group.field=value` and in Python. A field left `None` is open: a run derives
its value from the plan and the model. A run's config.yaml keeps open fields open, so that it can be used again with
another ε or model; the values that were derived stand in the journal's header.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from dpzo.config.bounds import MOST_DIRECTIONS, MOST_ENTRIES, MOST_STEPS, Rank, Rows, Steps, Tokens, Units, weight

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FROM_FILE: Literal["from-file"] = "from-file"
PRIVATE: Literal["private"] = "private"
EndToken = Literal["append", "none"]


def about(description: str, *, flag: bool = True, derived: str = "") -> dict[str, Any]:
    """What users read of a field: its description, whether a flag sets it, and how it is filled where it is open."""
    return {"description": description, "json_schema_extra": {"flag": flag, "derived": derived}}


class _Group(BaseModel):
    # A validation error must not quote what it was given: a mistyped option may hold a record.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values(cls, value: object, info: ValidationInfo) -> object:
        """To Python and to YAML `yes` is also the number 1: an ε of yes would be a guarantee that nobody meant."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise PydanticCustomError("truth_value", "Input should be a number or a text, not true or false")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _bounded(cls, value: object) -> object:
        """A text or list without end, in a config that someone else wrote, is refused before it is used."""
        if not issubclass(cls, RunConfig) and weight(value) > MOST_ENTRIES:
            raise PydanticCustomError("too_large", "Input should be shorter: it holds more than a config may")
        return value


class ModelConfig(_Group):
    """Which model, and which part of it learns."""

    name: str = Field(**about("Hugging Face name or local folder of the base model"))
    revision: str | None = Field(None, **about("hub revision; a commit hash pins the base model", flag=False))
    trainable: str | None = Field(
        None,
        **about(
            "trained parameters: head, full, lora, prefix, prompt, ia3, or a regular expression over their names",
            derived="head for a bare encoder, else lora",
        ),
    )
    lora_rank: Rank = Field(8, **about("rank of the LoRA matrices"))
    lora_alpha: Tokens = Field(16, **about("scale of the LoRA product, before it is divided by the rank", flag=False))
    lora_targets: tuple[str, ...] | None = Field(None, **about("names of the layers that lora adapts", flag=False))
    lora_layers: str | None = Field(None, **about("top:2 adapts only the two topmost layers; default: all", flag=False))
    lora_scaling: Literal["rank", "root-rank"] = Field(
        "rank", **about("alpha over the rank, or its root (rsLoRA)", flag=False)
    )
    virtual_tokens: Rank = Field(10, **about("tokens of a prefix or a soft prompt", flag=False))
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", **about("data type of the base model; adapters are float32", flag=False)
    )
    quantization: Literal["none", "int8", "int4", "bnb-int8", "bnb-nf4"] = Field(
        "none", **about("quantization of the base's linear layers: torchao, or bitsandbytes for bnb-…", flag=False)
    )


class DataConfig(_Group):
    """What is declared about the data. Everything here is public and must be known without opening the file."""

    task: str | dict[str, Any] | None = Field(None, **about("a built-in task (dpzo tasks), or your own: task.yaml"))
    layout: str | None = Field(
        None, **about("published layout of the task's data; default: the first found", flag=False)
    )
    kind: Literal["classification", "completion", "chat"] | None = Field(
        None,
        **about(
            "classification, completion or chat",
            derived="completion where a prompt or completion column is named, else classification",
        ),
    )
    text_column: str = Field("text", **about("column of the text"))
    label_column: str = Field("label", **about("column of the label"))
    prompt_column: str = Field("prompt", **about("column of the prompt"))
    completion_column: str = Field("completion", **about("column of the completion"))
    messages_column: str = Field(
        "messages", **about("column of a chat's messages, each with role and content", flag=False)
    )
    chat_template: str | None = Field(
        None, **about("name of one of the tokenizer's chat templates", derived="the one named default")
    )
    unit_column: str | None = Field(
        None, **about("column that identifies the privacy unit, for example a patient", derived="each record is a unit")
    )
    max_records_per_unit: Units | None = Field(
        None, **about("most records used per privacy unit, the first in file order", derived="all of them")
    )
    labels: tuple[str, ...] | None = Field(None, **about("declared labels in order: yes,no; or repeat the flag"))
    label_words: tuple[str, ...] | None = Field(
        None, **about("a causal model's word for each label, for example ' bad, good'")
    )
    template: str = Field("{text}", **about("prompt template with {text}; and {mask} for a masked language model"))
    objective: Literal["loss", "accuracy", "f1"] = Field("loss", **about("training objective: loss, accuracy or f1"))
    max_length: Tokens | None = Field(
        None, **about("tokens to which a record is padded or truncated", derived="the task's; 64 for your own file")
    )
    max_answer_tokens: Tokens | None = Field(
        None, **about("tokens to which a completion is truncated", flag=False, derived="the task's")
    )
    end_token: EndToken | None = Field(
        None,
        **about("end token after a completion; default: append, unless the task's own stop text ends it", flag=False),
    )


class PrivacyConfig(_Group):
    """The inputs of the privacy plan."""

    epsilon: Positive | None = Field(None, **about("privacy budget ε; the noise is solved for it"))
    noise_multiplier: Positive | None = Field(
        None, **about("noise standard deviation ÷ clip norm, in place of epsilon")
    )
    delta: Annotated[float, Field(ge=0, lt=1)] = Field(**about("δ of the guarantee, below 1/N"))
    num_examples: Units | Literal["from-file", "private"] | None = Field(
        None,
        **about(
            "number of privacy units N: declared; private (counted with noise); or from-file (no guarantee)",
            derived="public where a built-in task publishes it, else required",
        ),
    )
    count_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, **about("share of ε spent on a private count of the units", flag=False)
    )
    expected_batch_size: Positive | None = Field(
        None, **about("expected number of units in a batch, q·N", derived="1024 for a head, else 64; at most N/4")
    )
    steps: Steps | None = Field(None, **about("number of steps T; each is one release", derived="200"))
    num_directions: Annotated[int, Field(ge=1, le=MOST_DIRECTIONS)] | None = Field(
        None,
        **about("directions K in a step; under Gaussian noise they cost no privacy", derived="64 for a head, else 16"),
    )
    clip_norm: Positive | None = Field(
        None, **about("clip norm C of one unit's K slopes", derived="from the trained part and K")
    )
    mechanism: str = Field("gaussian", **about("gaussian, laplace, or auto: the best noise found by a search"))
    relation: str = Field("zero_out", **about("neighboring relation: zero_out, add_or_remove_one or replace_one"))
    tuning: str = Field(
        "not declared", **about("how hyper-parameters were chosen, in your own words; stated on the card")
    )


class TrainingConfig(_Group):
    """The zeroth-order part: all of it is post-processing or public."""

    seed: int = Field(0, ge=0, lt=2**63, **about("public seed of directions and of new parameters"))
    directions: Literal["rademacher", "gaussian", "sphere", "orthogonal"] = Field(
        "rademacher", **about("distribution of the random directions", flag=False)
    )
    density: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, **about("fraction of elements that a step changes", flag=False)
    )
    direction_rank: int = Field(0, ge=0, le=1 << 13, **about("rank of a matrix's directions; 0: full", flag=False))
    basis: str | None = Field(
        None, **about("safetensors file of public vectors; directions are combinations of them", flag=False)
    )
    estimator: Literal["central", "forward"] = Field(
        "central", **about("central: 2K evaluations per step; forward: K + 1", flag=False)
    )
    smoothing: Positive | None = Field(
        None,
        **about(
            "smoothing radius φ: distance moved along a direction for an evaluation",
            derived="from the trained part and the base's precision",
        ),
    )
    learning_rate: Positive | None = Field(None, **about("learning rate η", derived="from the plan and its noise"))
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", **about("how the learning rate changes over the run", flag=False)
    )
    warmup_steps: int = Field(
        0, ge=0, le=MOST_STEPS, **about("steps over which the learning rate rises from 0", flag=False)
    )
    update: Literal["sgd", "momentum", "adam", "sign"] = Field(
        "sgd", **about("update rule applied to the releases", flag=False)
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, **about("decay of momentum, and Adam's first", flag=False)
    )
    shrinkage: Literal["none", "snr"] = Field(
        "none", **about("snr: releases are shrunk by their signal-to-noise ratio", flag=False)
    )
    average: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, **about("fraction of the last steps that are averaged", flag=False)
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, **about("decay of an exponential moving average over all steps; 0: none", flag=False)
    )
    microbatch_size: Rows | None = Field(None, **about("records per forward pass; affects memory only", flag=False))
    constant_time: bool = Field(
        False, strict=True, **about("evaluate the planned number of micro-batches in every step, padding where needed")
    )
    frozen_cache: Literal["batch", "run", "none"] = Field(
        "batch",
        **about("how long the frozen lower layers' output is cached; run caches on disk if large", flag=False),
    )
    eval_batch: Literal["auto"] | Rows = Field(
        "auto",
        **about(
            "settings of the trainable part evaluated in one pass over the base; auto: the fastest measured", flag=False
        ),
    )
    master: Literal["none", "float32"] = Field(
        "none", **about("precision of master copies of 16-bit weights, to which steps are applied", flag=False)
    )
    checkpoint_every: int = Field(500, ge=1, lt=1000, **about("steps between checkpoints", flag=False))


class RunConfig(_Group):
    """A whole run."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    privacy: PrivacyConfig
    training: TrainingConfig = TrainingConfig()


@dataclass(frozen=True)
class Option:
    """A field of the config as a user meets it.

    - `field`: group.field; `name`: of the parameter of a command; `flag`: None where only --set and --config reach it.
    - `default`: the default, or how the field is filled where it is open; empty where it must be given.
    - `kind`: what a flag's value is read as; a `list[str]` is repeated, a `bool` takes no value.
    """

    field: str
    name: str
    flag: str | None
    help: str
    default: str
    kind: Any


@lru_cache
def options() -> tuple[Option, ...]:
    """Every option of a run, in the order of the groups."""
    return tuple(
        _option(group, name, info)
        for group, of_run in RunConfig.model_fields.items()
        for name, info in of_run.annotation.model_fields.items()  # type: ignore[union-attr]
    )


def _option(group: str, field: str, info: FieldInfo) -> Option:
    facts: Any = info.json_schema_extra
    name = "model" if (group, field) == ("model", "name") else field
    default = "" if info.is_required() or info.default is None else str(info.default)
    return Option(
        field=f"{group}.{field}",
        name=name,
        flag=f"--{name.replace('_', '-')}" if facts["flag"] else None,
        help=str(info.description),
        default=facts["derived"] or default,
        kind=_kind(info.annotation),
    )


def _kind(annotation: Any) -> Any:
    """What a flag's value is read as: a number, a truth value or a list where the field is that alone, else a text."""
    parts = [part for part in get_args(annotation) if part is not NoneType] if annotation is not None else []
    if get_origin(annotation) in (Union, UnionType) and len(parts) == 1:
        return _kind(parts[0])
    if get_origin(annotation) is Annotated:
        return _kind(parts[0])
    if get_origin(annotation) is tuple:
        return list[str]
    return annotation if annotation in (int, float, bool) else str


def option_name(field: str) -> str:
    """How a user would name a config field: the command-line flag where there is one."""
    flag = next((option.flag for option in options() if option.field == field), None)
    return field if flag is None else f"{flag} ({field})"
