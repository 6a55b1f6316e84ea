"""Test which model families are supported: load, check, train, save and reload a tiny random model of each.

`python -m dpzo.models.families docs/models.md` updates the table in the documentation; the tests compare it with what
they find.
"""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from dpzo.errors import DpzoError
from dpzo.models.batching import Encoded
from dpzo.models.conformance import check_conformance
from dpzo.models.encoding import encode_completions
from dpzo.models.initialiser import seeded_initialiser
from dpzo.models.isolation import RowShape, lively
from dpzo.models.masking import encode_masked
from dpzo.models.models import LoadedModel, load_model
from dpzo.models.quiet import global_generators_kept, silent_libraries
from dpzo.models.round_trip import check_round_trip
from dpzo.models.shapes import isolated_shapes, make_objective, settle_shift
from dpzo.zo import DirectionScheme, TrainableParameters, central_difference, public_normal

TEXTS = ("the film was a delight", "great", "a dull story " * 9, "my order never came", "夜 and ночь", "okay")
WORDS = (" bad", " great")
TEMPLATE = "{text} It was {mask}."
WIDTH = 24
MICROBATCH = 4

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = {"num_key_value_heads": 2, "max_position_embeddings": 64, **_SIZES, **_TOKENS}
_VOCABULARY = 328

Form = Literal["causal", "masked"]


@dataclass(frozen=True)
class Family:
    """A family by its configuration class and the arguments that make it tiny."""

    form: Form
    config: str
    arguments: dict[str, Any]


