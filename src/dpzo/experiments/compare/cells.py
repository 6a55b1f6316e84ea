"""The cells of a comparison, each determined by public settings and stored in a file named by their hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from dpzo.config.defaults import Part
from dpzo.config.reading import load_config, with_values
from dpzo.config.schema import RunConfig
from dpzo.data.owned import make_folders
from dpzo.data.tasks import find_task
from dpzo.errors import DpzoError
from dpzo.experiments.recipes.base import Experiment, Recipe, with_assignments
from dpzo.experiments.recipes.methods import (
    SMALL_ENCODER,
    BaselineName,
    default_steps,
    find_method,
    local_model,
    method_names,
    require_served,
    unknown,
    with_method,
    with_rates,
)
from dpzo.experiments.recipes.registry import RECIPES
from dpzo.run.journal import write_durably

FORMAT = 1
FOLDER = "cells"
DECIDING_SOURCES = ("config/defaults.py", "experiments/recipes/methods.py")
"""What a config leaves open is filled by these: a changed one makes other cells."""


@dataclass(frozen=True)
class Grid:
    """The requested comparison. Public.

    - `names`: methods (`dpzo.experiments.recipes.methods.method_names`) or recipes, whose method is then run on this
      grid's model.
    - `layouts`: seed number i (in the order given) takes layout i modulo their number, so that the standard error is
      also over splits; () takes the first layout that the folder holds.
    - `fields`: declarations about the model and the data, by config field (`data.labels`), the same for all cells.
    - `assignments`: `group.field=value` for all, `NAME:group.field=value` for one; they override the method's values.
    - `own`: whether the data are the user's files and not the published files of `tasks`; `tasks` then has the one
      name under which the table lists them.
    """

    names: tuple[str, ...]
    tasks: tuple[str, ...]
    model: str
    epsilons: tuple[float, ...]
    seeds: tuple[int, ...]
    trainable: str | None = None
    delta: float = 1e-5
    layouts: tuple[str, ...] = ()
    assignments: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    own: bool = False


@dataclass(frozen=True)
class Cell:
    """One training and its score. `epsilon` None for a method without a guarantee."""

    name: str
    task: str
    layout: str | None
    seed: int
    epsilon: float | None
    baseline: BaselineName | None
    config: RunConfig
    version: int

    def key(self, model: str, public_data: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Everything that determines the cell, as plain data; `model` identifies the base model's weights.

        `public_data` identifies the user's files by their content. None of it is private: a comparison requires that
        these files are declared public.
        """
        config = self.config.model_dump(mode="json")
        config["model"]["name"] = model
        return {
            "format": FORMAT,
            "name": self.name,
            "task": [self.task, self.version],
            "seed": self.seed,
            "epsilon": self.epsilon,
            "baseline": self.baseline,
            "config": config,
            "code": code_digest(),
            **({} if public_data is None else {"public_data": dict(public_data)}),
        }

    def path(self, folder: Path, key: Mapping[str, Any]) -> Path:
        """The cell's file: a readable name, different for every key."""
        level = "none" if self.epsilon is None else f"{self.epsilon:g}"
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        task = re.sub(r"[^\w.-]", "_", self.task)  # a task file sets its own name
        return folder / FOLDER / f"{task}_{self.name}_eps-{level}_seed-{self.seed}_{digest}.json"


def check_names(names: Sequence[str]) -> None:
    """DpzoError for a name that is neither a method nor a recipe."""
    for name in names:
        if find_method(name) is None and name not in RECIPES:
            raise unknown("", name, (*method_names(), *RECIPES), f"methods are {', '.join(method_names())}")


def check_grid(grid: Grid) -> None:
    """Reject a grid of which no cell could be run. Raises DpzoError in one line."""
    check_names(grid.names)
    for option, values in (("--task", grid.tasks), ("--epsilons", grid.epsilons), ("--seeds", grid.seeds)):
        if not values:
            raise DpzoError(f"{option} is missing: give one or more")
        if len(set(values)) < len(values):
            raise DpzoError(f"{option}: one value is given twice")
    if len(set(grid.names)) < len(grid.names):
        raise DpzoError("NAME: one method is given twice; give it once, with all its --epsilons and --seeds")
    for task in () if grid.own else grid.tasks:
        if not find_task(task).layouts:
            raise DpzoError(f"--task {task}: has no published layout")
    for epsilon in grid.epsilons:
        if not 0 < epsilon < float("inf"):
            raise DpzoError("--epsilons: must be positive finite numbers, as in 0.5,2,6")
    for assignment in grid.assignments:
        name, _ = _addressed(assignment)
        if name is not None and name not in grid.names:
            raise unknown("--set ", name, grid.names, "it is not among the names compared")


