"""Chats: what is read of them, which tokens are scored, and that the loss is the mean over these."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpzo.data.chats import Chat, Message, chat_rows, unpacked
from dpzo.data.chats import packed as packed_chat
from dpzo.errors import DpzoError
from dpzo.models.batching import Encoded
from dpzo.models.chat_tokens import chat_answer_tokens, encode_chats
from dpzo.models.objectives import TokenObjective

SPOKEN = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def packed(turns: list[Message]) -> str:
    return packed_chat(Chat(turns))


def say(*turns: tuple[str, str]) -> list[Message]:
    return [Message(role, content) for role, content in turns]


@st.composite
def chats(draw: st.DrawFn) -> list[Message]:
    """Turns in any order, but that the assistant never answers itself; the last word is the assistant's."""
    turns = draw(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), SPOKEN), max_size=4))
    spoken: list[tuple[str, str]] = []
    for turn in [*turns, ("user", draw(SPOKEN)), ("assistant", draw(SPOKEN))]:
        if turn[0] == "user" or not spoken or spoken[-1][0] == "user":
            spoken.append(turn)
    return say(*spoken)


@pytest.fixture(params=["plain", "marked", "thoughtful"])
def chatty(request: pytest.FixtureRequest, tokenizer: Any, templates: dict[str, str]) -> Any:
    tokenizer.chat_template = templates[request.param]
    return tokenizer


def scored_text(tokenizer: Any, encoded: Encoded, row: int = 0) -> str:
    assert encoded.scored is not None
    width = encoded.scored.shape[1]
    return str(tokenizer.decode(encoded.tokens[row, -width:][encoded.scored[row]]))


def whole_text(tokenizer: Any, encoded: Encoded, row: int = 0) -> str:
    return str(tokenizer.decode(encoded.tokens[row, encoded.max_length - encoded.lengths[row] :]))


def rows_of(*values: object) -> Iterator[tuple[int, dict[str, object]]]:
    for row, value in enumerate(values, start=1):
        yield row, {"messages": value}


def test_messages_are_read_from_jsonl_and_parquet_alike() -> None:
    turns = [{"role": "user", "content": "a", "weight": 1}, {"role": "assistant", "content": 'ü "b"'}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}]
    found = [values["messages"] for _, values in chat_rows(Path("c"), rows_of(turns, parts))]
    assert [unpacked(str(text)).messages for text in found] == [
        say(("user", "a"), ("assistant", 'ü "b"')),
        say(("assistant", "xy")),
    ]
    assert list(chat_rows(Path("c"), [(1, {"other": 1})])) == [(1, {"other": 1})]
    assert "secret" not in repr(Message("user", "secret"))


@given(chats())
def test_packing_loses_nothing(chat: list[Message]) -> None:
    assert unpacked(packed(chat)).messages == chat


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("secret", "must be a list of messages"),
        ([], "must be a list of messages"),
        (None, "must be a list of messages"),
        (["secret"], "message 1 of column 'messages' needs a role and a content"),
        ([{"role": "assistant", "content": None}], "message 1 of column"),
        ([{"role": "assistant", "content": "a"}, {"content": "secret"}], "message 2 of column"),
        ([{"role": "assistant", "content": [{"type": "image", "text": "secret"}]}], "message 1 of column"),
        ([{"role": "user", "content": "secret"}], "has no message of role 'assistant'"),
    ],
)
def test_a_bad_chat_is_named_by_file_and_row(value: object, problem: str) -> None:
    good = [{"role": "assistant", "content": "fine"}]
    with pytest.raises(DpzoError) as told:
        list(chat_rows(Path("c.jsonl"), rows_of(good, value)))
    assert str(told.value).startswith("c.jsonl, row 2: ")
    assert problem in str(told.value)
    assert "secret" not in str(told.value)


