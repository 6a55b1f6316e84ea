"""Every fenced block of README.md and docs/*.md runs as printed, or is listed here with the reason why not.

What a fence says after its language: `title="name.csv"` writes the block to that file; `title="takes a minute"` moves
it to the slow tests; any other title is for the reader. A page's blocks run from top to bottom, in one folder and, for
Python, in one namespace. In `console` blocks lines after `$ ` are commands and the rest is what they print, `...`
standing for anything.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import torch
from typer.main import get_command

from dpzo import zo
from dpzo.cli import main
from dpzo.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Blocks that another test runs, since it also checks the tables beside them or needs what it prepares.
ELSEWHERE = {
    ("verifying.md", "sh", "without dpzo"): "tests/verify/test_signature.py",
    ("dpzero.md", "pycon", ""): "tests/experiments/recipes/test_dpzero_page.py",
    ("noise.md", "pycon", ""): "tests/docs/test_noise_page.py",
    ("README.md", "python", ""): "tests/docs/test_readme.py",
    ("recipes.md", "sh", "needs two public files"): "tests/cli/test_experiments.py",
}

# All that is not run anywhere: page, reason, how it begins. A new one has to be added here, in sight of a reviewer.
NOT_RUN = {
    ("README.md", "builds an environment of its own", "make demo"),
    ("README.md", "needs the environment and the demo's minutes", "source .venv/bin/activate"),
    ("README.md", "needs the papers' data", "dpzo recipe list"),
    ("index.md", "installs", "make install && source .venv/bin/activate"),
    ("tasks.md", "needs the papers' data", "dpzo train --model ./my-encoder --task trec"),
    ("recipes.md", "needs the papers' data", "dpzo recipe run dpzero-roberta-large-sst2-eps2"),
    ("recipes.md", "needs the papers' data", "dpzo compare dp-zo dpzero dp-aggzo-16"),
    ("comparison.md", "needs the papers' data", "dpzo compare dp-zo dpzero dp-aggzo-16"),
    ("comparison.md", "needs the papers' data", "dpzo compare dpzero dp-aggzo-16 dp-sgd"),
}

RUNNABLE = {"python", "pycon", "sh", "console"}
FILES = {"csv", "json", "yaml", "jsonl"}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Fence:
    page: Path
    line: int
    language: str
    title: str
    body: str

    @property
    def slow(self) -> bool:
        return self.title.startswith("takes ")

    @property
    def file(self) -> bool:
        return bool(re.fullmatch(r"[\w-]+\.\w+", self.title))

    @property
    def not_run(self) -> bool:
        return any(self.page.name == page and self.body.startswith(start) for page, _, start in NOT_RUN)

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"


def fences(page: Path) -> list[Fence]:
    found, lines, number = [], page.read_text(encoding="utf-8").splitlines(), 0
    while number < len(lines):
        opened = re.fullmatch(r"( *)```(.*)", lines[number])
        number += 1
        if opened is None:
            continue
        start, indent, body = number, opened[1], []
        while lines[number] != f"{indent}```":
            body.append(lines[number].removeprefix(indent))
            number += 1
        number += 1
        if opened[2].startswith("{"):  # a directive of the site
            continue
        language, _, rest = opened[2].partition(" ")
        title = re.fullmatch(r'title="([^"]*)"', rest)
        assert title or not rest, f"{page.name}:{start}: the site shows no block with {rest!r} after its language"
        found.append(Fence(page, start, language, title[1] if title else "", "\n".join(body)))
    return found


ALL = {page: fences(page) for page in PAGES}


def commands(body: str) -> Iterator[str]:
    """Logical lines of a shell block: continued lines joined, comments and blank lines dropped."""
    for line in re.sub(r"\\\n\s*", " ", body).splitlines():
        if line.strip() and not line.startswith("#"):
            yield line


def execute(command: str) -> str:
    """What a command prints. `dpzo` runs in this process; all else in a shell."""
    words = shlex.split(command, comments=True)
    if words[0] != "dpzo" or "|" in words or ">" in words:
        path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        ran = subprocess.run(["bash", "-c", command], env={"PATH": path}, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{command}\n{ran.stderr}"
        return ran.stdout
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, words
    code: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    assert code in (0, None), f"{command}\n{err.getvalue()}"
    return out.getvalue()


def run_console(fence: Fence) -> None:
    parts = re.split(r"^\$ ", fence.body, flags=re.MULTILINE)
    assert parts[0] == "", f"{fence.where}: begins without a command"
    for part in parts[1:]:
        command, _, expected = re.sub(r"\\\n\s*", " ", part).partition("\n")
        printed = execute(command)
        if expected.strip():
            matched = doctest.OutputChecker().check_output(expected.rstrip() + "\n", printed.rstrip() + "\n", FLAGS)
            assert matched, f"{fence.where}: {command}\n--- on the page\n{expected}\n--- printed\n{printed}"


def run_pycon(fence: Fence, names: dict[str, object]) -> None:
    test = doctest.DocTestParser().get_doctest(fence.body + "\n", names, fence.where, str(fence.page), fence.line)
    test.globs = names  # the parser copies them
    report = io.StringIO()
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.write, clear_globs=False)
    assert result.attempted, f"{fence.where}: no example"
    assert not result.failed, report.getvalue()


def run(fence: Fence, names: dict[str, object]) -> None:
    if fence.language == "python":
        code = "\n" * fence.line + fence.body
        exec(compile(code, str(fence.page), "exec", dont_inherit=True), names)
    elif fence.language == "pycon":
        run_pycon(fence, names)
    elif fence.language == "console":
        run_console(fence)
    else:
        for command in commands(fence.body):
            execute(command)


def runs_here(fence: Fence) -> bool:
    return not fence.not_run and (fence.page.name, fence.language, fence.title) not in ELSEWHERE


def run_page(page: Path, folder: Path, slow: bool) -> None:
    names: dict[str, object] = {"__name__": "__page__"}
    registries = mock.patch.dict(zo.ESTIMATORS), mock.patch.dict(zo.UPDATES)  # a page may add to them
    with torch.random.fork_rng(), registries[0], registries[1]:
        torch.manual_seed(0)
        for fence in ALL[page]:
            if not runs_here(fence) or (fence.slow and not slow):
                continue
            if fence.file:
                (folder / fence.title).write_text(fence.body + "\n")
            if fence.language in RUNNABLE:
                run(fence, names)


def runs(page: Path, slow: bool) -> bool:
    """Whether a page has a block to run: with `slow`, a slow one."""
    return any(fence.slow == slow for fence in ALL[page] if fence.language in RUNNABLE and runs_here(fence))


@pytest.mark.parametrize("page", [page for page in PAGES if runs(page, slow=False)], ids=lambda page: page.stem)
def test_a_page_runs_as_printed(page: Path, workplace: Path) -> None:
    run_page(page, workplace, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runs(page, slow=True)], ids=lambda page: page.stem)
def test_a_page_runs_with_its_slow_blocks(page: Path, workplace: Path) -> None:
    run_page(page, workplace, slow=True)


def test_every_block_has_a_language_that_is_run_or_is_a_file_or_plain_text() -> None:
    for fence in (fence for found in ALL.values() for fence in found):
        assert fence.language in RUNNABLE | FILES | {"text"}, f"{fence.where}: language {fence.language!r}"
        if fence.language in FILES:
            assert fence.file, f"{fence.where}: a file has a name"
        if fence.language == "text":  # output or a formula; a command belongs where it is run
            assert not re.search(r"^(\$ |dpzo |pip |make )", fence.body, re.MULTILINE), fence.where


def test_what_is_not_run_is_exactly_this() -> None:
    left = [fence for found in ALL.values() for fence in found if fence.not_run]
    assert len(left) == len(NOT_RUN)
    assert not any("tested" in fence.title for found in ALL.values() for fence in found)  # a caption is for the reader


def test_the_quickstart_is_ten_commands_at_most() -> None:
    blocks = [fence for fence in ALL[ROOT / "docs" / "index.md"] if fence.language in ("sh", "console")]
    typed = [line for fence in blocks for line in fence.body.splitlines() if fence.language == "sh" or line[:2] == "$ "]
    assert 7 <= len(typed) <= 10


def test_what_runs_elsewhere_does() -> None:
    listed = {(fence.page.name, fence.language, fence.title) for found in ALL.values() for fence in found}
    for block, test in ELSEWHERE.items():
        assert block in listed
        assert block[0] in (ROOT / test).read_text(encoding="utf-8")


# `env` takes nothing and is asked for by an internal error.
WITHOUT_A_BLOCK = {"env"}


def test_every_command_stands_in_a_block() -> None:
    """A page that loses its blocks runs as printed all the same."""
    shown = "\n".join(fence.body for own in ALL.values() for fence in own if fence.language in ("sh", "console"))
    names = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert {name for name in names if not re.search(rf"dpzo {name}\b", shown)} == WITHOUT_A_BLOCK