FAMILIES: dict[str, Family] = {
    "BERT": Family("masked", "BertConfig", {"max_position_embeddings": 64, **_SIZES, "pad_token_id": 0}),
    "RoBERTa": Family("masked", "RobertaConfig", {"max_position_embeddings": 66, **_SIZES, **_TOKENS}),
    "DeBERTa-v2": Family(
        "masked",
        "DebertaV2Config",
        {"max_position_embeddings": 64, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], **_SIZES},
    ),
    "GPT-2": Family("causal", "GPT2Config", {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "OPT": Family(
        "causal",
        "OPTConfig",
        {"max_position_embeddings": 64, "ffn_dim": 48, "word_embed_proj_dim": 32, **_SIZES, **_TOKENS},
    ),
    "GPT-NeoX": Family("causal", "GPTNeoXConfig", {"max_position_embeddings": 64, **_SIZES, **_TOKENS}),
    "Llama": Family("causal", "LlamaConfig", _LLAMA),
    "Mistral": Family("causal", "MistralConfig", {**_LLAMA, "sliding_window": 16}),
    "Qwen2": Family("causal", "Qwen2Config", {**_LLAMA, "tie_word_embeddings": True}),
    "Qwen3": Family("causal", "Qwen3Config", {**_LLAMA, "head_dim": 8}),
    "Gemma": Family("causal", "GemmaConfig", {**_LLAMA, "head_dim": 8}),
    "Phi": Family("causal", "PhiConfig", {**_LLAMA, "num_key_value_heads": 4}),
    "Mixtral": Family("causal", "MixtralConfig", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen2-MoE": Family(
        "causal",
        "Qwen2MoeConfig",
        {**_LLAMA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        | {"shared_expert_intermediate_size": 32},
    ),
    "Mamba": Family("causal", "MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, **_TOKENS}),
    "RecurrentGemma": Family(
        "causal",
        "RecurrentGemmaConfig",
        {**_LLAMA, "lru_width": 32, "num_hidden_layers": 3, "attention_window_size": 16, "head_dim": 8},
    ),
    "T5": Family("causal", "T5Config", {"d_model": 32, "d_ff": 48, "num_layers": 1, "num_heads": 4, "d_kv": 8}),
}


@dataclass(frozen=True)
class FamilyOutcome:
    """The result for one family; `reason` is set if it is refused."""

    family: str
    form: str
    microbatch: int | None = None  # records that may share a pass, out of `MICROBATCH`
    passed: tuple[str, ...] = ()
    reason: str = ""


def tiny_tokenizer(masked: bool) -> Any:
    """Byte-level BPE over a few sentences, `<s> … </s>` for encoders; every one of `WORDS` is a token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY - 8,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, *(f"it was{word} and{word} or{word}" for word in WORDS)] * 3, trainer)
    if masked:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    maker: Any = transformers.PreTrainedTokenizerFast
    return maker(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        pad_token="<pad>",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_tiny(family: str, folder: Path, **sizes: int) -> Path:
    """A random model of the family with its tokenizer, saved, of other `sizes` if told; the same bits at every call."""
    chosen = FAMILIES[family]
    library: Any = transformers
    with silent_libraries(), global_generators_kept():
        config = getattr(library, chosen.config)(vocab_size=_VOCABULARY, **{**chosen.arguments, **sizes})
        makers = {"causal": library.AutoModelForCausalLM, "masked": library.AutoModelForMaskedLM}
        maker = library.AutoModelForSeq2SeqLM if config.is_encoder_decoder else makers[chosen.form]
        model = maker.from_config(config)
        with torch.no_grad():  # the usual spread of 0.02 makes every model say the same of every text
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.copy_(public_normal(7, name, parameter.numel(), 0.16).view(parameter.shape))
        model.save_pretrained(folder)
        tiny_tokenizer(chosen.form == "masked").save_pretrained(folder)
    return folder


def encode_tiny(loaded: LoadedModel) -> Encoded:
    """`TEXTS` for the family's own form of task."""
    if loaded.takes_masks:
        targets = [n % 2 for n in range(len(TEXTS))]
        return encode_masked(loaded.tokenizer, TEMPLATE, {"text": TEXTS}, WORDS, targets, max_length=WIDTH)
    return encode_completions(loaded.tokenizer, TEXTS, TEXTS[::-1], max_length=WIDTH, max_answer_tokens=9)


def check_family(family: str, folder: Path) -> FamilyOutcome:
    """Load, isolate, step, save and reload, full-parameter and LoRA; AssertionError says what does not hold."""
    form = FAMILIES[family].form
    base = make_tiny(family, folder / "base")
    passed: list[str] = []
    sizes: list[int] = []
    for trainable in ("full", "lora"):
        try:
            loaded = load_model(
                base,
                "classification" if form == "masked" else "completion",
                initialiser=seeded_initialiser(1),
                labels=("no", "yes") if form == "masked" else None,
                trainable=trainable,
                prompted=True,
            )
            sizes.append(_step(loaded))
            check_round_trip(loaded, ("no", "yes") if form == "masked" else None)
        except DpzoError as refusal:
            return FamilyOutcome(family, form, reason=_reason(refusal).replace(str(base), family))
        passed += [f"{trainable} step", f"{trainable} reload"]
    return FamilyOutcome(family, form, min(sizes), tuple(passed))


def _step(loaded: LoadedModel) -> int:
    """Isolation, then slopes beside θ, then a move of θ; returns the number of records that may share a pass."""
    encoded = encode_tiny(loaded)
    shape = RowShape.of(encoded, len(loaded.tokenizer), 2 if loaded.takes_masks else 1)
    shapes = isolated_shapes(loaded, shape, MICROBATCH)
    check_conformance(loaded, lambda rows: make_objective(loaded, rows, shapes), shape, encoded)
    objective = make_objective(loaded, encoded, shapes)
    units = np.arange(len(TEXTS))
    with lively(loaded.module, loaded.trainable_names):
        whole = objective.losses(units)
        alone = np.concatenate([objective.losses(units[i : i + 1]) for i in units[::-1]])[::-1]
        assert whole.tobytes() == alone.tobytes(), "a record's loss hangs on its neighbours"
        assert len(set(whole.tolist())) >= len(TEXTS) - 1, "records are told apart"
    parameters = TrainableParameters(loaded.module, loaded.trainable_names, materialise="slice")
    settle_shift(parameters, objective, len(TEXTS))
    directions = DirectionScheme("gaussian", 3, 2, parameters.sizes).at(0)
    before = parameters.state()
    slopes = central_difference(objective, parameters, units, directions, 1e-2)
    assert np.isfinite(slopes).all(), "slopes are finite"
    assert all(torch.equal(before[name], value) for name, value in parameters.state().items()), "θ stays as it was"
    for index in range(len(parameters)):
        directions.accumulate(0, index, 0.05, parameters.flat(index))
    moved = objective.losses(units)
    assert (moved != whole).all(), "a step shows in every loss"
    return shapes.microbatch_size


def _reason(refusal: DpzoError) -> str:
    """The refusal without the figures in brackets, which depend on the machine."""
    return re.sub(r" \(the loss[^)]*\)", "", str(refusal))


def row(outcome: FamilyOutcome) -> str:
    """One line of the table."""
    if outcome.reason:
        return f"| {outcome.family} | {outcome.form} | refused: {outcome.reason.partition(': ')[2]} | – | – |"
    shared = "yes" if outcome.microbatch == MICROBATCH else f"{outcome.microbatch} record per pass"

    def marks(what: str) -> str:
        return "yes" if {f"{what} step", f"{what} reload"} <= set(outcome.passed) else "no"

    return f"| {outcome.family} | {outcome.form} | {shared} | {marks('full')} | {marks('lora')} |"


def main(target: Path) -> None:
    """Write the rows of the page's first table anew."""
    rows = []
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(check_family(family, Path(folder))))
    before, rule, rest = target.read_text(encoding="utf-8").partition("|---|---|---|---|---|\n")
    after = "".join(line for line in rest.splitlines(keepends=True) if not line.startswith("|"))
    target.write_text(before + rule + "\n".join(rows) + "\n" + after, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
