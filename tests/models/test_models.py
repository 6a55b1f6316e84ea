"""Loading: what is trained, repeatable bits, silence, and errors a user can act on."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dpzo.errors import DpzoError
from dpzo.models.adapters import LoraSettings
from dpzo.models.encoder import EncoderClassifier
from dpzo.models.fingerprint import fingerprint
from dpzo.models.initialiser import seeded_initialiser
from dpzo.models.models import LoadedModel, load_model

Tiny = Callable[[str, str], Path]

CASES = [
    *[(family, "causal") for family in ("gpt2", "opt", "llama", "qwen2")],
    *[(family, form) for family in ("bert", "roberta") for form in ("bare", "masked", "classifier")],
    ("gpt2", "classifier"),
    ("llama", "classifier"),
]
ARCHITECTURE = {
    "causal": "causal",
    "bare": "encoder",
    "masked": "sequence-classifier",
    "classifier": "sequence-classifier",
}


def load(folder: Path, trainable: str = "full", seed: int = 3, **options: Any) -> LoadedModel:
    return load_model(
        folder, "classification", num_labels=2, trainable=trainable, initialiser=seeded_initialiser(seed), **options
    )


def bits(loaded: LoadedModel) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in loaded.module.state_dict().items()}


@pytest.mark.parametrize("trainable", ["head", "lora", "full"])
@pytest.mark.parametrize(("family", "form"), CASES)
def test_loading_repeats_its_bits_and_leaves_the_global_generators(
    tiny: Tiny, family: str, form: str, trainable: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tiny(family, form)
    capfd.readouterr()
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    first = load(folder, trainable)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert python_state == random.getstate()
    assert all(np.array_equal(a, b) for a, b in zip(numpy_state, np.random.get_state(), strict=True))  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(987)  # another state of the global generator must not matter
        second = load(folder, trainable)
    assert bits(first) == bits(second)
    assert first.trainable_names == second.trainable_names
    assert first.architecture == ARCHITECTURE[form]
    assert capfd.readouterr() == ("", "")

    parameters = dict(first.module.named_parameters())
    assert set(first.trainable_names) <= set(parameters)
    assert len(set(first.trainable_names)) == len(first.trainable_names) > 0
    assert list(first.trainable_names) == [name for name in parameters if name in first.trainable_names]
    assert not any(module.training for module in first.module.modules())
    assert not any(parameter.requires_grad for parameter in parameters.values())
    assert all(parameters[name].dtype == torch.float32 for name in first.trainable_names)


def test_new_parameters_follow_the_public_seed_and_nothing_else_does(tiny: Tiny) -> None:
    one, other = load(tiny("bert", "masked"), seed=1), load(tiny("bert", "masked"), seed=2)
    assert one.base_fingerprint == other.base_fingerprint
    differing = {name for name, value in bits(one).items() if value != bits(other)[name]}
    assert differing == {"bert.pooler.dense.weight", "classifier.weight"}
    weight = dict(one.module.named_parameters())["bert.pooler.dense.weight"]
    assert float(weight.std()) == pytest.approx(0.02, rel=0.1)
    assert set(one.new_names) == differing | {"bert.pooler.dense.bias", "classifier.bias"}


def test_lora_starts_as_the_base_and_a_is_spread_as_kaiming_asks(tiny: Tiny) -> None:
    loaded = load(tiny("llama", "causal"), "lora", lora=LoraSettings(rank=4))
    parameters = dict(loaded.module.named_parameters())
    for name in loaded.trainable_names:
        if ".lora_B." in name:
            assert not parameters[name].any()
        else:
            assert parameters[name].shape == (4, 32)
            largest = float(parameters[name].abs().max())
            assert 0.9 / 32**0.5 < largest <= 1.0 / 32**0.5
    plain = load(tiny("llama", "causal"))
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(loaded.module(tokens).logits, plain.module(tokens).logits)


def test_lora_targets_are_the_users_choice_and_a_wrong_one_is_named(tiny: Tiny) -> None:
    loaded = load(tiny("llama", "causal"), "lora", lora=LoraSettings(target=("o_proj",)))
    assert all(".o_proj." in name for name in loaded.trainable_names)
    with pytest.raises(DpzoError, match=r"model\.lora_targets: no layer of the model is named no_such"):
        load(tiny("llama", "causal"), "lora", lora=LoraSettings(target=("no_such",)))
    with pytest.raises(DpzoError, match="rank"):
        LoraSettings(rank=0)


def test_tied_weights_are_trained_once(tiny: Tiny) -> None:
    full = load(tiny("qwen2", "causal"))
    assert "lm_head.weight" not in full.trainable_names
    assert load(tiny("qwen2", "causal"), "head").trainable_names == ("model.embed_tokens.weight",)
    assert load(tiny("llama", "causal"), "head").trainable_names == ("lm_head.weight",)


def test_a_bare_encoder_gets_a_zero_head_and_its_idle_pooler_is_not_trained(tiny: Tiny) -> None:
    loaded = load(tiny("bert", "bare"))
    assert isinstance(loaded.module, EncoderClassifier)
    assert not loaded.module.head.weight.any()
    assert not any("pooler" in name for name in loaded.trainable_names)
    assert load(tiny("bert", "bare"), "head").trainable_names == ("head.weight", "head.bias")
    assert {"head.weight", "head.bias"} < set(load(tiny("bert", "bare"), "lora").trainable_names)


def test_a_regular_expression_chooses_names(tiny: Tiny) -> None:
    loaded = load(tiny("opt", "causal"), r"layers\.1\..*bias$")
    assert loaded.trainable_names
    assert all("layers.1." in name and name.endswith("bias") for name in loaded.trainable_names)
    with pytest.raises(DpzoError, match="no parameter's name matches"):
        load(tiny("opt", "causal"), "layers[.]99")
    with pytest.raises(DpzoError, match="regular expression"):
        load(tiny("opt", "causal"), "(")


def test_fingerprint_notices_every_kind_of_change(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("gpt2", "causal")
    base = load(folder).base_fingerprint
    assert base == load(folder, "lora").base_fingerprint
    assert len(base) == 64
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    tensors["transformer.h.1.mlp.c_fc.bias"][5] += 1e-7
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert load(copy).base_fingerprint != base

    class Holder(torch.nn.Module):
        def __init__(self, name: str, value: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer(name, value)

    value = torch.arange(6, dtype=torch.float32)
    prints = {
        fingerprint(Holder("a", value)),
        fingerprint(Holder("b", value)),
        fingerprint(Holder("a", value.reshape(2, 3))),
        fingerprint(Holder("a", value.view(torch.int32))),
        fingerprint(Holder("a", value.to(torch.bfloat16))),
        fingerprint(Holder("a", -value)),
    }
    assert len(prints) == 6
    scalar = Holder("a", torch.tensor(1.0))
    assert fingerprint(scalar) == fingerprint(scalar)


def test_declared_labels_are_saved_in_the_configuration(tiny: Tiny) -> None:
    loaded = load_model(
        tiny("bert", "masked"),
        "classification",
        labels=["no", "yes"],
        trainable="full",
        initialiser=seeded_initialiser(0),
    )
    assert loaded.module.config.id2label == {0: "no", 1: "yes"}  # type: ignore[union-attr]
    with pytest.raises(DpzoError, match="--labels"):
        load_model(tiny("bert", "masked"), "classification", initialiser=seeded_initialiser(0))
    with pytest.raises(DpzoError, match="--labels"):
        load_model(
            tiny("bert", "masked"), "classification", labels=["a", "b"], num_labels=3, initialiser=seeded_initialiser(0)
        )


def _without(folder: Path, target: Path, *patterns: str) -> Path:
    shutil.copytree(folder, target)
    for pattern in patterns:
        for path in target.glob(pattern):
            path.unlink()
    return target


def test_unusable_folders_are_refused_in_one_line(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("gpt2", "causal")
    pickled = _without(folder, tmp_path / "pickled", "*.safetensors")
    torch.save({"x": torch.zeros(1)}, pickled / "pytorch_model.bin")
    broken = _without(folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not a model")
    unfinished = _without(folder, tmp_path / "unfinished")
    tensors = load_file(unfinished / "model.safetensors")
    del tensors["transformer.h.0.ln_1.weight"]
    save_file(tensors, unfinished / "model.safetensors", metadata={"format": "pt"})
    cases = {
        tmp_path / "nowhere": "no such folder",
        _without(folder, tmp_path / "bare", "*"): "no config.json",
        pickled: "pickled",
        _without(folder, tmp_path / "weightless", "*.safetensors"): r"no \*\.safetensors",
        _without(folder, tmp_path / "wordless", "tokenizer*"): "no tokenizer",
        broken: "cannot load the weights",
        unfinished: r"lacks 1 weights, transformer\.h\.0\.ln_1\.weight",
    }
    for place, words in cases.items():
        with pytest.raises(DpzoError, match=words) as caught:
            load(place)
        assert "\n" not in str(caught.value)
        assert str(place) in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_name_that_the_hub_does_not_have_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DpzoError, match="--model nobody/no-such-model: cannot load the configuration") as caught:
        load(Path("nobody/no-such-model"))
    assert "\n" not in str(caught.value)


def test_padding_falls_back_to_the_end_token_or_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    loaded = load(tiny("gpt2", "causal"))
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id
    bare = _without(tiny("gpt2", "causal"), tmp_path / "endless")
    card = json.loads((bare / "tokenizer_config.json").read_text())
    card.pop("eos_token")
    (bare / "tokenizer_config.json").write_text(json.dumps(card))
    with pytest.raises(DpzoError, match="neither a padding nor an end token"):
        load(bare)


def test_a_tokenizer_may_have_more_entries_than_the_model_has_rows(tiny: Tiny, tmp_path: Path) -> None:
    folder = _without(tiny("llama", "causal"), tmp_path / "grown")
    loaded = load(folder)
    loaded.tokenizer.add_tokens([f"word{i}" for i in range(20)])
    loaded.tokenizer.save_pretrained(folder)
    grown = load(folder)
    assert (len(grown.tokenizer), grown.vocabulary) == (340, 328)
    assert grown.stand_in_token == grown.tokenizer.unk_token_id


def test_completion_asks_for_a_causal_model(tiny: Tiny) -> None:
    for form in ("bare", "masked", "classifier"):
        with pytest.raises(DpzoError, match="not a causal language model"):
            load_model(tiny("bert", form), "completion", initialiser=seeded_initialiser(0))
    assert load_model(tiny("opt", "causal"), "completion", initialiser=seeded_initialiser(0)).kind == "completion"


def test_remote_code_is_never_run(tiny: Tiny, tmp_path: Path) -> None:
    folder = _without(tiny("llama", "causal"), tmp_path / "remote")
    card = json.loads((folder / "config.json").read_text())
    card["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    card["model_type"] = "unheard-of"
    (folder / "config.json").write_text(json.dumps(card))
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(DpzoError, match="cannot load the configuration"):
        load(folder)


def test_library_settings_are_put_back(tiny: Tiny) -> None:
    import transformers

    before = transformers.logging.get_verbosity(), logging.getLogger("peft").level
    load(tiny("bert", "masked"), "lora")
    assert (transformers.logging.get_verbosity(), logging.getLogger("peft").level) == before


def test_repr_is_short_and_public(tiny: Tiny) -> None:
    loaded = load(tiny("bert", "bare"))
    assert len(repr(loaded)) < 250
    assert "tensor" not in repr(loaded)


def test_losses_do_not_hang_on_where_the_file_left_the_weights(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("bert", "classifier")
    shifted = _without(folder, tmp_path / "shifted")
    save_file(
        load_file(folder / "model.safetensors"), shifted / "model.safetensors", metadata={"format": "pt", "x": "y"}
    )
    tokens = torch.arange(5, 17)[None]
    found = []
    for place in (folder, shifted):
        module = load(place, "head").module
        assert all(parameter.data_ptr() % 64 == 0 for parameter in module.parameters())
        with torch.no_grad():
            found.append(module(tokens).logits.numpy().tobytes())
    assert found[0] == found[1]
