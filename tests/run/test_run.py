"""The Python API of runs: data in every form, options by keyword, and the `Run` that comes back."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pandas
import pytest
import torch
import yaml

import dpzo
from dpzo.config.reading import dump_config, parse_config
from dpzo.config.schema import RunConfig
from dpzo.data import InMemory, read_records, spool
from dpzo.data.tasks import own_classification
from dpzo.errors import DpzoError
from dpzo.run import finetune as finetuning
from dpzo.run.finetune import chosen_config, keywords
from dpzo.run.journal import Journal, read
from dpzo.run.local import LOCAL, DataSource
from dpzo.run.step_key import STEP_KEY
from dpzo.run.trained_model import FINISHED, MODEL

MARK = "zqj7xk"
LABELS = ("calm", "loud")
UNIT = "<i>person"
"""A name of a column that would be markup in a notebook."""
PEOPLE, STEPS = 12, 4
ROWS = [
    {"text": f"{'LOUD! ' * (i % 2)}{MARK} {i}", "label": LABELS[i % 2], UNIT: i // 2, "unread": None}
    for i in range(2 * PEOPLE)
]
OPTIONS: dict[str, Any] = {
    "labels": LABELS,
    "unit_column": UNIT,
    "max_length": 24,
    "noise_multiplier": 2.0,
    "delta": 1e-3,
    "num_examples": PEOPLE,
    "expected_batch_size": 3,
    "steps": STEPS,
    "num_directions": 2,
    "microbatch_size": 8,
    "learning_rate": 1e-2,
}


# --- one data set in every form


def as_csv(folder: Path) -> Path:
    """The file that every other form is compared with: ids and labels as a spreadsheet writes them."""
    path = folder / "records.csv"
    lines = [f"{row['text']},{row['label']},{row[UNIT]}.0" for row in ROWS]
    path.write_text("\n".join([f"text,label,{UNIT}", *lines]) + "\n")
    return path


def as_two_files(folder: Path) -> list[str]:
    paths = [folder / "a.jsonl", folder / "b.jsonl"]
    for path, rows in zip(paths, (ROWS[:7], ROWS[7:]), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path) for path in paths]


def as_frame(folder: Path) -> pandas.DataFrame:
    return pandas.DataFrame(ROWS, index=range(5, 5 + len(ROWS)))


def as_odd_frame(folder: Path) -> pandas.DataFrame:
    """What frames become: a category of labels, nullable ids of 32-bit floats, columns of Python objects."""
    frame = as_frame(folder)
    return frame.astype({"label": "category", UNIT: "Float32", "text": object})


def as_dataset(folder: Path) -> datasets.Dataset:
    """Labels are numbers beside the names of the classes, in another order than the declared one."""
    names = list(reversed(LABELS))
    columns = {
        "text": [row["text"] for row in ROWS],
        "label": [names.index(str(row["label"])) for row in ROWS],
        UNIT: [row[UNIT] for row in ROWS],
    }
    kinds = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names), UNIT: datasets.Value("int32")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def as_selected_dataset(folder: Path) -> datasets.Dataset:
    """Rows in another order, put right by an index, and a format for training."""
    backwards = datasets.Dataset.from_list(list(reversed(ROWS)))
    return backwards.select(range(len(ROWS) - 1, -1, -1)).with_format("torch")


def as_transformed_dataset(folder: Path) -> datasets.Dataset:
    """A transform of the caller's makes the texts when they are read."""
    bare = datasets.Dataset.from_list([{**row, "text": str(row["text"]).replace(MARK, "")} for row in ROWS])
    texts = {str(row["text"]).replace(MARK, ""): row["text"] for row in ROWS}
    return bare.with_transform(lambda batch: {**batch, "text": [texts[text] for text in batch["text"]]})


class Series:
    """What dpzo asks of a column of polars."""

    def __init__(self, cells: Sequence[Any]) -> None:
        self.cells = cells

    def slice(self, start: int, length: int) -> Series:
        return Series(self.cells[start : start + length])

    def to_list(self) -> list[Any]:
        return list(self.cells)


