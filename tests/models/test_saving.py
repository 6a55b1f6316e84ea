"""Saved models load by plain transformers and PEFT, and say what they said before."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from dpzo.errors import DpzoError
from dpzo.models.encoding import encode_classes, encode_completions
from dpzo.models.initialiser import seeded_initialiser
from dpzo.models.models import LoadedModel, load_model
from dpzo.models.objectives import TokenObjective
from dpzo.models.saving import load_saved, save

Tiny = Callable[[str, str], Path]
# The plain loads below are a user's own, without our silence; PEFT still asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

TEXTS = ["the film was a delight", "great", "a dull story " * 3]


def trained(folder: Path, trainable: str, kind: Any = "classification") -> LoadedModel:
    """A loaded model whose trainable part has moved."""
    loaded = load_model(
        folder,
        kind,
        num_labels=3 if kind == "classification" else None,
        trainable=trainable,
        initialiser=seeded_initialiser(4),
    )
    draw = torch.Generator().manual_seed(5)
    parameters = dict(loaded.module.named_parameters())
    with torch.no_grad():
        for name in loaded.trainable_names:
            parameters[name].add_(0.05 * torch.randn(parameters[name].shape, generator=draw))
    return loaded


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for rounding: a plain load leaves weights where the file has them, at another alignment."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def only_safetensors(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle")]


def _pipeline(folder: Path) -> Any:
    return pipeline("text-classification", str(folder), device="cpu")


@pytest.mark.parametrize("trainable", ["full", "lora", "head"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen2"])
def test_a_causal_model_loads_without_us(tiny: Tiny, tmp_path: Path, family: str, trainable: str) -> None:
    base = tiny(family, "causal")
    loaded = trained(base, trainable, "completion")
    save(loaded, tmp_path / "model")
    if trainable == "lora":
        plain: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "model")
        assert not (tmp_path / "model" / "model.safetensors").exists()
    else:
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = plain.eval()(ids).logits
        assert_close(found, loaded.module(ids).logits)
        before = AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits
        assert float((found - before).abs().max()) > 1e-3
    assert only_safetensors(tmp_path)

    again = load_saved(tmp_path / "model", "completion")
    encoded = encode_completions(again.tokenizer, TEXTS, TEXTS, max_length=24, max_answer_tokens=8)
    expected = TokenObjective(loaded.module, encoded, 2).losses(np.arange(3))
    assert TokenObjective(again.module, encoded, 2).losses(np.arange(3)).tobytes() == expected.tobytes()
    assert again.trainable_names == ()


@pytest.mark.parametrize("trainable", ["full", "lora", "head"])
@pytest.mark.parametrize(("family", "form"), [("bert", "masked"), ("roberta", "masked"), ("bert", "classifier")])
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_a_sequence_classifier_loads_without_us(
    tiny: Tiny, tmp_path: Path, family: str, form: str, trainable: str
) -> None:
    base = tiny(family, form)
    loaded = trained(base, trainable)
    save(loaded, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    if trainable == "lora":
        start = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        plain: Any = PeftModel.from_pretrained(start, tmp_path / "model")
    else:
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    ids = tokenizer(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        assert_close(plain.eval()(**ids).logits, loaded.module(**ids).logits)
    assert only_safetensors(tmp_path)
    again = load_saved(tmp_path / "model", "classification", num_labels=3)
    encoded = encode_classes(again.tokenizer, TEXTS, [0, 1, 2], max_length=24)
    expected = TokenObjective(loaded.module, encoded, 2).losses(np.arange(3))
    assert TokenObjective(again.module, encoded, 2).losses(np.arange(3)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("trainable", ["full", "lora", "head"])
def test_the_lines_in_the_readme_load_an_encoder_classifier(
    tiny: Tiny, tmp_path: Path, trainable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = trained(tiny("bert", "bare"), trainable)
    save(loaded, tmp_path / "model", labels=("no", "maybe", "sí"), max_length=23)
    assert only_safetensors(tmp_path)
    readme = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len(blocks) == 1
    assert "dpzo" not in blocks[0]
    monkeypatch.chdir(tmp_path / "model")
    scope: dict[str, Any] = {}
    exec(compile(blocks[0], "README.md", "exec"), scope)
    assert scope["labels"] == ["no", "maybe", "sí"]
    found = scope["logits"](TEXTS)
    encoded = encode_classes(loaded.tokenizer, TEXTS, [0, 1, 2], max_length=24)
    losses = TokenObjective(loaded.module, encoded, 4).losses(np.arange(3))
    expected = torch.nn.functional.cross_entropy(found, torch.arange(3), reduction="none")
    assert losses == pytest.approx(expected.numpy(), abs=1e-6)
    assert found.std() > 0.01

    again = load_saved(tmp_path / "model", "classification")
    assert TokenObjective(again.module, encoded, 4).losses(np.arange(3)).tobytes() == losses.tobytes()
    assert again.num_labels == 3


@pytest.mark.parametrize("trainable", ["full", "lora", "head"])
@pytest.mark.parametrize("load", [AutoModelForSequenceClassification.from_pretrained, _pipeline])
def test_transformers_refuses_the_folder_of_an_encoder_classifier(
    tiny: Tiny, tmp_path: Path, trainable: str, load: Callable[[Path], Any]
) -> None:
    """It would take the encoder for a sequence classifier of its own, with a head at random."""
    save(trained(tiny("bert", "bare"), trainable), tmp_path / "model", labels=("no", "maybe", "yes"))
    with pytest.raises((OSError, ValueError), match=r"config\.json|model_type"):
        load(tmp_path / "model")


def test_a_pipeline_answers_as_a_sequence_classifier_was_trained(tiny: Tiny, tmp_path: Path) -> None:
    """What transformers can load, it loads whole, with the names of the labels."""
    loaded = trained(tiny("bert", "classifier"), "full")
    save(loaded, tmp_path / "model", labels=("no", "maybe", "yes"))
    answers = _pipeline(tmp_path / "model")(TEXTS, top_k=None)
    rows = loaded.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = loaded.module(**rows).logits.softmax(-1)
    for answer, row in zip(answers, expected, strict=True):
        found = {entry["label"]: entry["score"] for entry in answer}
        assert found == pytest.approx({f"LABEL_{i}": float(row[i]) for i in range(3)}, abs=1e-5)


def test_saving_twice_writes_the_same_weights(tiny: Tiny, tmp_path: Path) -> None:
    loaded = trained(tiny("opt", "causal"), "lora", "completion")
    for name in ("one", "two"):
        save(loaded, tmp_path / name)
    one, two = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_an_adapter_finds_another_base_when_told(tiny: Tiny, tmp_path: Path) -> None:
    loaded = trained(tiny("gpt2", "causal"), "lora", "completion")
    save(loaded, tmp_path / "model")
    assert load_saved(tmp_path / "model", "completion", base=tiny("gpt2", "causal")).base_name.endswith("0")
    with pytest.raises(DpzoError, match="no such folder"):
        load_saved(tmp_path / "model", "completion", base=tmp_path / "gone")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DpzoError, match="holds no saved model"):
        load_saved(tmp_path, "completion")


def test_saving_is_silent_and_leaves_the_generators(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = trained(tiny("roberta", "masked"), "lora")
    capfd.readouterr()
    state = torch.get_rng_state()
    save(loaded, tmp_path / "model")
    load_saved(tmp_path / "model", "classification", num_labels=3)
    assert torch.equal(state, torch.get_rng_state())
    assert capfd.readouterr() == ("", "")
