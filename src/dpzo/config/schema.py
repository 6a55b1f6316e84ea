"""One validated description of a run. Public by law: it holds declarations and choices, never a path to private data.

Four groups, the same in YAML, in `--set group.field=value` and in Python. A field left `None` is open: a run derives
its value from the plan and the model. A run's config.yaml keeps open fields open, so that it can be used again with
another ε or model; the values that were derived stand in the journal's header.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from dpzo.config.bounds import MOST_DIRECTIONS, MOST_ENTRIES, MOST_STEPS, Rank, Rows, Steps, Tokens, Units, weight
from dpzo.config.plain import PLAIN, parse_yaml
from dpzo.errors import DpzoError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FROM_FILE: Literal["from-file"] = "from-file"
PRIVATE: Literal["private"] = "private"


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

    name: str = Field(description="Hugging Face name or local folder of the base model")
    revision: str | None = Field(None, description="hub revision; a commit hash pins the base model")
    trainable: str | None = Field(
        None,
        description="what learns: head, full, lora, prefix, prompt, ia3, or a regular expression over parameter names",
    )
    lora_rank: Rank = Field(8, description="rank of the LoRA matrices")
    lora_alpha: Tokens = Field(16, description="scale of the LoRA product, before it is divided by the rank")
    lora_targets: tuple[str, ...] | None = Field(None, description="names of the layers that lora adapts")
    lora_layers: str | None = Field(None, description="top:2 adapts the two topmost layers alone; default: all")
    lora_scaling: Literal["rank", "root-rank"] = Field("rank", description="alpha over the rank, or its root (rsLoRA)")
    virtual_tokens: Rank = Field(10, description="tokens of a prefix or a soft prompt")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the base; adapters are float32")
    quantization: Literal["none", "int8", "int4", "bnb-int8", "bnb-nf4"] = Field(
        "none", description="of the base's linear layers; torchao, or bitsandbytes for bnb-…"
    )


class DataConfig(_Group):
    """What is declared about the data. Everything here is public and must be known without opening the file."""

    task: str | dict[str, Any] | None = Field(None, description="a built-in task (dpzo tasks), or your own: task.yaml")
    layout: str | None = Field(None, description="which published form of the task's data; default: the first found")
    kind: Literal["classification", "completion", "chat"] | None = Field(
        None, description="classification, completion or chat"
    )
    text_column: str = Field("text", description="column of the text")
    label_column: str = Field("label", description="column of the label")
    prompt_column: str = Field("prompt", description="column of the prompt")
    completion_column: str = Field("completion", description="column of the completion")
    messages_column: str = Field("messages", description="column of a chat's messages, each with role and content")
    chat_template: str | None = Field(None, description="name of one of the tokenizer's chat templates")
    unit_column: str | None = Field(None, description="column that identifies the privacy unit, for example a patient")
    max_records_per_unit: Units | None = Field(
        None, description="records of a privacy unit that are used, the first in file order"
    )
    labels: tuple[str, ...] | None = Field(None, description="declared labels, in order, as in yes,no; or repeated")
    label_words: tuple[str, ...] | None = Field(
        None, description="a causal model's word for each label, as ' bad, good'"
    )
    template: str = Field("{text}", description="prompt around {text}; with {mask} for a masked language model")
    objective: Literal["loss", "accuracy", "f1"] = Field("loss", description="training objective: loss, accuracy or f1")
    max_length: Tokens | None = Field(None, description="tokens a record is padded or cut to")
    max_answer_tokens: Tokens | None = Field(None, description="tokens a completion is cut to")
    end_token: Literal["append", "none"] | None = Field(
        None, description="end token after a completion; default: append, unless the task's own stop text ends it"
    )


class PrivacyConfig(_Group):
    """The inputs of the privacy plan."""

    epsilon: Positive | None = Field(None, description="privacy budget ε; the noise is solved for it")
    noise_multiplier: Positive | None = Field(
        None, description="noise standard deviation ÷ clip norm, in place of epsilon"
    )
    delta: Annotated[float, Field(ge=0, lt=1)] = Field(description="δ of the guarantee, below 1/N")
    num_examples: Units | Literal["from-file", "private"] | None = Field(
        None,
        description="number of privacy units N: declared; private (counted with noise); or from-file (no guarantee)",
    )
    count_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="share of ε that a private count of the units spends"
    )
    expected_batch_size: Positive | None = Field(None, description="expected number of units in a batch, q·N")
    steps: Steps | None = Field(None, description="number of steps T; each is one release")
    num_directions: Annotated[int, Field(ge=1, le=MOST_DIRECTIONS)] | None = Field(
        None, description="directions K in a step; under Gaussian noise they cost no privacy"
    )
    clip_norm: Positive | None = Field(None, description="bound C on the norm of one unit's K slopes")
    mechanism: str = Field("gaussian", description="gaussian, laplace, or auto: the best noise that a search finds")
    relation: str = Field("zero_out", description="zero_out, add_or_remove_one or replace_one")
    tuning: str = Field("not declared", description="how hyper-parameters were chosen, in your own words; on the card")


class TrainingConfig(_Group):
    """The zeroth-order part: all of it is post-processing or public."""

    seed: int = Field(0, ge=0, lt=2**63, description="public seed of directions and of new parameters")
    directions: Literal["rademacher", "gaussian", "sphere", "orthogonal"] = "rademacher"
    mask: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="fraction of elements that move")
    direction_rank: int = Field(0, ge=0, le=1 << 13, description="rank of a matrix's directions; 0: full")
    basis: str | None = Field(None, description="safetensors file of public vectors that directions combine")
    estimator: Literal["central", "forward"] = Field("central", description="2K evaluations a step, or K + 1")
    smoothing: Positive | None = Field(None, description="length φ of a probe along a direction")
    learning_rate: Positive | None = Field(None, description="learning rate η")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0, le=MOST_STEPS)
    update: Literal["sgd", "momentum", "adam", "sign"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="decay of momentum, and Adam's first")
    shrinkage: Literal["none", "snr"] = Field("none", description="snr: releases shrunk by their signal to noise")
    average: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="fraction of last steps averaged")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="decay of an average over all steps; 0: none")
    microbatch_size: Rows | None = None
    constant_time: bool = Field(
        False, strict=True, description="evaluate the planned number of micro-batches in every step, with filling"
    )
    prefix: Literal["batch", "run", "none"] = Field(
        "batch", description="how long the frozen lower layers' output is kept; run holds it on disk when large"
    )
    variants: Literal["auto"] | Rows = Field(
        "auto", description="settings of the trainable part in one pass over the base; auto: what is measured fastest"
    )
    master: Literal["none", "float32"] = Field("none", description="copies of 16-bit weights that take the steps")
    checkpoint_every: int = Field(500, ge=1, lt=1000)


class RunConfig(_Group):
    """A whole run."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    privacy: PrivacyConfig
    training: TrainingConfig = TrainingConfig()