def test_only_the_assistants_turns_are_scored(chatty: Any) -> None:
    chat = say(("system", "be kind"), ("user", "hi"), ("assistant", "hello"), ("user", "and?"), ("assistant", "bye"))
    encoded = encode_chats(chatty, [packed(chat), packed([*chat, Message("user", "thanks")])], max_length=120)
    thought = "(thought)" if "thought" in chatty.chat_template else ""
    assert scored_text(chatty, encoded) == f"hello</s>{thought}bye</s>"
    # What follows the last answer has no part in it, and is dropped.
    assert scored_text(chatty, encoded, 1) == "hello</s>bye</s>"
    assert whole_text(chatty, encoded, 1).endswith("bye</s>")
    assert not encoded.empty.any()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(chat=chats(), max_length=st.integers(5, 80))
def test_any_chat_fits_its_row(chatty: Any, chat: list[Message], max_length: int) -> None:
    encoded = encode_chats(chatty, [packed(chat)], max_length=max_length)
    assert encoded.scored is not None
    assert encoded.scored.shape == (1, chat_answer_tokens(max_length))
    assert encoded.tokens.shape == (1, max_length)
    long = encode_chats(chatty, [packed(chat)], max_length=2000)
    assert scored_text(chatty, long).replace("(thought)", "") == "".join(
        message.content + "</s>" for message in chat if message.role == "assistant"
    )
    # Cut on the left: the row is the end of the whole one, but for the column that always pads.
    kept = int(encoded.lengths[0])
    assert kept == min(int(long.lengths[0]), max_length - 1)
    np.testing.assert_array_equal(encoded.tokens[0, -kept:], long.tokens[0, -kept:])


def test_marks_and_prefixes_agree(tokenizer: Any, templates: dict[str, str]) -> None:
    chat = packed(say(("user", "a"), ("assistant", "b c"), ("user", "d"), ("assistant", "")))
    found = []
    for name in ("plain", "marked"):
        tokenizer.chat_template = templates[name]
        found.append(encode_chats(tokenizer, [chat], max_length=64))
    for field in ("tokens", "scored", "lengths", "answer_lengths", "empty"):
        np.testing.assert_array_equal(getattr(found[0], field), getattr(found[1], field))


def test_the_loss_is_the_mean_over_the_assistants_tokens(chatty: Any, tiny_llama: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    chat = say(("user", "what"), ("assistant", "yes"), ("user", "why"), ("assistant", "no"))
    encoded = encode_chats(chatty, [packed(chat), packed(chat[:2])], max_length=60)
    objective = TokenObjective(model, encoded, 2)
    losses = objective.losses(np.array([0, 1]))
    assert encoded.scored is not None
    for row in range(2):
        ids = torch.from_numpy(encoded.tokens[row, -encoded.lengths[row] :].astype(np.int64))[None]
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].log_softmax(-1)
        terms = log_probs[torch.arange(ids.shape[1] - 1), ids[0, 1:]].numpy()
        own = encoded.scored[row, -len(terms) :]
        assert 0 < own.sum() < len(own)
        assert losses[row] == pytest.approx(-terms[own].mean(), abs=1e-5)
    with pytest.raises(DpzoError, match="is not for chats"):
        TokenObjective(model, encoded, 2, "accuracy")


def test_a_chat_without_a_scored_token_is_empty(chatty: Any) -> None:
    chatty.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    encoded = encode_chats(chatty, [packed(say(("user", "x"), ("assistant", "")))], max_length=12)
    assert encoded.empty.tolist() == [True]
    assert encoded.answer_lengths.tolist() == [0]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('secret' + messages[0].content) }}", "chat 7: .* refuses this chat"),
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "chat 7: .* otherwise once more"),
    ],
)
def test_a_template_that_will_not_do_is_told_in_one_line(tokenizer: Any, template: str | None, problem: str) -> None:
    tokenizer.chat_template = template
    chat = packed(say(("user", "secret"), ("assistant", "secret"), ("user", "secret"), ("assistant", "b")))
    with pytest.raises(DpzoError, match=problem) as told:
        encode_chats(tokenizer, [chat], max_length=30, first_chat=7)
    assert "secret" not in str(told.value)