class DataFrame:
    """What dpzo asks of a frame of polars, where polars is not installed."""

    __module__ = "polars.dataframe.frame"

    def __init__(self, rows: Sequence[dict[str, Any]], schema_overrides: dict[str, str]) -> None:
        self.rows = rows
        self.columns = list(rows[0])
        self.schema = {name: schema_overrides.get(name, "Unknown") for name in self.columns}

    def __len__(self) -> int:
        return len(self.rows)

    def get_column(self, name: str) -> Series:
        return Series([row[name] for row in self.rows])


def polars_frame(rows: Sequence[dict[str, Any]], float32: str) -> Any:
    """A frame of polars with a column of 32-bit floats; of its double where polars is not installed."""
    rows = [{**row, float32: None if row[float32] is None else float(row[float32])} for row in rows]
    try:
        import polars
    except ImportError:
        return DataFrame(rows, schema_overrides={float32: "Float32"})
    return polars.DataFrame(rows, schema_overrides={float32: polars.Float32})


def as_polars(folder: Path) -> Any:
    return polars_frame(ROWS, UNIT)


FORMS: dict[str, Callable[[Path], Any]] = {
    "a path as a text": lambda folder: str(as_csv(folder)),
    "several paths": as_two_files,
    "a source": lambda folder: DataSource(file=as_csv(folder)),
    "dicts": lambda folder: ROWS,
    "a tuple of dicts": lambda folder: tuple(ROWS),
    "pandas": as_frame,
    "pandas, other types": as_odd_frame,
    "datasets": as_dataset,
    "datasets, an index and a format": as_selected_dataset,
    "datasets, a transform": as_transformed_dataset,
    "polars": as_polars,
}


@dataclass(frozen=True)
class Made:
    """A finished run on the file, and where it came from."""

    run: dpzo.Run
    model: Path
    weights: str


def weights(run: dpzo.Run) -> str:
    return str(json.loads((run.path / MODEL / FINISHED).read_text())["fingerprint"])


