"""Read chats as records: each row's list of messages is checked and packed into one text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from dpzo.data.tasks.base import Task
from dpzo.data.tasks.records import COMPLETION, PROMPT
from dpzo.data.tasks.tables import Row, Tell, fail, shown, untold
from dpzo.data.tasks.values import plain

MESSAGES = "messages"
CONVERSATIONS = "conversations"
ASSISTANT = "assistant"
TOOLS, SYSTEM = "tools", "system"
OFFERED = (
    *("tool_calls", "function_call", "name", "reasoning_content", "reasoning", "thinking", "tool_plan"),
    *("refusal", "audio", "images", "documents"),
)
"""Keys of a message that say something: the chat template must render them, or the chat is refused."""

_LINKS = ("tool_call_id", "id")
"""Keys that tie messages to each other and say nothing: the template gets them and may leave them out."""

_CALLS = ("tool_calls", "function_call")
_REFUSED = (
    "functions",
    "documents",
    "chat_template_kwargs",
    "history",
    "chosen",
    "rejected",
    "images",
    "videos",
    "audios",
)
"""Known columns beside a chat that change what it says, and that are not read."""

BESIDE = (CONVERSATIONS, PROMPT, COMPLETION, TOOLS, SYSTEM, *_REFUSED)
"""Columns of a chat's row that are looked at if they are there."""

_SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "chatbot"), ASSISTANT),
    **dict.fromkeys(("tool", "observation", "function_response", "tool_response"), "tool"),
    SYSTEM: SYSTEM,
}
"""ShareGPT's `from` → role."""

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Message(NamedTuple):
    """One turn: role, content, other fields for the template, and whether it is trained on. Private."""

    role: str
    content: str
    more: Mapping[str, Any] = NOTHING
    scored: bool = True

    def __repr__(self) -> str:
        return "Message(<private>)"

    def to_dict(self) -> dict[str, Any]:
        """The message as a chat template receives it."""
        return {"role": self.role, "content": self.content, **self.more}


class Chat(NamedTuple):
    """A record's turns, and the tools that its assistant may call. Private."""

    messages: list[Message]
    tools: Sequence[Any] = ()

    def __repr__(self) -> str:
        return "Chat(<private>)"


def own_chat(*, max_length: int = 256) -> Task:
    """The task of a user's own chats: a completion whose answers are all turns of the assistant."""
    return Task(name="own-chat", kind="completion", template=f"{{{MESSAGES}}}", max_length=max_length, metric="loss")


def chat_rows(path: Path, rows: Iterable[Row], column: str = MESSAGES, tell: Tell = untold) -> Iterator[Row]:
    """The rows, with each one's chat checked and packed into one text in `column`.

    - A chat is a list of messages in `column`; or, where a row has no such column, in `conversations`; or in `prompt`
      and `completion`, of which the completion alone is learnt (TRL's conversational form).
    - A message has `role` and `content`, or ShareGPT's `from` and `value`. The content is a text, or a list of parts of
      type text, which are joined; it may be missing beside `tool_calls`. `weight: 0` means that the turn is not learnt.
    - Other known keys (`OFFERED`) go to the template, which must render them. Columns `tools` and `system` are used.
    - A row without a chat is passed on for the reader's own check of columns.

    `tell` is called once with the detected form, if it is not OpenAI's, by the first record's columns and keys.

    Errors: DpzoError naming file and row: no list of such messages, nothing to learn, a known key that cannot be used.
    """
    for place, (row, values) in enumerate(rows):
        if place == 0 and (form := _form(column, values)):
            tell(f"{shown(path)}: {form}")
        try:
            chat = _chat(path, row, column, values)
            text = None if chat is None else packed(chat)
        except (TypeError, ValueError, RecursionError):  # json's own words may quote the chat
            fail(path, row, "holds a chat with values that JSON cannot write, or nested too deep; drop the row")
        yield row, values if text is None else {**values, column: text}


def _form(column: str, values: Mapping[str, object]) -> str:
    found = values.get(column, values.get(CONVERSATIONS) if column == MESSAGES else None)
    if isinstance(found, list) and found and isinstance(found[0], dict) and "from" in found[0]:
        return "chats read in ShareGPT's form (from, value)"
    if found is None and column == MESSAGES and isinstance(values.get(PROMPT), list):
        return "chats read in TRL's form: prompt and completion, of which the completion alone is learnt"
    return ""


def packed(chat: Chat) -> str:
    """The chat as one text; `unpacked` takes it apart again."""
    turns = [list(turn[:2]) if turn[2:] == (NOTHING, True) else [*turn[:2], dict(turn[2]), turn[3]] for turn in chat[0]]
    whole = {MESSAGES: turns, TOOLS: list(chat.tools)} if chat.tools else turns
    return json.dumps(whole, ensure_ascii=False)


