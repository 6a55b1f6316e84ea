"""Memory from shapes: what each part of a config adds, and what is said where it does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dpzo.config.reading import load_config
from dpzo.config.resolve import ResolvedTraining
from dpzo.errors import DpzoError
from dpzo.forecast.memory import FIRST_USE, Alternative, frozen_layers, state_bytes, what_fits
from dpzo.forecast.sizing import Sized, look_up, memory_at, require_memory, size_up, size_up_if_possible
from dpzo.run.subject import task_of, update_of

OPT_66B = {
    "model_type": "opt",
    "architectures": ["OPTForCausalLM"],
    "hidden_size": 9216,
    "ffn_dim": 36864,
    "num_hidden_layers": 64,
    "num_attention_heads": 72,
    "word_embed_proj_dim": 9216,
    "dtype": "bfloat16",
}
GIB = 1 << 30


def sized(folder: Path, num_examples: int = 400, **options: Any) -> Sized:
    given = {name.replace("__", "."): value for name, value in options.items()}
    config = load_config(None, {"model.name": str(folder), "privacy.delta": 1e-5, "data.max_length": 24, **given})
    task = task_of(config)
    return size_up(config, task, look_up(config, task), num_examples)


def classes(folder: Path, **options: Any) -> Sized:
    return sized(folder, **{"data__labels": ["no", "yes"], "data__label_words": [" no", " yes"], **options})


def opt_66b(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(OPT_66B))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {}}))
    return folder


def test_the_parts_add_up(tiny_bert: Path) -> None:
    plain = classes(tiny_bert, model__trainable="full").memory
    held = plain.weights + plain.scratch + plain.update_state + plain.kept
    assert plain.step == held + plain.activations + plain.several
    assert plain.needed == max(plain.phases.values()) + FIRST_USE
    assert plain.peak_resident >= plain.step + plain.program
    assert plain.update_state == plain.kept == 0
    assert plain.phases["starting"] == plain.weights + plain.activations  # so small a part is held whole, unchecked
    adam = classes(tiny_bert, model__trainable="full", training__update="adam").memory
    assert adam.update_state == 2 * plain.trainable
    assert replace(adam, update_state=0) == plain
    tail = classes(tiny_bert, model__trainable="full", training__average=0.5).memory
    assert tail.update_state == 2 * plain.trainable  # float64
    half = classes(tiny_bert, model__trainable="full", model__dtype="bfloat16").memory
    assert 2 * half.trainable == pytest.approx(plain.trainable, rel=0.01)  # but for a head in fp32
    assert half.weights < 0.6 * plain.weights
    masters = classes(tiny_bert, model__trainable="full", model__dtype="bfloat16", training__master="float32").memory
    assert masters.update_state == pytest.approx(2 * half.trainable, rel=0.02)


def test_no_phase_holds_the_weights_twice(tmp_path: Path) -> None:
    options = {"data__kind": "completion", "model__trainable": "full", "model__dtype": "bfloat16"}
    memory = sized(opt_66b(tmp_path / "opt"), **options).memory
    vocabulary = 2 * 9216 * 50272
    assert memory.phases["starting"] == memory.weights + memory.scratch + vocabulary + memory.activations
    assert memory.needed < 1.02 * memory.weights
    assert memory.scratch == 48 << 20  # a slice takes 6 MiB, buffers that take turns no more than this


def test_micro_batches_and_length_are_paid_for_in_activations(tiny_llama: Path) -> None:
    one = classes(tiny_llama, training__microbatch_size=4)
    two = classes(tiny_llama, training__microbatch_size=8)
    long = memory_at(one, replace(one.shape, max_length=48))
    assert 1.8 < two.memory.activations / one.memory.activations < 2.2
    assert 1.5 < long.activations / one.memory.activations < 2.6
    three = classes(tiny_llama, training__microbatch_size=4, training__eval_batch=3).memory
    alone = classes(tiny_llama, training__microbatch_size=4, training__eval_batch=1).memory
    assert alone.several == 0
    assert three.several == 2 * (alone.scratch + alone.activations)
    assert three.peak_resident - alone.peak_resident == three.several


def test_settings_of_a_head_go_together_without_the_encoders_activations(tiny_bert: Path) -> None:
    """Features are kept: what several settings share is a block of them, however large a pass of the encoder is."""
    for length in (16, 64):
        many = classes(tiny_bert, model__trainable="head", data__max_length=length).memory
        one = classes(tiny_bert, model__trainable="head", data__max_length=length, training__eval_batch=1).memory
        assert 0 < many.several == many.peak_resident - one.peak_resident < 128 * (4 * 66 + 12 * 256 * 2)


def test_what_auto_may_add_is_bounded_whatever_it_measures(tiny_llama: Path, tmp_path: Path) -> None:
    for options in ({}, {"data__max_length": 200}, {"privacy__num_directions": 256}):
        memory = classes(tiny_llama, **options).memory
        assert memory.several <= 3 * (64 << 20)  # by the formula of what is tried, not by shapes
    big = sized(opt_66b(tmp_path / "opt"), data__kind="completion", model__trainable="lora").memory
    assert big.several <= 3 * (1 << 30)


def test_frozen_layers_are_found_by_name_and_their_output_is_counted(tiny_llama: Path) -> None:
    top = classes(tiny_llama, model__lora_layers="top:1")
    assert frozen_layers(top.skeleton) == 1
    assert frozen_layers(classes(tiny_llama).skeleton) == 0
    assert frozen_layers(classes(tiny_llama, model__trainable="full").skeleton) == 0
    assert frozen_layers(classes(tiny_llama, model__trainable="prompt").skeleton) == 0
    record = 2 * 24 * 32 * 4  # options · tokens · hidden · fp32
    assert top.memory.kept == 64 * record
    assert (
        classes(tiny_llama, model__lora_layers="top:1", training__frozen_cache="run").memory.kept == (64 + 400) * record
    )
    assert classes(tiny_llama, model__lora_layers="top:1", training__frozen_cache="none").memory.kept == 0


def test_a_heads_features_are_kept(tiny_bert: Path) -> None:
    assert classes(tiny_bert, model__trainable="head").memory.kept == 400 * 32 * 4


@pytest.mark.parametrize(
    ("rule", "bytes_each"), [("sgd", 0), ("momentum", 4), ("adam", 8), ("sign", 0)], ids=lambda x: str(x)
)
def test_an_updates_state_is_what_it_makes(rule: str, bytes_each: int) -> None:
    training = ResolvedTraining(update=rule, smoothing=1e-3, learning_rate=0.1, average=0, microbatch_size=4)
    update = update_of(training, steps=5, expected_batch_size=4)
    assert state_bytes(update, torch.float32) == bytes_each


@pytest.mark.slow
def test_a_model_too_large_is_refused_with_what_fits(tmp_path: Path) -> None:
    folder = opt_66b(tmp_path / "opt-66b")
    for kind in ("full", "lora"):
        big = sized(folder, data__kind="completion", model__trainable=kind)
        assert big.guessed
        with pytest.raises(DpzoError) as refused:
            require_memory(big, 40 * GIB)
        said = str(refused.value)
        assert "\n" not in said
        assert "its weights 244.8 GiB" in said or "its weights 244.9 GiB" in said
        assert "40.0 GiB are free" in said
        assert "what fits: --set model.dtype=bfloat16 --set model.quantization=int4" in said
        assert ("--trainable lora" in said) is (kind == "full")
        require_memory(big, 600 * GIB)
    with pytest.raises(DpzoError, match=r"even .*int4.* needs .* GiB; a model of about 3[0-9] billion parameters"):
        require_memory(big, 19 * GIB)


def test_what_fits_names_three_at_most_and_passes_what_cannot_be() -> None:
    def cannot() -> Alternative:
        raise DpzoError("not with this model")

    ways = [cannot, *(lambda n=n: Alternative(f"way {n}", n * GIB) for n in (9, 5, 4, 3, 2))]
    assert what_fits(6 * GIB, 20 * GIB, 10**9, ways) == (
        "what fits: way 5 (5.0 GiB), or way 4 (4.0 GiB), or way 3 (3.0 GiB)"
    )
    assert "even the same settings needs 20.0 GiB" in what_fits(6 * GIB, 20 * GIB, 10**9, [cannot])


def test_what_cannot_be_sized_is_left_to_the_loader(tmp_path: Path, tiny_llama: Path) -> None:
    config = load_config(None, {"model.name": str(tmp_path / "no"), "privacy.delta": 1e-5, "data.labels": ["a", "b"]})
    assert size_up_if_possible(config, task_of(config), 100) is None
    with pytest.raises(DpzoError, match="--label-words is missing"):
        sized(tiny_llama, data__labels=["no", "yes"])
