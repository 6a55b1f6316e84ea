"""Resolve a config: fill every open field with its default, in one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from dpzo.config.bounds import MOST_DIRECTIONS, Rows, Steps, Tokens
from dpzo.config.defaults import DEFAULTS, Part
from dpzo.config.reading import stated_config
from dpzo.config.schema import DataConfig, EndToken, ModelConfig, Positive, PrivacyConfig, RunConfig, TrainingConfig
from dpzo.errors import DpzoError
from dpzo.privacy import MECHANISMS

if TYPE_CHECKING:  # tables of recipes resolve configs without a deep-learning library
    from dpzo.data.tasks import Task
    from dpzo.models.sources import Architecture

ADAPTER_NAMES = frozenset({"lora", "prefix", "prompt", "ia3"})
Group = TypeVar("Group", bound=BaseModel)


class ResolvedModel(ModelConfig):
    """`ModelConfig` with its trained part known."""

    trainable: str


class ResolvedData(DataConfig):
    """`DataConfig` with its lengths known. `end_token` is None where no completion is trained."""

    max_length: Tokens
    max_answer_tokens: Tokens


class ResolvedPrivacy(PrivacyConfig):
    """`PrivacyConfig` with everything known that a plan needs beside N."""

    expected_batch_size: Positive
    steps: Steps
    num_directions: Annotated[int, Field(ge=1, le=MOST_DIRECTIONS)]
    clip_norm: Positive


class ResolvedTraining(TrainingConfig):
    """`TrainingConfig` with no open field."""

    smoothing: Positive
    learning_rate: Positive
    average: Annotated[float, Field(ge=0, le=1)]
    microbatch_size: Rows


class ResolvedConfig(RunConfig):
    """A whole run with no open field: what is built, trained and recorded in the journal's header."""

    model: ResolvedModel
    data: ResolvedData
    privacy: ResolvedPrivacy
    training: ResolvedTraining


def resolve(
    config: RunConfig,
    task: Task,
    architecture: Architecture,
    num_examples: int,
    *,
    learning_rate: float,
    end_token: EndToken | None = None,
) -> ResolvedConfig:
    """Fill every open field; what is set stays.

    Args:
        config: The run as it was declared.
        task: What the records are read as; gives lengths.
        architecture: How the base model is used.
        num_examples: The public number of privacy units N.
        learning_rate: η where the config leaves it open; it depends on the plan and on the loaded model's shapes.
        end_token: Whether an end token follows a completion, as the tokenizer and the task decide it.

    Returns:
        The resolved config. A function of declarations and shapes alone.
    """
    model = resolve_model(config.model, architecture)
    part = part_of(model.trainable, architecture)
    return ResolvedConfig(
        model=model,
        data=_resolved(
            ResolvedData,
            config.data,
            max_length=task.max_length,
            max_answer_tokens=task.max_answer_tokens,
            end_token=end_token,
        ),
        privacy=resolve_privacy(config, part, num_examples),
        training=_resolve_training(config, part, learning_rate),
    )


def recorded_config(tree: Mapping[str, Any]) -> ResolvedConfig:
    """The config of a journal's header. A field that its version did not know has the value by which that one worked.

    Version 0.1.0 put no end token after a completion.

    Raises: DpzoError for a config that no header holds.
    """
    config = stated_config({**tree, "data": {"end_token": "none", **tree["data"]}})
    try:
        return ResolvedConfig.model_validate(config.model_dump())
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise DpzoError(f"header: config: {field} is open; a run records every value") from None


def resolve_model(model: ModelConfig, architecture: Architecture) -> ResolvedModel:
    """The model with its trained part, where that is open: a head for a bare encoder, else LoRA."""
    return _resolved(ResolvedModel, model, trainable=default_trainable(architecture))


def default_trainable(architecture: Architecture) -> str:
    """What is trained where nothing is asked for."""
    return "head" if architecture == "encoder" else "lora"


def part_of(trainable: str | None, architecture: Architecture | None = None) -> Part:
    """Whose defaults apply: those of a head are for unit vectors, and other heads read longer ones.

    `architecture` None: not known, and a head is taken for an encoder's.
    """
    if trainable == "head" and architecture in ("encoder", None):
        return "head"
    return "lora" if trainable in ADAPTER_NAMES else "full"


def resolve_privacy(config: RunConfig, part: Part, num_examples: int) -> ResolvedPrivacy:
    """What the plan is made of, from the part's defaults.

    A batch is at most a quarter of the units, so that sampling still hides who is in it. With L1 clipping (Laplace)
    the norm of K slopes grows as K and not as √K, and the default clip norm follows.
    """
    chosen, given = DEFAULTS[part], config.privacy
    directions = chosen.num_directions if given.num_directions is None else given.num_directions
    summed = given.mechanism in MECHANISMS and MECHANISMS[given.mechanism].order == 1
    return _resolved(
        ResolvedPrivacy,
        given,
        num_directions=directions,
        steps=chosen.steps,
        expected_batch_size=max(1, min(chosen.expected_batch_size, num_examples // 4)),
        clip_norm=chosen.slope * (directions if summed else math.sqrt(directions)),
    )


def _resolve_training(config: RunConfig, part: Part, learning_rate: float) -> ResolvedTraining:
    chosen = DEFAULTS[part]
    exact = config.model.dtype == "float32" and config.model.quantization == "none"
    return _resolved(
        ResolvedTraining,
        config.training,
        smoothing=chosen.smoothing if exact else chosen.coarse_smoothing,
        average=0.0 if config.training.ema > 0 else chosen.average,  # one average is released: the one asked for
        microbatch_size=chosen.microbatch_size,
        learning_rate=learning_rate,
    )


def _resolved(kind: type[Group], given: BaseModel, **defaults: Any) -> Group:
    """The group as its resolved kind; `defaults` stand in for fields that are open."""
    values = {name: getattr(given, name) for name in type(given).model_fields}
    return kind(**values | {name: value for name, value in defaults.items() if values[name] is None})
