"""Count the code that the guarantee depends on: `python -m dpzo.audit.code_size`.

Only lines of code count: no blank lines, comments or documentation. The import closure of a file is the file itself,
its imports from this package anywhere except under `if TYPE_CHECKING`, and so on, with the packages that hold
these modules. `dpzo/__init__.py` is excluded: it imports nothing until one of its names is used.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

CORE = tuple(f"dpzo.privacy.{name}" for name in ("events", "randomness", "mechanisms", "sampling", "channel", "plan"))
ACCOUNTING = "dpzo.privacy.accounting"
CORE_LIMIT, CLOSURE_LIMIT, WHOLE_LIMIT = 400, 500, 1100
"""Most lines of code: of the six files; of their import closure without accounting; with it."""

_ROOT = Path(__file__).resolve().parents[2]
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
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def closure(*, accounting: bool) -> dict[str, int]:
    """Modules in the import closure of the six core files, with their lines of code; `accounting`: with its own."""
    found: dict[str, int] = {}
    waiting = list(CORE)
    while waiting:
        module = waiting.pop()
        if module in found or (module.startswith(ACCOUNTING) and not accounting):
            continue
        source = _file(module).read_text(encoding="utf-8")
        found[module] = code_lines(source)
        waiting += imported(source)
        waiting += [package for package in _packages(module) if package != "dpzo"]
    return dict(sorted(found.items()))


def imported(source: str) -> set[str]:
    """Modules of this package that a source imports, at its head or within a function."""
    found = set()
    for node in _executed(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if _file(name).is_file() else node.module for name in names]
        else:
            continue
        found |= {name for name in names if name.startswith("dpzo.")}
    return found


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    if isinstance(node, ast.ImportFrom) and node.level:
        raise ValueError("a relative import is not followed")
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _executed(child)


def _packages(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _file(module: str) -> Path:
    path = _ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def main() -> None:
    """Print every counted file, and the three sums with their limits."""
    small, whole = closure(accounting=False), closure(accounting=True)
    for module, lines in whole.items():
        print(f"{lines:5}  {module}")
    print(f"{sum(whole[module] for module in CORE):5}  the six files (limit {CORE_LIMIT})")
    print(f"{sum(small.values()):5}  their import closure, accounting aside (limit {CLOSURE_LIMIT})")
    print(f"{sum(whole.values()):5}  with accounting (limit {WHOLE_LIMIT})")


if __name__ == "__main__":
    main()
