"""The subject of a run: its task and model, and the conversion of records into model rows and the private objective."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dpzo.config.resolve import ResolvedConfig, ResolvedTraining
from dpzo.config.schema import DataConfig, EndToken, ModelConfig, RunConfig
from dpzo.data import own_chat
from dpzo.data.chats import MESSAGES
from dpzo.data.public_records import public_examples
from dpzo.data.tasks import Records, Task, find_task, own_classification, own_completion
from dpzo.errors import DpzoError
from dpzo.models import (
    Encoded,
    LoadedModel,
    LoraSettings,
    RowShape,
    Shapes,
    Storage,
    UnitObjective,
    encode_classes,
    encode_completions,
    encode_masked,
    encode_options,
    group_units,
    make_objective,
    template_pieces,
)
from dpzo.models.blocks import encode_in_blocks
from dpzo.models.chat_tokens import chat_answer_tokens, encode_chats
from dpzo.models.choices import encode_choices
from dpzo.models.encoding import answer_width
from dpzo.zo import SCHEDULES, Objective, Update, build_update

OWN_MAX_LENGTH = 64
"""Default tokens per record for a user's own file."""


@dataclass(frozen=True)
class Subject:
    """The resolved config, the task, the model, and the sizes at which the model is evaluated."""

    config: ResolvedConfig
    task: Task
    loaded: LoadedModel
    shapes: Shapes


def encode(records: Records, subject: Subject) -> Encoded:
    """The records as token matrices of the declared width, in a mapped file when they are large."""
    return encode_in_blocks(records, lambda part, first: _known_tokens(_encode_block(part, first, subject), subject))


def encode_examples(subject: Subject) -> Encoded:
    """The task's public example records, encoded as private ones are.

    Errors: `DpzoError` if template, label words or special tokens do not fit the model: a token without an embedding,
    two options with the same tokens, an answer without tokens. Everything in the message is public.
    """
    data, task, loaded = subject.config.data, subject.task, subject.loaded
    found = _encode_block(public_examples(task, chat=data.kind == "chat"), 0, subject)
    beyond = found.tokens[found.tokens >= loaded.vocabulary]
    if len(beyond):
        token = loaded.tokenizer.convert_ids_to_tokens(int(beyond[0]))
        raise DpzoError(
            f"--model {loaded.base_name}: the template or a special token uses {token!r}, number {int(beyond[0])}, but "
            f"the model embeds {loaded.vocabulary} tokens; change the template, or resize the embedding"
        )
    if found.form == "options" and task.label_words is not None:
        _require_distinct(found, task.label_words)
    if found.form in ("completion", "options") and bool((found.answer_lengths == 0).any()):
        where = "the chat template marks no token of the assistant's turn" if data.kind == "chat" else "it has no token"
        raise DpzoError(f"--kind {data.kind or task.kind}: the answer of a public example cannot be scored, as {where}")
    return found


def _require_distinct(found: Encoded, words: tuple[str, ...]) -> None:
    """Reject two options of a record that encode to the same row: they cannot be distinguished."""
    rows = found.tokens.reshape(len(found), found.options, found.max_length)
    for first in range(found.options):
        for second in range(first + 1, found.options):
            if (rows[:, first] == rows[:, second]).all(axis=1).any():
                raise DpzoError(
                    f"--label-words: {words[first]!r} and {words[second]!r} become the same tokens after the template, "
                    "so the model cannot tell them apart; choose other words (mind the leading space)"
                )


def _known_tokens(encoded: Encoded, subject: Subject) -> Encoded:
    """Replace in place tokens without an embedding by the unknown token (or another known one).

    A tokenizer may have more entries than the model's embedding has rows. Whether a private record contains such a
    token is private, so it is not an error.
    """
    loaded = subject.loaded
    if len(loaded.tokenizer) > loaded.vocabulary:
        encoded.tokens[encoded.tokens >= loaded.vocabulary] = loaded.stand_in_token
    return encoded


