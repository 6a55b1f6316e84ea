"""Which model families pass: tiny random models of each, loaded, checked, moved, saved, and read back by the library.

`python -m dpzo.models.families docs/models.md` writes the table of the documentation; the tests hold it to what
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
class Outcome:
    """What was found for one family; `reason` is set for one that is refused."""

    family: str
    form: str
    microbatch: int | None = None  # records that may share a pass, of `MICROBATCH` asked for
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


def check_family(family: str, folder: Path) -> Outcome:
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
            return Outcome(family, form, reason=_reason(refusal).replace(str(base), family))
        passed += [f"{trainable} step", f"{trainable} reload"]
    return Outcome(family, form, min(sizes), tuple(passed))


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
    """The refusal without the figures in brackets, which hang on the machine."""
    return re.sub(r" \(the loss[^)]*\)", "", str(refusal))


def row(outcome: Outcome) -> str:
    """One line of the table."""
    if outcome.reason:
        return f"| {outcome.family} | {outcome.form} | refused: {outcome.reason.partition(': ')[2]} | – | – |"
    shared = "yes" if outcome.microbatch == MICROBATCH else f"{outcome.microbatch} record a pass"

    def marks(what: str) -> str:
        return "yes" if {f"{what} step", f"{what} reload"} <= set(outcome.passed) else "no"

    return f"| {outcome.family} | {outcome.form} | {shared} | {marks('full')} | {marks('lora')} |"


HEADER = """# Model families

Each was made tiny from a random configuration and run through loading, the isolation check, a zeroth-order step, and
saving. Every run checks the same at its start. *Conformance*: per-example losses and predictions, padded and in a
batch, are those of plain transformers or PEFT on one unpadded record (within 1e-4 nats in float32; 2e-6 seen).
*Reload*: what is saved, read back by plain transformers or PEFT, gives the same logits, an adapter also once merged.
*Isolation*: several records may share a pass without a bit of one showing in another; a mixture of experts runs one
record a pass, because the shape of an expert's matrix product hangs on how many tokens its neighbours send there.
The table is written by `python -m dpzo.models.families docs/models.md`, and a test compares each row with what it
finds.

| family | form | isolation | full-parameter step and reload | LoRA step and reload |
|---|---|---|---|---|
"""


FOOTER = """
## What may learn

`--trainable` is `head`, `full`, `lora`, `prefix`, `prompt`, `ia3`, or a regular expression over parameter names
(`'.*bias$'` trains biases alone). New parameters come from the public seed. LoRA takes `model.lora_rank`,
`model.lora_alpha`, `model.lora_targets=[q_proj,v_proj]`, `model.lora_layers=top:2` (the two topmost layers alone) and
`model.lora_scaling=root-rank` (rsLoRA). By default LoRA adapts the layers of PEFT's own table for the family, or
query and value by their usual names; for any other family (Phi-3, ModernBERT, MPNet, Mamba) every linear layer of the
base, which `model.lora_targets=[all-linear]` asks for anywhere. LoRA on a tied weight (`lm_head` under
`tie_word_embeddings`) is refused, because merging would change the embedding as well. A prefix and a soft prompt take
`model.virtual_tokens`, and are for causal models. What is saved loads by plain PEFT.

Where the lowest layers and all before them are frozen, their output is the same in all 2K evaluations of a step, so it
is computed once (`training.prefix=batch`, the default) or, for records that come up again, once a run (`run`: kept in
memory, or in a nameless file on disk that only the process can reach and that ends with it). The model's own
forward runs each time with those layers standing aside, and at start-up the losses are compared bit for bit on
synthetic tokens; where a bit differs, or the layers are not called once each in their order, nothing is shared. The
card names what is kept. `none` turns it off. A head on a bare encoder keeps its features in any case.

The evaluations of a step differ in what learns alone, so several of them can go through the frozen base together:
`training.variants=8` takes eight at a time, `auto` (the default) times 1, 2, 4, 8 … on synthetic tokens at start-up and
takes the fastest, if it gains 5 %. It pays where the base is read for few rows (a micro-batch under about 128 tokens, a
head on kept features) and not where the processor is busy as it is. Losses may differ in their last bits from those
taken one by one; the isolation of records is checked on the very shape, the number stands in the journal's header, and
a resume takes it from there. A mixture of experts, a quantised base and a full-parameter run take one at a time, and so
does a run too short to repay the look.

