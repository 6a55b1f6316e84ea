"""`dpzo compare`: run the missing cells of a grid, then write the table, its numbers and the figure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpzo.config.reading import with_values
from dpzo.data.owned import make_folders, owner_only
from dpzo.experiments.compare.bench import Bench, part_on
from dpzo.experiments.compare.cells import (
    Cell,
    Grid,
    base_config,
    cells,
    check_grid,
    model_identity,
    model_shown,
    read_cell,
    write_cell,
)
from dpzo.experiments.compare.figure import NEEDS, can_draw, draw
from dpzo.experiments.compare.public_data import OwnFiles, PublicData
from dpzo.experiments.compare.table import Entry, entries, to_json, to_markdown
from dpzo.experiments.recipes.base import Experiment
from dpzo.run.declared import without_ignored
from dpzo.run.environment import environment
from dpzo.run.journal import write_durably
from dpzo.run.subject import task_of

TABLE, NUMBERS, FIGURE = "table.md", "table.json", "figure.png"


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison. `ran` of `total` cells were missing; `figure` None if matplotlib is missing."""

    entries: tuple[Entry, ...]
    total: int
    ran: int
    table: Path
    figure: Path | None


def compare(grid: Grid, data: PublicData, output: Path, tell: Callable[[str], None] = lambda text: None) -> Comparison:
    """Run every cell of `grid` that `output` does not hold yet, and write table.md, table.json and figure.png there.

    A cell's file is written atomically when the cell is finished: the same call resumes a comparison that was stopped
    or killed, and a changed setting makes other files. Several private runs on one data set add up their ε: each cell's
    ε is for that cell alone, and the table is for public data. Raises DpzoError, and Stopped after Ctrl-C.
    """
    if isinstance(data, OwnFiles):
        grid = of_own_files(grid, data, tell)
    check_grid(grid)
    parts = {}
    for task in grid.tasks:
        for layout in grid.layouts if grid.layouts else (None,):
            config = without_ignored(base_config(grid, task, layout, None), data.source)
            data.require(config)
            parts[task] = part_on(task_of(config), grid.model, grid.trainable)
    contents = data.identity()
    planned = list(cells(grid, parts))
    _require_feasible(planned, data, tell)
    make_folders(output)
    bench = Bench(data, tell)
    identities: dict[tuple[str, str | None], str] = {}
    results: list[dict[str, Any]] = []
    ran = 0
    for number, cell in enumerate(planned, start=1):
        base = (cell.config.model.name, cell.config.model.revision)
        if base not in identities:
            identities[base] = model_identity(*base)
        key = cell.key(identities[base], contents)
        path = cell.path(output, key)
        result = read_cell(path, key)
        if result is None:
            level = "" if cell.epsilon is None else f", ε = {cell.epsilon:g}"
            tell(f"cell {number}/{len(planned)}: {cell.task}, {cell.name}{level}, seed {cell.seed}")
            result = {"cell": key, **bench.run(cell)}
            write_cell(path, result)
            ran += 1
        results.append(json.loads(json.dumps(result)))
    made = entries(results)
    write_durably(output / TABLE, to_markdown(made, _heading(grid, results, contents)).encode())
    numbers = {"grid": {**_public(grid), "public_data": contents}, "versions": environment(), "rows": to_json(made)}
    write_durably(output / NUMBERS, (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode())
    figure = output / FIGURE if can_draw() else None
    if figure is None:
        tell(NEEDS)
    else:
        with owner_only():
            draw(made, figure)
    return Comparison(made, len(planned), ran, output / TABLE, figure)


def of_own_files(grid: Grid, data: OwnFiles, tell: Callable[[str], None]) -> Grid:
    """The grid with the kind of the files' records, and the name of their task. DpzoError for an option not used."""
    open_grid = replace(grid, own=True, tasks=("own",))
    config = without_ignored(base_config(open_grid, "own", None, None), data.source, tell=tell)
    return replace(grid, own=True, tasks=(task_of(config).name,), fields={**grid.fields, "data.kind": config.data.kind})


def _require_feasible(planned: Sequence[Cell], data: PublicData, tell: Callable[[str], None]) -> None:
    """Solve the smallest ε of every method and task before anything is trained.

    Otherwise the error that no such noise exists could come only at the last cell.
    """
    tell("solving the plans of the smallest ε")
    seen = set()
    for cell in sorted(planned, key=lambda cell: math.inf if cell.epsilon is None else cell.epsilon):
        if (cell.task, cell.name) not in seen and cell.epsilon is not None:
            seen.add((cell.task, cell.name))
            number = data.num_examples(cell.config)
            Experiment(with_values(cell.config, privacy={"num_examples": number}), cell.baseline).plan()


def _heading(grid: Grid, results: list[dict[str, Any]], contents: Mapping[str, Any] | None) -> list[str]:
    first = results[0]["config"]
    lines = [
        f"model {first['model']['name']}, trained part {first['model']['trainable']}, δ = {grid.delta:g}, "
        f"seeds {', '.join(map(str, grid.seeds))}"
        + (f", layouts {', '.join(grid.layouts)} in turn" if grid.layouts else ""),
    ]
    if contents is not None:
        named = ", ".join(f"{name} {' '.join(found)}" for name, found in contents.items())
        lines.append(f"public files, by SHA-256: {named}")
    return [*lines, *([f"set: {', '.join(grid.assignments)}"] if grid.assignments else [])]


def _public(grid: Grid) -> dict[str, Any]:
    """The grid as given to the command, except for the path of the model's folder."""
    return {
        "names": list(grid.names),
        "tasks": list(grid.tasks),
        "model": model_shown(grid.model),
        "trainable": grid.trainable,
        "epsilons": list(grid.epsilons),
        "seeds": list(grid.seeds),
        "delta": grid.delta,
        "layouts": list(grid.layouts),
        "assignments": list(grid.assignments),
        "fields": dict(grid.fields),
    }