def _encode_block(records: Records, first: int, subject: Subject) -> Encoded:
    config, task, tokenizer = subject.config.data, subject.task, subject.loaded.tokenizer
    if config.kind == "chat":
        return encode_chats(tokenizer, records.fields[MESSAGES], max_length=config.max_length, first_chat=first + 1)
    if task.kind == "completion":
        return encode_completions(
            tokenizer,
            task.prompts(records),
            task.answers(records),
            max_length=config.max_length,
            max_answer_tokens=config.max_answer_tokens,
            end_of_text=config.end_token == "append",
        )
    assert records.labels is not None
    if subject.loaded.takes_masks:
        assert task.mask_template is not None
        assert task.mask_words is not None
        return encode_masked(
            tokenizer,
            task.mask_template,
            task.mask_fields(records),
            task.mask_words,
            records.labels,
            max_length=config.max_length,
        )
    if subject.loaded.takes_options and task.option_fields is not None:
        return encode_choices(
            tokenizer,
            task.prompts(records),
            task.options(records),
            records.labels,
            max_length=config.max_length,
            max_answer_tokens=config.max_answer_tokens,
            empty=task.blank(records),
        )
    if subject.loaded.takes_options:
        assert task.label_words is not None
        return encode_options(
            tokenizer,
            task.prompts(records),
            task.label_words,
            records.labels,
            max_length=config.max_length,
            empty=task.blank(records),
            max_answer_tokens=_word_width(task, subject.loaded),
        )
    return encode_classes(
        tokenizer, task.texts(records), records.labels, max_length=config.max_length, pairs=task.pairs(records)
    )


def end_token(data: DataConfig, task: Task, tokenizer: Any) -> EndToken | None:
    """Whether the model's end token follows a completion, decided by declarations alone; None where none is asked.

    By default it is appended, so that the model learns to stop, unless the task's answers end with its own `stop` text
    or the tokenizer has no end token. Errors: DpzoError for `append` without one.
    """
    if task.kind != "completion" or data.kind == "chat":
        return None
    there = tokenizer.eos_token_id is not None
    if data.end_token == "append" and not there:
        raise DpzoError("data.end_token append: the model's tokenizer has no end token; leave it out")
    ends_itself = task.stop is not None and task.answer_template.endswith(task.stop)
    if data.end_token is None:
        return "append" if there and not ends_itself else "none"
    return data.end_token


def objective(records: Records, subject: Subject) -> Objective:
    """The private objective: one loss per unit. Reads every record; its content never leaves the process."""
    by_record = make_objective(subject.loaded, encode(records, subject), subject.shapes, subject.config.data.objective)
    if records.num_units == len(records):
        return by_record
    assert records.units is not None
    most = subject.config.data.max_records_per_unit
    return UnitObjective(by_record, group_units(records.units, records.num_units, most))


def row_shape(config: ResolvedConfig, task: Task, loaded: LoadedModel) -> RowShape:
    """The declared shape of a record's rows, for synthetic tokens."""
    data = config.data
    encode_classes(loaded.tokenizer, [""], [0], max_length=data.max_length)  # rejects a length without room for text
    num_labels = 1 if task.labels is None else len(task.labels)
    answers, form = 0, "classes"
    words: tuple[int, ...] = ()
    if data.kind == "chat":
        answers, form = chat_answer_tokens(data.max_length), "completion"
    elif task.kind == "completion":
        answers, form = data.max_answer_tokens, "completion"
    elif loaded.takes_options and task.option_fields is not None:
        answers, form = data.max_answer_tokens, "options"
    elif loaded.takes_options:
        assert task.label_words is not None
        answers, form = _word_width(task, loaded), "options"
        encode_options(
            loaded.tokenizer, [""], task.label_words, [0], max_length=data.max_length, max_answer_tokens=answers
        )  # rejects words that do not fit the length
    elif loaded.takes_masks:
        form, words = "mask", _mask_words(task, loaded, data.max_length)
    return RowShape(
        form=form,  # type: ignore[arg-type]
        max_length=data.max_length,
        vocabulary=loaded.vocabulary,
        num_classes=num_labels,
        max_answer_tokens=answers,
        left_padded=form in ("completion", "options"),
        pad_token_id=int(loaded.tokenizer.pad_token_id),
        with_token_types=form == "classes" and len(task.inputs) == 2,
        word_ids=words,
        mask_token_id=int(loaded.tokenizer.mask_token_id) if words else 0,
    )


