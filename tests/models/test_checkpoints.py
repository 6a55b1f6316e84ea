"""What a published checkpoint is taken for, and which parts of it are read or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers

from dpzo.config.schema import DataConfig, ModelConfig, PrivacyConfig, RunConfig
from dpzo.data.chats import Chat, Message
from dpzo.data.tasks import Records, own_classification
from dpzo.errors import DpzoError
from dpzo.models.chat_tokens import _marked, _scored_tokens, choose_chat_template
from dpzo.models.families import tiny_tokenizer
from dpzo.models.initialiser import seeded_initialiser
from dpzo.models.models import load_model, peek_architecture
from dpzo.models.shapes import Shapes
from dpzo.run.declared import require_used
from dpzo.run.subject import Subject, encode, encode_examples


def config_of(folder: Path, model_type: str, **fields: Any) -> Path:
    card = transformers.AutoConfig.for_model(model_type).to_dict()
    (folder / "config.json").write_text(json.dumps({**card, "architectures": None, "model_type": model_type, **fields}))
    (folder / "model.safetensors").write_bytes(b"")
    tiny_tokenizer(False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("model_type", "fields", "plain", "prompted"), [
    ("llama", {}, "causal", "causal"),
    ("gpt2", {"architectures": []}, "causal", "causal"),
    ("mamba", {}, "causal", "causal"),
    ("bert", {}, "sequence-classifier", "masked"),
    ("roberta", {"is_decoder": True}, "causal", "causal"),
    ("llama", {"architectures": ["LlamaForTokenClassification"]}, "causal", "causal"),
    ("bert", {"architectures": ["BertModel"]}, "encoder", "encoder"),
])  # fmt: skip
def test_the_family_decides_where_the_checkpoint_does_not_say(
    model_type: str, fields: dict[str, Any], plain: str, prompted: str, tmp_path: Path
) -> None:
    folder = config_of(tmp_path, model_type, **fields)
    assert peek_architecture(folder, "classification") == plain
    assert peek_architecture(folder, "classification", prompted=True) == prompted


def test_an_adapter_is_refused_and_its_base_is_named(tmp_path: Path, tiny_llama: Path) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(DpzoError) as caught:
            load_model(folder, "completion", initialiser=seeded_initialiser(0))
        return str(caught.value)

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    assert "is a PEFT adapter of org/base, not a whole model. Give --model org/base" in refused(adapter)
    (adapter / "adapter_config.json").write_text("{}")
    assert "is a PEFT adapter, not a whole model. Give its base model" in refused(adapter)
    for file in tiny_llama.iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    assert "remove adapter_config.json and adapter_model.safetensors" in refused(adapter)


@pytest.mark.parametrize("architecture", ["encoder", "sequence-classifier"])
@pytest.mark.parametrize(("data", "flags"), [
    ({"label_words": (" bad", " good")}, "--label-words:"),
    ({"template": "Review: {text}"}, "--template:"),
    ({"label_words": (" bad", " good"), "template": "{text} It was"}, "--label-words and --template:"),
])  # fmt: skip
def test_a_prompt_for_a_model_that_takes_none_is_refused(architecture: Any, data: dict[str, Any], flags: str) -> None:
    def config(**fields: Any) -> RunConfig:
        return RunConfig(
            model=ModelConfig(name="m"),
            data=DataConfig(labels=("no", "yes"), **fields),
            privacy=PrivacyConfig(delta=0.1),
        )

    with pytest.raises(DpzoError, match=flags):
        require_used(config(**data), architecture)
    require_used(config(), architecture)
    require_used(config(**data), "causal")


def subject(folder: Path, words: tuple[str, ...], template: str = "{text} It was") -> Subject:
    task = own_classification(("no", "yes"), template=template, label_words=words, max_length=40)
    loaded = load_model(folder, "classification", initialiser=seeded_initialiser(0), labels=("no", "yes"))
    data = DataConfig(labels=("no", "yes"), label_words=words, template=template, max_length=40, max_answer_tokens=4)
    config = RunConfig(model=ModelConfig(name="m"), data=data, privacy=PrivacyConfig(delta=0.1))
    return Subject(config, task, loaded, Shapes(4, None, 1))


def test_label_words_that_become_one_are_refused(tiny_llama: Path) -> None:
    fine = subject(tiny_llama, (" bad", " great"))
    assert encode_examples(fine).options == 2
    fine.loaded.tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    same = subject(tiny_llama, (" bad", " Bad"))
    same.loaded.tokenizer.backend_tokenizer.normalizer = fine.loaded.tokenizer.backend_tokenizer.normalizer
    with pytest.raises(DpzoError, match=r"--label-words: ' bad' and ' Bad' become the same tokens after the template"):
        encode_examples(same)


def test_a_token_without_an_embedding_is_refused_in_the_template_and_unknown_in_a_record(tiny_llama: Path) -> None:
    chosen = subject(tiny_llama, (" bad", " great"))
    chosen.loaded.tokenizer.add_tokens(["<image>"] + [f"<extra{n}>" for n in range(400)])
    rows = chosen.loaded.vocabulary
    assert rows < len(chosen.loaded.tokenizer)
    beyond = [n for n in range(400) if chosen.loaded.tokenizer.convert_tokens_to_ids(f"<extra{n}>") >= rows]
    text = f"a <extra{beyond[0]}> b"
    encoded = encode(Records({"text": (text, "plain")}, labels=np.array([0, 1])), chosen)
    assert encoded.tokens.max() < rows
    assert chosen.loaded.stand_in_token in encoded.tokens[0]
    bad = subject(tiny_llama, (" bad", " great"), f"{{text}} <extra{beyond[0]}>")
    bad = Subject(bad.config, bad.task, chosen.loaded, bad.shapes)
    with pytest.raises(DpzoError, match=r"uses '<extra\d+>', number \d+, but the model embeds"):
        encode_examples(bad)


def test_a_named_chat_template_is_chosen() -> None:
    tokenizer = tiny_tokenizer(False)
    tokenizer.chat_template = {"default": "D", "rag": "R"}
    choose_chat_template(tokenizer, None, is_chat=False)
    assert isinstance(tokenizer.chat_template, dict)
    with pytest.raises(DpzoError, match=r"no template 'tool'; it has default, rag; give one of them"):
        choose_chat_template(tokenizer, "tool", is_chat=True)
    choose_chat_template(tokenizer, "rag", is_chat=True)
    assert tokenizer.chat_template == "R"
    with pytest.raises(DpzoError, match="a single template without a name; leave --chat-template out"):
        choose_chat_template(tokenizer, "rag", is_chat=True)
    with pytest.raises(DpzoError, match="is for --kind chat"):
        choose_chat_template(tokenizer, "rag", is_chat=False)
    tokenizer.chat_template = {"default": "D"}
    choose_chat_template(tokenizer, None, is_chat=True)
    assert tokenizer.chat_template == "D"


@pytest.mark.parametrize(("chat", "scored"), [
    ([("assistant", "g"), ("user", "abc")], [True, False, False, False]),
    ([("user", "abc"), ("assistant", "g")], [False, False, False, True]),
    ([("assistant", ""), ("user", "abc")], [False, False, False]),
    ([("assistant", "ab"), ("user", "c"), ("assistant", "g")], [True, True, False, True]),
])  # fmt: skip
def test_marks_of_a_template_end_where_they_end(chat: list[tuple[str, str]], scored: list[bool]) -> None:
    tokenizer = tiny_tokenizer(False)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    tokenizer.backend_tokenizer.model = tokenizers.models.WordLevel(
        {letter: n for n, letter in enumerate("abcg<")}, unk_token="<"
    )
    tokenizer.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    turns = Chat([Message(role, content) for role, content in chat])
    assert _marked(tokenizer, turns, 1)[0] == "".join(content for _, content in chat)
    assert _scored_tokens(tokenizer, turns, 1)[1] == scored
