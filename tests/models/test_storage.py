"""Bases in 16 bits and quantised to 8 and 4: adapters stay fp32, records stay apart, hashes and bits repeat."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpzo.errors import DpzoError
from dpzo.models.families import TEXTS, encode_tiny, make_tiny
from dpzo.models.fingerprint import fingerprint_tensors, plain_tensors
from dpzo.models.initialiser import seeded_initialiser
from dpzo.models.isolation import RowShape
from dpzo.models.models import LoadedModel, load_model
from dpzo.models.objectives import TokenObjective
from dpzo.models.saving import load_saved, save
from dpzo.models.shapes import isolated_shapes
from dpzo.models.skeleton import build_skeleton, find_checkpoint
from dpzo.models.storage import Storage, is_quantised
from dpzo.zo import DirectionScheme, TrainableParameters, central_difference

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="the quant extra is missing")
RECORDS = np.arange(len(TEXTS))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("Llama", tmp_path_factory.mktemp("llama"))


def loaded_from(folder: Path, storage: Storage, trainable: str = "lora") -> LoadedModel:
    return load_model(
        folder, "completion", trainable=trainable, initialiser=seeded_initialiser(1), storage=storage, virtual_tokens=3
    )


STORAGES = [
    Storage("bfloat16"),
    Storage("float16"),
    *[
        pytest.param(Storage(dtype, bits), marks=needs_torchao)  # type: ignore[arg-type]
        for bits in ("int8", "int4")
        for dtype in ("float32", "bfloat16")
    ],
]


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("trainable", ["lora", "prefix"])
def test_a_private_part_beside_a_small_base(llama: Path, tmp_path: Path, storage: Storage, trainable: str) -> None:
    loaded = loaded_from(llama, storage, trainable)
    parameters = dict(loaded.module.named_parameters())
    assert all(parameters[name].dtype == torch.float32 for name in loaded.trainable_names)
    layers = [layer for name, layer in loaded.module.named_modules() if name.endswith("mlp.up_proj")]
    held: Any = layers[0]
    assert is_quantised(held.weight) == (storage.quantization != "none")
    assert held.weight.dtype == (torch.bfloat16 if storage.quantization == "int4" else storage.torch_dtype)
    assert held(torch.zeros(2, 32, dtype=storage.torch_dtype)).dtype == storage.torch_dtype

    encoded = encode_tiny(loaded)
    shapes = isolated_shapes(loaded, RowShape.of(encoded, len(loaded.tokenizer), 1), 4)
    objective = TokenObjective(loaded.module, encoded, shapes.microbatch_size)
    whole = objective.losses(RECORDS)
    alone = [objective.losses(RECORDS[i : i + 1])[0] for i in RECORDS]
    assert np.array(alone).tobytes() == whole.tobytes()
    exact = TokenObjective(loaded_from(llama, Storage(), trainable).module, encoded, 4).losses(RECORDS)
    assert 0 < np.abs(whole - exact).max() < 0.5 * np.abs(exact).max()
    trained = TrainableParameters(loaded.module, loaded.trainable_names)
    directions = DirectionScheme("gaussian", 3, 1, trained.sizes).at(0)
    slopes = central_difference(objective, trained, RECORDS, directions, 0.2)
    assert np.isfinite(slopes).all()
    assert slopes.any()

    for index in range(len(trained)):
        directions.accumulate(0, index, 0.1, trained.flat(index))
    save(loaded, tmp_path / "model")
    again = load_saved(tmp_path / "model", "completion", base=llama, storage=storage)
    found = TokenObjective(again.module, encoded, shapes.microbatch_size).losses(RECORDS)
    assert found.tobytes() == objective.losses(RECORDS).tobytes()
    assert found.tobytes() != whole.tobytes()


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_the_fingerprint_repeats_and_knows_the_storage(llama: Path, storage: Storage) -> None:
    one, other = loaded_from(llama, storage), loaded_from(llama, storage)
    assert one.base_fingerprint == other.base_fingerprint
    assert one.base_fingerprint != loaded_from(llama, Storage()).base_fingerprint
    for (name, value), (_, same) in zip(
        plain_tensors(one.module.state_dict()).items(), plain_tensors(other.module.state_dict()).items(), strict=True
    ):
        assert torch.equal(value, same), name


@needs_torchao
def test_a_quantised_tensor_is_hashed_by_its_codes_and_scales(llama: Path) -> None:
    loaded = loaded_from(llama, Storage("float32", "int8"))
    state = loaded.module.state_dict()
    name = next(key for key in state if "up_proj" in key and "lora" not in key)
    before = fingerprint_tensors(state)
    codes: Any = state[name]
    codes.qdata[0, 0] += 1
    assert fingerprint_tensors(state) != before
    codes.qdata[0, 0] -= 1
    assert fingerprint_tensors(state) == before
    codes.scale[3] *= 1.5
    assert fingerprint_tensors(state) != before


@needs_torchao
def test_quantised_weights_are_not_trained_and_small_ones_take_less(llama: Path) -> None:
    for trainable in ("full", "layers.0.mlp"):
        with pytest.raises(DpzoError, match="is quantised, and quantised weights stay as they are; train lora"):
            loaded_from(llama, Storage("float32", "int4"), trainable)
    sizes = [
        build_skeleton(find_checkpoint(llama, "completion"), storage=Storage("float32", bits)).weights  # type: ignore[arg-type]
        for bits in ("none", "int8", "int4")
    ]
    assert sizes[0] > sizes[1] > sizes[2]


@needs_torchao
def test_layers_that_int4_does_not_fit_are_int8(tmp_path: Path) -> None:
    loaded = loaded_from(make_tiny("Llama", tmp_path / "odd"), Storage("float32", "int4"))
    kinds = {
        name.rsplit(".", 2)[-2]: type(value.data).__name__
        for name, value in loaded.module.named_parameters()
        if is_quantised(value)
    }
    assert kinds["down_proj"] == "Int8Tensor"  # 48 inputs: no group of 32 or 64 divides them
    assert kinds["up_proj"] == "Int4OpaqueTensor"


def test_a_missing_package_is_named_with_its_mend(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("torchao", "bitsandbytes") else real(name, *rest),
    )
    for bits, package in (
        ("int8", "torchao"),
        ("int4", "torchao"),
        ("bnb-int8", "bitsandbytes"),
        ("bnb-nf4", "bitsandbytes"),
    ):
        with pytest.raises(DpzoError, match=f"model.quantization {bits}: needs {package}; pip install {package}"):
            loaded_from(llama, Storage("float32", bits))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_weight_of_a_sixteen_bit_model_can_be_trained(llama: Path, dtype: Any) -> None:
    loaded = loaded_from(llama, Storage(dtype), "full")
    trained = TrainableParameters(loaded.module, loaded.trainable_names)
    assert set(trained.dtypes) == {dtype}
    objective = TokenObjective(loaded.module, encode_tiny(loaded), 4)
    directions = DirectionScheme("rademacher", 3, 1, trained.sizes).at(0)
    assert central_difference(objective, trained, RECORDS, directions, 1e-2).any()


def test_a_sixteen_bit_classifier_has_an_fp32_head(tmp_path: Path) -> None:
    base = make_tiny("BERT", tmp_path / "bert")
    for trainable in ("head", "lora"):
        loaded = load_model(
            base,
            "classification",
            num_labels=3,
            trainable=trainable,
            initialiser=seeded_initialiser(1),
            storage=Storage("bfloat16"),
        )
        trained = TrainableParameters(loaded.module, loaded.trainable_names)
        assert set(trained.dtypes) == {"float32"}
        ids = torch.arange(5, 13)[None]
        with torch.no_grad():
            module: Any = loaded.module
            assert module(input_ids=ids).logits.dtype == torch.float32
