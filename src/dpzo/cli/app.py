"""Commands and their flags. Nothing heavy is imported until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpzo.cli.audit import audit
from dpzo.cli.endings import ending_well
from dpzo.cli.experiments import compare, recipes
from dpzo.cli.noise import noise
from dpzo.cli.planning import plan
from dpzo.cli.verify import sign, verify
from dpzo.errors import DpzoError

app = typer.Typer(
    name="dpzo",
    help="Private fine-tuning of language models with forward passes only.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
Epsilon = Annotated[float | None, typer.Option(help="Privacy budget ε to solve the noise for.")]
NoiseMultiplier = Annotated[float | None, typer.Option(help="Noise std ÷ clip norm, in place of --epsilon.")]
Relation = Annotated[str | None, typer.Option(help="zero_out (default), add_or_remove_one or replace_one.")]
MechanismName = Annotated[str | None, typer.Option(help="gaussian (default), laplace, or auto: a search.")]
ClipNorm = Annotated[float | None, typer.Option(help="Bound on one unit's row of slopes.")]
Steps = Annotated[int | None, typer.Option(help="Releases T.")]
Batch = Annotated[float | None, typer.Option(help="q·N, the public normaliser.")]
Directions = Annotated[int | None, typer.Option(help="Directions K a step; costs no privacy under gaussian noise.")]
Run = Annotated[Path, typer.Argument(help="A folder that dpzo train wrote.")]


app.command(short_help="Plan a run's ε; with --model its memory and time.")(plan)


@app.command(short_help="Fine-tune privately: model, journal and privacy card.")
def train(
    output: Annotated[Path, typer.Option(help="New folder for the run.")],
    model: Annotated[str | None, typer.Option(help="Hugging Face name or local folder.")] = None,
    task: Annotated[str | None, typer.Option(help="A built-in task (dpzo tasks), or your own: task.yaml.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the task's files.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Private csv, tsv, jsonl or parquet file, save_to_disk folder, or hub:NAME; repeatable."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of a saved data set or a hub name; train by default.")
    ] = None,
    data_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a data set of the hub.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="classification, completion or chat; default: by the columns.")
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the text; text by default.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the label; label by default.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Column of the prompt; prompt by default.")] = None,
    completion_column: Annotated[str | None, typer.Option(help="Column of what to say; completion by default.")] = None,
    unit_column: Annotated[str | None, typer.Option(help="Whose record it is: that unit is protected.")] = None,
    labels: Annotated[str | None, typer.Option(help="Declared labels, comma-separated.")] = None,
    label_words: Annotated[str | None, typer.Option(help="A causal model's words, as ' bad, good'.")] = None,
    template: Annotated[str | None, typer.Option(help="Prompt around {text}; with {mask} for a masked model.")] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="Name of one of the tokenizer's chat templates; default by default.")
    ] = None,
    objective: Annotated[str | None, typer.Option(help="What a step improves: loss, accuracy or f1.")] = None,
    num_examples: Annotated[
        str | None, typer.Option(help="Number of units N, declared; private; or from-file.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens a record is padded or cut to.")] = None,
    epsilon: Epsilon = None,
    noise_multiplier: NoiseMultiplier = None,
    delta: Annotated[float | None, typer.Option(help="δ, below 1/N.")] = None,
    mechanism: MechanismName = None,
    relation: Relation = None,
    steps: Steps = None,
    expected_batch_size: Batch = None,
    num_directions: Directions = None,
    clip_norm: ClipNorm = None,
    tuning: Annotated[str | None, typer.Option(help="How hyper-parameters were chosen; goes on the card.")] = None,
    trainable: Annotated[
        str | None, typer.Option(help="head, full, lora, prefix, prompt, ia3, or a pattern of names.")
    ] = None,
    smoothing: Annotated[float | None, typer.Option(help="φ, the length of a probe along a direction.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="η; by default chosen by the trainable part.")] = None,
    seed: Annotated[int | None, typer.Option(help="Public seed of directions and new parameters.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with groups model, data, privacy, training.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="group.field=value, repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune privately: a model, a journal and a privacy card in --output."""
    from dpzo.tasks import is_task_file, read_task_file

    if kind is None and (prompt_column is not None or completion_column is not None):
        kind = "completion"
    given = {
        "model.name": model,
        "model.trainable": trainable,
        "data.task": read_task_file(task) if task is not None and is_task_file(task) else task,
        "data.kind": kind,
        "data.text_column": text_column,
        "data.label_column": label_column,
        "data.prompt_column": prompt_column,
        "data.completion_column": completion_column,
        "data.unit_column": unit_column,
        "data.labels": _names(labels, strip=True),
        "data.label_words": _names(label_words, strip=False),
        "data.template": template,
        "data.chat_template": chat_template,
        "data.objective": objective,
        "data.max_length": max_length,
        "privacy.epsilon": epsilon,
        "privacy.noise_multiplier": noise_multiplier,
        "privacy.delta": delta,
        "privacy.num_examples": num_examples,
        "privacy.expected_batch_size": expected_batch_size,
        "privacy.steps": steps,
        "privacy.num_directions": num_directions,
        "privacy.clip_norm": clip_norm,
        "privacy.mechanism": mechanism,
        "privacy.relation": relation,
        "privacy.tuning": tuning,
        "training.smoothing": smoothing,
        "training.learning_rate": learning_rate,
        "training.seed": seed,
    }
    from dpzo.config import load_config

    chosen = load_config(config, {name: value for name, value in given.items() if value is not None}, set_ or ())
    with ending_well(output, resumable=True):
        from dpzo.cli.checks import check_run

        check_run(chosen, Path(data[0]) if data else None, data_dir, output)
        from dpzo import runs
        from dpzo.cli.screen import finished, teller, watching

        source = runs.DataSource(
            file=data[0] if data else None,
            folder=data_dir,
            more=tuple(data[1:]) if data else (),
            split=split,
            revision=data_revision,
        )
        with watching(quiet=as_json) as watch:
            card = runs.train(chosen, source, output, watch=watch, tell=teller(quiet=as_json))
    finished(card, output, as_json)


