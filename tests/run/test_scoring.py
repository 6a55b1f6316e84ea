"""Scores and texts of finished runs: the task's metric, its interval, what is generated, what is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpzo.config.reading import parse_config
from dpzo.data.tasks import TASKS, Records, Task, task_from
from dpzo.errors import DpzoError
from dpzo.models import LoadedModel, isolated_shapes, load_model
from dpzo.models.choices import encode_choices
from dpzo.models.generation import generate
from dpzo.run import folders as runs
from dpzo.run import scoring, trained_model
from dpzo.run.subject import Subject, encode, row_shape

QUIZ: dict[str, Any] = {
    "name": "quiz",
    "kind": "completion",
    "template": "{asked}",
    "answer_template": " {completion}\n",
    "stop": "\n",
    "max_length": 40,
    "max_answer_tokens": 8,
    "max_new_tokens": 6,
    "metric": "squad_f1",
}


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> LoadedModel:
    return load_model(tiny_llama, "completion", initialiser=lambda name, shape: torch.zeros(shape), trainable="full")


def subject_of(loaded: LoadedModel, task: Task, microbatch: int = 4) -> Subject:
    config = parse_config(
        {
            "model": {"name": loaded.base_name},
            "data": {"max_length": task.max_length, "max_answer_tokens": task.max_answer_tokens},
            "privacy": {"noise_multiplier": 1.0, "delta": 1e-3},
        }
    )
    return Subject(config, task, loaded, isolated_shapes(loaded, row_shape(config, task, loaded), microbatch))


def test_greedy_text_is_the_argmax_one_token_at_a_time(llama: LoadedModel) -> None:
    module: Any = llama.module
    for prompt, said in zip(
        ["ab", "a longer one"], generate(llama, ["ab", "a longer one"], max_new_tokens=5), strict=True
    ):
        ids = llama.tokenizer(prompt)["input_ids"]
        made: list[int] = []
        with torch.no_grad():
            for _ in range(5):
                made.append(int(module(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax()))
                if made[-1] == llama.tokenizer.eos_token_id:
                    break
        assert said == llama.tokenizer.decode(made, skip_special_tokens=True)


def test_draws_come_from_the_public_seed_alone(llama: LoadedModel) -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = generate(llama, ["ab", "cd"], max_new_tokens=12, temperature=1.0, seed=3)
    assert first == generate(llama, ["ab", "cd"], max_new_tokens=12, temperature=1.0, seed=3)
    assert first != generate(llama, ["ab", "cd"], max_new_tokens=12, temperature=1.0, seed=4)
    assert first[0] == generate(llama, ["ab", "xxxx"], max_new_tokens=12, temperature=1.0, seed=3)[0]
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert states[2] == random.getstate()


def test_draws_have_the_softmax_as_their_law(llama: LoadedModel) -> None:
    """600 first tokens at temperature 0.7 against exact probabilities: χ² below its 99.9 % point, uniform far above."""
    module: Any = llama.module
    ids = llama.tokenizer("ab")["input_ids"]
    with torch.no_grad():
        exact = torch.softmax(module(input_ids=torch.tensor([ids])).logits[0, -1].double() / 0.7, dim=-1).numpy()
    said = generate(llama, ["ab"] * 600, max_new_tokens=1, temperature=0.7, seed=1)
    texts = [llama.tokenizer.decode([token], skip_special_tokens=True) for token in range(len(exact))]
    likely = np.argsort(exact)[::-1][:12]
    cells = {texts[token]: sum(p for t, p in zip(texts, exact, strict=True) if t == texts[token]) for token in likely}
    seen = {text: said.count(text) for text in cells}
    rest = 1 - sum(cells.values())
    chi = sum((seen[text] - 600 * p) ** 2 / (600 * p) for text, p in cells.items())
    chi += (600 - sum(seen.values()) - 600 * rest) ** 2 / (600 * rest)
    assert chi < 34.5  # 12 degrees of freedom
    flat = sum((count - 600 / len(exact)) ** 2 / (600 / len(exact)) for count in seen.values())
    assert flat > 34.5


def test_a_stop_text_ends_it_and_the_models_settings_are_kept(llama: LoadedModel) -> None:
    module: Any = llama.module
    settings = module.generation_config
    (whole,) = generate(llama, ["ab"], max_new_tokens=8)
    assert len(whole) >= 3
    assert generate(llama, ["ab"], max_new_tokens=8, stop=whole[2])[0] == whole.partition(whole[2])[0]
    assert module.generation_config is settings


def test_any_prompt_is_gone_on_from(llama: LoadedModel, capfd: pytest.CaptureFixture[str]) -> None:
    assert len(generate(llama, ["", " ", "x" * 500, "日本 \ud800"], max_new_tokens=3)) == 4
    assert generate(llama, [], max_new_tokens=3) == ()
    assert capfd.readouterr() == ("", "")


def test_bad_requests_are_refused(llama: LoadedModel) -> None:
    for options, problem in (
        ({"max_new_tokens": 0}, "1 or more"),
        ({"max_new_tokens": 64}, "reads 64 tokens in all"),
        ({"max_new_tokens": 3, "temperature": -1.0}, "--temperature"),
        ({"max_new_tokens": 3, "temperature": float("nan")}, "--temperature"),
    ):
        with pytest.raises(DpzoError, match=problem):
            generate(llama, ["ab"], **options)
    with pytest.raises(DpzoError, match="generates no text"):
        generate(replace(llama, architecture="encoder"), ["ab"], max_new_tokens=3)


def test_a_completion_is_scored_by_what_is_said(llama: LoadedModel) -> None:
    task = task_from(QUIZ)
    said = generate(llama, ["ab", "cd"], max_new_tokens=6, stop="\n", max_length=31)
    records = Records(
        fields={"asked": ["ab", "cd"], "completion": ["no such", "no such"]},
        references=[("no such", said[0]), ("no such",)],
    )
    found = scoring.score(subject_of(llama, task), records)
    assert found["metric"] == "squad_f1"
    assert found["value"] == pytest.approx(0.5)
    assert found["interval"] == [0.0, 1.0]
    assert set(found["others"]) == {"loss", "exact_match"}
    texts = scoring.score(subject_of(llama, replace(task, metric="rouge_l")), records)
    assert set(texts["others"]) == {"loss", "bleu", "nist", "meteor_without_synonyms"}
    with pytest.raises(DpzoError, match="no record"):
        scoring.score(subject_of(llama, task), records.subset([]))


def test_an_option_of_a_record_scores_as_a_label_word_would(llama: LoadedModel) -> None:
    """The same options written as label words and as fields of each record: the same losses, bit for bit."""
    as_model = replace(llama, kind="classification")
    shared = {"name": "t", "kind": "classification", "template": "{text} is", "labels": ["a", "b"], "max_length": 32}
    words = task_from({**shared, "label_words": [" good", " bad."], "max_answer_tokens": 5})
    own = task_from({**shared, "option_fields": ["x", "y"], "max_answer_tokens": 5})
    fields = {"text": ["one", "", "three"], "x": [" good"] * 3, "y": [" bad."] * 3}
    records = Records(fields=fields, labels=np.array([0, 1, 1]))
    by_words, by_fields = (encode(records, subject_of(as_model, task)) for task in (words, own))
    assert np.array_equal(by_words.tokens, by_fields.tokens)
    assert np.array_equal(by_words.answer_lengths, by_fields.answer_lengths)
    assert by_words.options == by_fields.options == 2
    assert scoring.score(subject_of(as_model, own), records)["metric"] == "accuracy"


def test_unequal_options_are_refused(llama: LoadedModel) -> None:
    with pytest.raises(DpzoError, match="one and the same number"):
        encode_choices(
            llama.tokenizer, ["a", "b"], [("x", "y"), ("x",)], [0, 0],
            max_length=20, max_answer_tokens=4, empty=np.zeros(2, np.bool_),
        )  # fmt: skip


def test_a_paper_task_trains_and_is_evaluated_from_a_file(tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "rte.jsonl").write_text(
        "".join(
            f'{{"premise": "it rains {i}.", "hypothesis": "Wet.", "label": "{label}"}}\n'
            for i, label in enumerate(["entailment", "not_entailment"] * 6)
        )
    )
    config = parse_config(
        {
            "model": {"name": str(tiny_llama), "lora_rank": 2},
            "data": {"task": "rte", "max_length": 48},
            "privacy": {
                "noise_multiplier": 2.0, "delta": 1e-3, "num_examples": 12,
                "expected_batch_size": 4, "steps": 2, "num_directions": 1,
            },
            "training": {"microbatch_size": 8},
        }
    )  # fmt: skip
    run, source = tmp_path / "run", runs.DataSource(file=tmp_path / "rte.jsonl")
    runs.train(config, source, run)
    found = trained_model.evaluate(run, source)
    assert found["metric"] == TASKS["rte"].metric
    assert found["interval"][0] <= found["value"] <= found["interval"][1]
    assert trained_model.generate(run, ["ab"], max_new_tokens=2) == trained_model.generate(
        run, ["ab"], max_new_tokens=2
    )
