"""Chats to token rows: rendered by the tokenizer's own template, scored on the assistant's turns alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from transformers.utils.chat_template_utils import render_jinja_template

from dpzo.data.chats import ASSISTANT, NOTHING, OFFERED, TOOLS, Chat, Message, unpacked
from dpzo.errors import DpzoError
from dpzo.models.batching import Encoded
from dpzo.models.quiet import silent_libraries

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

_STAND_IN = "a stand-in for what was said"

Span = tuple[int, int]


def chat_answer_tokens(max_length: int) -> int:
    """Columns of a chat in which a token may be scored: all but the padding's and the first token's."""
    return max_length - 2


def encode_chats(tokenizer: Any, chats: Sequence[str], *, max_length: int, first_chat: int = 1) -> Encoded:
    """Packed chats for a causal model: ℓ_i = −(1/n_i) Σ log p(token) over the n_i tokens of the assistant's turns.

    A chat is rendered by the tokenizer's template as one text. The assistant's turns, each with what closes it, are
    those that the template marks with `{% generation %}`; without marks, what each turn adds to the rendering of the
    turns before it. What follows the last of them has no part in the loss and is dropped; a chat that is still longer
    than max_length − 1 tokens loses its beginning, a leading special token excepted. A chat of which nothing is scored
    (empty turns) is flagged as empty. What a chat holds beside its texts (tools and their calls, names, thoughts) goes
    to the template, and a chat of which it leaves something out is refused.

    `first_chat` is the number of the first one, for errors. Errors: DpzoError for a tokenizer without a template or
    of the slow kind, a template that refuses a chat or changes earlier turns when later ones follow.
    """
    _check(tokenizer, max_length)
    rows, width, answers = len(chats), max_length, chat_answer_tokens(max_length)
    tokens = np.full((rows, width), tokenizer.pad_token_id, dtype=np.int32)
    scored = np.zeros((rows, answers), dtype=np.bool_)
    lengths, reach = np.ones(rows, dtype=np.int32), np.zeros(rows, dtype=np.int32)
    with silent_libraries():
        for row, chat in enumerate(chats):
            ids, marks = _cut(tokenizer, *_scored_tokens(tokenizer, unpacked(chat), first_chat + row), width - 1)
            tokens[row, width - len(ids) :] = ids
            lengths[row] = len(ids)
            own = marks[1:]  # the first token has nothing before it to be predicted from
            if any(own):
                scored[row, answers - len(own) :] = own
                reach[row] = len(own) - own.index(True)
    return Encoded(
        form="completion",
        tokens=tokens,
        token_types=None,
        lengths=lengths,
        answer_lengths=reach,
        targets=np.zeros(rows, dtype=np.int64),
        empty=reach == 0,
        options=1,
        max_answer_tokens=answers,
        left_padded=True,
        pad_token_id=int(tokenizer.pad_token_id),
        scored=scored,
    )


def _check(tokenizer: Any, max_length: int) -> None:
    if max_length < 5:
        raise DpzoError(f"--max-length {max_length}: too short for a chat; it must be at least 5")
    if not tokenizer.is_fast:
        raise DpzoError(
            "--kind chat: the model's tokenizer is not a fast tokenizer, so turns cannot be told apart in it"
        )
    if not isinstance(tokenizer.chat_template, str):  # `choose_chat_template` has taken one of several
        raise DpzoError(
            "--kind chat: the model's tokenizer has no chat template; take a model that was made for chats, or give "
            "prompt and completion columns"
        )


def choose_chat_template(tokenizer: Any, name: str | None, *, is_chat: bool) -> None:
    """Leave a tokenizer of several named chat templates with the one that is meant: `name`, or `default`.

    Errors: DpzoError where there is no such template, naming those that there are; or a name is given without need.
    """
    found = tokenizer.chat_template
    if name is not None and not is_chat:
        raise DpzoError("--chat-template: is for --kind chat; leave it out")
    if not is_chat or (name is None and not isinstance(found, dict)):
        return
    named = found if isinstance(found, dict) else {}
    wanted = "default" if name is None else name
    if wanted not in named:
        there = ", ".join(sorted(named)) or ("a single template without a name" if found else "no template")
        mend = "give one of them" if named else "leave --chat-template out"
        raise DpzoError(f"--chat-template: the tokenizer has no template {wanted!r}; it has {there}; {mend}")
    tokenizer.chat_template = named[wanted]


def _scored_tokens(tokenizer: Any, chat: Chat, row: int) -> tuple[list[int], list[bool]]:
    """All tokens of a chat, and which of them belong to the assistant's turns that are learnt."""
    _check_rendered(tokenizer, chat, row)
    if _GENERATION.search(tokenizer.chat_template) and all(turn.scored for turn in chat.messages):
        text, spans = _marked(tokenizer, chat, row)
    else:
        text = _rendered(tokenizer, chat, row, tokenize=False)
        spans = _spans(tokenizer, chat, text, row)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    marks = [any(first < stop and begin < last for begin, stop in spans) for first, last in found["offset_mapping"]]
    return list(found["input_ids"]), marks


