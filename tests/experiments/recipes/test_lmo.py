"""LMO-DP's recipes: the published noise, the ε that it gives at the paper's q, T and δ; methods made of its sets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpzo.config.reading import parse_config
from dpzo.errors import DpzoError
from dpzo.experiments.recipes.base import Experiment, Recipe
from dpzo.experiments.recipes.lmo import RECIPES as LMO_RECIPES
from dpzo.experiments.recipes.methods import find_method, require_served, with_method
from dpzo.experiments.recipes.registry import RECIPES, find_recipe
from dpzo.noise.mixture_plan import MixturePlan, mixture_noise

Dpzo = Callable[..., Any]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", LMO_RECIPES, ids=lambda recipe: recipe.name)
def test_no_reported_epsilon_holds(recipe: Recipe) -> None:
    """Each is below the limit that no accountant can pass; and the published noise is what is accounted."""
    plan = recipe.build().account()
    assert isinstance(plan, MixturePlan)
    assert plan.mechanism.stretch == pytest.approx(1.0, rel=1e-12)
    assert (plan.delta, plan.clip_norm, plan.route, plan.num_examples * plan.sampler.sampling_prob) == (
        *(1e-10, 1.0, "l2"),
        pytest.approx(2048),
    )
    spread = plan.spread_epsilon
    assert spread is not None
    assert recipe.epsilon is not None
    assert recipe.epsilon < spread < plan.epsilon


@pytest.mark.parametrize(
    ("name", "floor"),
    [
        ("sst2-label2", 19.3),
        ("sst2-label2-as-coded", 36.3),
        ("mnli-label0.7", 0.751),
        ("mnli-label0.3-as-coded", 0.959),
    ],
)
def test_the_limits_are_those_of_the_reference(name: str, floor: float) -> None:
    plan = find_recipe(f"lmo-dp-roberta-large-{name}").build().account()
    assert isinstance(plan, MixturePlan)
    assert plan.spread_epsilon == pytest.approx(floor, rel=5e-3)


def test_another_epsilon_stretches_the_noise_until_it_is_proved() -> None:
    built = find_recipe("lmo-dp-roberta-large-sst2-label0.3").build()
    asked = built.with_options(epsilon=0.157)
    plan = asked.account()
    assert 0.157 * 0.999 < plan.epsilon <= 0.157
    assert 3.7 < plan.noise_multiplier / built.account().noise_multiplier < 3.8
    # The job is built on Gaussian noise of the same deviation, which would have been cheaper.
    job_plan = asked.plan()
    assert job_plan.noise_multiplier == plan.noise_multiplier
    assert job_plan.mechanism.name == "gaussian"
    assert job_plan.epsilon < 0.157 / 1.5


def test_options_that_do_not_fit_are_refused() -> None:
    built = find_recipe("lmo-dp-roberta-large-sst2-label0.3").build()
    with pytest.raises(DpzoError, match=r"`mechanism` gaussian: no published set of LMO noise; use one of lmo-0\.15, "):
        built.with_options(assignments=["privacy.mechanism=gaussian"])
    with pytest.raises(DpzoError, match="`delta` must lie in"):
        built.with_options(assignments=["privacy.delta=0"]).account()
    other = find_recipe("dp-adamw-roberta-large-sst2-eps2").build()
    with pytest.raises(DpzoError, match=r"lmo-0\.3 does not serve dp-adam"):
        other.with_options(assignments=["privacy.mechanism=lmo-0.3"])
    private = find_recipe("dpzero-roberta-large-sst2-eps2").build()
    with pytest.raises(DpzoError, match="`mechanism` must be one of"):
        private.with_options(assignments=["privacy.mechanism=lmo-0.3"]).plan()


@pytest.mark.parametrize(
    ("name", "baseline", "mechanism"),
    [
        ("lmo-sgd", "lmo-sgd", "lmo-0.3"),
        ("lmo-adam-l2", "lmo-adam-l2", "lmo-0.3"),
        ("lmo-sgd-3", "lmo-sgd", "lmo-3"),
        ("lmo-sgd-l2-useful-0.7", "lmo-sgd-l2", "lmo-useful-0.7"),
        ("lmo-adam-0.3-as-coded", "lmo-adam", "lmo-0.3-as-coded"),
    ],
)
def test_methods_of_a_published_set(name: str, baseline: str, mechanism: str) -> None:
    spec = find_method(name)
    assert spec is not None
    assert (spec.name, spec.baseline, spec.privacy["mechanism"]) == (name, baseline, mechanism)
    base = parse_config({"model": {"name": "m"}, "data": {"task": "sst2"}, "privacy": {"delta": 1e-5, "epsilon": 2}})
    config = with_method(base, spec, "head")
    require_served(spec.baseline, config)
    plan = Experiment(config, spec.baseline).account()
    assert isinstance(plan, MixturePlan)
    assert 1.998 < plan.epsilon <= 2
    assert plan.route == ("l2" if "-l2" in name else "l1")


@pytest.fixture(scope="module")
def few_shot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few-shot")
    own = folder / "SST-2" / "16-13"
    own.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        lines = [f"a {('good', 'bad')[i % 2]} film {i} {split}\t{1 - i % 2}" for i in range(32)]
        (own / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return folder


def test_a_small_run_says_which_epsilon_its_noise_gives(tiny_bert: Path, few_shot: Path, tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    from dpzo.experiments.recipes.running import run_experiment

    built = find_recipe("lmo-dp-roberta-large-sst2-label0.3").build("small", str(tiny_bert))
    small = ["data.layout=k-16/seed-13", "data.max_length=16", "privacy.steps=6", "model.trainable=head"]
    built = built.with_options(assignments=small)
    done = run_experiment(built, few_shot, tmp_path / "run")
    card = json.loads((tmp_path / "run" / "baseline_card.json").read_text())
    assert card == json.loads(json.dumps(done.card))
    assert done.score is not None
    assert done.score["metric"] == "accuracy"
    plan = built.account()
    assert card["in_real_arithmetic"] == {"epsilon": plan.epsilon, "delta": 1e-10}
    assert card["steps"]["spent"] == 6
    assert card["noise"]["stretch"] == pytest.approx(1.0, rel=1e-12)
    assert card["noise"]["label"]["epsilon"] == 0.3 < card["noise"]["label"]["proved"]
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert "mechanism: lmo-0.3\n" in saved
    assert f"noise_multiplier: {mixture_noise('lmo-0.3').noise_multiplier!r}\n" in saved
    assert "microbatch_size: null\n" in saved
    assert card["config"]["training"]["microbatch_size"] == 32
    assert "training.microbatch_size" in card["derived"]


def test_compared_at_an_epsilon_that_is_proved(tiny_bert: Path, few_shot: Path, tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    from dpzo.experiments.compare.cells import Grid
    from dpzo.experiments.compare.comparing import compare
    from dpzo.experiments.compare.public_data import TaskFolder

    names = ("dp-sgd", "lmo-sgd-2", "lmo-dp-roberta-large-mnli-label0.3-as-coded")
    layouts, small = ("k-16/seed-13",), ("data.max_length=16", "privacy.steps=6", "privacy.expected_batch_size=8")
    grid = Grid(names, ("sst2",), str(tiny_bert), (3.0,), (0,), "head", 1e-5, layouts, small)
    done = compare(grid, TaskFolder(few_shot), tmp_path)
    assert [entry.method for entry in done.entries] == list(names)
    assert {entry.guarantee for entry in done.entries} == {"ε in real arithmetic"}
    assert {entry.evaluations for entry in done.entries} == {done.entries[0].evaluations}
    found = {}
    for path in (tmp_path / "cells").iterdir():
        cell = json.loads(path.read_text())
        assert 3.0 * 0.998 <= cell["card"]["in_real_arithmetic"]["epsilon"] <= 3.0
        found[cell["cell"]["name"]] = cell["card"]
    assert found["lmo-sgd-2"]["mechanism"]["clip"].startswith("L1")
    assert found["lmo-sgd-2"]["settings"]["rule"] == "sgd"
    assert found["lmo-sgd-2"]["noise"]["published_set"] == "2"
    assert found[names[2]]["mechanism"]["clip"].startswith("L2")
    assert found[names[2]]["settings"]["rule"] == "adam"
    assert found[names[2]]["noise"]["drawn"].startswith("as coded")
    # At one ε a mixture on every coordinate is the larger noise, for the same clip.
    multipliers = [found[name]["mechanism"]["noise_multiplier"] for name in (names[0], names[2])]
    assert multipliers[1] > 1.3 * multipliers[0]


@pytest.mark.slow
def test_the_page_has_the_epsilons_that_are_computed() -> None:
    page = (Path(__file__).parents[3] / "docs" / "recipes.md").read_text()
    for task in ("sst2", "mnli"):
        for label in ("0.3", "3"):
            (line,) = re.findall(rf"^\| {task}, {re.escape(label)} \| (.+) \|$", page, re.MULTILINE)
            shown = [float(cell) for cell in line.split(" | ")]
            recipes = [RECIPES[f"lmo-dp-roberta-large-{task}-label{label}{law}"] for law in ("", "-as-coded")]
            expected = [recipes[0].epsilon]
            for recipe in recipes:
                plan = recipe.build().account()
                assert isinstance(plan, MixturePlan)
                expected += [plan.gaussian_epsilon(), plan.spread_epsilon, plan.epsilon]
            assert shown == pytest.approx(expected, rel=6e-3)