def _word_width(task: Task, loaded: LoadedModel) -> int:
    """Tokens of the longest label word after the template: a function of public texts alone."""
    assert task.label_words is not None
    return answer_width(loaded.tokenizer, task.prompts(public_examples(task)), task.label_words)


def _mask_words(task: Task, loaded: LoadedModel, max_length: int) -> tuple[int, ...]:
    """The label words' tokens, with template, words and length checked on an empty record."""
    assert task.mask_template is not None
    assert task.mask_words is not None
    slots = {field: [""] for _, field in template_pieces(task.mask_template) if field not in (None, "mask")}
    return encode_masked(
        loaded.tokenizer, task.mask_template, slots, task.mask_words, [0], max_length=max_length
    ).word_ids


def task_of(config: RunConfig) -> Task:
    """The task that a config declares: a built-in one, or the user's own file."""
    data = config.data
    if data.task is not None:
        return find_task(data.task)
    if data.kind == "chat":
        return own_chat(max_length=OWN_MAX_LENGTH if data.max_length is None else data.max_length)
    if data.kind == "completion":
        return own_completion(max_length=OWN_MAX_LENGTH if data.max_length is None else data.max_length)
    if data.labels is None:
        raise DpzoError(
            "--labels is missing: declare the label set, as in --labels yes,no (read from the file it would be "
            "private); for prompt and completion columns give --kind completion"
        )
    if "{mask}" in data.template:
        return _own_masked(data.labels, data)
    task = own_classification(
        data.labels,
        template=data.template,
        label_words=data.label_words,
        max_length=OWN_MAX_LENGTH if data.max_length is None else data.max_length,
    )
    if task.fields != ("text",):
        raise DpzoError(
            f"--template: a file of one's own has the field {{text}}, not {{{task.fields[0]}}}; use {{text}}"
        )
    return task


def _own_masked(labels: tuple[str, ...], data: DataConfig) -> Task:
    """The user's own file, with a template whose mask a masked language model fills."""
    template_pieces(data.template)  # raises if it is invalid
    if data.label_words is None:
        raise DpzoError("--label-words is missing: a template with {mask} needs a word for each label, as in bad,good")
    plain = own_classification(labels, max_length=OWN_MAX_LENGTH if data.max_length is None else data.max_length)
    return replace(plain, mask_template=data.template, mask_words=data.label_words)


def update_of(training: ResolvedTraining, *, steps: int, expected_batch_size: float, noise_std: float = 1.0) -> Update:
    """The update that a resolved config names. `noise_std` of a released number, slope units."""
    return build_update(
        training.update,
        schedule=SCHEDULES[training.schedule](training.learning_rate, steps, training.warmup_steps),
        expected_batch_size=expected_batch_size,
        steps=steps,
        noise_std=noise_std,
        momentum=training.momentum,
        shrinkage=training.shrinkage,
        ema=training.ema if training.ema > 0 else None,
        average=training.average,
        master=training.master == "float32",
    )


def require_label_words(task: Task, model: LoadedModel) -> None:
    """Errors: `DpzoError` if classes are distinguished by label words and the task has none."""
    if model.takes_options and task.label_words is None and task.option_fields is None:
        raise DpzoError("--label-words is missing: a causal model needs a word for each label, as in ' bad, good'")


def storage_of(model: ModelConfig) -> Storage:
    """How the base model's weights are stored."""
    return Storage(model.dtype, model.quantization)


def lora_of(model: ModelConfig) -> LoraSettings:
    """Shape of the adapters."""
    return LoraSettings(
        rank=model.lora_rank,
        alpha=model.lora_alpha,
        target=model.lora_targets,
        scaling=model.lora_scaling,
        layers=model.lora_layers,
    )