# How an open field is filled, for help texts; docs/defaults.md has the rules.
DERIVED = {
    "model.trainable": "head for a bare encoder, else lora",
    "data.kind": "completion where a prompt or completion column is named, else classification",
    "data.chat_template": "the one named default",
    "data.max_length": "the task's; 64 for your own file",
    "data.max_answer_tokens": "the task's",
    "data.unit_column": "each record is a unit",
    "data.max_records_per_unit": "all of them",
    "privacy.num_examples": "public where a built-in task publishes it, else required",
    "privacy.steps": "200",
    "privacy.num_directions": "64 for a head, else 16",
    "privacy.expected_batch_size": "1024 for a head, else 64; at most N/4",
    "privacy.clip_norm": "by the trained part and K",
    "training.smoothing": "by the trained part and the base's precision",
    "training.learning_rate": "from the plan and its noise",
}


def described(field: str) -> tuple[str, str]:
    """(what a field is, how it is filled where it is not given) of `group.field`; the latter empty where it must be."""
    group, _, leaf = field.partition(".")
    info = RunConfig.model_fields[group].annotation.model_fields[leaf]  # type: ignore[union-attr]
    text = info.description if info.description is not None else leaf.replace("_", " ")
    default = DERIVED.get(field, "" if info.is_required() or info.default is None else str(info.default))
    return text, default