def test_what_cannot_be_told_apart_is_refused_and_not_guessed(tokenizer: Any, templates: dict[str, str]) -> None:
    """An answer to an answer: the rendering of the first alone is no beginning of the whole."""
    tokenizer.chat_template = templates["thoughtful"]
    with pytest.raises(DpzoError, match="otherwise once more turns follow"):
        encode_chats(tokenizer, [packed(say(("assistant", "a"), ("assistant", "b")))], max_length=60)


def test_a_length_that_holds_nothing_is_refused(chatty: Any) -> None:
    with pytest.raises(DpzoError, match="--max-length 4: too short"):
        encode_chats(chatty, [], max_length=4)


def test_chats_in_parquet(tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]
    pq.write_table(pa.table({"messages": messages}), tmp_path / "c.parquet")
    rows = pq.read_table(tmp_path / "c.parquet").to_pylist()
    ((_, values),) = chat_rows(tmp_path, [(1, rows[0])])
    assert json.loads(str(values["messages"])) == [["user", "a"], ["assistant", "b"]]


TOOLED = (
    "{% if tools %}{{ '[' + (tools | tojson) + ']' }}{% endif %}"
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ 'CALL ' + c.function.name + (c.function.arguments | tojson) }}{% endfor %}"
    "{{ '</s>' }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
