"""`dpzo plan`: the privacy of a run, and with --model what it takes in memory and time. Reads no data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpzo.cli.endings import ending_well
from dpzo.cli.fields import field_values, takes_options
from dpzo.errors import DpzoError

if TYPE_CHECKING:  # a plan without a model needs no torch
    from dpzo.forecast import TimeForecast
    from dpzo.forecast.planner import RunForecast

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]


PRIVACY = (
    "num_examples",
    "expected_batch_size",
    "steps",
    "delta",
    "epsilon",
    "noise_multiplier",
    "mechanism",
    "relation",
    "clip_norm",
    "num_directions",
)
"""What a plan without a model is made of."""


@takes_options()
def plan(
    config: Annotated[Path | None, typer.Option(help="With --model: YAML file, as for dpzo train.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="With --model: set a config field, group.field=value; repeatable.")
    ] = None,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Solve a privacy plan: noise from ε, or ε from noise. With --model, forecast memory and time. Reads no data.

    Accepts the flags of dpzo train that set a config field. Without --model only the privacy is planned, from the
    flags under Privacy except --tuning.
    """
    if given["model"] is not None or config is not None:
        _plan_run(field_values(given), config, set_ or [], as_json)
        return
    useless = [name for name, value in given.items() if name not in PRIVACY and value not in (None, [])]
    if useless or set_:
        option = f"--{useless[0].replace('_', '-')}" if useless else "--set"
        raise DpzoError(f"{option}: is for a forecast of memory and time; name the model with --model")
    _plan_privacy({**given, "num_examples": _whole(given["num_examples"])}, as_json)


def _whole(num_examples: str | None) -> int | None:
    try:
        return None if num_examples is None else int(num_examples)
    except ValueError:
        raise DpzoError(
            "--num-examples: a plan needs a whole number; no file is read here to count the units"
        ) from None


def _plan_privacy(given: dict[str, Any], as_json: bool) -> None:
    names = ("num_examples", "expected_batch_size", "steps", "delta")
    missing = [f"--{name.replace('_', '-')}" for name in names if given[name] is None]
    if given["epsilon"] is None and given["noise_multiplier"] is None and missing:
        missing.append("--epsilon or --noise-multiplier")
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise DpzoError(
            f"{', '.join(missing)} {verb} missing; see dpzo plan --help (with --model, batch and steps have defaults)"
        )
    from dpzo.config.solve import AUTO, auto_note, plan_summary, solve_plan
    from dpzo.privacy.plan import relation_named

    solved = solve_plan(
        num_examples=given["num_examples"],
        expected_batch_size=given["expected_batch_size"],
        steps=given["steps"],
        delta=given["delta"],
        epsilon=given["epsilon"],
        noise_multiplier=given["noise_multiplier"],
        clip_norm=1.0 if given["clip_norm"] is None else given["clip_norm"],
        num_directions=1 if given["num_directions"] is None else given["num_directions"],
        mechanism="gaussian" if given["mechanism"] is None else given["mechanism"],
        relation=relation_named("zero_out" if given["relation"] is None else given["relation"]),
    )
    from dpzo.cli.screen import show_plan, teller, warn_findings

    warn_findings(solved)
    if given["mechanism"] == AUTO:
        teller(quiet=as_json)(auto_note(solved))
    show_plan(plan_summary(solved), as_json)


def _plan_run(stated: dict[str, Any], config: Path | None, assignments: list[str], as_json: bool) -> None:
    from dpzo.config.reading import load_config

    if config is None and not any(entry.startswith("privacy.delta=") for entry in assignments):
        stated.setdefault("privacy.delta", 0.0)  # no ε is asked for without one
    chosen = load_config(config, stated, assignments)
    units = chosen.privacy.num_examples
    if not isinstance(units, int):
        raise DpzoError("--num-examples is missing: the declared number of units; no file is read here to count them")
    with ending_well(None, resumable=False):
        from dpzo.cli.checks import check_model
        from dpzo.cli.screen import print_json, show_plan, teller, warn_findings

        check_model(chosen.model.name, chosen.model.revision)
        from dpzo.config.solve import plan_summary
        from dpzo.forecast.planner import plan_run

        found = plan_run(chosen, units, tell=teller(quiet=as_json))
        if found.privacy is not None:
            warn_findings(found.privacy)
        if as_json:
            print_json(found.to_dict())
            return
        if found.privacy is not None:
            show_plan(plan_summary(found.privacy), False)
        _show(found)


def _show(found: RunForecast) -> None:
    from dpzo.cli.screen import print_line
    from dpzo.forecast import in_words

    memory, config = found.memory, found.sized.config
    privacy, count = config.privacy, found.sized.skeleton
    print_line(
        f"model                {count.elements / 1e6:,.1f} million parameters, {count.dimension:,} of them trained "
        f"({config.model.trainable})"
    )
    print_line(
        f"run                  {privacy.steps} steps, {privacy.num_directions} directions, batch "
        f"{privacy.expected_batch_size:g} of {found.sized.num_examples}, {found.sized.shape.max_length} tokens, "
        f"{found.sized.microbatch_size} records per pass, {found.threads} thread{'s' if found.threads > 1 else ''}"
    )
    print_line("\nmemory")
    rows = {
        "weights": memory.weights,
        "shifted weights": memory.scratch,
        "update state": memory.update_state,
        "activations, logits": memory.activations,
        "several at once": memory.several,
        "kept states": memory.kept,
        "program, libraries": memory.program,
    }
    for name, size in rows.items():
        if size:
            print_line(f"  {name:<22}{in_words(size):>10}")
    print_line(f"  {'the process, at most':<22}{in_words(memory.peak_resident):>10}  as a task manager shows it")
    phase = max(memory.phases, key=lambda name: memory.phases[name])
    print_line(f"  {'must be free':<22}{in_words(memory.needed):>10}  while {phase}, in addition to the program")
    free = "unknown" if found.available is None else in_words(found.available)
    print_line(f"  {'free here':<22}{free:>10}")
    for guess in found.sized.guessed:
        print_line(f"  estimated: {guess}")
    if found.time is None:
        print_line("\ntime                 not measured: the model's weights are not on this machine")
    else:
        _show_time(found.time)


def _show_time(time: TimeForecast) -> None:
    from dpzo.cli.screen import duration, print_line

    print_line("\ntime (measured on the model)")
    print_line(f"  {'plain forward':<22}{_seconds(time.forward):>10}  per pass")
    print_line(f"  {'at shifted weights':<22}{_seconds(time.further):>10}  per pass")
    print_line(
        f"  {'passes per step':<22}{time.passes * time.evaluations:>10.0f}  {time.passes:.1f} × {time.evaluations}"
    )
    print_line(f"  {'directions, update':<22}{_seconds(time.directions + time.update):>10}  per step")
    print_line(f"  {'a step':<22}{_seconds(time.per_step):>10}")
    if time.once:
        print_line(f"  {'before the steps':<22}{duration(time.once):>10}")
    print_line(f"  {'the run':<22}{duration(time.run):>10}")


def _seconds(value: float) -> str:
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
