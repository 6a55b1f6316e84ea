"""Prefix, soft prompt, IA³ and LoRA's options: public starts, answers that padding does not reach, plain reloads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from dpzo.errors import DpzoError
from dpzo.models.adapters import LoraSettings
from dpzo.models.encoding import encode_completions
from dpzo.models.families import TEXTS, encode_tiny, make_tiny
from dpzo.models.initialiser import seeded_initialiser
from dpzo.models.isolation import RowShape
from dpzo.models.models import LoadedModel, load_model
from dpzo.models.objectives import TokenObjective
from dpzo.models.saving import load_saved, save
from dpzo.models.shapes import isolated_shapes
from dpzo.zo import DirectionScheme, TrainableParameters, central_difference

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
FAMILIES = ("GPT-2", "OPT", "Llama")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A shape that isolates on one thread may not on two, and is then rightly passed over: here it is the subject."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {family: make_tiny(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}
    return made | {"BERT": make_tiny("BERT", tmp_path_factory.mktemp("BERT"))}


def loaded_from(folder: Path, trainable: str, seed: int = 1, **options: Any) -> LoadedModel:
    return load_model(
        folder, "completion", trainable=trainable, virtual_tokens=3, initialiser=seeded_initialiser(seed), **options
    )


def move(loaded: LoadedModel) -> None:
    draw = torch.Generator().manual_seed(5)
    parameters = dict(loaded.module.named_parameters())
    with torch.no_grad():
        for name in loaded.trainable_names:
            parameters[name].add_(0.3 * torch.randn(parameters[name].shape, generator=draw))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trainable", ["prefix", "prompt", "ia3"])
def test_an_adapter_isolates_steps_and_loads_by_plain_peft(
    bases: dict[str, Path], tmp_path: Path, family: str, trainable: str
) -> None:
    loaded = loaded_from(bases[family], trainable)
    assert set(loaded.new_names) == set(loaded.trainable_names)
    encoded = encode_tiny(loaded)
    shapes = isolated_shapes(loaded, RowShape.of(encoded, len(loaded.tokenizer), 1), 4)
    assert shapes.microbatch_size == 4
    objective = TokenObjective(loaded.module, encoded, 4)
    parameters = TrainableParameters(loaded.module, loaded.trainable_names)
    directions = DirectionScheme("gaussian", 3, 1, parameters.sizes).at(0)
    slopes = central_difference(objective, parameters, np.arange(len(TEXTS)), directions, 1e-2)
    assert (slopes != 0).all()
    move(loaded)
    save(loaded, tmp_path / "model")
    assert not list((tmp_path / "model").glob("*.bin"))
    plain: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases[family]), tmp_path / "model")
    # An unpadded call by plain PEFT gives the loss that the left-padded row has here.
    length, answer = int(encoded.lengths[0]), int(encoded.answer_lengths[0])
    ids = torch.tensor(encoded.tokens[0, -length:].astype(np.int64))[None]
    with torch.no_grad():
        logits = plain.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -length:]
    scores = torch.log_softmax(logits.float(), dim=-1)[-answer - 1 : -1]
    expected = -float(scores.gather(1, ids[0, -answer:, None]).mean())
    assert objective.losses(np.arange(1))[0] == pytest.approx(expected, abs=2e-4)
    again = load_saved(tmp_path / "model", "completion", base=bases[family])
    records = np.arange(len(TEXTS))
    assert TokenObjective(again.module, encoded, 4).losses(records).tobytes() == objective.losses(records).tobytes()


@pytest.mark.parametrize("trainable", ["prefix", "prompt", "lora"])
def test_the_start_follows_the_public_seed_and_nothing_else(bases: dict[str, Path], trainable: str) -> None:
    def start(seed: int) -> bytes:
        parameters = dict(loaded_from(bases["Llama"], trainable, seed).module.named_parameters())
        return b"".join(p.detach().numpy().tobytes() for n, p in parameters.items() if "prompt_enc" in n or "lora" in n)

    with torch.random.fork_rng():
        torch.manual_seed(99)
        one = start(1)
    assert one == start(1)
    assert one != start(2)


def test_ia3_starts_as_the_base_and_a_soft_prompt_as_words(bases: dict[str, Path]) -> None:
    encoded = encode_tiny(loaded_from(bases["Llama"], "full"))
    plain = TokenObjective(loaded_from(bases["Llama"], "full").module, encoded, 4).losses(np.arange(6))
    scaled = loaded_from(bases["Llama"], "ia3")
    assert TokenObjective(scaled.module, encoded, 4).losses(np.arange(6)).tobytes() == plain.tobytes()
    prompt: Any = loaded_from(bases["Llama"], "prompt").module
    words = prompt.get_base_model().get_input_embeddings().weight
    for row in dict(prompt.named_parameters())["prompt_encoder.default.embedding.weight"]:
        assert (words == row).all(dim=1).any()


def test_root_rank_scales_by_the_root_and_targets_are_free(bases: dict[str, Path]) -> None:
    for scaling, expected in (("rank", 4.0), ("root-rank", 8.0)):
        settings = LoraSettings(rank=4, alpha=16, target=("o_proj", "down_proj"), scaling=scaling)  # type: ignore[arg-type]
        loaded = loaded_from(bases["Llama"], "lora", lora=settings)
        assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in loaded.trainable_names} == {
            "o_proj",
            "down_proj",
        }
        layers = [layer for layer in loaded.module.modules() if hasattr(layer, "scaling") and hasattr(layer, "lora_A")]
        assert {layer.scaling["default"] for layer in layers} == {expected}  # type: ignore[index,operator]


@pytest.mark.parametrize("family", [*FAMILIES, "BERT"])
def test_the_topmost_layers_alone_and_plain_peft_agrees(bases: dict[str, Path], tmp_path: Path, family: str) -> None:
    options: dict[str, Any] = {"prompted": True, "labels": ("no", "yes")} if family == "BERT" else {}
    kind: Any = "classification" if family == "BERT" else "completion"
    loaded = load_model(
        bases[family],
        kind,
        trainable="lora",
        lora=LoraSettings(layers="top:1"),
        initialiser=seeded_initialiser(1),
        **options,
    )
    assert {re.search(r"\.(\d+)\.", name)[1] for name in loaded.trainable_names} == {"1"}  # type: ignore[index]
    move(loaded)
    save(loaded, tmp_path)
    encoded, records = encode_tiny(loaded), np.arange(len(TEXTS))
    found = TokenObjective(loaded.module, encoded, 2).losses(records)
    form: Any = "masked" if options else "causal"
    again = load_saved(tmp_path, kind, base=str(bases[family]), num_labels=2 if options else None, architecture=form)
    assert TokenObjective(again.module, encoded, 2).losses(records).tobytes() == found.tobytes()
    maker: Any = AutoModelForMaskedLM if options else AutoModelForCausalLM
    plain: Any = PeftModel.from_pretrained(maker.from_pretrained(bases[family]), tmp_path)
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(ids).logits, loaded.module(ids).logits, rtol=1e-5, atol=1e-5)


def test_chosen_layers_go_with_targets_of_ones_own_and_mistakes_are_told(bases: dict[str, Path]) -> None:
    settings = LoraSettings(target=("o_proj",), layers="top:1")
    loaded = loaded_from(bases["Llama"], "lora", lora=settings)
    assert [name.split(".lora_")[0] for name in loaded.trainable_names] == [
        "base_model.model.model.layers.1.self_attn.o_proj"
    ] * 2
    assert len(loaded_from(bases["Llama"], "lora", lora=LoraSettings(layers="top:2")).trainable_names) == 8
    with pytest.raises(DpzoError, match=r"model\.lora_layers top:3: the model has 2 layers"):
        loaded_from(bases["Llama"], "lora", lora=LoraSettings(layers="top:3"))
    for wrong in ("2", "top:0", "top:", "top:-1", "bottom:2", "top:2\n"):
        with pytest.raises(DpzoError, match=r"model\.lora_layers: must be top:N"):
            LoraSettings(layers=wrong)
    with pytest.raises(DpzoError, match=r"model\.lora_targets: no layer of the model is named no_such"):
        loaded_from(bases["Llama"], "lora", lora=LoraSettings(target=("no_such",), layers="top:1"))


def test_prompts_are_for_causal_models(bases: dict[str, Path]) -> None:
    for trainable in ("prefix", "prompt"):
        with pytest.raises(DpzoError, match=f"--trainable {trainable}: is for causal"):
            load_model(
                bases["BERT"],
                "classification",
                num_labels=2,
                trainable=trainable,
                initialiser=seeded_initialiser(0),
            )


def test_ia3_serves_a_classifier_too(bases: dict[str, Path]) -> None:
    loaded = load_model(
        bases["BERT"], "classification", num_labels=2, trainable="ia3", initialiser=seeded_initialiser(0)
    )
    assert any("ia3" in name for name in loaded.trainable_names)
    assert any("classifier" in name for name in loaded.trainable_names)


def test_completion_rows_are_padded_on_the_left_and_positions_follow(bases: dict[str, Path]) -> None:
    """The same record in a wider row has the same loss: no virtual token sees the padding."""
    for family in FAMILIES:
        for trainable in ("prefix", "prompt"):
            loaded = loaded_from(bases[family], trainable)
            move(loaded)
            losses = []
            for width in (16, 30):
                encoded = encode_completions(
                    loaded.tokenizer, ["the film"], [" was"], max_length=width, max_answer_tokens=4
                )
                losses.append(float(TokenObjective(loaded.module, encoded, 1).losses(np.arange(1))[0]))
            assert losses[0] == pytest.approx(losses[1], abs=2e-5)
