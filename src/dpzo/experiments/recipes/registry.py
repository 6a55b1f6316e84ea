"""Every recipe by its name: a plain dict of explicit functions' results."""

from __future__ import annotations

from collections.abc import Mapping

from dpzo.experiments.recipes import dp_aggzo, dp_zo, dpzero, first_order, lmo
from dpzo.experiments.recipes.base import Recipe
from dpzo.experiments.recipes.methods import unknown

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (*dp_zo.RECIPES, *dpzero.RECIPES, *dp_aggzo.RECIPES, *first_order.RECIPES, *lmo.RECIPES)
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises DpzoError with the nearest known name."""
    if name not in RECIPES:
        raise unknown("recipe ", name, tuple(RECIPES), "dpzo recipe list has them all")
    return RECIPES[name]