def load_config(path: Path | None, options: Mapping[str, Any], assignments: Sequence[str] = ()) -> RunConfig:
    """The config of a YAML file, overridden by `options` (dotted name → value) and then by `a.b=c` assignments.

    Raises DpzoError naming the option or the field, without repeating what it was given.
    """
    return parse_config(merged(path, options, assignments))


def merged(path: Path | None, options: Mapping[str, Any], assignments: Sequence[str] = ()) -> dict[str, Any]:
    """What `load_config` validates: groups of fields as they were given."""
    tree: dict[str, Any] = {}
    if path is not None:
        tree = _read_yaml(path)
    for name, value in options.items():
        _assign(tree, name, value)
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or not name:
            raise DpzoError("--set takes group.field=value, for instance --set training.smoothing=0.01")
        try:
            value = parse_yaml(text)
        except ValueError:
            raise DpzoError(f"--set {name}: the value is not YAML {PLAIN}") from None
        _assign(tree, name.strip(), value)
    return tree


def parse_config(tree: Mapping[str, Any]) -> RunConfig:
    """Validate a nested mapping; DpzoError lists the first bad field and what it must be."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        # A mistyped name explains why another one is missing, so it is told first.
        first = min(found, key=lambda problem: problem["type"] != "extra_forbidden")
        place = tuple(str(part) for part in first["loc"])[:2]
        raise DpzoError(_problem(place, first["type"], first["msg"])) from None


def has_unknown_names(tree: Mapping[str, Any]) -> bool:
    """Whether a nested mapping names a group or a field that does not exist."""
    known = {name: info.annotation.model_fields for name, info in RunConfig.model_fields.items()}  # type: ignore[union-attr]
    return any(group not in known or not set(fields) <= set(known[group]) for group, fields in tree.items())


def recorded_config(tree: Mapping[str, Any]) -> RunConfig:
    """The config of a journal's header. A field that its version did not know has the value by which that one worked.

    Version 0.1.0 put no end token after a completion.
    """
    return parse_config({**tree, "data": {"end_token": "none", **tree["data"]}})


# What must be given, and what to say to someone who did not; a group stands for its first needed field.
_NEEDED = {
    "model": "--model is missing: a Hugging Face name or a local folder",
    "privacy": "--delta is missing: the δ of the guarantee, below 1/N, for instance 1e-5",
}

# Fields that only --set and --config reach.
WITHOUT_FLAG = frozenset(
    {
        "model.revision",
        "model.lora_alpha",
        "model.lora_targets",
        "model.lora_layers",
        "model.lora_scaling",
        "model.virtual_tokens",
        "model.dtype",
        "model.quantization",
        "data.layout",
        "data.max_answer_tokens",
        "data.end_token",
        "data.messages_column",
        "privacy.count_share",
        "training.directions",
        "training.mask",
        "training.direction_rank",
        "training.basis",
        "training.estimator",
        "training.update",
        "training.momentum",
        "training.shrinkage",
        "training.ema",
        "training.prefix",
        "training.variants",
        "training.schedule",
        "training.warmup_steps",
        "training.average",
        "training.microbatch_size",
        "training.master",
        "training.checkpoint_every",
    }
)


def _problem(place: tuple[str, ...], kind: str, message: str) -> str:
    """A validation error in a user's words; `message` is pydantic's, which hides the value."""
    field = ".".join(place)
    if kind == "missing":
        return _NEEDED[place[0]]
    if kind == "extra_forbidden":
        group = RunConfig.model_fields[place[0]].annotation if len(place) > 1 else RunConfig
        known = tuple(group.model_fields) if isinstance(group, type) and issubclass(group, BaseModel) else ()
        near = get_close_matches(place[-1], known, n=1)
        return f"{field}: no such {'field' if len(place) > 1 else 'group'}; " + (
            f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        )
    if field == "privacy.num_examples":
        return "--num-examples (privacy.num_examples): must be a whole number of at least 1, private, or from-file"
    # "Input should be a valid number, unable to parse string as a number"
    plain = message.partition(", unable")[0].replace("Input should", "must")
    return f"{option_name(field)}: {plain[0].lower()}{plain[1:]}"


ConfigLike = RunConfig | Mapping[str, Any] | str | Path


def as_config(given: ConfigLike) -> RunConfig:
    """A config from any of its forms: itself, a mapping of groups (or of `group.field` names), a YAML file's path."""
    if isinstance(given, RunConfig):
        return given
    if isinstance(given, str | Path):
        return load_config(Path(given), {})
    if not isinstance(given, Mapping):
        raise DpzoError(f"config: is a {type(given).__name__}; give a RunConfig, a mapping, or the path of a YAML file")
    flat = {name: value for name, value in given.items() if "." in str(name)}
    groups = {name: value for name, value in given.items() if name not in flat}
    if not flat:
        return parse_config(groups)
    nested = {f"{group}.{field}": value for group, fields in groups.items() for field, value in dict(fields).items()}
    return load_config(None, {**nested, **flat})