def unpacked(text: str) -> Chat:
    """The chat of a packed text."""
    whole = json.loads(text)
    turns, tools = (whole[MESSAGES], whole[TOOLS]) if isinstance(whole, dict) else (whole, ())
    return Chat([Message(*turn) for turn in turns], tools)


def _chat(path: Path, row: int, column: str, values: Mapping[str, object]) -> Chat | None:
    if column in values:
        messages = _messages(path, row, column, values[column])
    elif column == MESSAGES and CONVERSATIONS in values:
        messages = _messages(path, row, CONVERSATIONS, values[CONVERSATIONS])
    elif column == MESSAGES and PROMPT in values and COMPLETION in values:
        if isinstance(values[PROMPT], str) and isinstance(values[COMPLETION], str):
            fail(path, row, "has a prompt and a completion that are texts, no chat; give --kind completion")
        before = _messages(path, row, PROMPT, values[PROMPT])
        messages = [turn._replace(scored=False) for turn in before]
        messages += _messages(path, row, COMPLETION, values[COMPLETION])
    else:
        return None
    for name in _REFUSED:
        if not empty(values.get(name)):
            fail(path, row, f"column {name!r} is not read and would change the chat; empty it, or drop the column")
    system = plain(values.get(SYSTEM))
    if not empty(system):
        if not isinstance(system, str) or messages[0].role == SYSTEM:
            fail(
                path,
                row,
                "column 'system' must be a text, and the chat must not begin with a system message of its own",
            )
        messages.insert(0, Message(SYSTEM, system))
    if not any(turn.role == ASSISTANT and turn.scored for turn in messages):
        fail(
            path,
            row,
            f"has no message of role {ASSISTANT!r} to learn, so there is nothing to learn from it; drop the row",
        )
    return Chat(messages, _tools(path, row, values.get(TOOLS)))


def _tools(path: Path, row: int, value: object) -> list[Any]:
    found = plain(value)
    if isinstance(found, str) and not empty(found):
        found = _from_json(found)
    if empty(found):
        return []
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        fail(path, row, "column 'tools' must be a list of tools, each an object, or such a list as JSON text")
    return found


def _messages(path: Path, row: int, column: str, value: object) -> list[Message]:
    if not isinstance(value, list) or not value:
        fail(path, row, f'column {column!r} must be a list of messages, each {{"role": …, "content": …}}')
    return [_message(path, row, f"message {place} of column {column!r}", one) for place, one in enumerate(value, 1)]


def _message(path: Path, row: int, name: str, message: object) -> Message:
    if not isinstance(message, dict):
        fail(path, row, f"{name} needs a role and a content, both of them texts")
    shared = empty(message.get("role")) and "from" in message
    role, said = (
        (message.get("from"), message.get("value")) if shared else (message.get("role"), message.get("content"))
    )
    if shared:
        role = _SPEAKERS.get(role) if isinstance(role, str) else None
        if role is None:
            fail(path, row, f"{name} has a 'from' that is none of {', '.join(_SPEAKERS)}; write OpenAI's messages")
    more = {key: message[key] for key in (*OFFERED, *_LINKS) if not empty(message.get(key))}
    if "tool_calls" in more:
        more["tool_calls"] = (
            [_call(call) for call in more["tool_calls"]] if isinstance(more["tool_calls"], list) else None
        )
        if not more["tool_calls"] or None in more["tool_calls"]:
            fail(path, row, f"{name} has tool_calls that are no list of calls of a function")
    content = "" if said is None and any(key in more for key in _CALLS) else _content(said)
    if not isinstance(role, str) or content is None:
        if isinstance(said, list):
            fail(path, row, f"{name} has a part that is no text (an image, a sound), which is not read; drop the row")
        fail(path, row, f"{name} needs a role and a content, both of them texts")
    weight = plain(message.get("weight"))
    if weight not in (None, 0, 1):
        fail(path, row, f"{name} has a weight other than 0 and 1; turns are learnt or not")
    return Message(role, content, more or NOTHING, weight != 0)


def _call(call: object) -> dict[str, Any] | None:
    """A tool call with its arguments as an object, which is what templates expect; OpenAI writes them as JSON text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        return None
    arguments = function.get("arguments")
    decoded = _from_json(arguments) if isinstance(arguments, str) else None
    return {**call, "function": {**function, "arguments": decoded if isinstance(decoded, dict) else arguments}}


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def empty(value: object) -> bool:
    """Whether a key is empty: missing, or an empty text, list or object, also one whose values are all empty."""
    found = plain(value)
    if isinstance(found, Mapping):
        return all(empty(part) for part in found.values())
    if isinstance(found, list | tuple):
        return all(empty(part) for part in found)
    return found is None or (isinstance(found, str) and not found.strip())


def _content(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return None
    parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
    return None if any(not isinstance(part, str) for part in parts) else "".join(part for part in parts if part)
