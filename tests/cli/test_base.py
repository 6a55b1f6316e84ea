"""`--base`: a base model that has moved is named, from any working directory, to every command that loads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Dpzo = Callable[..., Any]


@pytest.fixture(scope="module")
def place(dpzo: Dpzo, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of completions whose base model was a relative path and lies in moved/ now."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "elsewhere").mkdir()
    here = shutil.copytree(tiny_llama, folder / "here")
    rows = [{"prompt": f"once {i}", "completion": "a day"} for i in range(16)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        said = dpzo(
            *("train", "--model", "here", "--data", "pairs.jsonl", "--kind", "completion", "--output", "run"),
            *("--num-examples", 16, "--noise-multiplier", 4, "--delta", 1e-5, "--expected-batch-size", 4),
            *("--steps", 2, "--num-directions", 1, "--max-length", 48),
        )
    assert said.code == 0, said.err
    here.rename(folder / "moved")
    return folder


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("replay", "RUN", "--output", "rebuilt"), "equal to the run's, bit for bit"),
        (("verify", "RUN"), "weights            ok"),
        (("evaluate", "RUN", "--data", "../pairs.jsonl", "--data-is", "public"), "loss: "),
        (("generate", "RUN", "--prompt", "once", "--max-new-tokens", 2, "--json"), '"prompt": "once"'),
        (("resume", "RUN"), "model: "),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_moved_base_is_named_from_another_directory(
    dpzo: Dpzo, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[object, ...], said: str
) -> None:
    here = shutil.copytree(place, tmp_path / "place")
    (here / "run" / "local.yaml").unlink() if command[0] != "resume" else (here / "run/model/trained.json").unlink()
    monkeypatch.chdir(here / "elsewhere")
    asked = ["../run" if word == "RUN" else word for word in command]
    lost = dpzo(*asked)
    assert lost.code in (1, 2)
    assert "--base" in lost.out + lost.err
    wrong = dpzo(*asked, "--base", "../nowhere")
    assert wrong.code in (1, 2)
    assert "nowhere" in wrong.out + wrong.err
    found = dpzo(*asked, "--base", "../moved")
    assert found.code == 0, found.err
    assert said in found.out
