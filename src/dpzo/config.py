"""One validated description of a run. Public by law: it holds declarations and choices, never a path to private data.

Four groups, the same in YAML, in `--set group.field=value` and in Python. A field left `None` is filled by
`defaults.py`-style rules in `resolved()`, so that a saved config states every value that was used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dpzo.errors import DpzoError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
FROM_FILE: Literal["from-file"] = "from-file"


class _Group(BaseModel):
    # A validation error must not quote what it was given: a mistyped option may hold a record.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ModelConfig(_Group):
    """Which model, and which part of it learns."""

    name: str = Field(description="Hugging Face name or local folder of the base model")
    revision: str | None = Field(None, description="hub revision; a commit hash pins the base model")
    trainable: str | None = Field(None, description="head, lora, full, or a regular expression over parameter names")
    lora_rank: Count = 8
    lora_alpha: Count = 16


class DataConfig(_Group):
    """What is declared about the data. Everything here is public and must be known without opening the file."""

    task: str | None = Field(None, description="a built-in task; see dpzo tasks")
    kind: Literal["classification", "completion"] | None = None
    text_column: str = "text"
    label_column: str = "label"
    prompt_column: str = "prompt"
    completion_column: str = "completion"
    unit_column: str | None = Field(None, description="column naming the person or other unit that is protected")
    labels: tuple[str, ...] | None = Field(None, description="declared label set, in order")
    label_words: tuple[str, ...] | None = Field(None, description="what a causal model says for each label")
    template: str = Field("{text}", description="prompt around the text, for causal models")
    max_length: Count | None = Field(None, description="tokens a record is padded or cut to; default: the task's")
    max_answer_tokens: Count = Field(32, description="tokens a completion is cut to")


class PrivacyConfig(_Group):
    """The inputs of the privacy plan."""

    epsilon: Positive | None = None
    noise_multiplier: Positive | None = None
    delta: Annotated[float, Field(ge=0, lt=1)]
    num_examples: Count | Literal["from-file"] | None = None
    expected_batch_size: Positive | None = None
    steps: Count | None = None
    num_directions: Count | None = None
    clip_norm: Positive | None = None
    mechanism: str = "gaussian"
    relation: str = "zero_out"
    tuning: str = Field("not declared", description="how hyper-parameters were chosen, in your own words")


class TrainingConfig(_Group):
    """The zeroth-order part: all of it is post-processing or public."""

    seed: int = Field(0, ge=0, lt=2**63, description="public seed of directions and of new parameters")
    directions: Literal["rademacher", "gaussian", "sphere"] = "rademacher"
    smoothing: Positive | None = None
    learning_rate: Positive | None = None
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    average: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="fraction of last steps averaged")
    microbatch_size: Count | None = None
    checkpoint_every: int = Field(500, ge=1, le=1000)


class RunConfig(_Group):
    """A whole run."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    privacy: PrivacyConfig
    training: TrainingConfig = TrainingConfig()


def load_config(path: Path | None, options: Mapping[str, Any], assignments: Sequence[str] = ()) -> RunConfig:
    """The config of a YAML file, overridden by `options` (dotted name → value) and then by `a.b=c` assignments.

    Raises DpzoError naming the option or the field, without repeating what it was given.
    """
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
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise DpzoError(f"--set {name}: the value is not YAML") from None
        _assign(tree, name.strip(), value)
    return parse_config(tree)


def parse_config(tree: Mapping[str, Any]) -> RunConfig:
    """Validate a nested mapping; DpzoError lists the first bad field and what it must be."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("constrained", "literal")))
        raise DpzoError(f"{_option(field)}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def dump_config(config: RunConfig) -> str:
    """YAML of every value, in the order of the classes."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def with_values(config: RunConfig, **groups: Mapping[str, Any]) -> RunConfig:
    """A copy with some fields replaced, validated anew: `with_values(config, training={"smoothing": 0.01})`."""
    tree = config.model_dump()
    for group, values in groups.items():
        tree[group] = {**tree[group], **values}
    return parse_config(tree)


def _option(field: str) -> str:
    """How a user would name a config field: the command-line flag where there is one."""
    leaf = field.rpartition(".")[2]
    return f"--{leaf.replace('_', '-')} ({field})" if "." in field else field


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DpzoError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise DpzoError(f"--config {path}: not a YAML file") from None
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
