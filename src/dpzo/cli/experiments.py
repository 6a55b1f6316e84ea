"""`dpzo recipe` and `dpzo compare`: published experiments, and methods beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpzo.cli.endings import ending_well
from dpzo.cli.fields import field_values, takes_options
from dpzo.errors import DpzoError

if TYPE_CHECKING:
    from dpzo.config.schema import Option

recipes = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
Name = Annotated[str, typer.Argument(help="Name of a recipe; dpzo recipe list prints them.", metavar="NAME")]
ScaleName = Annotated[str, typer.Option(help="paper: as published; small: the same method at a size for a laptop.")]
Model = Annotated[str | None, typer.Option(help="Another base model: a hub name or a local folder.")]
Budget = Annotated[float | None, typer.Option(help="Another ε; the noise is solved for it.")]
Seed = Annotated[int | None, typer.Option(help="Public seed of directions and new parameters.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="Set a config field: group.field=value; repeatable.")
]


@recipes.command("list", short_help="List the recipes.")
def recipe_list(as_json: Json = False) -> None:
    """List the recipes: name, paper and published result."""
    from dpzo.cli.experiment_screen import show_recipes

    show_recipes(as_json)


@recipes.command("show", short_help="Show a recipe: config, source, result and ε.")
def recipe_show(
    name: Name,
    scale: ScaleName = "paper",
    model: Model = None,
    epsilon: Budget = None,
    seed: Seed = None,
    set_: Assignments = None,
    as_json: Json = False,
) -> None:
    """Print a recipe as a config file; comments give its source and the ε by dpzo's accountant."""
    from dpzo.cli.experiment_screen import show_recipe
    from dpzo.experiments.recipes.registry import find_recipe

    recipe = find_recipe(name)
    built = recipe.build(scale, model)  # type: ignore[arg-type]  # build says which scales there are
    show_recipe(recipe, built.with_options(epsilon=epsilon, seed=seed, assignments=set_ or ()), as_json)


@recipes.command("run", short_help="Run a recipe.")
def recipe_run(
    name: Name,
    data_dir: Annotated[
        Path,
        typer.Option(
            help="Folder with the task's files. Must be public data for a baseline, whose held-out score is reported."
        ),
    ],
    output: Annotated[Path, typer.Option(help="New folder for the run.")],
    scale: ScaleName = "paper",
    model: Model = None,
    epsilon: Budget = None,
    seed: Seed = None,
    set_: Assignments = None,
    as_json: Json = False,
) -> None:
    """Run a recipe: writes a run folder like dpzo train, or a baseline's model with its card and score."""
    with ending_well(output, resumable=True):
        from dpzo.cli.checks import check_model, check_run
        from dpzo.cli.experiment_screen import baseline_finished
        from dpzo.experiments.recipes.registry import find_recipe

        recipe = find_recipe(name)
        built = recipe.build(scale, model)  # type: ignore[arg-type]
        built = built.with_options(epsilon=epsilon, seed=seed, assignments=set_ or ())
        if isinstance(built.config.privacy.num_examples, int | None):
            built.plan()  # an ε out of reach is refused before anything is loaded
        from dpzo.experiments.recipes.running import run_experiment, with_local_model

        check_run(with_local_model(built.config), None, data_dir, output)
        check_model(with_local_model(built.config).model.name)
        from dpzo.cli.screen import finished, teller, watching

        with watching(quiet=as_json) as watch:
            done = run_experiment(built, data_dir, output, watch=watch, tell=teller(quiet=as_json))
    if done.score is None:
        finished(done.card, output, as_json)
    else:
        baseline_finished(done, output, as_json)


def _compared(option: Option) -> bool:
    """A comparison has one model and its own list of tasks; methods decide the rest."""
    return option.name == "num_examples" or (
        option.field.startswith(("model.", "data.")) and option.name not in ("model", "task")
    )


