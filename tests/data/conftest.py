"""A chat tokenizer and the scanner of the secrets test, for tests of readers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import transformers

TESTS = Path(__file__).resolve().parents[1]

PLAIN = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<assistant>' }}"
    "{% generation %}{{ m.content + '</s>' }}{% endgeneration %}"
    "{% else %}{{ '<' + m.role + '>' + m.content + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
THOUGHTFUL = (  # like Qwen 3's: the last turn carries an empty thought, earlier ones do not
    "{% for m in messages %}{{ '<' + m.role + '>' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '(thought)' }}{% endif %}{{ m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
TEMPLATES = {"plain": PLAIN, "marked": MARKED, "thoughtful": THOUGHTFUL}


@pytest.fixture(scope="session")
def secrets() -> ModuleType:
    """tests/run/test_secrets.py: its scanner, its scratch home for processes, its words."""
    name = "dpzo_tests_secrets"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS / "run" / "test_secrets.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def templates() -> dict[str, str]:
    """Chat templates by name."""
    return TEMPLATES


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    """One token a byte, and no chat template yet."""
    return transformers.AutoTokenizer.from_pretrained(tiny_llama)
