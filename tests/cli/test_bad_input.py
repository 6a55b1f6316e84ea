"""Each mistake: exit code 2, one line on standard error that names the place and the mend, nothing of a record."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

MARK = "zqj7xk"
Dpzo = Callable[..., Any]
Arguments = Callable[..., list[object]]


def refused(said: Any, *fragments: str) -> None:
    """The user saw one line that holds the fragments, and nothing that a bug or a leak would show."""
    errors = [line for line in said.err.splitlines() if "error:" in line]
    assert said.code == 2, said.err
    assert said.out == ""
    assert said.err.endswith(errors[-1] + "\n")
    assert len(errors) == 1
    assert "Traceback" not in said.err
    assert MARK not in said.err
    for fragment in fragments:
        assert fragment in errors[0], errors[0]


PLAN = {"--num-examples": 100, "--expected-batch-size": 10, "--steps": 5, "--delta": 1e-5, "--noise-multiplier": 2}


def plan_with(changes: dict[str, object]) -> list[object]:
    chosen = {name: value for name, value in (PLAN | changes).items() if value is not None}
    return ["plan", *(x for pair in chosen.items() for x in pair)]


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"--noise-multiplier": None}, ["--epsilon", "--noise-multiplier", "exactly one"]),
        ({"--epsilon": 1}, ["--epsilon", "--noise-multiplier", "exactly one"]),
        ({"--noise-multiplier": None, "--epsilon": 0}, ["--epsilon", "positive"]),
        ({"--noise-multiplier": None, "--epsilon": -1}, ["--epsilon", "positive"]),
        ({"--noise-multiplier": None, "--epsilon": "nan"}, ["--epsilon", "positive"]),
        ({"--noise-multiplier": None, "--epsilon": "inf"}, ["--epsilon", "finite"]),
        ({"--noise-multiplier": None, "--epsilon": "two"}, ["--epsilon", "number"]),
        ({"--noise-multiplier": 0}, ["--noise-multiplier", "positive"]),
        ({"--delta": 1}, ["--delta", "[0, 1)", "1e-5"]),
        ({"--delta": -0.1}, ["--delta", "[0, 1)"]),
        ({"--delta": "nan"}, ["--delta", "[0, 1)"]),
        ({"--delta": 0}, ["--delta", "laplace"]),
        ({"--expected-batch-size": 101}, ["--expected-batch-size", "--num-examples"]),
        ({"--expected-batch-size": 0}, ["--expected-batch-size"]),
        ({"--expected-batch-size": "nan"}, ["--expected-batch-size"]),
        ({"--clip-norm": 0}, ["--clip-norm", "positive"]),
        ({"--clip-norm": -1}, ["--clip-norm", "positive"]),
        ({"--steps": 0}, ["--steps", "at least 1"]),
        ({"--num-examples": 0}, ["--num-examples", "at least 1"]),
        ({"--num-examples": "1.5"}, ["--num-examples", "whole number"]),
        ({"--num-examples": None}, ["missing", "--num-examples", "--help"]),
        ({"--mechanism": "gausian"}, ["--mechanism", "gaussian", "laplace"]),
        ({"--relation": "neighbours"}, ["--relation", "zero_out"]),
        ({"--epsilonn": 1}, ["--epsilonn", "did you mean --epsilon?"]),
    ],
)
def test_a_plan_out_of_range_is_refused(dpzo: Dpzo, changes: dict[str, object], fragments: list[str]) -> None:
    refused(dpzo(*plan_with(changes)), *fragments)


def test_a_delta_not_below_one_over_n_is_warned_of(dpzo: Dpzo) -> None:
    said = dpzo(*plan_with({"--delta": 0.01}))
    assert said.code == 0
    assert "warning: --delta 0.01 is not below 1/N = 0.01" in said.err
    assert dpzo(*plan_with({"--delta": 0.0099})).err == ""


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"model": None}, ["--model is missing"]),
        ({"delta": None}, ["--delta is missing", "1e-5"]),
        ({"data": None}, ["--data is missing", "--task"]),
        ({"data_dir": "."}, ["--data", "--data-dir", "not both"]),
        ({"labels": None}, ["--labels is missing", "--labels yes,no"]),
        ({"labels": "yes"}, ["--labels", "two or more"]),
        ({"num_examples": None}, ["--num-examples is missing", "declare", "from-file"]),
        ({"num_examples": "forty"}, ["--num-examples", "whole number", "from-file"]),
        ({"noise_multiplier": None}, ["exactly one", "--epsilon"]),
        ({"noise_multiplier": None, "epsilon": 0}, ["--epsilon", "greater than 0"]),
        ({"delta": 1}, ["--delta", "less than 1"]),
        ({"expected_batch_size": 41}, ["--expected-batch-size", "--num-examples"]),
        ({"clip_norm": 0}, ["--clip-norm", "greater than 0"]),
        ({"smoothing": -1}, ["--smoothing", "greater than 0"]),
        ({"learning_rate": "nan"}, ["--learning-rate", "finite"]),
        ({"seed": -1}, ["--seed"]),
        ({"steps": "many"}, ["--steps", "integer"]),
        ({"kind": "clasification"}, ["--kind", "'classification'"]),
        ({"mechanism": "gausian"}, ["--mechanism", "gaussian"]),
        ({"relation": "neighbours"}, ["--relation", "zero_out"]),
        ({"task": "sst", "data": None, "data_dir": "."}, ["--task sst", "did you mean sst2?"]),
        ({"task": "sst2", "data": None}, ["--data-dir is missing", "sst2"]),
        ({"task": "rte", "labels": None}, ["has no column 'premise'", "name another"]),
        (
            {"task": "sst2", "labels": None, "data": None, "data_dir": "/nonexistent"},
            ["/nonexistent", "no such folder"],
        ),
        ({"text_column": "txt"}, ["notes.csv", "no column 'txt'", "did you mean 'text'?"]),
        ({"label_column": "sentiment"}, ["notes.csv", "no column 'sentiment'", "it has 'text', 'label', 'who'"]),
        ({"unit_column": "patient"}, ["notes.csv", "no column 'patient'"]),
        ({"trainable": "nothing_like_it"}, ["--trainable nothing_like_it", "names look like"]),
        ({"trainable": "("}, ["--trainable", "regular expression"]),
        ({"model": "./no-such-folder"}, ["--model ./no-such-folder", "no such folder", "hub name"]),
        ({"set": "training.smoothing"}, ["--set", "group.field=value"]),
        ({"set": "training=3"}, ["--set training", "group.field=value"]),
        ({"set": "trainng.smoothing=1"}, ["--set trainng.smoothing", "training"]),
        ({"set": "training.smothing=1"}, ["training.smothing", "did you mean smoothing?"]),
        ({"set": "training.smoothing=abc"}, ["--smoothing", "number"]),
        ({"set": "training.smoothing=[1"}, ["--set training.smoothing", "YAML"]),
        ({"set": "training.schedule=linaer"}, ["training.schedule", "'linear'"]),
        ({"lerning_rate": 1}, ["--lerning-rate", "did you mean --learning-rate?"]),
    ],
)
def test_a_train_that_cannot_begin_is_refused(
    dpzo: Dpzo, arguments: Arguments, tmp_path: Path, changes: dict[str, object], fragments: list[str]
) -> None:
    refused(dpzo(*arguments(tmp_path / "run", **changes)), *fragments)
    assert not (tmp_path / "run").exists()


def test_all_missing_options_are_named_at_once(dpzo: Dpzo, arguments: Arguments, tmp_path: Path) -> None:
    refused(
        dpzo("train"),
        *(
            "7 options are missing",
            "--model",
            "--data",
            "--labels",
            "--num-examples",
            "--epsilon",
            "--delta",
            "--output",
        ),
    )
    refused(
        dpzo(*arguments(tmp_path / "run", delta=None, labels=None)),
        "2 options are missing: --labels",
        "--delta D (below",
    )
    said = dpzo("train", "--task", "sst2", "--model", "m", "--delta", 1e-5)
    refused(said, "2 options are missing: --epsilon", "--output")
    said = dpzo("train", "--kind", "chat", "--data", "x.jsonl", "--num-examples", 9, "--epsilon", 1, "--delta", 1e-5)
    refused(said, "2 options are missing: --model", "--output")
    refused(dpzo("train", *arguments(tmp_path)[3:]), "--output is missing")
    refused(
        dpzo("plan", "--steps", 3),
        "--num-examples, --expected-batch-size, --delta, --epsilon or --noise-multiplier are",
    )
    refused(dpzo("evaluate"), "missing options: RUN, --data-is")
    refused(dpzo("compare", "dp-zo", "--output", tmp_path), "the records are missing: give --task NAME with --data-dir")
    refused(dpzo("generate", tmp_path), "missing option: --prompt")


def test_overwrite_sets_a_run_aside_and_nothing_else(
    dpzo: Dpzo, arguments: Arguments, finished: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    refused(dpzo(*arguments(run)), "holds another run", "--overwrite")
    refused(dpzo(*arguments(run, delta=1), "--overwrite"), "--delta")
    assert not (tmp_path / "run.1").exists()  # what cannot begin sets nothing aside
    said = dpzo(*arguments(run), "--overwrite")
    assert said.code == 0, said.err
    assert f"the run in {run} is kept in {tmp_path / 'run.1'}: what it spent of ε stays spent" in said.err
    assert (tmp_path / "run.1" / "journal.jsonl").read_bytes() == (finished / "journal.jsonl").read_bytes()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    refused(dpzo(*arguments(tmp_path / "notes"), "--overwrite"), "holds other files", "choose a new folder")


def test_resume_of_a_finished_run_says_that_it_is_finished(dpzo: Dpzo, finished: Path) -> None:
    said = dpzo("resume", finished)
    assert said.code == 0
    assert said.err == ""
    assert said.out.startswith(f"{finished}: already finished (4 of 4 steps); nothing to resume\n")
    assert json.loads(dpzo("resume", finished, "--json").out)["card"]["steps"]["spent"] == 4


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        ("empty.csv", "", ["empty.csv", "is empty"]),
        ("header.csv", "text,label\n", ["header.csv", "no records"]),
        ("blank.jsonl", "\n\n", ["blank.jsonl", "is empty"]),
        ("label.csv", f"text,label\n{MARK},yes\n{MARK},{MARK}\n", ["label.csv, row 3", "'label'", "not declared"]),
        (
            "broken.jsonl",
            f'{{"text":"{MARK}","label":"no"}}\n{{"text":"{MARK}",\n',
            ["broken.jsonl, row 2", "not valid JSON"],
        ),
        ("list.jsonl", f'["{MARK}"]\n', ["list.jsonl, row 1", "not a JSON object"]),
        ("no_header.csv", f"{MARK} one,yes\n{MARK} two,no\n", ["no_header.csv", "no column 'text'", "header"]),
        ("fields.csv", f"text,label\n{MARK},{MARK},no\n", ["fields.csv, row 2", "more fields than columns"]),
        ("notes.txt", MARK, ["notes.txt", "name it .csv, .tsv or .jsonl"]),
    ],
)
def test_a_bad_file_is_refused_without_showing_it(
    dpzo: Dpzo, arguments: Arguments, tmp_path: Path, name: str, content: str, fragments: list[str]
) -> None:
    (tmp_path / name).write_text(content)
    refused(dpzo(*arguments(tmp_path / "run", data=tmp_path / name)), *fragments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ("- a\n- b\n", ["expected groups"]),
        ("model: 3\n", ["expected groups"]),
        ("", ["expected groups"]),
        ("model: [\n", ["not a YAML file"]),
        ("modle: {name: x}\n", ["modle", "did you mean model?"]),
        ("model: {nam: x}\n", ["model.nam", "did you mean name?"]),
        (None, ["No such file"]),
    ],
)
def test_a_config_of_another_shape_is_refused(
    dpzo: Dpzo, tmp_path: Path, content: str | None, fragments: list[str]
) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_text(content)
    refused(dpzo("train", "--config", path, "--output", tmp_path / "run", "--data", "x.csv"), *fragments)


def test_a_hub_that_does_not_answer_is_asked_once(
    dpzo: Dpzo, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[float] = []

    def silent(url: str, *, timeout: float, **rest: object) -> None:
        asked.append(timeout)
        raise ConnectionError(MARK)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", silent)
    name = "nobody-of-that-name/no-such-model"
    refused(
        dpzo(*arguments(tmp_path / "run", model=name)), f"--model {name}", "hub does not answer", "network", "folder"
    )
    assert len(asked) == 1
    assert asked[0] <= 10


def test_a_model_that_the_hub_does_not_know(
    dpzo: Dpzo, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def unknown(url: str, **rest: object) -> None:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unknown)
    refused(dpzo(*arguments(tmp_path / "run", model="bert-bsae")), "--model bert-bsae", "knows no such model")


def test_a_tokenizer_without_padding_and_end_is_refused(
    dpzo: Dpzo, arguments: Arguments, tiny_bert: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    path = model / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({name: x for name, x in fields.items() if name not in ("pad_token", "eos_token")}))
    (model / "special_tokens_map.json").unlink(missing_ok=True)
    said = dpzo(*arguments(tmp_path / "run", model=model))
    refused(said, f"--model {model}", "tokenizer", "pad_token")


def test_an_output_that_is_taken_is_refused_at_once(
    dpzo: Dpzo, arguments: Arguments, finished: Path, tmp_path: Path
) -> None:
    refused(dpzo(*arguments(finished)), f"--output {finished}", "another run", "dpzo resume", "new folder")
    refused(dpzo("replay", finished, "--output", finished), f"--output {finished}", "another run")
    file = tmp_path / "file"
    file.write_text("kept")
    refused(dpzo(*arguments(file)), f"--output {file}", "is a file")
    refused(dpzo(*arguments(file / "run")), f"--output {file / 'run'}", "is a file")
    assert file.read_text() == "kept"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("kept")
    refused(dpzo(*arguments(tmp_path / "other")), "holds other files", "new folder")


@pytest.mark.parametrize("command", [["resume"], ["replay", "--output", "x"], ["evaluate", "--data-is", "public"]])
def test_no_such_run(dpzo: Dpzo, tmp_path: Path, records: Path, command: list[str]) -> None:
    data = ["--data", records] if command[0] == "evaluate" else []
    refused(dpzo(*command, *data, tmp_path / "nowhere"), str(tmp_path / "nowhere"), "journal.jsonl", "dpzo train wrote")


@pytest.fixture
def spoilt(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be spoilt."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_an_edited_or_cut_journal_is_refused(dpzo: Dpzo, spoilt: Path) -> None:
    journal = spoilt / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]))
    refused(dpzo("resume", spoilt), str(journal), "cut short after step 3")
    edited = json.loads(lines[2])
    edited["values"][0] += 1
    journal.write_text("".join([*lines[:2], json.dumps(edited) + "\n", *lines[3:]]))
    for command in (["resume"], ["replay", "--output", spoilt.parent / "rebuilt"]):
        refused(dpzo(*command, spoilt), str(journal), "line 3", "changed")
    journal.write_text("".join(lines))
    (spoilt / "journal.head").unlink()
    refused(dpzo("resume", spoilt), "journal.head", "missing")


def test_a_journal_of_another_model_is_refused(dpzo: Dpzo, spoilt: Path, tiny_bert: Path, tmp_path: Path) -> None:
    import safetensors.torch

    other = tmp_path / "other"
    shutil.copytree(tiny_bert, other)
    weights = safetensors.torch.load_file(other / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][0, 0] += 1
    safetensors.torch.save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    said = dpzo("replay", spoilt, "--output", tmp_path / "rebuilt", "--base", other)
    refused(said, "journal.jsonl", "base")
    assert not (tmp_path / "rebuilt").exists()


@pytest.mark.parametrize(
    ("given", "fragments"),
    [
        (["--data-is", "public"], ["--data FILE", "--data-dir FOLDER"]),
        (["--data", "x.csv"], ["--data-is"]),
        (["--data", "x.csv", "--data-is", "secret"], ["--data-is", "public or private"]),
        (["--data", "x.csv", "--data-is", "public"], ["x.csv", "no such file"]),
        (["--data-dir", ".", "--data-is", "public"], ["--data-dir", "given by --data"]),
    ],
)
def test_an_evaluation_that_cannot_be(dpzo: Dpzo, finished: Path, given: list[str], fragments: list[str]) -> None:
    refused(dpzo("evaluate", finished, *given), *fragments)


@pytest.mark.parametrize(("word", "fragment"), [("trian", "'train'"), ("foo", "foo"), ("--verbose", "--verbose")])
def test_an_unknown_command(dpzo: Dpzo, word: str, fragment: str) -> None:
    refused(dpzo(word), fragment)


def test_an_unknown_option_does_not_show_its_value(dpzo: Dpzo) -> None:
    refused(dpzo("plan", f"--note={MARK}"), "--note")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full at `size` bytes a file, as the system call sees it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("size", "place"), [(6000, "journal.jsonl"), (20_000, "run")])
def test_a_full_disk_costs_nothing_but_time(
    dpzo: Dpzo, arguments: Arguments, tmp_path: Path, size: int, place: str
) -> None:
    """The first size ends within the journal, the second within the model's weights."""
    output = tmp_path / "run"
    with files_of_at_most(size):
        said = dpzo(*arguments(output, steps=40))
    refused(said, str(output), place, "resume")
    resumed = dpzo("resume", output, "--json")
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out)["card"]["guarantee"] is True
    again = dpzo("replay", output, "--output", tmp_path / "rebuilt", "--json")
    assert json.loads(again.out)["equals_run"] is True
