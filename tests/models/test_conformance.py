"""Losses, predictions and saved folders are those of plain transformers and PEFT, or the model is refused."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from dpzo.errors import DpzoError
from dpzo.models import Storage, load_model, make_objective, seeded_initialiser
from dpzo.models.adapters import LoraSettings
from dpzo.models.conformance import check_conformance, plain_results
from dpzo.models.encoding import encode_classes
from dpzo.models.families import FAMILIES, TEXTS, Family, encode_tiny, make_tiny
from dpzo.models.isolation import RowShape, synthetic_rows
from dpzo.models.models import LoadedModel
from dpzo.models.round_trip import check_round_trip
from dpzo.models.shapes import Shapes

LLAMA = FAMILIES["Llama"].arguments
SHAPES = Shapes(4, None, 1)
MORE: dict[str, Family] = {
    "FNet": Family("masked", "FNetConfig", {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}),
    "Phi-3": Family("causal", "Phi3Config", LLAMA),
    "Mamba": Family("causal", "MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "ModernBERT": Family(
        "masked",
        "ModernBertConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "MPNet": Family(
        "masked",
        "MPNetConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        | {"max_position_embeddings": 66, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
}


def tiny(family: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **sizes: Any) -> Path:
    for name, more in MORE.items():
        monkeypatch.setitem(FAMILIES, name, more)
    return make_tiny(family, folder, **sizes)


def load(folder: Path, trainable: str = "full", **options: Any) -> LoadedModel:
    kind = options.pop("kind", "completion")
    labels = ("no", "yes") if kind == "classification" else None
    return load_model(
        folder, kind, initialiser=seeded_initialiser(1), labels=labels, trainable=trainable, prompted=True, **options
    )


def check(loaded: LoadedModel, encoded: Any = None) -> None:
    examples = encode_tiny(loaded) if encoded is None else encoded
    shape = RowShape.of(examples, loaded.vocabulary, 1 if loaded.kind == "completion" else 2)
    check_conformance(loaded, lambda rows: make_objective(loaded, rows, SHAPES), shape, examples)


def classes(loaded: LoadedModel) -> Any:
    return encode_classes(loaded.tokenizer, TEXTS, [n % 2 for n in range(len(TEXTS))], max_length=24)


@pytest.mark.parametrize(("family", "kind"), [("RecurrentGemma", "completion"), ("FNet", "classification")])
def test_a_family_that_reads_the_padding_is_refused(
    family: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(tiny(family, tmp_path, monkeypatch), kind=kind)
    with pytest.raises(DpzoError, match=r"does not conform to the plain library .* in a padded batch and .* alone"):
        check(loaded)


@pytest.mark.parametrize("fault", ["no mask", "positions from the left edge", "right end padded"])
def test_a_row_read_otherwise_than_alone_is_noticed(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(tiny("GPT-2", tmp_path, monkeypatch))
    plain = loaded.module.forward

    def faulty(**inputs: Any) -> Any:
        if "attention_mask" in inputs and fault == "no mask":
            inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        elif "position_ids" in inputs and fault == "positions from the left edge":
            inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1]).expand_as(inputs["input_ids"])
        elif "attention_mask" in inputs:
            inputs["attention_mask"] = inputs["attention_mask"].flip(1)
        return plain(**inputs)

    check(loaded)
    signature = inspect.signature(plain)
    faulty.__signature__ = signature  # type: ignore[attr-defined]
    loaded.module.forward = faulty  # type: ignore[method-assign]
    with pytest.raises(DpzoError, match="does not conform"):
        check(loaded)


@pytest.mark.parametrize("pad", [0, 3, 327, -1, None])
def test_a_classifier_over_a_decoder_reads_the_last_token_whatever_the_padding(
    pad: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny("Llama", tmp_path, monkeypatch)
    library: Any = transformers
    model = library.LlamaForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    nn.init.normal_(model.score.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    model.save_pretrained(tmp_path)
    card = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**card, "pad_token_id": pad}))
    loaded = load(tmp_path, kind="classification", architecture="sequence-classifier")
    encoded = classes(loaded)
    check(loaded, encoded)
    fresh = library.LlamaForSequenceClassification.from_pretrained(tmp_path).eval()
    losses = make_objective(loaded, encoded, SHAPES).losses(np.arange(len(encoded)))
    wanted = [result.loss for result in plain_results(fresh, encoded)]
    np.testing.assert_allclose(losses[~encoded.empty], np.array(wanted)[~encoded.empty], atol=1e-5)
    check_round_trip(loaded, ("no", "yes"))


def test_padding_that_a_classifier_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny("Llama", tmp_path, monkeypatch)
    card = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**card, "pad_token_id": None}))
    loaded = load(tmp_path, kind="classification", architecture="sequence-classifier")
    ended = replace(classes(loaded), pad_token_id=2)  # padded with one token while the module looks for another
    ended.tokens[ended.tokens == 0] = 2
    monkeypatch.setattr(loaded.module.config, "pad_token_id", 7)
    with pytest.raises(DpzoError, match="padding token"):
        check(loaded, ended)


def test_half_precision_that_overflows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny("Llama", tmp_path / "base", monkeypatch)
    library: Any = transformers
    model = library.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.mul_(2.0**17)
            layer.mlp.down_proj.weight.mul_(2.0**-17)
    model.save_pretrained(base)
    check(load(base))
    check(load(base, storage=Storage("bfloat16")))
    with pytest.raises(DpzoError, match=r"not finite .* overflow in float16; use --set model\.dtype=bfloat16"):
        check(load(base, storage=Storage("float16")))


def test_what_changes_no_loss_is_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny("BERT", tmp_path, monkeypatch)
    loaded = load(base, kind="classification")
    idle = replace(loaded, trainable_names=("bert.embeddings.position_embeddings.weight",), trainable="positions")
    check(idle)
    with torch.no_grad():
        loaded.module.get_parameter("cls.predictions.bias").zero_()
        loaded.module.get_parameter("cls.predictions.transform.LayerNorm.weight").zero_()
        loaded.module.get_parameter("cls.predictions.transform.LayerNorm.bias").zero_()
    blind = replace(loaded, trainable_names=("cls.predictions.bias",))
    with pytest.raises(DpzoError, match="the same for every synthetic record, so the head cannot see its input"):
        check(blind)


@pytest.mark.parametrize(("family", "layers"), [
    ("Phi-3", {"down_proj", "gate_up_proj", "o_proj", "qkv_proj"}),
    ("Mamba", {"dt_proj", "in_proj", "x_proj"}),
    ("ModernBERT", {"Wi", "Wo", "Wqkv"}),
    ("MPNet", {"dense", "k", "o", "q", "v"}),
])  # fmt: skip
def test_a_family_without_an_entry_gets_every_linear_layer(
    family: str, layers: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "completion" if MORE[family].form == "causal" else "classification"
    base = tiny(family, tmp_path, monkeypatch)
    loaded = load(base, "lora", kind=kind)
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in loaded.trainable_names} == layers
    assert not any("lm_head" in name or "decoder" in name for name in loaded.trainable_names)
    check(loaded)
    check_round_trip(loaded, None if kind == "completion" else ("no", "yes"))


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_lora_on_a_tied_weight_is_refused(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny("Qwen2", tmp_path, monkeypatch)
    with pytest.raises(DpzoError, match=rf"model\.lora_targets: the weight of .*{target} is tied"):
        load(base, "lora", lora=LoraSettings(target=("q_proj", target)))
    untied = load(tiny("Qwen3", tmp_path / "untied", monkeypatch), "lora", lora=LoraSettings(target=(target,)))
    check_round_trip(untied, None)


def test_a_saved_folder_that_says_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(tiny("GPT-2", tmp_path, monkeypatch))
    module: Any = loaded.module
    check_round_trip(replace(loaded, base_name="first"), None)
    kept = module.config.layer_norm_epsilon
    for layer in module.transformer.h:
        layer.ln_1.eps = 10.0  # as a loader that changes a field of the module and not of its configuration
    assert kept != 10.0
    with pytest.raises(DpzoError, match="read back by plain transformers or PEFT, gives logits that differ"):
        check_round_trip(replace(loaded, base_name="second"), None)


def test_synthetic_records_hold_no_token_beyond_the_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(tiny("Llama", tmp_path, monkeypatch))
    loaded.tokenizer.add_tokens([f"word{n}" for n in range(20)])
    shape = RowShape("completion", 24, loaded.vocabulary, 1, max_answer_tokens=4, left_padded=True)
    assert synthetic_rows(shape, 64).tokens.max() < 328 < len(loaded.tokenizer)
