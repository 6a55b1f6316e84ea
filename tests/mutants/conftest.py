"""Planting faults into copies of the project's modules, and the checks that have to catch them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Plant = Callable[..., ModuleType]
_NUMBERS = count()


def _execute(name: str, path: Path, source: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


@pytest.fixture(scope="session")
def checks() -> ModuleType:
    """tests/mutants/checks.py: one named check a fault, each usable on any object of the same shape."""
    name, path = "dpzo_tests_checks", Path(__file__).with_name("checks.py")
    return sys.modules[name] if name in sys.modules else _execute(name, path, path.read_text(encoding="utf-8"))


@pytest.fixture
def planted() -> Iterator[Plant]:
    """`planted(module, (old, new), …, name=value, …)` → a copy of the module with these lines and names exchanged.

    Each `old` must occur exactly once, so that a fault can never be planted beside the code it is about. The module
    itself stays as it is.
    """
    made: list[str] = []

    def plant(module: ModuleType, *swaps: tuple[str, str], **names: Any) -> ModuleType:
        assert module.__file__ is not None
        path = Path(module.__file__)
        source = path.read_text(encoding="utf-8")
        for old, new in swaps:
            assert source.count(old) == 1, f"{path.name}: {old!r} is there {source.count(old)} times: plant it anew"
            source = source.replace(old, new)
        made.append(f"dpzo_planted_{next(_NUMBERS)}")
        copy = _execute(made[-1], path, source)
        for name, value in names.items():
            assert hasattr(copy, name), f"{path.name} has no {name} to exchange"
            setattr(copy, name, value)
        return copy

    yield plant
    for name in made:
        del sys.modules[name]