CALLED = [
    {"role": "user", "content": "cold?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "2", "tool_call_id": "c1"},
    {"role": "assistant", "content": "yes"},
]


def read(**values: object) -> Chat:
    ((_, found),) = chat_rows(Path("c.jsonl"), [(1, values)])
    return unpacked(str(found["messages"]))


def refused(problem: str, **values: object) -> None:
    with pytest.raises(DpzoError, match=problem) as told:
        read(**values)
    assert str(told.value).startswith("c.jsonl, row 1: ")
    assert "secret" not in str(told.value)


def test_sharegpt_is_read() -> None:
    turns = [{"from": "human", "value": "hi", "weight": None}, {"from": "gpt", "value": "hello"}]
    assert read(conversations=turns).messages == say(("user", "hi"), ("assistant", "hello"))
    assert read(messages=turns, tools="[]", system=" ").messages == say(("user", "hi"), ("assistant", "hello"))
    whole = read(conversations=turns, system="be kind", tools='[{"name": "f"}]')
    assert whole.messages == say(("system", "be kind"), ("user", "hi"), ("assistant", "hello"))
    assert whole.tools == [{"name": "f"}]
    refused("'from' that is none of human", conversations=[{"from": "secret", "value": "x"}])
    refused("needs a role and a content", conversations=[{"from": "gpt"}])


def test_of_trls_prompt_and_completion_the_completion_alone_is_learnt(
    tokenizer: Any, templates: dict[str, str]
) -> None:
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    chat = read(prompt=prompt, completion=[{"role": "assistant", "content": "d"}])
    assert [turn.scored for turn in chat.messages] == [False, False, False, True]
    for name in ("plain", "marked"):
        tokenizer.chat_template = templates[name]
        assert scored_text(tokenizer, encode_chats(tokenizer, [packed_chat(chat)], max_length=60)) == "d</s>"
    refused("give --kind completion", prompt="secret", completion="secret")
    refused("must be a list of messages", prompt="secret", completion=[{"role": "assistant", "content": "d"}])
    refused("nothing to learn", prompt=prompt, completion=[{"role": "user", "content": "secret"}])


def test_a_turn_of_weight_zero_is_not_learnt(tokenizer: Any, templates: dict[str, str]) -> None:
    turns = [
        {"role": "assistant", "content": "a", "weight": 0},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c", "weight": 1},
    ]
    tokenizer.chat_template = templates["plain"]
    encoded = encode_chats(tokenizer, [packed_chat(read(messages=turns))], max_length=60)
    assert scored_text(tokenizer, encoded) == "c</s>"
    refused("weight other than 0 and 1", messages=[{"role": "assistant", "content": "secret", "weight": 0.5}])
    refused("nothing to learn", messages=[{"role": "assistant", "content": "secret", "weight": 0}])


def test_tools_and_their_calls_reach_the_template(tokenizer: Any) -> None:
    tokenizer.chat_template = TOOLED
    chat = read(messages=CALLED, tools=[{"name": "weather"}])
    encoded = encode_chats(tokenizer, [packed_chat(chat)], max_length=200)
    assert scored_text(tokenizer, encoded) == 'CALL weather{"city": "Bern"}</s>yes</s>'
    assert whole_text(tokenizer, encoded).startswith('[[{"name": "weather"}]]<user>cold?')


@pytest.mark.parametrize(
    ("lost", "values"),
    [
        ("tool_calls", {"messages": CALLED}),
        ("tools", {"messages": CALLED[3:], "tools": [{"name": "secret"}]}),
        ("name", {"messages": [{"role": "assistant", "content": "x", "name": "secret"}]}),
        ("reasoning_content", {"messages": [{"role": "assistant", "content": "x", "reasoning_content": "secret"}]}),
        ("function_call", {"messages": [{"role": "assistant", "function_call": {"name": "secret"}}]}),
    ],
)
def test_what_the_template_would_lose_is_refused(
    tokenizer: Any, templates: dict[str, str], lost: str, values: dict[str, Any]
) -> None:
    tokenizer.chat_template = templates["plain"]
    with pytest.raises(DpzoError, match=f"chat 3: .* does not render '{lost}'") as told:
        encode_chats(tokenizer, [packed_chat(read(**values))], max_length=60, first_chat=3)
    assert "secret" not in str(told.value)


def test_the_form_of_chats_is_told_once() -> None:
    turns = [{"from": "gpt", "value": "secret"}]
    for values, said in (
        ({"conversations": turns}, "ShareGPT"),
        ({"prompt": [{"role": "user", "content": "secret"}], "completion": turns}, "TRL"),
        ({"messages": [{"role": "assistant", "content": "secret"}]}, ""),
    ):
        told: list[str] = []
        list(chat_rows(Path("c.jsonl"), [(1, values), (2, values)], tell=told.append))
        assert len(told) == bool(said)
        assert said in " ".join(told)
        assert "secret" not in " ".join(told)


def test_empty_keys_say_nothing(tokenizer: Any, templates: dict[str, str]) -> None:
    empty = {"tool_calls": [], "name": "", "function_call": None, "reasoning_content": " ", "audio": {"id": None}}
    chat = read(messages=[{"role": "assistant", "content": "x", **empty}], tools=None, functions=[], images=[])
    assert chat == Chat(say(("assistant", "x")))


@pytest.mark.parametrize("name", ["functions", "documents", "history", "chosen", "rejected", "images"])
def test_a_known_column_that_is_not_read_is_refused(name: str) -> None:
    refused(f"column '{name}' is not read", messages=[{"role": "assistant", "content": "x"}], **{name: ["secret"]})


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "assistant", "content": [{"type": "image_url", "image_url": "secret"}]}, "a part that is no text"),
        ({"role": "assistant", "content": "", "tool_calls": "secret"}, "no list of calls"),
        ({"role": "assistant", "content": "", "tool_calls": [{"function": "secret"}]}, "no list of calls"),
        ({"role": "assistant", "content": None, "reasoning_content": "secret"}, "needs a role and a content"),
    ],
)
def test_a_message_that_cannot_be_used_is_refused(message: dict[str, Any], problem: str) -> None:
    refused(problem, messages=[message])
