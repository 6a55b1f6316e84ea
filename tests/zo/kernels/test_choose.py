"""Which kernels serve a tensor: by device, and one line where a backend cannot."""

from __future__ import annotations

import pytest
import torch

from dpzo.errors import DpzoError
from dpzo.zo.kernels import choose, cpu, reference

CPU = torch.device("cpu")


def test_the_fast_kernels_are_those_of_the_device() -> None:
    assert choose.kernels_for("numba", CPU) is cpu
    assert choose.kernels_for("reference", CPU) is reference
    assert choose.kernels_for("numba", torch.device("meta")) is reference
    assert not choose.fuses_rounding("numba", CPU)


def test_a_backend_that_cannot_serve_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    choose._serving.cache_clear()
    with pytest.raises(DpzoError, match=r"^backend: 'magic' is unknown"):
        choose.kernels_for("magic", CPU)  # type: ignore[arg-type]
    monkeypatch.setattr(choose, "find_spec", lambda name: object())
    with pytest.raises(DpzoError, match=r"^backend: triton serves CUDA tensors, not cpu"):
        choose.kernels_for("triton", CPU)
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    with pytest.raises(DpzoError, match=r"^backend: triton is not installed"):
        choose.kernels_for("triton", CPU)
    assert choose.kernels_for("numba", torch.device("cuda")) is reference
    choose._serving.cache_clear()


def test_a_block_fits_a_cache_or_fills_a_device() -> None:
    assert choose.block_elements(CPU) < choose.block_elements(torch.device("cuda"))
