"""`dpzo recipe` and `dpzo compare` as a user meets them: what is shown, what is left on disk, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpzo.config.reading import load_config
from dpzo.experiments.recipes.registry import RECIPES

Dpzo = Callable[..., Any]
SMALL = ("--set", "data.layout=k-16/seed-13", "--set", "data.max_length=16", "--set", "privacy.steps=24")


@pytest.fixture(scope="module")
def few_shot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up SST-2 in a published few-shot layout."""
    folder = tmp_path_factory.mktemp("few-shot")
    own = folder / "SST-2" / "16-13"
    own.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        lines = [f"a {('good', 'bad')[i % 2]} film {i} {split}\t{1 - i % 2}" for i in range(32)]
        (own / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return folder


def refused(said: Any, *fragments: str) -> None:
    assert said.code == 2, said.err
    assert said.out == ""
    (line,) = [line for line in said.err.splitlines() if "error: " in line]
    assert said.err.endswith(line + "\n")
    for fragment in fragments:
        assert fragment in line, line


def test_the_list_names_every_recipe(dpzo: Dpzo) -> None:
    shown = dpzo("recipe", "list").out
    assert [name for name in RECIPES if f"  {name}: " not in shown] == []
    assert "dpgd-0th-roberta-large-trec-eps2: accuracy 67" in shown
    listed = json.loads(dpzo("recipe", "list", "--json").out)["recipes"]
    assert [recipe["name"] for recipe in listed] == list(RECIPES)


def test_what_is_shown_is_a_config_file(dpzo: Dpzo, tmp_path: Path) -> None:
    name = "dp-zo-opt-13b-sst2-eps1"
    said = dpzo("recipe", "show", name)
    path = tmp_path / "shown.yaml"
    path.write_text(said.out)
    assert load_config(path, {}) == RECIPES[name].config
    comments = [line for line in said.out.splitlines() if line.startswith("#")]
    assert any("ε by dpzo's accountant: 0.9979" in line and "16.4" in line for line in comments)
    assert any("Tang et al." in line for line in comments)


@pytest.mark.parametrize("scale", ["paper", "small"])
def test_json_of_a_recipe(dpzo: Dpzo, scale: str) -> None:
    said = json.loads(dpzo("recipe", "show", "dpzero-roberta-large-rte-eps2", "--scale", scale, "--json").out)
    assert said["published"] == {
        "metric": "accuracy",
        "value": 70.4,
        "standard_error": 0.7,
        "note": said["published"]["note"],
        "epsilon": 2.0,
    }
    assert 1.99 < said["account"]["epsilon"] <= 2
    assert said["account"]["published_noise"]["epsilon"] < 1  # twice the noise that Poisson batches need
    assert yaml.safe_load(yaml.safe_dump(said["config"]))["privacy"]["num_directions"] == 1
    assert bool(said["changed"]) == (scale == "small")


def test_a_small_run_is_a_run_folder(dpzo: Dpzo, tiny_bert: Path, few_shot: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = dpzo(
        *("recipe", "run", "dpzero-roberta-large-sst2-eps2", "--scale", "small", "--model", tiny_bert),
        *("--data-dir", few_shot, "--output", run, "--epsilon", 4, "--seed", 3, *SMALL),
        *("--set", "model.trainable=head", "--json"),
    )
    assert said.code == 0, said.err
    card = json.loads(said.out)["card"]
    assert 3.99 < card["epsilon"] <= 4
    assert card["mechanism"]["clip"].endswith("1 slopes")
    assert (run / "journal.jsonl").exists()
    again = dpzo("evaluate", run, "--data-dir", few_shot, "--data-is", "public", "--json")
    assert json.loads(again.out)["metric"] == "accuracy"


def test_a_baseline_leaves_card_and_score(dpzo: Dpzo, tiny_bert: Path, few_shot: Path, tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    folder = tmp_path / "baseline"
    said = dpzo(
        *("recipe", "run", "dp-adamw-roberta-large-sst2-eps2", "--scale", "small", "--model", tiny_bert),
        *("--data-dir", few_shot, "--output", folder, *SMALL, "--set", "model.trainable=head", "--json"),
    )
    assert said.code == 0, said.err
    card = json.loads((folder / "baseline_card.json").read_text())
    assert not card["guarantee"]
    assert 1.99 < card["in_real_arithmetic"]["epsilon"] <= 2
    assert json.loads((folder / "score.json").read_text()) == json.loads(said.out)["score"]
    assert (folder / "model").is_dir()
    assert load_config(folder / "config.yaml", {}).privacy.steps == 24


def test_compare_writes_and_goes_on(dpzo: Dpzo, tiny_bert: Path, few_shot: Path, tmp_path: Path) -> None:
    output = tmp_path / "table"
    command = [
        *("compare", "dp-aggzo-2", "zero-shot", "--task", "sst2", "--data-dir", few_shot, "--output", output),
        *("--model", tiny_bert, "--trainable", "head", "--epsilons", "2,8", "--layouts", "k-16/seed-13"),
        *SMALL[2:],
    ]
    first = dpzo(*command)
    assert first.code == 0, first.err
    assert "| dp-aggzo-2 | " in first.out
    assert "3 of 3 cells were run in this call" in first.out
    assert "cell 1/3: sst2, dp-aggzo-2, ε = 2, seed 0" in first.err
    again = json.loads(dpzo(*command, "--json").out)
    assert (again["cells"], again["ran"], len(again["rows"])) == (3, 0, 3)
    assert (output / "table.md").read_text().rstrip() in first.out


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up public files: training records in two parts, held-out records, and a task file."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("one", "two", "held-out"):
        lines = [f"a {('good', 'bad')[i % 2]} stay {i} {name},{('yes', 'no')[i % 2]}" for i in range(16)]
        (folder / f"{name}.csv").write_text("\n".join(["words,answer", *lines]) + "\n")
    (folder / "stays.yaml").write_text(
        'kind: classification\ntemplate: "{words}"\nlabels: ["yes", "no"]\nmax_length: 16\n'
    )
    return folder


OWN = ("--num-examples", 32, "--max-length", 16, "--text-column", "words", "--label-column", "answer")


def test_compare_reads_files_of_ones_own(dpzo: Dpzo, tiny_bert: Path, own: Path, tmp_path: Path) -> None:
    """As in docs/recipes.md; a cell is kept for the content of its files, and made anew for another."""
    files = ("--data", own / "one.csv", "--data", own / "two.csv", "--eval-data", own / "held-out.csv")
    rest = ("--model", tiny_bert, "--trainable", "head", "--set", "privacy.steps=4", "--output", tmp_path / "table")
    command = ("compare", "dp-aggzo-2", "zero-shot", *files, *rest, "--labels", "yes,no", *OWN)
    first = dpzo(*command)
    assert first.code == 0, first.err
    assert "2 of 2 cells were run in this call" in first.out
    cells = [json.loads(path.read_text()) for path in (tmp_path / "table" / "cells").iterdir()]
    for cell in cells:
        assert (cell["num_examples"], cell["held_out"]) == (32, {"split": "held-out", "records": 16})
        assert cell["cell"]["task"] == ["own-classification", 1]
        assert sorted(cell["cell"]["public_data"]) == ["held-out", "train"]
        assert str(own) not in json.dumps(cell)
    again = dpzo(*command, "--json")
    assert (json.loads(again.out)["ran"], json.loads(again.out)["cells"]) == (0, 2)
    other = tmp_path / "other.csv"
    other.write_text((own / "held-out.csv").read_text() + "one more good stay,yes\n")
    changed = [other if argument == own / "held-out.csv" else argument for argument in command]
    assert "2 of 2 cells were run in this call" in dpzo(*changed).out


def test_compare_takes_a_task_file(dpzo: Dpzo, tiny_bert: Path, own: Path, tmp_path: Path) -> None:
    files = ("--data", own / "one.csv", "--eval-data", own / "held-out.csv", "--task", own / "stays.yaml")
    rest = ("--model", tiny_bert, "--output", tmp_path / "table", "--label-column", "answer", "--num-examples", 16)
    said = dpzo("compare", "zero-shot", *files, *rest, "--json")
    assert said.code == 0, said.err
    assert [row["task"] for row in json.loads(said.out)["rows"]] == ["stays"]


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ([], ["--data FILE with --eval-data FILE", "--task NAME with --data-dir FOLDER"]),
        (["--data", "one.csv", "--labels", "yes,no", *OWN], ["--eval-data is missing", "public data only"]),
        (["--data", "one.csv", "--eval-data", "one.csv", *OWN], ["--eval-data", "is also given as --data"]),
        (["--data", "one.csv", "--data-dir", "."], ["one of --data and --data-dir"]),
        (["--data", "one.csv", "--eval-data", "held-out.csv"], ["--num-examples: declare"]),
        (["--data", "one.csv", "--eval-data", "held-out.csv", *OWN, "--num-examples", "private"], ["a whole number"]),
        (["--data", "one.csv", "--eval-data", "held-out.csv", *OWN], ["--labels is missing"]),
        (["--task", "stays.yaml", "--data-dir", "."], ["--data is missing", "your task"]),
        (["--task", "sst2", "--data-dir", ".", "--eval-data", "held-out.csv"], ["--eval-data: is not used"]),
        (["--task", "sst2", "--data-dir", ".", "--text-column", "words"], ["--text-column", "is not used"]),
        (["--data", "one.csv", "--eval-data", "nowhere.csv", "--labels", "yes,no", *OWN], ["nowhere.csv", "No such"]),
        (
            ["--data", "one.csv", "--eval-data", "held-out.csv", "--labels", "yes,no", "--prompt-column", "p", *OWN],
            ["is not used with --kind completion"],
        ),
    ],
)
def test_bad_comparisons_of_ones_own_files(
    dpzo: Dpzo,
    tiny_bert: Path,
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[object],
    fragments: list[str],
) -> None:
    monkeypatch.chdir(own)
    refused(dpzo("compare", "dpzero", *arguments, "--model", tiny_bert, "--output", "table"), *fragments)
    assert not (own / "table").exists()


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ([], "missing options: NAME, --data-dir, --output"),
        (["mezo-roberta-large-rte"], "missing options: --data-dir, --output"),
        (["mezo-roberta-large-rte", "--output", "x"], "missing option: --data-dir"),
        (["mezo-roberta-large-rte", "--data-dir=."], "missing option: --output"),
    ],
)
def test_a_recipe_that_lacks_options_names_them_all(dpzo: Dpzo, given: list[str], missing: str) -> None:
    said = dpzo("recipe", "run", *given)
    assert said.code == 2
    assert missing in said.err


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["show", "dp-zo-opt-13b-squad-eps10"], ["dp-zo-opt-13b-squad-eps10: no such name", "did you mean dp-zo-opt"]),
        (["show", "qqqq"], ["dpzo recipe list"]),
        (["show", "mezo-roberta-large-rte", "--epsilon", 1], ["--epsilon", "mezo adds no noise"]),
        (["show", "dpzero-roberta-large-rte-eps2", "--scale", "big"], ["--scale must be one of paper, small"]),
        (["show", "dpzero-roberta-large-rte-eps2", "--set", "privacy.stepz=3"], ["did you mean steps?"]),
        (
            ["show", "dpgd-0th-roberta-large-trec-eps2", "--set", "privacy.mechanism=laplace"],
            ["laplace does not serve dpgd-0th", "L2"],
        ),
        (["show", "dpzero-roberta-large-rte-eps2", "--set", "privacy.delta=0"], ["laplace"]),
        (["show", "dp-zo-pure-opt-13b-squad-eps4", "--epsilon", 1e-13], ["--epsilon 1e-13", "raise --epsilon"]),
        (["show", "dp-zo-pure-opt-13b-squad-eps4", "--epsilon", 0], ["--epsilon", "greater than 0"]),
        (["run", "qqqq", "--data-dir", ".", "--output", "x"], ["dpzo recipe list"]),
        (
            ["run", "dp-zo-pure-opt-13b-squad-eps4", "--data-dir", ".", "--output", "x", "--epsilon", 1e-13],
            ["--epsilon 1e-13", "raise --epsilon"],
        ),
        (["run", "dpzero-roberta-large-rte-eps2", "--data-dir", ".", "--output", "y", "--scale", "small"], ["RTE"]),
    ],
)
def test_bad_recipes(
    dpzo: Dpzo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], fragments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(dpzo("recipe", *arguments), *fragments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["dpzro"], ["dpzro: no such name", "did you mean dpzero?"]),
        (["dpzero", "--epsilons", "two"], ["--epsilons", "0.5,2,6"]),
        (["dpzero", "--epsilons", "-1"], ["--epsilons", "positive"]),
        (["dpzero", "--seeds", "a"], ["--seeds", "0,1,2"]),
        (["dpzero", "--set", "dp-sgd:privacy.steps=3"], ["--set dp-sgd", "not among the names compared"]),
    ],
)
def test_bad_comparisons(dpzo: Dpzo, tmp_path: Path, arguments: list[object], fragments: list[str]) -> None:
    output = tmp_path / "out"
    refused(dpzo("compare", *arguments, "--task", "sst2", "--data-dir", ".", "--output", output), *fragments)
    assert not output.exists()


def test_a_task_and_names_are_needed(dpzo: Dpzo) -> None:
    assert dpzo("compare", "--task", "sst2", "--data-dir", ".", "--output", "x").code == 2
    assert dpzo("compare", "dpzero", "--data-dir", ".", "--output", "x").code == 2