@pytest.fixture(scope="module")
def made(tiny_bert: Path, linear: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    run = dpzo.finetune(tiny_bert, as_csv(folder), output=folder / "run", nonprivate_randomness=linear.Noise, **OPTIONS)
    return Made(run, tiny_bert, weights(run))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_data_trains_the_same_weights(
    form: str, made: Made, linear: ModuleType, tmp_path: Path
) -> None:
    run = dpzo.finetune(
        made.model, FORMS[form](tmp_path), output=tmp_path / "run", nonprivate_randomness=linear.Noise, **OPTIONS
    )
    assert weights(run) == made.weights
    assert run.releases() == made.run.releases()


def test_other_data_trains_other_weights(made: Made, linear: ModuleType, tmp_path: Path) -> None:
    """What the test above would see of a record that is read otherwise."""
    rows = [{**row, "label": LABELS[0]} if i == 3 else row for i, row in enumerate(ROWS)]
    run = dpzo.finetune(made.model, rows, output=tmp_path / "run", nonprivate_randomness=linear.Noise, **OPTIONS)
    assert weights(run) != made.weights


def test_messages_are_read_from_a_frame_as_from_a_file(tmp_path: Path) -> None:
    """pandas gives the lists in a parquet file as arrays."""
    from dpzo.data import own_chat

    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": f"good day {MARK}"}]
    frame = pandas.DataFrame({"messages": [turns, turns]})
    frame.to_parquet(tmp_path / "chats.parquet")
    read_back = pandas.read_parquet(tmp_path / "chats.parquet")
    assert type(read_back["messages"][0]).__name__ == "ndarray"
    config = parse_config({"model": {"name": "x"}, "data": {"kind": "chat"}, "privacy": {"delta": 1e-5}})
    found = [
        read_records([place], own_chat(), config.data).fields["messages"]
        for place in (tmp_path / "chats.parquet", InMemory(read_back), InMemory([{"messages": turns}] * 2))
    ]
    assert found[0] == found[1] == found[2]


# --- nothing of what is held in memory is left on disk


def leaking(secrets: ModuleType, folder: Path) -> set[str]:
    """Names of files anywhere below the folder that hold the mark, in any encoding that the scanner knows."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name for path in paths if any("a word" in leak for leak in secrets.leaks("", path.read_bytes()))}


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every temporary folder and cache of this process, within tmp_path."""
    for name in ("TMPDIR", "HOME", "HF_HOME", "XDG_CACHE_HOME"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "TMPDIR"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "HF_HOME")
    return tmp_path


@pytest.mark.parametrize("form", ["dicts", "pandas", "datasets", "polars"])
def test_no_copy_is_left_on_disk(
    form: str, made: Made, homes: Path, linear: ModuleType, secrets: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    spilled: list[int] = []
    write = spool.Spool.write
    monkeypatch.setattr(spool.Spool, "write", lambda self, data: (spilled.append(len(data)), write(self, data))[1])
    monkeypatch.setattr(spool.TextSpool.__init__, "__defaults__", (0,))  # every text goes to the file without a name
    data, seen = FORMS[form](homes), set[str]()

    def watch(progress: Any) -> Callable[[Any], None]:
        return lambda release: seen.update(leaking(secrets, homes))

    run = dpzo.finetune(
        made.model, data, output=homes / "run", watch=watch, nonprivate_randomness=linear.Noise, **OPTIONS
    )
    assert weights(run) == made.weights
    assert len(spilled) >= len(ROWS)
    assert seen | leaking(secrets, homes) == set()
    assert yaml.safe_load((run.path / LOCAL).read_text()) == {
        "data": {"memory": "not kept"},
        "base": str(made.model.resolve()),
    }


def test_a_copy_would_be_found(homes: Path, secrets: ModuleType) -> None:
    as_csv(homes / "TMPDIR")
    (homes / "HOME" / "wide").write_text(MARK, encoding="utf-16")
    assert secrets.MARK == MARK
    assert leaking(secrets, homes) == {"records.csv", "wide"}


def stopping(at: int) -> Any:
    """A watcher that asks for a stop, as Ctrl-C does, after so many releases."""

    def watch(progress: Any) -> Callable[[Any], None]:
        def seen(release: Any) -> None:
            if release.step == at - 1:
                os.kill(os.getpid(), signal.SIGINT)

        return seen

    return watch


def test_an_unfinished_run_is_loaded_and_resumed_with_its_data(
    made: Made, linear: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, noise, frame = tmp_path / "run", linear.Noise, as_frame(tmp_path)
    with pytest.raises(dpzo.Stopped):
        dpzo.finetune(made.model, frame, output=folder, watch=stopping(2), nonprivate_randomness=noise, **OPTIONS)
    run = dpzo.load(folder)
    assert not run.is_finished
    assert repr(run) == f"Run({str(folder)!r}: no guarantee, 2 of 4 steps, unfinished)"
    assert "2 of 4 steps, unfinished" in run._repr_html_()
    assert run.card["steps"]["spent"] == len(run.releases()) == 2
    for ask in (run.model, run.tokenizer, lambda: run.generate("x"), lambda: run.evaluate(frame)):
        with pytest.raises(DpzoError, match="not finished"):
            ask()
    for again in (run.resume, lambda **given: dpzo.resume(folder, **given)):
        with pytest.raises(DpzoError, match=r"no copy is kept; give the same data again.*dpzo\.resume\(.*data"):
            again(nonprivate_randomness=noise)
    assert run.resume(frame, nonprivate_randomness=noise) is run
    assert weights(run) == made.weights
    assert run.is_finished
    assert repr(run) == f"Run({str(folder)!r}: no guarantee, 4 of 4 steps)"
    monkeypatch.setattr("dpzo.run.folders.resume", lambda *given, **more: pytest.fail("nothing is left to do"))
    assert dpzo.resume(folder, frame).card == run.card


def test_a_file_that_has_moved_is_given_to_resume(made: Made, linear: ModuleType, tmp_path: Path) -> None:
    folder, noise, file = tmp_path / "run", linear.Noise, as_csv(tmp_path)
    with pytest.raises(dpzo.Stopped):
        dpzo.finetune(made.model, file, output=folder, watch=stopping(1), nonprivate_randomness=noise, **OPTIONS)
    moved = file.rename(tmp_path / "moved.csv")
    with pytest.raises(DpzoError, match="no such file"):
        dpzo.resume(folder, nonprivate_randomness=noise)
    assert weights(dpzo.resume(folder, moved, nonprivate_randomness=noise)) == made.weights


# --- data that is refused


def read_all(data: Any, **columns: Any) -> Any:
    """The data as a run's readers see them."""
    config = chosen_config(None, {"model": "x", "delta": 1e-5, "labels": LABELS, **columns})
    return read_records(DataSource.of(data).places, own_classification(LABELS), config.data)


def endless() -> Iterator[dict[str, str]]:
    while True:
        yield {"text": "a", "label": "calm"}


GOOD = {"text": "a", "label": "calm"}
BAD_DATA: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (lambda: None, "data: is a NoneType; give a path, a list of paths, a pandas"),
    "a number": (lambda: 3, "data: is a int; give a path"),
    "a dict": (lambda: {"text": ["a"]}, "data: is a dict; give a path"),
    "an empty list": (list, "data: is a list of neither paths nor dicts; give a path"),
    "a list of numbers": (lambda: [3, 4], "data: is a list of neither paths nor dicts"),
    "a series": (lambda: pandas.Series(["a"]), "data: is a Series; give a path"),
    "a stream": (endless, r"data: a stream can be read only once; collect it"),
    "a stream of datasets": (lambda: as_dataset(Path()).to_iterable_dataset(), "data: a stream can be read only once"),
    "splits": (
        lambda: datasets.DatasetDict(train=as_dataset(Path())),
        r"data: holds several splits; .*data\['train'\]",
    ),
    "no rows": (lambda: pandas.DataFrame({"text": [], "label": []}), "data: has no records"),
    "an empty data set": (lambda: as_dataset(Path()).select([]), "data: has no records"),
    "a row that is none": (lambda: [GOOD, ("a", "calm")], "data, row 2: is a tuple; each record must look like"),
    "a key that is no text": (lambda: [{1: "a"}], "data, row 1: has a key that is not a text"),
    "two columns of one name": (
        lambda: pandas.DataFrame([["a", "calm", "b"]], columns=["text", "label", "text"]),
        "data: has two columns of one name",
    ),
    "no such column": (
        lambda: pandas.DataFrame({"review": ["a"], "label": ["calm"]}),
        r"data: has no column 'text' .*\(it has 'review', 'label'\)",
    ),
    "a missing text": (
        lambda: pandas.DataFrame({"text": ["a", None], "label": ["calm"] * 2}),
        "data, row 2: column 'text' holds null, not a text",
    ),
    "a missing label": (
        lambda: polars_frame([{**GOOD, "x": 1.0}, {"text": "b", "label": None, "x": None}], "x"),
        "data, row 2: column 'label' is empty",
    ),
    "a label of no class": (
        lambda: datasets.Dataset.from_list([GOOD, {**GOOD, "label": MARK}]),
        "data, row 2: column 'label' holds a label that is not declared",
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused_in_words(case: str) -> None:
    make, said = BAD_DATA[case]
    with pytest.raises(DpzoError, match=said) as refused:
        read_all(make())
    assert MARK not in str(refused.value)
    assert "\n" not in str(refused.value)


ROUNDED = [{**GOOD, "person": float(2**24)}, {**GOOD, "person": 1.0}]
ROUNDED_FRAMES: dict[str, Callable[[], Any]] = {
    "pandas": lambda: pandas.DataFrame(ROUNDED).astype({"person": "float32"}),
    "pandas, nullable": lambda: pandas.DataFrame(ROUNDED).astype({"person": "Float32"}),
    "pandas, Arrow": lambda: pandas.DataFrame(ROUNDED).astype({"person": "float[pyarrow]"}),
    "pandas, categories": lambda: (
        pandas.DataFrame(ROUNDED).astype({"person": "float32"}).astype({"person": "category"})
    ),
    "polars": lambda: polars_frame(ROUNDED, "person"),
    "datasets": lambda: datasets.Dataset.from_list(ROUNDED).cast_column("person", datasets.Value("float32")),
}


@pytest.mark.parametrize("form", ROUNDED_FRAMES)
def test_an_id_that_a_32_bit_float_has_rounded_is_refused(form: str) -> None:
    """2²⁴ stands for 2²⁴ + 1 as well: two people would be one or one would be two."""
    with pytest.raises(DpzoError, match="data, row 1: column 'person' holds a rounded number"):
        read_all(ROUNDED_FRAMES[form](), unit_column="person")
    assert read_all([{**row, "person": int(row["person"])} for row in ROUNDED], unit_column="person").num_units == 2


def test_what_the_callers_own_code_raises_is_withheld() -> None:
    def broken(batch: dict[str, Any]) -> dict[str, Any]:
        raise ValueError(f"cannot read {batch['text']}")

    with pytest.raises(DpzoError, match="data: reading it raised ValueError, whose message is withheld") as refused:
        read_all(as_dataset(Path()).with_transform(broken))
    assert MARK not in str(refused.value)


def test_a_source_shows_nothing_of_what_it_holds() -> None:
    source = DataSource.of(ROWS)
    assert MARK not in repr(source) + str(source.places[0]) + repr(source.places[0]) + str(source.to_dict())
    assert "text" in next(InMemory(ROWS).rows(((), ())))[1]


# --- options


def test_every_option_has_one_keyword() -> None:
    """A field of the config that shares its name with another would have to be given by `config=`."""
    assert {name: fields for name, fields in keywords().items() if len(fields) != 1} == {}
    assert keywords()["model"] == ["model.name"]


def test_options_and_configs_of_every_form_say_the_same(tmp_path: Path) -> None:
    options = {"model": "m", "delta": 1e-5, "epsilon": 2.0, "labels": LABELS, "lora_rank": 4, "clip_norm": 3.0}
    wanted = chosen_config(None, options)
    assert (wanted.model.lora_rank, wanted.privacy.clip_norm, wanted.data.labels) == (4, 3.0, LABELS)
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(wanted))
    tree = wanted.model_dump(mode="json")
    dotted = {f"{group}.{field}": value for group, fields in tree.items() for field, value in fields.items()}
    for config in (wanted, tree, dotted, file, str(file)):
        assert chosen_config(config, {}) == wanted
        assert chosen_config(config, {"epsilon": 3.0, "model": "n"}) == chosen_config(
            None, {**options, "epsilon": 3.0, "model": "n"}
        )


BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt keyword": ({"epsilom": 2}, "^epsilom: no such option of dpzo.finetune; did you mean epsilon"),
    "a name of no field": ({"name": "m"}, "^name: no such option"),
    "something else": ({"zqj": 2}, "zqj: no such option of dpzo.finetune; docs/configuration.md"),
    "a bad value": ({"steps": -1, "delta": 1e-5}, "steps.*greater than or equal to 1"),
    "a config that is none": ({"config": 3}, "config: is a int; give a RunConfig, a mapping"),
    "a group that is none": ({"config": {"privacy": 3}}, "config: privacy is a int; give a mapping of its fields"),
    "no such file": ({"config": "nowhere.yaml"}, "nowhere.yaml: No such file"),
    "a module for a model": ({"model": torch.nn.Linear(1, 1)}, "model: is a Linear; .* use dpzo.fit for a module"),
    "a config for a model": ({"model": {"privacy": {}}}, "model: is a dict; give the config as config="),
    "no data": ({"data": None}, "data: is missing; give a path"),
    "no delta": ({}, "--delta is missing"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_refused_before_anything_is_read(case: str, tmp_path: Path) -> None:
    given, said = BAD_OPTIONS[case]
    with pytest.raises(DpzoError, match=said):
        dpzo.finetune(**{"model": "m", "data": "x.csv", "output": tmp_path / "run", **given})
    assert not (tmp_path / "run").exists()


def test_a_keyword_of_two_fields_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning, "keywords", lambda: {"rank": ["model.rank", "training.rank"]})
    with pytest.raises(DpzoError, match=r"rank: names model.rank and training.rank; give it as config=\{'model.rank'"):
        chosen_config(None, {"rank": 3})


def test_names_mean_one_thing() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'train': use dpzo\.finetune, or dpzo\.fit"):
        _ = dpzo.train
    assert dpzo.finetune.__module__ == "dpzo.run.finetune"
    assert not isinstance(dpzo.replay, type(sys))


# --- the run


def test_a_run_says_what_it_did(made: Made) -> None:
    run = dpzo.load(str(made.run.path))
    assert run.path == made.run.path
    assert run.card == json.loads((run.path / "privacy_card.json").read_text())
    assert run.card_text == (run.path / "privacy_card.md").read_text()
    run.card["steps"].clear()  # the caller's own copy
    assert run.card["steps"]["planned"] == STEPS
    assert (run.plan.steps, run.plan.num_examples, run.plan.noise_multiplier) == (STEPS, PEOPLE, 2.0)
    assert isinstance(run.config, RunConfig)
    assert (run.config.data.labels, run.config.training.learning_rate) == (LABELS, 1e-2)
    assert run.config.training.smoothing is not None  # derived


def test_releases_are_the_journals(made: Made, linear: ModuleType, tmp_path: Path) -> None:
    header, *lines = [json.loads(line) for line in (made.run.path / "journal.jsonl").read_text().splitlines()]
    unit = header["header"]["lattice_unit"]
    table = made.run.releases()
    assert [row["values"] for row in table] == [line["values"] for line in lines]
    assert [row["slopes"] for row in table] == [[value * unit for value in line["values"]] for line in lines]
    assert [(row["step"], row["burnt"]) for row in table] == [(step, False) for step in range(STEPS)]
    assert list(pandas.DataFrame(table).columns) == ["step", "burnt", "values", "slopes"]
    Journal.create(tmp_path, linear.make_job().header).close(clean=False)
    (tmp_path / STEP_KEY).unlink()
    Journal.reopen(tmp_path).close(clean=True)
    assert dpzo.Run(tmp_path).releases() == [{"step": 0, "burnt": True, "values": None, "slopes": None}]


def test_a_notebook_shows_the_claim_and_no_markup_of_strangers(made: Made) -> None:
    shown = made.run._repr_html_()
    assert "No guarantee: at least one assumption below fails" in shown
    assert "&lt;i&gt;person" in shown
    assert "<i>" not in shown
    assert shown.count("<div>") == shown.count("</div>") == 1


def test_a_folder_that_holds_no_run(tmp_path: Path) -> None:
    empty = dpzo.Run(tmp_path / "<b>nowhere")
    assert "no readable journal.jsonl here" in repr(empty)
    assert "&lt;b&gt;nowhere" in empty._repr_html_()
    assert "<b>" not in empty._repr_html_()
    with pytest.raises(DpzoError, match="no readable journal"):
        dpzo.load(tmp_path)
    with pytest.raises(DpzoError, match="run: is a int"):
        dpzo.load(3)  # type: ignore[arg-type]


def test_a_run_from_memory_evaluates_verifies_and_replays(made: Made, tmp_path: Path) -> None:
    """With secret noise: the claim stands."""
    run = dpzo.finetune(made.model, as_frame(tmp_path), output=tmp_path / "run", **OPTIONS)
    assert run.card["guarantee"]
    assert f"ε = {run.card['epsilon']:.3f}"[:-1] in repr(run)
    assert "is differentially private at ε = " in run._repr_html_()
    report = run.verify()
    assert report.ok, report.first_bad
    assert dpzo.replay(run.path, tmp_path / "rebuilt").equals_run is True
    assert run.replay(tmp_path / "again").fingerprint == weights(run)
    scores = [run.evaluate(form(tmp_path), data_is="public") for form in (as_frame, as_dataset, as_csv)]
    assert scores[0] == scores[1] == scores[2] == dpzo.evaluate(run.path, ROWS, data_is="public")
    assert run.card["findings"] == []
    run.evaluate(ROWS)  # private unless it is said to be public
    assert run.card["findings"] == [
        "Once evaluated on private data: no ε covers the results, or what was chosen by them"
    ]
    assert "evaluated on private data" in run._repr_html_()
    with pytest.raises(DpzoError, match="data_is: must be public or private"):
        run.evaluate(ROWS, data_is="secret")  # type: ignore[arg-type]


def test_model_and_tokenizer_are_the_callers_own(made: Made) -> None:
    model, tokenizer = made.run.model(), made.run.tokenizer()
    assert not model.training
    tokens = tokenizer(["good day"], return_tensors="pt")
    with torch.no_grad():
        assert model(**tokens).shape == (1, len(LABELS))
        before = made.run.evaluate(ROWS, data_is="public")
        for parameter in model.parameters():
            parameter.zero_()
    assert made.run.evaluate(ROWS, data_is="public") == before


def test_a_causal_run_generates(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"once {i}", "completion": " there was"} for i in range(PEOPLE)]
    options = {name: value for name, value in OPTIONS.items() if name not in ("labels", "unit_column")}
    told: list[str] = []
    run = dpzo.finetune(tiny_llama, rows, output=tmp_path / "run", tell=told.append, max_answer_tokens=8, **options)
    assert "data: read as --kind completion, by the names of its columns" in told
    said = run.generate(["once", "twice"], max_new_tokens=3)
    assert said == dpzo.generate(run.path, ["once", "twice"], max_new_tokens=3)
    monkeypatch.setattr("dpzo.run.run.load_trained", lambda *given: pytest.fail("loaded again"))
    assert run.generate("once", max_new_tokens=3) == said[:1]


def test_a_run_of_fit_is_a_run_too(tmp_path: Path) -> None:
    x = torch.arange(40.0).reshape(20, 2) / 40
    plan = dpzo.solve_plan(num_examples=20, expected_batch_size=5, steps=3, delta=1e-3, epsilon=4, num_directions=2)

    def start() -> torch.nn.Linear:
        module = torch.nn.utils.skip_init(torch.nn.Linear, 2, 1)
        with torch.no_grad():
            module.weight.fill_(0.5)
            module.bias.fill_(0.0)
        return module

    trained, folder = start(), tmp_path / "run"
    card = dpzo.fit(
        trained,
        lambda module, batch: module(batch["x"])[:, 0] ** 2,
        x,
        plan=plan,
        settings=dpzo.Settings(0.1),
        output=folder,
    )
    run = dpzo.load(folder)
    assert (run.card, run.plan, run.is_finished, len(run.releases())) == (card, plan, True, 3)
    rebuilt = start()
    assert dpzo.replay(folder, rebuilt).equals_run is True
    assert torch.equal(rebuilt.weight, trained.weight)
    assert run.verify(module=start()).ok
    (folder / "trained.safetensors").unlink()
    assert run.replay(start()).equals_run is None
    for ask in (run.model, run.tokenizer, run.resume, lambda: run.config, lambda: run.replay(tmp_path / "new")):
        with pytest.raises(DpzoError, match=r"is a run of dpzo\.fit, which"):
            ask()
    with pytest.raises(DpzoError, match=r"give the run's folder first: dpzo\.replay\(run, module\)"):
        dpzo.replay(rebuilt, folder)  # type: ignore[arg-type]


def test_the_journal_of_a_loaded_run_is_verified(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("journal.jsonl", "journal.head"):
        (folder / name).write_bytes((made.run.path / name).read_bytes())
    assert dpzo.load(folder).releases() == made.run.releases()
    path = folder / "journal.jsonl"
    path.write_text(path.read_text().replace('"values":[', '"values":[1', 1))
    with pytest.raises(DpzoError, match="line 2"):
        dpzo.load(folder)
    assert read(made.run.path).num_steps == STEPS


@pytest.mark.parametrize("name", ["full", "head", "lora", "module", "private-count", "table"])
def test_a_run_of_an_older_version_is_loaded(name: str) -> None:
    run = dpzo.load(Path(__file__).resolve().parents[1] / "fixtures" / name)
    assert run.card["claim"] == json.loads((run.path / "privacy_card.json").read_text())["claim"]
    assert len(run.releases()) == run.plan.steps == run.card["steps"]["spent"]
    assert run.card["claim"].split(" (")[0] in run._repr_html_()
    if name != "module":
        assert run.config.privacy.delta == run.plan.delta
