"""Public example records of a task, which start-up checks pass through templates and tokenizer instead of the data."""

from __future__ import annotations

import numpy as np

from dpzo.data.chats import ASSISTANT, MESSAGES, Chat, Message, packed
from dpzo.data.tasks import Records, Task
from dpzo.data.tasks.records import COMPLETION

TEXTS = ("A short text.", "This one is longer: it has two sentences. Here is the second!", "no stop", "42", "é")
"""Ends that tokenizers join differently to what follows: a full stop, a word, a digit, a letter of two bytes."""
_ANSWERS = ("An answer.", "Another one, a little longer.", "yes", "7", "ü")


def public_examples(task: Task, *, chat: bool = False) -> Records:
    """One record for each of `TEXTS`, with its texts in every field that the task reads. Made up, so public."""
    count = len(TEXTS)
    if chat:
        return Records({MESSAGES: tuple(_chat(text, answer) for text, answer in zip(TEXTS, _ANSWERS, strict=True))})
    fields: dict[str, tuple[str, ...]] = dict.fromkeys(task.text_fields, TEXTS)
    if task.kind == "completion":
        return Records({**fields, COMPLETION: _ANSWERS})
    for place, name in enumerate(task.option_fields or ()):
        fields[name] = tuple(f"{'abcdefgh'[place % 8]}{place // 8 or ''} {answer}" for answer in _ANSWERS)
    classes = 2 if task.labels is None else len(task.labels)
    return Records(fields, labels=np.arange(count, dtype=np.int64) % classes)


def _chat(text: str, answer: str) -> str:
    return packed(Chat([Message("user", text), Message(ASSISTANT, answer)]))
