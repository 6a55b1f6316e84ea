"""Models of known shapes with random weights: speed and memory do not depend on what they know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dpzo.models import EncoderClassifier, LoraSettings, RowShape, TokenObjective, seeded_initialiser
from dpzo.models.adapters import add_adapter
from dpzo.models.isolation import synthetic_rows
from dpzo.models.quiet import silent_libraries


@dataclass(frozen=True)
class Shape:
    """An encoder with a classifier over two classes (`bert`), or a causal model (`opt`)."""

    family: str
    hidden: int
    layers: int
    heads: int
    inner: int
    vocabulary: int


SHAPES = {
    "opt-125m": Shape("opt", 768, 12, 12, 3072, 50272),
    "bert-base": Shape("bert", 768, 12, 12, 3072, 30522),
    "minilm": Shape("bert", 384, 6, 12, 1536, 30522),
    "opt-tiny": Shape("opt", 128, 4, 4, 512, 1000),
    "bert-tiny": Shape("bert", 128, 4, 4, 512, 1000),
}


def made(shape: Shape, adapted: str | None = None) -> tuple[Any, list[str]]:
    """The module in fp32, and the names of what learns.

    `adapted`: None for all of it, `head` for a classifier alone, `all` or `top:N` for LoRA (r = 8) on those layers.
    """
    with silent_libraries():
        return _made(shape, adapted)


def _made(shape: Shape, adapted: str | None) -> tuple[Any, list[str]]:
    import transformers

    library: Any = transformers
    torch.manual_seed(0)
    sizes = {"hidden_size": shape.hidden, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads}
    if shape.family == "bert":
        config = library.BertConfig(**sizes, intermediate_size=shape.inner, vocab_size=shape.vocabulary)
        module: Any = EncoderClassifier(library.BertModel(config, add_pooling_layer=False), shape.hidden, 2)
    else:
        config = library.OPTConfig(
            **sizes, word_embed_proj_dim=shape.hidden, ffn_dim=shape.inner, vocab_size=shape.vocabulary
        )
        module = library.OPTForCausalLM(config)
    names = [name for name, _ in module.named_parameters()]
    if adapted == "head":
        names = ["head.weight", "head.bias"]
    elif adapted is not None:
        architecture: Any = "encoder" if shape.family == "bert" else "causal"
        lora = LoraSettings(layers=None if adapted == "all" else adapted)
        module, names, _ = add_adapter("lora", module, architecture, (), seeded_initialiser(0), lora, 0)
    return module.eval().requires_grad_(False), names


def objective_of(shape: Shape, module: Any, records: int, length: int, answer: int) -> TokenObjective:
    """Losses of `records` public synthetic rows, `answer` tokens of a causal row being scored; one micro-batch."""
    form: Any = "classes" if shape.family == "bert" else "completion"
    rows = RowShape(form, length, shape.vocabulary, 2, answer, left_padded=form == "completion")
    return TokenObjective(module, synthetic_rows(rows, records), records)
