"""The Triton kernels: interpreted on the CPU, compiled for CUDA without a device, and run on one where there is one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).resolve().parent
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed: pip install triton")


def child(*arguments: str, interpret: bool, cache: Path) -> str:
    """Triton reads the environment when it is imported, so each way of running it has a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache)} | ({"TRITON_INTERPRET": "1"} if interpret else {})
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


def run_cases(interpret: bool, cache: Path) -> None:
    options = ("--no-header", "-p", "no:cacheprovider", "--rootdir", str(HERE.parents[2]))
    out = child("-m", "pytest", *options, str(HERE / "cases_cuda.py"), interpret=interpret, cache=cache)
    passed = re.search(r"^(\d+) passed", out, re.MULTILINE)
    assert passed, out[-2000:]
    assert int(passed[1]) > 80
    assert "skipped" not in out


@pytest.mark.slow
def test_interpreted_kernels_have_the_bits_of_the_oracle(tmp_path: Path) -> None:
    run_cases(interpret=True, cache=tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_compiled_kernels_have_the_bits_of_the_oracle(tmp_path: Path) -> None:
    run_cases(interpret=False, cache=tmp_path)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = child(str(HERE / "compile_cuda.py"), interpret=False, cache=tmp_path_factory.mktemp("triton"))
    found: list[dict[str, Any]] = json.loads(out)
    return found


@pytest.mark.slow
def test_machine_code_fuses_and_flushes_nothing(compiled: list[dict[str, Any]]) -> None:
    """Compiled for Ampere and Hopper. Only the root of a normal may use a fused operation: it is rounded exactly."""
    assert {row["arch"] for row in compiled} == {80, 90}
    assert {row["law"] for row in compiled} >= {0, 1, 2}
    for row in compiled:
        ptx = row["ptx"]
        assert re.search(r"\b(st|atom|red)\b", ptx.replace(".", " ")), row["kernel"]
        assert not re.search(r"\bfma\b|\bmad\.f|ftz|approx|\.rz\.f|div", ptx), (row["kernel"], row["law"])
        roots = len(re.findall(r"sqrt\.rn\.f32", ptx))
        assert (roots > 0) == (row["law"] == 1), row["kernel"]
        assert roots == len(re.findall(r"\bsqrt", ptx))


@pytest.mark.slow
def test_options_that_keep_the_bits_are_those_that_matter(compiled: list[dict[str, Any]]) -> None:
    """Without them the same kernel is compiled to fused operations: the check above can fail."""
    fused = [row for row in compiled if row["fused_ptx"]]
    assert fused
    assert all(re.search(r"\bfma\b|ftz", row["fused_ptx"]) for row in fused)
