"""Commands and their flags. Nothing heavy is imported until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dpzo.cli.audit import audit
from dpzo.cli.endings import ending_well
from dpzo.cli.experiments import compare, recipes
from dpzo.cli.fields import field_values, takes_options
from dpzo.cli.flags import PanelledCommand, RootGroup
from dpzo.cli.noise import noise
from dpzo.cli.planning import plan
from dpzo.cli.verify import sign, verify
from dpzo.errors import DpzoError


def _show_version(asked: bool) -> None:
    if asked:
        from dpzo import __version__

        typer.echo(f"dpzo {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="dpzo",
    cls=RootGroup,
    help="Private fine-tuning of language models with forward passes only.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Private fine-tuning of language models with forward passes only."""


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
RunFolder = Annotated[Path, typer.Argument(help="A folder that dpzo train wrote.")]
Base = Annotated[str | None, typer.Option(help="Current location of the base model, if it moved.")]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Rename an existing run in --output and start a new one; the ε of the old run stays spent."
    ),
]


app.command(short_help="Plan a run's ε; with --model, memory and time too.")(plan)


@app.command(short_help="Fine-tune a model privately.")
@takes_options()
def train(
    output: Annotated[Path | None, typer.Option(help="New folder for the run. [required]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the task's files.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Private data: csv, tsv, jsonl, json or parquet file, save_to_disk folder, or hub:NAME; repeatable."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a saved data set or a hub:NAME. [default: train]")] = None,
    data_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub data set.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with the groups model, data, privacy and training.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Set a config field: group.field=value; repeatable.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Fine-tune a model privately; write the model, a journal and a privacy card to --output."""
    from dpzo.cli.checks import require_options
    from dpzo.config.reading import merged, parse_config

    tree = merged(config, field_values(given), set_ or ())
    require_options(tree, data, data_dir, output)
    assert output is not None
    chosen = parse_config(tree)
    with ending_well(output, resumable=True):
        from dpzo.cli.checks import check_run
        from dpzo.run.output import set_aside

        check_run(chosen, Path(data[0]) if data else None, data_dir, output, overwrite=overwrite)
        from dpzo.cli.screen import finished, teller, watching
        from dpzo.run.finetune import finetune
        from dpzo.run.local import DataSource

        if overwrite:
            set_aside(output, teller(quiet=as_json))
        source = DataSource(
            file=data[0] if data else None,
            folder=data_dir,
            more=tuple(data[1:]) if data else (),
            split=split,
            revision=data_revision,
        )
        with watching(quiet=as_json) as watch:
            made = finetune(data=source, output=output, config=chosen, watch=watch, tell=teller(quiet=as_json))
        card = made.card
    finished(card, output, as_json)


@app.command(short_help="Resume an interrupted run.")
def resume(run: RunFolder, base: Base = None, as_json: Json = False) -> None:
    """Resume an interrupted run. A step interrupted by a crash is repeated with the same random draw."""
    with ending_well(run, resumable=True):
        from dpzo.cli.screen import finished, nothing_left, teller, watching
        from dpzo.run.run import Run

        resumed = Run(run)
        if resumed.is_finished:
            nothing_left(resumed.card, run, as_json)
            return
        _check_base(base)
        with watching(quiet=as_json) as watch:
            card = resumed.resume(base=base, watch=watch, tell=teller(quiet=as_json)).card
    finished(card, run, as_json)


@app.command(short_help="Rebuild a model from its journal, bit for bit.")
def replay(
    run: RunFolder,
    output: Annotated[Path, typer.Option(help="New folder for the rebuilt model.")],
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Rebuild the model from the base model and the journal alone; compare it with the run's bit for bit."""
    with ending_well(output, resumable=False):
        from dpzo.cli.checks import check_output

        check_output(output)
        _check_base(base)
        from dpzo.cli.screen import show_replay, watching
        from dpzo.run.run import Run

        with watching(quiet=as_json) as watch:
            rebuilt = Run(run).replay(output, base=base, watch=watch)
    show_replay(rebuilt, as_json)


@app.command(short_help="Evaluate a trained model on other records.", cls=PanelledCommand)
def evaluate(
    run: RunFolder,
    data_is: Annotated[
        str, typer.Option(help="public or private; the run's ε does not cover a result on private data.")
    ],
    data: Annotated[
        str | None, typer.Option(help="File, folder or hub:NAME with the columns of the run's data.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a saved data set or a hub:NAME; test by default.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the task's files; the test split is used.")] = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Evaluate a finished run's model on other records: accuracy, F1, or the mean loss of a completion task."""
    if data_is not in ("public", "private"):
        raise DpzoError("--data-is must be public or private")
    if (data is None) == (data_dir is None):
        raise DpzoError("give one of --data FILE and --data-dir FOLDER")
    with ending_well(None, resumable=False):
        _check_base(base)
        from dpzo.cli.screen import show_score
        from dpzo.run.local import DataSource
        from dpzo.run.run import Run

        source = DataSource(file=data, folder=data_dir, split=split)
        result = Run(run).evaluate(source, data_is="private" if data_is == "private" else "public", base=base)
    show_score(result, data_is == "private", as_json)


@app.command(short_help="Generate text with a trained model.")
def generate(
    run: RunFolder,
    prompt: Annotated[list[str], typer.Option(help="Prompt; repeatable.")],
    max_new_tokens: Annotated[int, typer.Option(help="Maximum number of tokens to generate.")] = 50,
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature; 0 always takes the most likely token.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Public seed of the sampling.")] = 0,
    stop: Annotated[str | None, typer.Option(help="Text before which generation stops; by default the task's.")] = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Generate text with a finished run's causal model. The run's ε covers the model, not the prompt.

    In a run of --kind chat, the prompt is the user's turn in the model's chat template.
    """
    with ending_well(None, resumable=False):
        _check_base(base)
        from dpzo.cli.screen import show_texts
        from dpzo.run.run import Run

        said = Run(run).generate(
            prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, stop=stop, base=base
        )
    show_texts(prompt, said, as_json)


@app.command(short_help="List the built-in tasks, or show one.")
def tasks(
    action: Annotated[
        str | None, typer.Argument(help="show, to print one task; omit it to list all.", metavar="[show]")
    ] = None,
    name: Annotated[
        str | None, typer.Argument(help="Name of a built-in task, or a task file.", metavar="[NAME]")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the built-in tasks, or show one with a rendered example. The example is made up."""
    if action not in (None, "show"):
        raise DpzoError(f"dpzo tasks {action}: no such action; use dpzo tasks or dpzo tasks show NAME")
    if action == "show" and name is None:
        raise DpzoError("dpzo tasks show: the name of the task is missing; dpzo tasks lists the names")
    from dpzo.cli.task_screen import show_task, show_tasks

    if name is None:
        show_tasks(as_json)
    else:
        show_task(name, as_json)


app.command(short_help="Verify a run independently, without the private data.")(verify)
app.command(short_help="Sign a run with an OpenSSH key.")(sign)
app.command(short_help="Find the noise of least variance for an ε.")(noise)
app.command(short_help="Audit a plan: measure a lower bound on its ε.")(audit)
app.command(short_help="Compare methods in one table and one figure.")(compare)
app.add_typer(recipes, name="recipe", help="List, show and run published experiments.")


@app.command(short_help="Train an encoder privately, in 4 minutes.")
def demo(
    output: Annotated[Path | None, typer.Option(help="New folder in which to keep the demo's run.")] = None,
) -> None:
    """Fine-tune a pretrained encoder on a small data set at ε = 2 and replay the run (4 minutes)."""
    with ending_well(output, resumable=False):
        if output is not None and output.exists():
            raise DpzoError(f"--output {output}: exists; choose a new folder")
        from dpzo.cli.demo import run_demo

        run_demo(output)


@app.command()
def env(as_json: Json = False) -> None:
    """Print versions and hardware, for bug reports."""
    with ending_well(None, resumable=False):
        from dpzo.cli.screen import show_environment

        show_environment(as_json)


def _check_base(base: str | None) -> None:
    if base is not None:
        from dpzo.cli.checks import check_base

        check_base(base)
