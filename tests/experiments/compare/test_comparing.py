"""A comparison runs every cell once, goes on where it was stopped, and its table is that of its cells."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from dpzo.data.tasks import find_task
from dpzo.errors import DpzoError
from dpzo.experiments.compare import comparing
from dpzo.experiments.compare.bench import Bench, part_on
from dpzo.experiments.compare.cells import Grid, cells, check_grid, model_identity
from dpzo.experiments.compare.comparing import Comparison, compare
from dpzo.experiments.compare.public_data import TaskFolder
from dpzo.experiments.compare.table import standard_error
from dpzo.run.loop import Stopped

SMALL = ("data.max_length=16", "privacy.steps=24", "privacy.expected_batch_size=8")
LAYOUTS = ("k-16/seed-13", "k-16/seed-21")


@pytest.fixture
def grid(tiny_bert: Path) -> Grid:
    return Grid(
        names=("dpzero", "dp-aggzo-4", "dp-sgd", "mezo", "zero-shot"),
        tasks=("sst2",),
        model=str(tiny_bert),
        epsilons=(2.0, 8.0),
        seeds=(0, 1),
        trainable="head",
        layouts=LAYOUTS,
        assignments=SMALL,
    )


def held(output: Path) -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in (output / "cells").iterdir()}


@pytest.fixture(scope="module")
def whole(tiny_bert: Path, few_shot: TaskFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    output = tmp_path_factory.mktemp("compare")
    names = (
        "dp-zo",
        "dpzero",
        "laplace",
        "dp-aggzo-4",
        "dpgd-0th",
        "dp-sgd",
        "dp-adam",
        "mezo-2",
        "adamw",
        "zero-shot",
    )
    wanted = Grid(names, ("sst2",), str(tiny_bert), (2.0,), (0, 1), "head", 1e-5, LAYOUTS, SMALL)
    pytest.importorskip("opacus")
    return compare(wanted, few_shot, output), output


def test_every_method_has_its_cells_and_its_guarantee(whole: tuple[Comparison, Path]) -> None:
    done, output = whole
    found = {entry.method: entry.guarantee for entry in done.entries}
    exact, floats = "ε exact", "ε in real arithmetic"
    assert found == {
        "dp-zo": exact,
        "dpzero": exact,
        "laplace": exact,
        "dp-aggzo-4": exact,
        "dpgd-0th": floats,
        "dp-sgd": floats,
        "dp-adam": floats,
        "mezo-2": "none",
        "adamw": "none",
        "zero-shot": "no record read",
    }
    assert (done.total, done.ran) == (20, 20)
    for cell in held(output).values():
        if cell["card"]["guarantee"]:
            assert 2.0 * 0.998 <= cell["card"]["epsilon"] <= 2.0
            assert cell["card"]["steps"]["spent"] == 24
        assert cell["num_examples"] == 32


def test_the_table_is_that_of_the_cells(whole: tuple[Comparison, Path]) -> None:
    done, output = whole
    text = (output / "table.md").read_text()
    rows = json.loads((output / "table.json").read_text())["rows"]
    for row in rows:
        values = [
            cell["score"]["value"]
            for cell in held(output).values()
            if (cell["cell"]["name"], cell["cell"]["epsilon"]) == (row["method"], row["epsilon"])
        ]
        assert sorted(row["values"]) == sorted(values)
        assert row["mean"] == pytest.approx(sum(values) / 2)
        assert row["standard_error"] == pytest.approx(standard_error(values))
        assert f"{100 * row['mean']:.1f} ± {100 * row['standard_error']:.1f}" in text
    best = max(row["mean"] for row in rows if row["epsilon"] is not None)
    assert all(row["marked"] for row in rows if row["mean"] == best and row["epsilon"] is not None)
    assert done.figure is None or done.figure.read_bytes().startswith(b"\x89PNG")


def test_nothing_tells_where_the_model_lies(whole: tuple[Comparison, Path], tiny_bert: Path) -> None:
    _, output = whole
    files = [path for path in output.rglob("*") if path.suffix in (".json", ".md")]
    assert len(files) > 20
    assert [path for path in files if str(tiny_bert.parent) in path.read_text()] == []


def test_layouts_go_round_and_open_methods_run_once_a_seed(grid: Grid) -> None:
    planned = list(cells(replace(grid, seeds=(5, 6, 7)), {"sst2": "head"}))
    assert {(cell.seed, cell.layout) for cell in planned} == {(5, LAYOUTS[0]), (6, LAYOUTS[1]), (7, LAYOUTS[0])}
    assert len(planned) == 3 * (3 * 2 + 2)
    assert {cell.epsilon for cell in planned if cell.name in ("mezo", "zero-shot")} == {None}
    order = [cell.layout for cell in planned]
    assert order == sorted(order)  # a split is prepared once


def test_a_comparison_that_died_goes_on_and_runs_nothing_twice(
    grid: Grid, few_shot: TaskFolder, tmp_path: Path
) -> None:
    grid = replace(grid, names=("dpzero", "zero-shot"), seeds=(0,), layouts=LAYOUTS[:1])
    real, ran = Bench.run, []

    def dying(self: Bench, cell: Any) -> dict[str, Any]:
        if len(ran) == 2:
            raise Stopped("stopped after step 1 of 24")
        ran.append(cell)
        return real(self, cell)

    with mock.patch.object(Bench, "run", dying), pytest.raises(Stopped):
        compare(grid, few_shot, tmp_path)
    before = held(tmp_path)
    assert len(before) == 2
    assert not (tmp_path / "table.md").exists()
    (tmp_path / "cells" / "half.json.new").write_text("{")  # what a kill while writing leaves
    done = compare(grid, few_shot, tmp_path)
    assert (done.total, done.ran) == (3, 1)
    assert {name: held_now for name, held_now in _json(tmp_path).items() if name in before} == before
    assert compare(grid, few_shot, tmp_path).ran == 0


def _json(output: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in (output / "cells").glob("*.json")}


def test_a_changed_setting_is_another_cell_and_a_damaged_one_is_run_again(
    grid: Grid, few_shot: TaskFolder, tmp_path: Path
) -> None:
    grid = replace(grid, names=("dp-aggzo-4",), epsilons=(2.0,), seeds=(0,), layouts=LAYOUTS[:1])
    assert compare(grid, few_shot, tmp_path).ran == 1
    changed = replace(grid, assignments=(*SMALL, "dp-aggzo-4:training.smoothing=0.02"))
    assert compare(changed, few_shot, tmp_path).ran == 1
    assert compare(replace(grid, delta=1e-6), few_shot, tmp_path).ran == 1
    assert compare(grid, few_shot, tmp_path).ran == 0
    with mock.patch("dpzo.experiments.compare.cells.code_digest", return_value="another version"):
        assert compare(grid, few_shot, tmp_path).ran == 1
    for path in (tmp_path / "cells").iterdir():
        path.write_text("{}")
    assert compare(grid, few_shot, tmp_path).ran == 1


def test_features_are_computed_once_a_split(grid: Grid, few_shot: TaskFolder, tmp_path: Path) -> None:
    from dpzo.models import shapes as prepare

    with mock.patch.object(prepare, "kept_features", wraps=prepare.kept_features) as kept:
        done = compare(replace(grid, names=("dpzero", "zero-shot")), few_shot, tmp_path)
    assert done.ran == 2 * 3
    sizes = [len(call.args[1]) for call in kept.call_args_list]
    assert sizes.count(32) == 2 * 2  # train and test of each layout; the start-up checks read a few synthetic rows


def test_sharing_changes_no_bit_of_a_result(grid: Grid, few_shot: TaskFolder, tmp_path: Path) -> None:
    """A method without secret noise gives the same score from a bench that has run others as from a fresh one."""
    grid = replace(grid, names=("dp-aggzo-4", "mezo", "adamw"), epsilons=(2.0,), assignments=(*SMALL[:2],))
    planned = list(cells(grid, {"sst2": part_on(find_task("sst2"), grid.model, "head")}))
    shared = Bench(few_shot)
    together = [shared.run(cell)["score"] for cell in planned]
    for cell, score in zip(planned, together, strict=True):
        if cell.epsilon is None:
            assert Bench(few_shot).run(cell)["score"] == score


def test_lora_trains_without_kept_features(grid: Grid, few_shot: TaskFolder, tmp_path: Path) -> None:
    small = replace(grid, names=("dp-aggzo-2",), trainable="lora", epsilons=(8.0,), seeds=(0, 1), layouts=LAYOUTS[:1])
    done = compare(small, few_shot, tmp_path)
    assert done.ran == 2
    cell = next(iter(_json(tmp_path).values()))
    assert cell["config"]["model"]["trainable"] == "lora"
    assert cell["evaluations_per_record"]["forward"] == pytest.approx(2 * 2 * 24 * 8 / 32)


def test_a_recipe_is_compared_as_a_method(grid: Grid, few_shot: TaskFolder, tmp_path: Path) -> None:
    names = ("dp-aggzo-roberta-large-mnli-eps2-k64", "mezo-roberta-large-sst2")
    done = compare(replace(grid, names=names, seeds=(0,), epsilons=(4.0,), layouts=LAYOUTS[:1]), few_shot, tmp_path)
    assert [(entry.method, entry.epsilon) for entry in done.entries] == [(names[0], 4.0), (names[1], None)]
    cell = next(found for found in _json(tmp_path).values() if found["cell"]["name"] == names[0])
    assert cell["config"]["privacy"]["num_directions"] == 64
    assert cell["config"]["data"]["task"] == "sst2"


def test_a_theorem_stays_a_full_batch(grid: Grid) -> None:
    name = "dpzero-theorem-roberta-large-sst2-eps2"
    (cell,) = cells(
        replace(grid, names=(name,), seeds=(0,), epsilons=(2.0,), layouts=LAYOUTS[:1], assignments=()),
        {"sst2": "head"},
    )
    assert cell.config.privacy.expected_batch_size == 32
    assert cell.config.privacy.relation == "replace_one"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"names": ("dpzro",)}, r"dpzro: no such name; did you mean dpzero\?"),
        ({"names": ("qqqqqqqq",)}, "methods are dp-zo, dpzero"),
        ({"names": ("dpzero", "dpzero")}, "one method is given twice"),
        ({"epsilons": (0.0,)}, "--epsilons"),
        ({"epsilons": (1.0, 1.0)}, "--epsilons: one value is given twice"),
        ({"seeds": ()}, "--seeds is missing"),
        ({"tasks": ("sst",)}, r"did you mean sst2\?"),
        ({"assignments": ("dp-sdg:privacy.steps=3",)}, r"dp-sdg: no such name; did you mean dp-sgd\?"),
    ],
)
def test_what_is_refused_at_once(grid: Grid, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DpzoError, match=said):
        check_grid(replace(grid, **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"names": ("dp-sgd",), "assignments": ("privacy.mechanism=laplace",)}, "laplace does not serve dp-sgd"),
        (
            {"names": ("dpzero",), "assignments": (*SMALL, "dpzero:privacy.relation=neighbours")},
            "`relation` must be one of",
        ),
        ({"names": ("dpzero",), "layouts": ("k-99/seed-1",)}, "no layout"),
        ({"names": ("dpzero",), "layouts": ("k-512/seed-13",)}, "no train split"),
        ({"names": ("dpzero",), "delta": 0.0}, "laplace"),
    ],
)
def test_what_is_refused_before_anything_is_trained(
    grid: Grid, few_shot: TaskFolder, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    run: Callable[..., Any] = mock.Mock()
    with mock.patch.object(comparing.Bench, "run", run), pytest.raises(DpzoError, match=said):
        compare(replace(grid, **changes), few_shot, tmp_path)
    assert not run.called  # type: ignore[attr-defined]


def test_a_cell_whose_card_does_not_grant_its_epsilon_is_refused(
    grid: Grid, few_shot: TaskFolder, tmp_path: Path
) -> None:
    spoilt = ("privacy.epsilon=4",)
    with pytest.raises(DpzoError, match=r"a card grants ε = 3\.99.* where 2 was asked"):
        compare(replace(grid, names=("dpzero",), epsilons=(2.0,), assignments=(*SMALL, *spoilt)), few_shot, tmp_path)


def test_a_model_is_known_by_its_content(tiny_bert: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / tiny_bert.name
    copy.mkdir(parents=True)
    for path in tiny_bert.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    before = model_identity(str(copy), None)
    assert before == model_identity(str(tiny_bert), None)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert model_identity(str(copy), None) != before
    assert model_identity("org/name", "abc") == "org/name@abc"
