"""Chats as records: a list of messages a row, kept as one text; what is refused, and how it is named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dpzo.tasks.base import Task
from dpzo.tasks.tables import Row, fail

MESSAGES = "messages"
ASSISTANT = "assistant"


class Message(NamedTuple):
    """One turn: who speaks, and what is said. Private."""

    role: str
    content: str

    def __repr__(self) -> str:
        return "Message(<private>)"


def own_chat(*, max_length: int = 256) -> Task:
    """The task of a user's own chats: a completion whose answers are all turns of the assistant."""
    return Task(name="own-chat", kind="completion", template=f"{{{MESSAGES}}}", max_length=max_length, metric="loss")


def chat_rows(path: Path, rows: Iterable[Row], column: str = MESSAGES) -> Iterator[Row]:
    """The rows, with the messages of `column` checked and packed into one text.

    A message is an object with `role` and `content`; the content is a text, or a list of parts of type text, which are
    joined. Other keys are ignored. A row without the column is passed on for the reader's own check of columns.

    Errors: DpzoError naming file and row: no list of such messages, no turn of the assistant.
    """
    for row, values in rows:
        if column not in values:
            yield row, values
            continue
        yield row, {**values, column: packed(_messages(path, row, column, values[column]))}


def packed(messages: Iterable[Message]) -> str:
    """The messages as one text; `unpacked` takes it apart again."""
    return json.dumps([list(message) for message in messages], ensure_ascii=False)


def unpacked(text: str) -> list[Message]:
    """The messages of a packed text."""
    return [Message(role, content) for role, content in json.loads(text)]


def _messages(path: Path, row: int, column: str, value: object) -> list[Message]:
    if not isinstance(value, list) or not value:
        fail(path, row, f'column {column!r} must be a list of messages, each {{"role": …, "content": …}}')
    found: list[Message] = []
    for place, message in enumerate(value, start=1):
        role = message.get("role") if isinstance(message, dict) else None
        content = _content(message.get("content")) if isinstance(message, dict) else None
        if not isinstance(role, str) or content is None:
            fail(path, row, f"message {place} of column {column!r} needs a role and a content, both of them texts")
        found.append(Message(role, content))
    if all(message.role != ASSISTANT for message in found):
        fail(path, row, f"has no message of role {ASSISTANT!r}, so there is nothing to learn from it; drop the row")
    return found


def _content(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return None
    parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
    return None if any(not isinstance(part, str) for part in parts) else "".join(part for part in parts if part)