def cells(grid: Grid, parts: Mapping[str, Part]) -> Iterator[Cell]:
    """Every cell once, grouped by task and layout; `parts`: the trainable part by task.

    A method without privacy has one cell per seed, not one for every ε.
    """
    for task in grid.tasks:
        rounds = [(seed, _layout(grid, number)) for number, seed in enumerate(grid.seeds)]
        for layout in dict.fromkeys(layout for _, layout in rounds):
            for seed in (seed for seed, its in rounds if its == layout):
                for name in grid.names:
                    yield from _of_method(grid, parts[task], task, layout, seed, name)


def _of_method(grid: Grid, part: Part, task: str, layout: str | None, seed: int, name: str) -> Iterator[Cell]:
    noisy, baseline = True, None
    method = find_method(name)
    base = base_config(grid, task, layout, part, seed)
    if method is not None:
        config, noisy, baseline = with_method(base, method, part), method.noisy, method.baseline
    else:
        recipe = RECIPES[name]
        noisy, baseline = recipe.claims, recipe.baseline
        config = _of_recipe(base, recipe, grid.model, part)
    for epsilon in grid.epsilons if noisy else (None,):
        chosen = config if epsilon is None else with_values(config, privacy={"epsilon": epsilon})
        chosen = _assigned(chosen, grid, name)
        require_served(baseline, chosen)
        declared = chosen.data.task
        yield Cell(name, task, layout, seed, epsilon, baseline, chosen, 1 if declared is None else _version(declared))


def base_config(grid: Grid, task: str, layout: str | None, part: Part | None, seed: int = 0) -> RunConfig:
    """The config that all methods start from. `part` None: the trainable part stays open unless requested."""
    data = {} if grid.own else {"data.task": task, "data.layout": layout}
    return load_config(
        None,
        {
            **grid.fields,
            **data,
            "model.name": grid.model,
            "model.trainable": grid.trainable if grid.trainable is not None else part,
            "privacy.delta": grid.delta,
            "privacy.epsilon": grid.epsilons[0],
            "privacy.tuning": "none: defaults, and the method's own choices",
            "training.seed": seed,
        },
    )


def _version(task: str | dict[str, Any]) -> int:
    return find_task(task).version


def _of_recipe(base: RunConfig, recipe: Recipe, model: str, part: Part) -> RunConfig:
    """`base` with the settings of the recipe's method; its sizes and rates are for another model, and stay open."""
    small = recipe.build("small", model).config
    kept: dict[str, Any] = {name: getattr(small.privacy, name) for name in ("num_directions", "mechanism", "relation")}
    kept["steps"] = default_steps(part, recipe.baseline, small.privacy.num_directions)
    if small.privacy.expected_batch_size is not None:  # a full batch stays a full batch
        kept["expected_batch_size"] = Experiment(base, None).num_examples()
    if not recipe.claims:
        kept |= {"epsilon": None, "noise_multiplier": small.privacy.noise_multiplier}
    training = {**small.training.model_dump(), "seed": base.training.seed, "learning_rate": None}
    return with_rates(with_values(base, privacy=kept, training=training), recipe.baseline, part)


def _assigned(config: RunConfig, grid: Grid, name: str) -> RunConfig:
    """The config with the user's assignments: those for all, then those for this name."""
    addressed = [_addressed(assignment) for assignment in grid.assignments]
    common = [text for whose, text in addressed if whose is None]
    return with_assignments(config, [*common, *(text for whose, text in addressed if whose == name)])


def _addressed(assignment: str) -> tuple[str | None, str]:
    """(the name that it applies to, or None; the assignment)."""
    name, colon, rest = assignment.partition("=")[0].partition(":")
    if not colon:
        return None, assignment
    return name, assignment[len(name) + 1 :] if rest else assignment


def _layout(grid: Grid, number: int) -> str | None:
    return grid.layouts[number % len(grid.layouts)] if grid.layouts else None


def code_digest() -> str:
    """Version and hash of the sources that fill a config's open fields."""
    digest = hashlib.sha256()
    for name in DECIDING_SOURCES:
        digest.update(resources.files("dpzo").joinpath(name).read_bytes())
    return f"{metadata.version('dpzo')}+{digest.hexdigest()[:16]}"


def model_identity(name: str, revision: str | None) -> str:
    """The identity of a base model in a cell: a folder's hash of configuration and weights, or the hub name.

    A moved or copied folder is still the same model; a different folder under the same path is not.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name if revision is None else f"{name}@{revision}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if re.fullmatch(r"(config|tokenizer)\.json|.*\.safetensors|.*\.gguf", path.name):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{folder.name}+{digest.hexdigest()[:16]}"


def model_shown(name: str) -> str:
    """A model's name for tables: a folder's own name without its path; the packaged encoder's name on the hub."""
    if name == local_model(SMALL_ENCODER):
        return SMALL_ENCODER
    return Path(name).name if Path(name).expanduser().is_dir() else name


def read_cell(path: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """A finished cell, or None if the file is missing, damaged, or of another key."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("cell") == json.loads(json.dumps(key)) else None


def write_cell(path: Path, result: Mapping[str, Any]) -> None:
    """Write a finished cell atomically."""
    make_folders(path.parent)
    write_durably(path, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
