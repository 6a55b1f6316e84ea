"""Shapes without weights: the same parameters, bytes and tensors as the loaded model has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dpzo.errors import DpzoError
from dpzo.models import LoraSettings, RowShape, Storage, TokenObjective, load_model, seeded_initialiser
from dpzo.models.fingerprint import plain_tensors
from dpzo.models.isolation import synthetic_rows
from dpzo.models.skeleton import _LiveBytes, build_skeleton, find_checkpoint

LABELS = ("no", "yes")
TRAINABLE = ("full", "head", "lora", "prefix", "prompt", "ia3", r"layers\.1\.")


def only_config(folder: Path, to: Path, **changes: object) -> Path:
    """The folder's configuration alone, with some of it changed."""
    found = json.loads((folder / "config.json").read_text())
    to.mkdir()
    (to / "config.json").write_text(json.dumps(found | changes))
    return to


@pytest.mark.parametrize("trainable", TRAINABLE)
def test_a_causal_skeleton_is_the_loaded_model_without_memory(tiny_llama: Path, trainable: str) -> None:
    lora = LoraSettings(rank=3, layers="top:1")
    loaded = load_model(
        tiny_llama, "classification", initialiser=seeded_initialiser(0), labels=LABELS, trainable=trainable, lora=lora
    )
    found = find_checkpoint(tiny_llama, "classification")
    skeleton = build_skeleton(found, labels=LABELS, trainable=trainable, lora=lora)
    assert found.is_here
    assert found.num_layers == 2
    assert skeleton.model.trainable_names == loaded.trainable_names
    assert skeleton.model.takes_options is loaded.takes_options
    parameters = dict(loaded.module.named_parameters())
    assert skeleton.trainable == tuple((parameters[n].numel(), parameters[n].dtype) for n in loaded.trainable_names)
    held = sum(t.numel() * t.element_size() for t in (*loaded.module.parameters(), *loaded.module.buffers()))
    assert skeleton.weights == held
    assert skeleton.elements == sum(p.numel() for p in loaded.module.parameters())


@pytest.mark.parametrize("trainable", ["full", "head", "lora"])
def test_an_encoder_too(tiny_bert: Path, trainable: str) -> None:
    loaded = load_model(
        tiny_bert, "classification", initialiser=seeded_initialiser(0), labels=LABELS, trainable=trainable
    )
    skeleton = build_skeleton(find_checkpoint(tiny_bert, "classification"), labels=LABELS, trainable=trainable)
    assert skeleton.model.trainable_names == loaded.trainable_names
    assert skeleton.dimension == sum(dict(loaded.module.named_parameters())[n].numel() for n in loaded.trainable_names)


@pytest.mark.parametrize("form", ["classes", "completion", "options"])
def test_the_bytes_of_an_evaluation_are_those_of_a_real_one(tiny_bert: Path, tiny_llama: Path, form: str) -> None:
    folder = tiny_bert if form == "classes" else tiny_llama
    kind = "completion" if form == "completion" else "classification"
    labels = None if form == "completion" else LABELS
    shape = RowShape(
        form,  # type: ignore[arg-type]
        max_length=24,
        vocabulary=264,
        num_classes=1 if form == "completion" else 2,
        max_answer_tokens=0 if form == "classes" else 3,
        left_padded=form != "classes",
    )
    trainable = "full" if form == "classes" else "lora"
    skeleton = build_skeleton(find_checkpoint(folder, kind), labels=labels, trainable=trainable)
    loaded = load_model(folder, kind, initialiser=seeded_initialiser(0), labels=labels, trainable=trainable)
    objective = TokenObjective(loaded.module, synthetic_rows(shape, 6), 6)
    with torch.no_grad(), _LiveBytes([*loaded.module.parameters(), *loaded.module.buffers()]) as live:
        objective.losses(np.arange(6, dtype=np.int64))
    found = skeleton.activations(shape, 6)
    assert found == pytest.approx(live.peak, rel=0.1)  # a real mask may be seen to hide nothing, or not
    assert skeleton.activations(shape, 12) == pytest.approx(2 * found, rel=0.1)


