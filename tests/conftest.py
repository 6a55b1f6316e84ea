"""What tests of several rooms share: the linear double, tiny models, the data folder."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

HERE = Path(__file__).resolve().parent

# Neither how busy a machine is nor which examples happen to be drawn decides a test. With DPZO_FUZZ, as `make fuzz`
# sets it, they are new ones each time.
settings.register_profile("dpzo", deadline=None, derandomize="DPZO_FUZZ" not in os.environ)
settings.load_profile("dpzo")


def _module(name: str, path: Path) -> ModuleType:
    """A helper module by its path: tests are no package, and the path of imports stays as it is."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up by name
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Each worker gets a hash seed of its own, so that the order of sets differs between them from run to run alike."""
    os.environ["PYTHONHASHSEED"] = "0"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """A worker's process starts after this hook of the worker before it."""
    os.environ["PYTHONHASHSEED"] = str(int(node.gateway.id.removeprefix("gw")) + 1)


@pytest.fixture(scope="session")
def linear() -> ModuleType:
    """tests/doubles/linear.py: a run of a millisecond a step, with noise keyed by the step."""
    return _module("dpzo_tests_linear", HERE / "doubles" / "linear.py")


@pytest.fixture(scope="session")
def secrets() -> ModuleType:
    """tests/run/test_secrets.py: its scanner, its scratch home for processes, its words."""
    return _module("dpzo_tests_secrets", HERE / "run" / "test_secrets.py")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two layers with a byte-level tokenizer, saved to a folder."""
    return _module("dpzo_tests_tiny", HERE / "doubles" / "tiny.py").save_bert(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers, likewise."""
    return _module("dpzo_tests_tiny", HERE / "doubles" / "tiny.py").save_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def shared_folder() -> Callable[[str], Path]:
    """`shared_folder("models/stories260K")` → that folder of the shared data; skips where it is absent."""

    def find(name: str) -> Path:
        root = Path(os.environ.get("DPZO_SHARED_DATA", HERE.parents[1] / "shared" / "data"))
        if not (root / name).exists():
            pytest.skip(f"no {name}: set DPZO_SHARED_DATA to the folder that holds it")
        return root / name

    return find


@pytest.fixture(scope="session")
def everyday_steps() -> ModuleType:
    """tests/doubles/everyday.py: commands on local models in processes that bar and record the network."""
    return _module("dpzo_tests_everyday", HERE / "doubles" / "everyday.py")


@pytest.fixture(scope="session")
def everyday(everyday_steps: ModuleType, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The workplace in which a run went from plan to signature: interrupted, resumed, replayed, evaluated, verified."""
    place = everyday_steps.Workplace(tmp_path_factory.mktemp("everyday"))
    everyday_steps.give(place.scratch)
    codes, _, told = place.run(*everyday_steps.steps(tiny_bert))
    assert codes == [0, 130, 0, 0, 0, 0, 0], told
    return place
