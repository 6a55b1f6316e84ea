"""Random models of two layers with a byte-level tokenizer, saved to a folder: what a loader sees, in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "vocab_size": 264,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _tokenizer(single: str, inputs: list[str]) -> transformers.PreTrainedTokenizerFast:
    """One token a byte; no merges, so no training and no corpus."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} $B", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=64,
        model_input_names=inputs,
    )


def _save(model: Any, tokenizer: transformers.PreTrainedTokenizerFast, folder: Path) -> Path:
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # wide enough that texts differ to the model
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_bert(folder: Path) -> Path:
    with torch.random.fork_rng():
        model = transformers.AutoModel.from_config(transformers.BertConfig(**SIZES))
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    return _save(model, _tokenizer("<s> $A </s>", inputs), folder)


def save_llama(folder: Path) -> Path:
    with torch.random.fork_rng():
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
        )
    return _save(model, _tokenizer("<s> $A", ["input_ids", "attention_mask"]), folder)
