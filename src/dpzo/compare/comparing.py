"""`dpzo compare`: run what is missing of a grid, then write the table, its numbers and the figure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpzo.compare.bench import Bench, part_of
from dpzo.compare.cells import Cell, Grid, cells, check_grid, model_identity, model_shown, read_cell, write_cell
from dpzo.compare.figure import NEEDS, can_draw, draw
from dpzo.compare.table import Entry, entries, to_json, to_markdown
from dpzo.config import with_values
from dpzo.environment import environment
from dpzo.journal import write_durably
from dpzo.owned import make_folders, owner_only
from dpzo.recipes.base import Experiment
from dpzo.tasks import find_task

TABLE, NUMBERS, FIGURE = "table.md", "table.json", "figure.png"


@dataclass(frozen=True)
class Comparison:
    """What a comparison ends in. `ran` of `total` cells were missing; `figure` None where matplotlib is."""

    entries: tuple[Entry, ...]
    total: int
    ran: int
    table: Path
    figure: Path | None


def compare(grid: Grid, data_dir: Path, output: Path, tell: Callable[[str], None] = lambda text: None) -> Comparison:
    """Run every cell of `grid` that `output` does not hold yet, and write table.md, table.json and figure.png there.

    A cell's file appears when it is finished, whole; so a comparison that was stopped or killed goes on by the same
    call, and a changed setting makes other files. Several private runs on one data set add up their ε: each cell's ε is
    its own, and the table is for public data. Raises DpzoError, and Stopped after Ctrl-C.
    """
    check_grid(grid)
    parts = {task: part_of(task, grid.model, grid.trainable) for task in grid.tasks}
    for task in grid.tasks:
        for layout in grid.layouts if grid.layouts else (None,):
            _require_layout(task, data_dir, layout)
    planned = list(cells(grid, parts))
    _require_feasible(planned, data_dir, tell)
    make_folders(output)
    bench = Bench(data_dir, tell)
    identities: dict[tuple[str, str | None], str] = {}
    results: list[dict[str, Any]] = []
    ran = 0
    for number, cell in enumerate(planned, start=1):
        base = (cell.config.model.name, cell.config.model.revision)
        if base not in identities:
            identities[base] = model_identity(*base)
        key = cell.key(identities[base])
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
    write_durably(output / TABLE, to_markdown(made, _heading(grid, results)).encode())
    numbers = {"grid": _public(grid), "versions": environment(), "rows": to_json(made)}
    write_durably(output / NUMBERS, (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode())
    figure = output / FIGURE if can_draw() else None
    if figure is None:
        tell(NEEDS)
    else:
        with owner_only():
            draw(made, figure)
    return Comparison(made, len(planned), ran, output / TABLE, figure)


def _require_layout(task: str, data_dir: Path, layout: str | None) -> None:
    """Refuse at once what the last cell would stumble over."""
    found = find_task(task).layout(data_dir, layout)
    if found.find(data_dir, "train") is None:
        find_task(task).load(data_dir, "train", layout)  # says which file is missing


def _require_feasible(planned: Sequence[Cell], data_dir: Path, tell: Callable[[str], None]) -> None:
    """Solve the smallest ε of every method and task before anything is trained.

    Else the last cell could be the first to say that there is no such noise.
    """
    tell("solving the plans of the smallest ε")
    seen = set()
    for cell in sorted(planned, key=lambda cell: math.inf if cell.epsilon is None else cell.epsilon):
        if (cell.task, cell.name) not in seen and cell.epsilon is not None:
            seen.add((cell.task, cell.name))
            number = find_task(cell.task).public_num_examples(data_dir, "train", cell.layout)
            Experiment(with_values(cell.config, privacy={"num_examples": number}), cell.baseline).plan()


def _heading(grid: Grid, results: list[dict[str, Any]]) -> list[str]:
    first = results[0]["config"]
    lines = [
        f"model {first['model']['name']}, trained part {first['model']['trainable']}, δ = {grid.delta:g}, "
        f"seeds {', '.join(map(str, grid.seeds))}"
        + (f", layouts {', '.join(grid.layouts)} in turn" if grid.layouts else ""),
    ]
    return [*lines, *([f"set: {', '.join(grid.assignments)}"] if grid.assignments else [])]


def _public(grid: Grid) -> dict[str, Any]:
    """The grid as the command had it, but for the folder's path of the model."""
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
    }