@app.command(short_help="Go on with a run, however it stopped.")
def resume(run: Run, as_json: Json = False) -> None:
    """Go on with a run, however it stopped. A step in flight at a crash is burnt, never drawn again."""
    with ending_well(run, resumable=True):
        from dpzo import runs
        from dpzo.cli.screen import finished, teller, watching

        with watching(quiet=as_json) as watch:
            card = runs.resume(run, watch=watch, tell=teller(quiet=as_json))
    finished(card, run, as_json)


@app.command(short_help="Rebuild a model from its journal, bit for bit.")
def replay(
    run: Run,
    output: Annotated[Path, typer.Option(help="New folder for the rebuilt model.")],
    base: Annotated[str | None, typer.Option(help="Where the base model lies, if it moved.")] = None,
    as_json: Json = False,
) -> None:
    """Rebuild the model from base model and journal alone, and compare it with the run's, bit for bit."""
    with ending_well(output, resumable=False):
        from dpzo.cli.checks import check_model, check_output

        check_output(output)
        if base is not None:
            check_model(base)
        from dpzo import runs
        from dpzo.cli.screen import show_replay, watching

        with watching(quiet=as_json) as watch:
            rebuilt = runs.replay(run, output, base=base, watch=watch)
    show_replay(rebuilt, as_json)


@app.command(short_help="Score a finished run on other records.")
def evaluate(
    run: Run,
    data_is: Annotated[str, typer.Option(help="public, or private (then no ε covers the result).")],
    data: Annotated[str | None, typer.Option(help="File, folder or hub:NAME with the run's columns.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a saved data set or hub name; test by default.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the task's files; its test split is read.")] = None,
    as_json: Json = False,
) -> None:
    """Score a finished run's model on other records: accuracy or F1, or the mean loss of a completion task."""
    if data_is not in ("public", "private"):
        raise DpzoError("--data-is must be public or private")
    if (data is None) == (data_dir is None):
        raise DpzoError("give one of --data FILE and --data-dir FOLDER")
    with ending_well(None, resumable=False):
        from dpzo import runs
        from dpzo.cli.screen import show_score

        source = runs.DataSource(file=data, folder=data_dir, split=split)
        result = runs.evaluate(run, source, data_is="private" if data_is == "private" else "public")
    show_score(result, data_is == "private", as_json)


@app.command(short_help="Let a finished run's model go on from a prompt.")
def generate(
    run: Run,
    prompt: Annotated[list[str], typer.Option(help="What the model goes on from; repeatable.")],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to say at most.")] = 50,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; above, tokens are drawn.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Public seed of the draws.")] = 0,
    stop: Annotated[str | None, typer.Option(help="Text to stop before; by default the task's.")] = None,
    as_json: Json = False,
) -> None:
    """Let a finished run's causal model go on from a prompt. The model is private by its ε, the prompt is not."""
    with ending_well(None, resumable=False):
        from dpzo import runs
        from dpzo.cli.screen import show_texts

        said = runs.generate(run, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, stop=stop)
    show_texts(prompt, said, as_json)


@app.command(short_help="List the built-in tasks; tasks show NAME for one.")
def tasks(
    action: Annotated[str | None, typer.Argument(help="Nothing, or show.", metavar="[show]")] = None,
    name: Annotated[str | None, typer.Argument(help="The task to show, or a task file.", metavar="[NAME]")] = None,
    as_json: Json = False,
) -> None:
    """List the built-in tasks, or show one with a rendered example, which is made up and no one's record."""
    if action not in (None, "show"):
        raise DpzoError(f"dpzo tasks {action}: there is dpzo tasks, and dpzo tasks show NAME")
    if action == "show" and name is None:
        raise DpzoError("dpzo tasks show: which one? give its name; dpzo tasks lists them")
    from dpzo.cli.task_screen import show_task, show_tasks

    if name is None:
        show_tasks(as_json)
    else:
        show_task(name, as_json)


app.command(short_help="Check a run as a stranger: journal, ε, weights.")(verify)
app.command(short_help="Sign a run with an OpenSSH key.")(sign)
app.command(short_help="Search the noise of least variance for an ε.")(noise)
app.command(short_help="Measure a lower bound on ε beside the claim.")(audit)
app.command(short_help="Run methods side by side; one table and figure.")(compare)
app.add_typer(recipes, name="recipe", help="Published experiments by name.")


@app.command(short_help="Watch an encoder learn privately, in 4 minutes.")
def demo(
    output: Annotated[Path | None, typer.Option(help="Keep the demo's run in this new folder.")] = None,
) -> None:
    """Watch a pretrained encoder learn a small data set at ε = 2, from beginning to replay (4 minutes)."""
    with ending_well(output, resumable=False):
        if output is not None and output.exists():
            raise DpzoError(f"--output {output}: exists; choose a new folder")
        from dpzo.cli.demo import run_demo

        run_demo(output)


@app.command()
def env(as_json: Json = False) -> None:
    """Print versions and machine, for bug reports."""
    with ending_well(None, resumable=False):
        from dpzo.cli.screen import show_environment

        show_environment(as_json)


def _names(text: str | None, *, strip: bool) -> list[str] | None:
    if text is None:
        return None
    return [name.strip() if strip else name for name in text.split(",")]