@takes_options(_compared)
def compare(
    names: Annotated[list[str], typer.Argument(help="Methods or recipes: dpzero, dp-aggzo-16 …", metavar="NAME...")],
    output: Annotated[
        Path, typer.Option(help="Folder for cells, table and figure; finished cells in it are not run again.")
    ],
    task: Annotated[
        list[str] | None, typer.Option(help="A built-in task (dpzo tasks), repeatable; or with --data your task.yaml.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder with the built-in tasks' files. Must be public data: scores are reported."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Instead of --data-dir: your own public files, in the formats of dpzo train; repeatable."),
    ] = None,
    eval_data: Annotated[
        str | None,
        typer.Option(help="With --data: public held-out file with the same columns, on which models are scored."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of --data, for a saved data set or a hub:NAME.")] = None,
    eval_split: Annotated[str | None, typer.Option(help="Split of --eval-data; test by default.")] = None,
    data_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of Hub data sets.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model; by default the packaged MiniLM encoder.")] = None,
    epsilons: Annotated[str, typer.Option(help="ε of the private methods, comma-separated.")] = "2",
    seeds: Annotated[str, typer.Option(help="Public seeds, comma-separated; one cell per seed.")] = "0",
    layouts: Annotated[
        str | None, typer.Option(help="Layouts of the task's data, comma-separated; the seeds cycle through them.")
    ] = None,
    delta: Annotated[float, typer.Option(help="δ of all private methods; only laplace accepts 0.")] = 1e-5,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Set a config field: group.field=value, or NAME:group.field=value for one method; repeatable."
        ),
    ] = None,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Run methods with the same sampler, accountant, model and metric; write table.md, table.json and figure.png.

    Methods: dp-zo, dpzero, dp-aggzo-K, laplace, dpgd-0th, dp-sgd, dp-adam, lmo-sgd, lmo-adam (with -l2, with a
    published set as in lmo-sgd-l2-0.7), mezo, mezo-K, adamw, zero-shot; or a recipe. To resume, repeat the same
    command. All data must be public: the scores are reported, and no ε covers them.
    """
    with ending_well(output, resumable=False, again=True):
        from dpzo.cli.checks import check_model, require_public_data
        from dpzo.experiments.compare.cells import Grid, check_grid, check_names
        from dpzo.experiments.recipes.methods import SMALL_ENCODER, local_model

        check_names(names)
        own = data is not None and data != []
        if own and task:
            given["task"] = task[0]
        grid = Grid(
            names=tuple(names),
            tasks=("own",) if own else tuple(task or ()),
            model=SMALL_ENCODER if model is None else model,
            epsilons=tuple(_numbers("--epsilons", epsilons)),
            seeds=tuple(_seeds(seeds)),
            trainable=given["trainable"],
            delta=delta,
            layouts=() if layouts is None else tuple(layout.strip() for layout in layouts.split(",")),
            assignments=tuple(set_ or ()),
            fields=field_values(given, leave_out=("trainable",)),
            own=own,
        )
        of_own = {"--eval-data": eval_data, "--split": split, "--eval-split": eval_split}
        of_own |= {"--data-revision": data_revision, "--num-examples": given["num_examples"]}
        require_public_data(data or (), data_dir, task or (), grid.layouts, of_own)
        check_grid(grid)
        from dataclasses import replace

        from dpzo.cli.experiment_screen import show_comparison
        from dpzo.cli.screen import teller
        from dpzo.experiments.compare.comparing import compare as run_grid
        from dpzo.experiments.compare.public_data import OwnFiles, TaskFolder
        from dpzo.run.local import DataSource

        grid = replace(grid, model=local_model(grid.model))
        check_model(grid.model)
        if data_dir is not None:
            public: TaskFolder | OwnFiles = TaskFolder(data_dir)
        else:
            assert data
            trained_on = DataSource(file=data[0], more=tuple(data[1:]), split=split, revision=data_revision)
            public = OwnFiles(trained_on, DataSource(file=eval_data, split=eval_split, revision=data_revision))
        done = run_grid(grid, public, output, teller(quiet=as_json))
    show_comparison(done, as_json)


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise DpzoError(f"{option}: numbers with commas between them, as in 0.5,2,6") from None


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise DpzoError("--seeds: whole numbers with commas between them, as in 0,1,2") from None