def _marked(tokenizer: Any, chat: Chat, row: int) -> tuple[str, list[Span]]:
    """The rendered text and the characters that its template marks.

    Not by `return_assistant_tokens_mask`: where a marked span ends in the first token, or in a character of no token,
    transformers takes all that follows for the assistant's.
    """
    render: Any = render_jinja_template  # its annotation says text alone
    try:
        texts, spans = render(
            conversations=[[message.to_dict() for message in chat.messages]],
            tools=list(chat.tools) if chat.tools else None,
            chat_template=tokenizer.chat_template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # a template's own message may quote the chat
        raise _refused(row, error) from None
    return texts[0], [(int(first), int(last)) for first, last in spans[0]]


def _check_rendered(tokenizer: Any, chat: Chat, row: int) -> None:
    """Refuse a chat of which the template leaves something out: without it the text would be the same."""
    keys = {key for turn in chat.messages for key in turn.more if key in OFFERED}
    if not keys and not chat.tools:
        return
    text = _rendered(tokenizer, chat, row, tokenize=False)
    without = {key: chat._replace(messages=[_without(turn, key) for turn in chat.messages]) for key in sorted(keys)}
    if chat.tools:
        without[TOOLS] = chat._replace(tools=())
    for key, less in without.items():
        if _renders_alike(tokenizer, less, text):
            raise DpzoError(
                f"--data: chat {row}: the tokenizer's chat template does not render {key!r}, so it would be lost; "
                "take a model whose template does, or drop that key"
            )


def _without(turn: Message, key: str) -> Message:
    more = {name: value for name, value in turn.more.items() if name != key}
    return turn._replace(more=more or NOTHING)


def _renders_alike(tokenizer: Any, chat: Chat, text: str) -> bool:
    try:
        return bool(_rendered(tokenizer, chat, 0, tokenize=False) == text)
    except DpzoError:  # a template that cannot do without it does render it
        return False


def _spans(tokenizer: Any, chat: Chat, text: str, row: int) -> list[Span]:
    """The spans of the assistant's turns in the rendered text, each from after its opening to after its closing."""
    spans: list[Span] = []
    for place, message in enumerate(chat.messages):
        if message.role != ASSISTANT or not message.scored:
            continue
        before, until = (chat._replace(messages=chat.messages[:stop]) for stop in (place, place + 1))
        plain: str = _rendered(tokenizer, before, row, tokenize=False) if before.messages else ""
        start = _start(tokenizer, before, until, text, row)
        end = len(text) if place == len(chat.messages) - 1 else _end(tokenizer, until, text, start, row)
        if end is None or start < len(plain):
            raise DpzoError(
                f"--data: chat {row}: the tokenizer's chat template renders a turn of the assistant otherwise once "
                "more turns follow; give a template with {% generation %} marks, or one chat for each answer"
            )
        spans.append((start, end))
    return spans


def _start(tokenizer: Any, before: Chat, until: Chat, text: str, row: int) -> int:
    """Behind the opening of the turn that follows `before`."""
    if before.messages:
        opened: str = _rendered(tokenizer, before, row, tokenize=False, add_generation_prompt=True)
        # An opening may already hold the start of a thought that this turn lacks: it counts as far as it agrees.
        return _agreement(opened, text)
    # Many templates refuse to render no messages: what opens a turn is then seen where a further one would begin.
    first: str = _rendered(tokenizer, until, row, tokenize=False)
    further: str = _rendered(tokenizer, until, row, tokenize=False, add_generation_prompt=True)
    opening = further.removeprefix(first)
    place = text.find(opening)
    return place + len(opening) if opening != further and place >= 0 else 0


def _agreement(one: str, other: str) -> int:
    """Characters that both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _end(tokenizer: Any, until: Chat, text: str, start: int, row: int) -> int | None:
    """The end of the last turn of `until`, which starts at `start` of the whole text; None if it is not determined."""
    alone: str = _rendered(tokenizer, until, row, tokenize=False)
    if text.startswith(alone):
        return len(alone)
    # The last turn of a chat may be dressed up (an empty thought); what closes it is seen behind a content of our own.
    content = until.messages[-1].content
    stand_in = until._replace(messages=[*until.messages[:-1], Message(ASSISTANT, _STAND_IN)])
    marked: str = _rendered(tokenizer, stand_in, row, tokenize=False)
    _, found, closing = marked.rpartition(_STAND_IN)
    for turn in (content + closing, content.strip() + closing):
        if found and turn and text.startswith(turn, start):
            return start + len(turn)
    return None


def _rendered(tokenizer: Any, chat: Chat, row: int, **options: Any) -> Any:
    turns = [message.to_dict() for message in chat.messages]
    try:
        return tokenizer.apply_chat_template(turns, tools=list(chat.tools) if chat.tools else None, **options)
    except Exception as error:  # a template's own message may quote the chat
        raise _refused(row, error) from None


def _refused(row: int, error: Exception) -> DpzoError:
    return DpzoError(
        f"--data: chat {row}: the tokenizer's chat template refuses this chat ({type(error).__name__}); many want user "
        "and assistant to alternate, and know no other roles"
    )


def _cut(tokenizer: Any, ids: list[int], marks: list[bool], room: int) -> tuple[list[int], list[bool]]:
    """Up to the last scored token, and of that the last `room` tokens, leading special ones kept."""
    if True in marks:
        stop = len(marks) - marks[::-1].index(True)
        ids, marks = ids[:stop], marks[:stop]
    if len(ids) > room:
        lead = min(sum(1 for _ in takewhile(lambda token: token == tokenizer.bos_token_id, ids)), room - 2)
        ids = ids[:lead] + ids[len(ids) - room + lead :]
        marks = marks[:lead] + marks[len(marks) - room + lead :]
    return (ids, marks) if ids else ([tokenizer.pad_token_id], [False])