@pytest.mark.parametrize("form", ["prefix", "prompt", "ia3"])
def test_every_adapter_can_be_run_on_shapes(tiny_llama: Path, form: str) -> None:
    shape = RowShape("completion", max_length=24, vocabulary=264, num_classes=1, max_answer_tokens=3, left_padded=True)
    checkpoint = find_checkpoint(tiny_llama, "completion")
    plain = build_skeleton(checkpoint, trainable="full").activations(shape, 4)
    assert build_skeleton(checkpoint, trainable=form, virtual_tokens=8).activations(shape, 4) >= plain


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_quantised_weights_are_counted_from_shapes(tiny_llama: Path, tmp_path: Path, bits: str) -> None:
    pytest.importorskip("torchao")
    storage = Storage("bfloat16", bits)  # type: ignore[arg-type]
    loaded = load_model(tiny_llama, "completion", initialiser=seeded_initialiser(0), storage=storage)
    held = plain_tensors(dict(loaded.module.named_parameters()) | dict(loaded.module.named_buffers()))
    checkpoint = find_checkpoint(tiny_llama, "completion")
    skeleton = build_skeleton(checkpoint, storage=storage)
    assert skeleton.weights == sum(t.numel() * t.element_size() for t in held.values())
    assert skeleton.weights < build_skeleton(checkpoint, storage=Storage("bfloat16")).weights
    with pytest.raises(DpzoError, match="is quantised"):
        build_skeleton(checkpoint, storage=storage, trainable="full")


def test_a_model_of_66_billion_parameters_takes_no_memory(tmp_path: Path) -> None:
    folder = tmp_path / "opt-66b"
    folder.mkdir()
    sizes = {"hidden_size": 9216, "ffn_dim": 36864, "num_hidden_layers": 64, "num_attention_heads": 72}
    about = {"model_type": "opt", "architectures": ["OPTForCausalLM"], "word_embed_proj_dim": 9216, **sizes}
    (folder / "config.json").write_text(json.dumps(about))
    checkpoint = find_checkpoint(folder, "completion")
    assert not checkpoint.is_here
    skeleton = build_skeleton(checkpoint, trainable="full", storage=Storage("bfloat16"))
    assert skeleton.elements == 65_719_701_504
    assert 2 * skeleton.elements <= skeleton.weights <= 2 * skeleton.elements + 2**20
    assert skeleton.largest_shift == 2 * (320 * 9216 + 36864)  # a slice of 36864 × 9216, and its bias
    assert skeleton.largest_sliced == 2 * (9216 * 50272)  # the output layer, tied to the embedding


def test_a_config_file_will_do(tiny_llama: Path, tmp_path: Path) -> None:
    folder = only_config(tiny_llama, tmp_path / "shape", num_hidden_layers=9)
    by_file = find_checkpoint(folder / "config.json", "completion")
    assert (by_file.num_layers, by_file.vocabulary, by_file.tokenizer, by_file.file_bytes) == (9, 264, None, None)


def test_what_cannot_be_read_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(DpzoError, match=r"holds no config\.json"):
        find_checkpoint(tmp_path, "completion")
    with pytest.raises(DpzoError, match="no such folder"):
        find_checkpoint(tmp_path / "absent", "completion")
    broken = tmp_path / "broken"
    shutil.copytree(tiny_llama, broken)
    (broken / "config.json").write_text("{")
    with pytest.raises(DpzoError, match="cannot load the configuration"):
        find_checkpoint(broken, "completion")
    odd = only_config(tiny_llama, tmp_path / "odd", hidden_act="none of them")
    with pytest.raises(DpzoError, match="makes no model"):
        build_skeleton(find_checkpoint(odd, "completion"))
