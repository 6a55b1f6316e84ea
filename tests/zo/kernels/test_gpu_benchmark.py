"""`benchmarks.gpu` where no GPU is: it refuses in one line, and its code runs on a tiny shape on the CPU."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from dpzo.errors import DpzoError


@pytest.fixture(scope="module")
def gpu() -> Any:
    """The benchmark's module: the folder above it is on the path of `python -m`, not of pytest."""
    root = str(Path(__file__).resolve().parents[3])
    sys.path.insert(0, root)
    try:
        return importlib.import_module("benchmarks.gpu")
    finally:
        sys.path.remove(root)


def test_without_a_device_it_says_so(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match=r"^benchmarks.gpu: no CUDA device"):
        gpu.main()
    monkeypatch.setattr(sys, "argv", ["gpu", "steps", "--device", "cpu", "--shapes", "opt-1t"])
    with pytest.raises(SystemExit, match="opt-1t is unknown; choose from tiny"):
        gpu.main()


def test_kernels_are_compared_with_the_oracle(gpu: Any) -> None:
    rows = gpu.kernel_rows(gpu.Machine("cpu"), quick=True)
    assert {row["directions"] for row in rows} == {"rademacher", "gaussian", "orthogonal"}
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16", "float16"}
    assert all(row["equal"] for row in rows)
    assert all(row["seconds"] > 0 for row in rows)


def test_a_wrong_bit_is_an_error(gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"part": "kernels", "operation": "fill", "equal": False}
    monkeypatch.setattr(gpu, "kernel_rows", lambda machine, quick: [row])
    monkeypatch.setattr(sys, "argv", ["gpu", "kernels", "--device", "cpu", "--quick", "--json"])
    with pytest.raises(SystemExit, match="bits differ"):
        gpu.main()
    assert json.loads(capsys.readouterr().out)[0]["operation"] == "fill"


@pytest.mark.slow
def test_steps_and_attempts_run_on_a_tiny_shape(gpu: Any) -> None:
    machine = gpu.Machine("cpu")
    rows = gpu.step_rows(machine, ["tiny", "tiny-llama"], quick=True)
    assert [row["case"].split()[1] for row in rows] == ["full", "full", "lora"] * 2
    assert all(row["ours_ratio"] > 0 and row["memory_ratio"] is None for row in rows)
    assert rows[0]["trainable"] == rows[0]["parameters"] > rows[2]["trainable"]
    with pytest.raises(DpzoError, match="Opacus does not serve"):  # OPT's positions
        gpu.attempt(machine, "dp-sgd full", "tiny", quick=True)
    for method in ("dpzo full", "dp-sgd lora", "lora"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Opacus says much
            found = gpu.attempt(machine, method, "tiny", quick=True)
        assert found["fits"], method
        assert found["seconds"] > 0


@pytest.mark.slow
def test_capacity_goes_down_from_the_largest_that_memory_allows(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def child(arguments: list[str], quick: bool) -> dict[str, object]:
        tried.append((arguments[1], arguments[3]))
        if (arguments[1], arguments[3]) == ("dp-sgd lora", "opt-1.3b"):
            return {"fits": False, "reason": "refused"}
        return {"fits": arguments[3] == "tiny", "reason": "out of memory"}

    monkeypatch.setattr(gpu, "_in_child", child)
    monkeypatch.setattr(gpu.Machine, "total_mib", lambda self: 4000.0)
    rows = gpu.capacity_rows(gpu.Machine("cpu"), ["tiny", "opt-1.3b", "opt-6.7b"], quick=True)
    own = [(row["shape"], row["fits"]) for row in rows if row["method"] == "dpzo full"]
    assert own == [("opt-6.7b", False), ("opt-1.3b", False), ("tiny", True)]
    assert [shape for method, shape in tried if method == "dpzo full"] == ["opt-1.3b", "tiny"]
    assert [shape for method, shape in tried if method == "dp-sgd full"] == ["tiny"]
    assert [shape for method, shape in tried if method == "dp-sgd lora"] == ["opt-1.3b"]
    assert [row["reason"] for row in rows if row["method"] == "dp-sgd lora"][-1] == "refused"
