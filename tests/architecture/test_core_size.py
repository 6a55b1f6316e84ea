"""The audit core can be read in one sitting: six files, at most 400 lines of code without docstrings."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import dpzo

CORE = ("randomness", "mechanisms", "sampling", "events", "channel", "plan")
LIMIT = 400
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """Lines that hold code: not blank, not only a comment, not part of a docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        # A string that stands alone is documentation: of a module, a class, a function or the constant before it.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            assert node.end_lineno is not None
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def test_the_count_counts_code() -> None:
    lines = [
        *('"""A', "", 'module."""', "", "# why"),
        *("def f(", "    x: int,  # a name", ") -> str:", '    """One."""'),
        *('    y = """a', '    b"""', "", "    return y", ""),
    ]
    assert code_lines("\n".join(lines)) == 6


def test_the_core_stays_within_its_limit() -> None:
    folder = Path(dpzo.__file__).parent / "privacy"
    counts = {name: code_lines((folder / f"{name}.py").read_text()) for name in CORE}
    total = sum(counts.values())
    print(f"audit core: {total} lines of code of {LIMIT} ({counts})")
    assert total <= LIMIT, counts
    others = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert others == set(CORE)
