"""Laws that can be read off the source: one rule, one function, and for each a sample that it must catch."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dpzo

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(dpzo.__file__).resolve().parent
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = sorted(module.name for module in pkgutil.walk_packages(dpzo.__path__, "dpzo."))

# Rooms without a subject collect whatever has no home.
HOMELESS = {"utils", "util", "helpers", "helper", "misc", "common", "tools", "base_classes", "mixins"}


def dotted(node: ast.AST) -> str:
    """`torch.random.seed` of an attribute chain that starts at a name, else an empty string."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


# What makes or restores a generator of one's own, or guards the global ones, is no draw from them.
_OWN = {
    *(
        "numpy.random." + name
        for name in ("Generator", "BitGenerator", "PCG64", "Philox", "SeedSequence", "default_rng")
    ),
    *("random." + name for name in ("Random", "SystemRandom")),
    "torch.Generator",
    "torch.random.fork_rng",
}
_GUARDS = {"random.getstate", "random.setstate", "numpy.random.get_state", "numpy.random.set_state"}
_TORCH_DRAWS = re.compile(
    r"torch\.(manual_seed|seed|initial_seed|random\..*|cuda\.manual_seed.*|get_rng_state|set_rng_state|"
    r"rand|randn|randint|randperm|rand_like|randn_like|randint_like|normal|bernoulli|multinomial|poisson|nn\.init\..*)"
)
_TENSOR_DRAWS = {"normal_", "uniform_", "bernoulli_", "random_", "exponential_", "cauchy_", "geometric_", "log_normal_"}


def global_randomness(tree: ast.Module, file: str) -> Iterator[tuple[int, str]]:
    """Uses of a global generator of torch, NumPy or Python."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names if alias.asname}
            names |= {a.name.partition(".")[0]: a.name.partition(".")[0] for a in node.names if not a.asname}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        # A call that brings its own generator draws from that one.
        if not isinstance(node, ast.Call) or any(keyword.arg == "generator" for keyword in node.keywords):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr in _TENSOR_DRAWS:
            yield node.lineno, node.func.attr
        head, _, rest = dotted(node.func).partition(".")
        name = names.get(head, "") + (f".{rest}" if rest else "")
        # The audit plays the part of a script that seeds them, and puts them back.
        if name in _OWN or (file == "models/quiet.py" and name in _GUARDS) or file == "audit/known_seed.py":
            continue
        if name.startswith(("numpy.random.", "random.")) or _TORCH_DRAWS.fullmatch(name):
            yield node.lineno, name


def numbers_with_or(tree: ast.Module, file: str) -> Iterator[tuple[int, str]]:
    """`x or 1e-5`: an x of zero would silently become something else."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
            for value in node.values[1:]:
                number = value.operand if isinstance(value, ast.UnaryOp) else value
                if isinstance(number, ast.Constant) and type(number.value) in (int, float):
                    yield node.lineno, ast.unparse(node)


def undocumented(tree: ast.Module, file: str) -> Iterator[tuple[int, str]]:
    """Public modules, classes, functions and methods that say nothing of themselves."""
    if ast.get_docstring(tree) is None:
        yield 1, "the module"

    def visit(body: list[ast.stmt], told: bool) -> Iterator[tuple[int, str]]:
        for node in body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            silent = ast.get_docstring(node) is None
            # A method that fulfils a Protocol is told there; one of a private class by its class.
            if silent and not (told and isinstance(node, ast.FunctionDef)):
                yield node.lineno, node.name
            if isinstance(node, ast.ClassDef):
                yield from visit(node.body, told=not silent)

    yield from visit(tree.body, told=False)


def unsafe_loading(tree: ast.Module, file: str) -> Iterator[tuple[int, str]]:
    """Pickle, remote code, and YAML that builds objects."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from ((node.lineno, name) for name in names if name.partition(".")[0] in ("pickle", "joblib", "dill"))
        if isinstance(node, ast.Call) and dotted(node.func) in (
            "torch.load",
            "torch.save",
            "yaml.load",
            "eval",
            "exec",
        ):
            yield node.lineno, dotted(node.func)
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and ast.unparse(node.value) != "False":
            yield node.value.lineno, "trust_remote_code"


Rule = Callable[[ast.Module, str], Iterator[tuple[int, str]]]
SAMPLES: dict[Rule, tuple[str, ...]] = {
    global_randomness: (
        "import torch\ntorch.manual_seed(0)",
        "import torch as t\nx = t.randn(3)",
        "import numpy as np\nnp.random.seed(1)",
        "from numpy import random\nrandom.normal()",
        "import random\nrandom.shuffle([])",
        "from random import gauss\ngauss(0, 1)",
        "def f(x):\n    x.normal_()",
    ),
    numbers_with_or: ("y = x or 1e-5", "f(a=(b or -1))", "z = x or y or 0"),
    undocumented: ('"""M."""\ndef f(): ...', '"""M."""\nclass A: ...', "x = 1"),
    unsafe_loading: (
        "import pickle",
        "import torch\ntorch.load(p)",
        "f(trust_remote_code=True)",
        "import yaml\nyaml.load(x)",
    ),
}


@pytest.mark.parametrize("rule", SAMPLES, ids=lambda rule: rule.__name__)
def test_the_source_keeps_the_rule(rule: Rule) -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {what}"
        for path in FILES
        for line, what in rule(ast.parse(path.read_text()), path.relative_to(SOURCE).as_posix())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("rule", "sample"), [(rule, sample) for rule, samples in SAMPLES.items() for sample in samples]
)
def test_the_rule_catches(rule: Rule, sample: str) -> None:
    assert list(rule(ast.parse(sample), "sample.py"))


def test_own_generators_are_no_breach() -> None:
    calls = ("np.random.Generator(np.random.PCG64(0)).normal()", "torch.Generator()", "torch.rand(2, generator=own)")
    sample = "\n".join(("import numpy as np", "import torch", *calls))
    assert list(global_randomness(ast.parse(sample), "sample.py")) == []


def test_every_module_has_a_subject() -> None:
    assert [path for path in FILES if path.stem in HOMELESS or path.parent.name in HOMELESS] == []


def test_files_hold_one_idea() -> None:
    assert {path.name: n for path in FILES if (n := len(path.read_text().splitlines())) > 400} == {}


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    if name.startswith("dpzo.zo.kernels.cuda"):
        pytest.importorskip("triton")
    if not name.endswith("__main__"):  # importing that would run it
        assert doctest.testmod(importlib.import_module(name)).failed == 0


def tracked() -> list[Path]:
    """The files that git knows; all that git does not ignore where there is no git, as in a source archive."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# Paths of somebody's machine, and hosts that are not a project's business to name: where packages come from is the
# installer's choice. One letter in brackets keeps each pattern from finding itself.
MACHINE = re.compile(r"/(hom[e]|User[s]|roo[t]|wor[k]|mn[t])/|[A-Z]:\\User[s]")
HOSTS = re.compile(r"pypi\.or[g]|python[h]osted|download\.pytorc[h]|index-ur[l]|artifactor[y]")


def test_no_path_of_a_machine_and_no_registry() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}"
            for number, line in enumerate(text.splitlines(), start=1)
            if MACHINE.search(line) or HOSTS.search(line)
        ]
    assert found == []


def test_a_path_or_a_host_would_be_found() -> None:
    for folder in ("home", "Users", "root"):
        assert MACHINE.search(f"see /{folder}/ada")
    assert HOSTS.search("https://pypi" + ".org/simple")
    assert not MACHINE.search("a framework/homeless")
