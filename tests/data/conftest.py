"""A chat tokenizer and chat templates, for tests of readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

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
def templates() -> dict[str, str]:
    """Chat templates by name."""
    return TEMPLATES


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    """One token a byte, and no chat template yet."""
    return transformers.AutoTokenizer.from_pretrained(tiny_llama)