## Masked language models

A template with `{mask}` asks a masked model by its own head:
`--template '{text} It was {mask}.' --label-words bad,great`. Each label word must be one token where it
stands, leading space included. Over-long texts are cut, longest first; the
template and its mask stay. Without such a template the checkpoint loads as a sequence classifier.

## Which model a checkpoint is

The class in `architectures` of config.json decides. Where it is missing, the family does (`model_type`): a family that
transformers knows as causal alone is a causal model, and one that fills masks is a masked model. Label words and a
template are for causal and masked models; given for an encoder or a sequence classifier they are refused.

A folder that holds a PEFT adapter (`adapter_config.json`) is refused as `--model`, with the name of its base: merge the
adapter first (`merge_and_unload`, then `save_pretrained`). The same holds for a merged model beside which the adapter's
files were left, because transformers would attach the adapter once more.

A sequence classifier over a decoder reads its answer at the last token that is not `config.pad_token_id`. Rows are
padded with that token, and the saved tokenizer names it, whatever the base's tokenizer said. A tokenizer may have more
entries than the model has embeddings: a template or a special token that uses one is refused; in a private record such
a token becomes the unknown token.

## What is saved

A run's `model/` loads with plain transformers (`from_pretrained`, `pipeline`) or, for an adapter, PEFT. A head on a
bare encoder is the exception: mean pooling, unit length and a linear head are no class of the library, which would
load the encoder with a head at random. There the encoder lies in `model/encoder`, the head in
`model/head.safetensors`, and transformers refuses `model/` itself; `model/README.md` has the lines that load both.

## How the base is held

`model.dtype` is `float32`, `bfloat16` or `float16`; adapters and new heads stay float32, and so does every loss.
`model.quantization=int8` or `int4` quantises the base's linear layers while it loads (extra `dpzo[quant]`, torchao,
weights only); int4 layers compute in bf16, and a layer whose shape int4 does not fit is int8. `bnb-int8` and `bnb-nf4`
hand that to bitsandbytes where it is installed. The base's fingerprint is that of the checkpoint, with the quantiser's
name and version mixed in. A quantised weight is never trained.

Weights of 16 bits that are trained take their steps by stochastic rounding, whose bits are public and addressed by
seed, step, parameter and element, so that a replay rounds alike; `training.master=float32` keeps float32 copies
instead, at the memory of one more float32 model. Probes are rounded to nearest: at a smoothing far below a
weight's gap to its
neighbours (2⁻⁸ of its size in bf16) most weights do not move, so choose a larger one than for float32.

## Scores without a gradient

`--objective accuracy` improves 1 − accuracy: of the class, or of a completion's tokens. `--objective f1` improves
1 − F1 of a completion's tokens as a bag. Both look at the most likely token after the *true* beginning of the answer;
no text is generated. Each is bounded by 0 and 1 and a step function of the weights, so a larger smoothing finds more of
its steps, and slopes are multiples of 1/(2·smoothing): set `--clip-norm` near √K times that.

A score of your own is any function from a model and a batch of rows to one number a row, through `dpzo.fit`:

```python
import torch, dpzo

def wrong(model, batch):
    return (torch.sign(model(batch["x"])[:, 0]) != batch["y"]).float()

model, x = torch.nn.Linear(3, 1), torch.randn(200, 3)
examples = {"x": x, "y": torch.sign(x[:, 0])}
plan = dpzo.solve_plan(num_examples=200, expected_batch_size=50, steps=40, delta=1e-4, epsilon=4, num_directions=8)
dpzo.fit(model, wrong, examples, plan=plan, settings=dpzo.Settings(0.05, smoothing=0.3), output="run")
```

Number i may depend on the weights and row i alone; `dpzo.models.objectives.Objective` states the contract.
"""


def main(target: Path) -> None:
    """Write the table."""
    lines = []
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(row(check_family(family, Path(folder))))
    target.write_text(HEADER + "\n".join(lines) + "\n" + FOOTER, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
