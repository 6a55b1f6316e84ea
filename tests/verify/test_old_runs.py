"""Runs that version 0.1.0 made still verify and replay, and the same seeds still train the same bits."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dpzo.config.reading import parse_config
from dpzo.run import folders as runs
from dpzo.run import modules, trained_model
from dpzo.verify import Report, verify

HERE = Path(__file__).resolve().parents[1] / "fixtures"
OF_TEXT = ("head", "lora", "full", "private-count", "table")


@pytest.fixture(scope="module")
def make() -> ModuleType:
    """tests/fixtures/make.py: what the runs were made of."""
    spec = importlib.util.spec_from_file_location("dpzo_tests_fixtures", HERE / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def beside_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs name their base models relative to their own folder."""
    monkeypatch.chdir(HERE)


def failures(report: Report) -> dict[str, str]:
    """The checks that fail; a card's words, which later versions change, are not judged here."""
    return {check.name: check.detail for check in report.checks if check.ok is False and check.name != "card"}


@pytest.mark.parametrize("name", OF_TEXT)
def test_an_old_run_verifies_and_replays(name: str, tmp_path: Path) -> None:
    report = verify(HERE / name)
    assert failures(report) == {}
    assert {"journal", "base", "weights"} <= {check.name for check in report.checks if check.ok}
    replayed = runs.replay(HERE / name, tmp_path / "replayed")
    assert replayed.equals_run is True


def test_an_old_run_of_a_module_verifies_and_replays(make: ModuleType) -> None:
    report = verify(HERE / "module", module=make.regression()[0])
    assert failures(report) == {}
    assert {"journal", "weights"} <= {check.name for check in report.checks if check.ok}
    module = make.regression()[0]
    modules.replay(module, HERE / "module")
    trained = {name: tensor.tolist() for name, tensor in module.state_dict().items()}
    from safetensors.torch import load_file

    stored = load_file(HERE / "module" / modules.WEIGHTS)
    assert trained == {name: tensor.tolist() for name, tensor in stored.items()}


@pytest.mark.parametrize("name", ["head", "lora", "full"])
def test_the_same_seeds_train_the_same_bits(name: str, make: ModuleType, linear: Any, tmp_path: Path) -> None:
    """Under the noise double a run is a function of its config: hashes.json holds the weights of version 0.1.0."""
    file, folder = tmp_path / "records.jsonl", tmp_path / "run"
    file.write_text(make.records("classification"))
    config = parse_config(make.double(name))
    runs.train(config, runs.DataSource(file=file), folder, nonprivate_randomness=linear.Noise)
    trained = json.loads((folder / trained_model.MODEL / trained_model.FINISHED).read_text())["fingerprint"]
    assert trained == json.loads((HERE / "hashes.json").read_text())[name]