def dump_config(config: RunConfig) -> str:
    """YAML of every value, in the order of the classes."""
    return dump_tree(config.model_dump(mode="json"))


def dump_tree(tree: Mapping[str, Any]) -> str:
    """YAML of a config's values, in their order: the one spelling of a run's config.yaml."""
    readable = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    # A few characters (U+0085, U+2028 …) count as line ends in YAML and come back as others unless they are escaped.
    return readable if yaml.safe_load(readable) == tree else yaml.safe_dump(tree, sort_keys=False)


def derived_fields(chosen: RunConfig, filled: RunConfig) -> tuple[str, ...]:
    """Names (`group.field`) of the fields that `chosen` leaves open and `filled` does not."""
    return tuple(
        f"{group}.{field}"
        for group, fields in chosen.model_dump().items()
        for field, value in fields.items()
        if value is None and getattr(getattr(filled, group), field) is not None
    )


def with_open_fields(config: RunConfig, names: Sequence[str]) -> RunConfig:
    """A copy with the named fields (`group.field`) open again. DpzoError for what is no field or may not be open."""
    tree = config.model_dump()
    for name in names:
        group, _, field = str(name).partition(".")
        if field not in tree.get(group, {}):
            raise DpzoError(f"{name}: no such field of a config")
        tree[group][field] = None
    return parse_config(tree)


def with_values(config: RunConfig, **groups: Mapping[str, Any]) -> RunConfig:
    """A copy with some fields replaced, validated anew: `with_values(config, training={"smoothing": 0.01})`."""
    tree = config.model_dump()
    for group, values in groups.items():
        tree[group] = {**tree[group], **values}
    return parse_config(tree)


def option_name(field: str) -> str:
    """How a user would name a config field: the command-line flag where there is one."""
    if "." not in field or field in WITHOUT_FLAG:
        return field
    leaf = "model" if field == "model.name" else field.rpartition(".")[2]
    return f"--{leaf.replace('_', '-')} ({field})"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DpzoError(f"--config {path}: {error.strerror}") from None
    except ValueError:
        raise DpzoError(f"--config {path}: not a YAML file {PLAIN}") from None
    if not isinstance(tree, dict) or not all(isinstance(group, dict) for group in tree.values()):
        raise DpzoError(f"--config {path}: expected groups (model, data, privacy, training) of fields")
    return tree


def _assign(tree: dict[str, Any], name: str, value: Any) -> None:
    group, separator, field = name.partition(".")
    if not separator or not field or "." in field:
        raise DpzoError(
            f"--set {name}: expected group.field=value with group one of {', '.join(RunConfig.model_fields)}"
        )
    if group not in RunConfig.model_fields:
        raise DpzoError(f"--set {name}: no group of that name; there are {', '.join(RunConfig.model_fields)}")
    tree.setdefault(group, {})[field] = value
