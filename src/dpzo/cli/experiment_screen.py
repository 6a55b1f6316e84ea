"""Recipes and comparisons on the screen. A recipe is shown as a config file, with what is known of it in comments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpzo.cli.screen import print_json, print_line, rounded_up
from dpzo.config.reading import dump_config
from dpzo.experiments.recipes.base import Experiment, Published, Recipe
from dpzo.experiments.recipes.registry import RECIPES
from dpzo.noise.mixture_plan import MixturePlan

if TYPE_CHECKING:  # a list of recipes needs no torch
    from dpzo.experiments.compare.comparing import Comparison
    from dpzo.experiments.recipes.running import Finished


def show_recipes(as_json: bool) -> None:
    """Every recipe, a line each, by paper."""
    if as_json:
        print_json({"recipes": [_facts(recipe) for recipe in RECIPES.values()]})
        return
    for paper in dict.fromkeys(recipe.paper for recipe in RECIPES.values()):
        print_line(f"{paper}:")
        for recipe in RECIPES.values():
            if recipe.paper == paper:
                print_line(f"  {recipe.name}: {shown_figure(recipe.published)}")


def show_recipe(recipe: Recipe, built: Experiment, as_json: bool) -> None:
    """One recipe: its source, its figure, what our accountant says of its ε, and its config as YAML."""
    account = _account(recipe, built)
    if as_json:
        fields = {**_facts(recipe), "caveats": list(recipe.caveats), "changed": list(built.changed)}
        print_json({**fields, "account": account, "config": built.config.model_dump(mode="json")})
        return
    for line in (*_comments(recipe, built, account),):
        print_line(f"# {line}")
    print_line(dump_config(built.config).rstrip("\n"))


def baseline_finished(done: Finished, output: Path, as_json: bool) -> None:
    """A baseline's claim, its score and where things lie."""
    assert done.score is not None
    if as_json:
        print_json({"output": str(output), "card": done.card, "score": done.score})
        return
    print_line(done.card["claim"])
    low, high = done.score["interval"]
    print_line(
        f"{done.score['metric']}: {done.score['value']:.4f} (95 % of resampled test sets: {low:.4f} to {high:.4f})"
    )
    print_line(f"model, config, card and score: {output}")


def show_comparison(done: Comparison, as_json: bool) -> None:
    """The table, and how much of it was there already."""
    if as_json:
        from dpzo.experiments.compare.table import to_json

        figure = None if done.figure is None else str(done.figure)
        print_json(
            {
                "table": str(done.table),
                "figure": figure,
                "cells": done.total,
                "ran": done.ran,
                "rows": to_json(done.entries),
            }
        )
        return
    print_line(done.table.read_text().rstrip("\n"))
    print_line(f"{done.ran} of {done.total} cells were run in this call; {done.table.parent}")


def _facts(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "method": recipe.method,
        "paper": recipe.paper,
        "table": recipe.table,
        "published": {
            "metric": recipe.published.metric,
            "value": recipe.published.value,
            "standard_error": recipe.published.standard_error,
            "note": recipe.published.note,
            "epsilon": recipe.epsilon,
        },
        "task": recipe.config.data.task,
        "model": recipe.config.model.name,
        "baseline": recipe.baseline,
    }


def _account(recipe: Recipe, built: Experiment) -> dict[str, Any] | None:
    """ε of the config's plan, and of the published noise under the same sampling; None for what claims nothing."""
    if not recipe.claims:
        return None
    plan, known = built.account(), recipe.noise_as_published()
    return {
        "epsilon": plan.epsilon,
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        "relation": plan.relation.value,
        "accountant": plan.accountant,
        "exact": built.baseline is None,
        "noise": plan.facts() if isinstance(plan, MixturePlan) else None,
        "published_noise": None
        if known is None
        else {"noise_multiplier": known.noise_multiplier, "epsilon": known.epsilon},
    }


def _comments(recipe: Recipe, built: Experiment, account: dict[str, Any] | None) -> Iterator[str]:
    yield f"{recipe.name}: {recipe.method}"
    yield f"{recipe.paper}: {recipe.table}"
    yield f"published: {shown_figure(recipe.published)}" + (
        "" if recipe.epsilon is None else f" at ε = {recipe.epsilon:g}"
    )
    if account is None:
        yield "ε: none; no noise is added"
    else:
        exact = "" if account["exact"] else ", in real arithmetic only"
        yield (
            f"ε by dpzo's accountant: {rounded_up(account['epsilon'], 4)} at δ = {account['delta']:g}, "
            f"noise multiplier {account['noise_multiplier']:.4g}, {account['relation']}, {account['accountant']}{exact}"
        )
        if account["noise"] is not None:
            yield _of_mixture(account["noise"])
        published = account["published_noise"]
        if published is not None:
            yield (
                f"the published noise, multiplier {published['noise_multiplier']:.4g}, gives "
                f"ε = {rounded_up(published['epsilon'], 4)} under the paper-scale sampling of this recipe"
            )
    for changed in built.changed:
        yield f"small scale: {changed}"
    for caveat in recipe.caveats:
        yield f"caveat: {caveat}"


def _of_mixture(noise: dict[str, Any]) -> str:
    """What the published noise is worth on vectors, in one line."""
    label, spread = noise["label"], noise["spread_rows"]
    parts = [f"noise {noise['drawn']}, {noise['stretch']:.4g} × the published scale"]
    if abs(noise["stretch"] - 1.0) < 1e-9:
        parts.append(
            f"one release, ε = {label['epsilon']:g} by its label, has a proved ε of {rounded_up(label['proved'], 3)} "
            f"at δ = {label['delta']:g}"
        )
    if spread is not None:
        parts.append(f"gradients spread over ever more elements cost {spread:.4g} under any accountant")
    parts.append(f"Gaussian noise of that deviation gives ε = {rounded_up(noise['gaussian_of_same_deviation'], 4)}")
    return "; ".join(parts)


def shown_figure(published: Published) -> str:
    """A figure in print, in one line."""
    if published.value is None:
        return f"no {published.metric} ({published.note})"
    error = "" if published.standard_error is None else f" ± {published.standard_error:g}"
    return f"{published.metric} {published.value:g}{error}" + (f" ({published.note})" if published.note else "")
