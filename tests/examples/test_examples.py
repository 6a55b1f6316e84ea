"""Every script and notebook of examples/ runs as it is, on tiny models and few steps."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TURNS = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"

Script = Callable[..., str]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Run a script of examples/ in an empty folder; what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        ended = 0
        with torch.random.fork_rng():
            try:
                runpy.run_path(str(EXAMPLES / name), run_name="__main__")
            except SystemExit as end:
                ended = end.code if isinstance(end.code, int) else 1
        assert ended == code
        return capsys.readouterr().out

    return run


@pytest.fixture
def chat_llama(tiny_llama: Path, tmp_path: Path) -> Path:
    """The tiny Llama, with a chat template."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "chat-llama"))
    (folder / "chat_template.jinja").write_text(TURNS, encoding="utf-8")
    return folder


def test_classify_then_verify(script: Script, tiny_bert: Path, tmp_path: Path) -> None:
    printed = script("classify_csv.py", "--model", tiny_bert, "--steps", 4)
    assert "differentially private at ε = " in printed
    assert re.search(r"accuracy on public records: [01]\.\d{3}\n", printed)

    printed = script("verify_run.py", "run", "--rebuild", "rebuilt")
    assert re.search(r"^weights +ok ", printed, re.MULTILINE)
    assert "rebuilt from the journal, equal bit for bit: True" in printed

    journal = tmp_path / "run" / "journal.jsonl"
    first, *steps = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    journal.write_text("".join([first, *steps[1:]]), encoding="utf-8")
    with pytest.raises(Exception, match="journal"):
        script("verify_run.py", "run")


def test_verify_fails_for_a_changed_model(script: Script, tiny_bert: Path, tmp_path: Path) -> None:
    script("classify_csv.py", "--model", tiny_bert, "--steps", 2)
    (tmp_path / "run" / "model" / "extra.txt").write_text("not of this run")
    assert "FAILED" in script("verify_run.py", "run", code=1)


def test_chat(script: Script, chat_llama: Path) -> None:
    printed = script("finetune_chat.py", "--model", chat_llama, "--steps", 3, "--max-length", 256)
    assert "differentially private at ε = " in printed
    assert "\nanswer: " in printed


def test_any_module_learns(script: Script) -> None:
    printed = script("train_any_module.py", "--steps", 60)
    before, after = map(float, re.findall(r"(\d\.\d{3}) (?:before|after)", printed))
    assert after < 0.9 * before


def test_budget(script: Script) -> None:
    printed = script("plan_budget.py", "--epsilons", 1, 4, "--steps", 50)
    rows = [list(map(float, line.split())) for line in printed.splitlines()[2:]]
    assert [row[1] for row in rows] == [50, 50]
    assert rows[0][0] <= 1 < rows[1][0] <= 4
    assert rows[0][2] > rows[1][2] > 0


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.ipynb")))
def test_a_notebook_runs(name: str, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code cells in order, in one namespace. Nothing of a run is stored in the notebook."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPZO_EXAMPLE_MODEL", str(tiny_bert))
    monkeypatch.setenv("DPZO_EXAMPLE_STEPS", "3")
    monkeypatch.setenv("DPZO_EXAMPLE_DATA", str(EXAMPLES / "data"))
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    names: dict[str, object] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 4
    for number, cell in enumerate(cells):
        assert cell["outputs"] == []
        exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), names)


def test_the_list_of_examples_is_complete() -> None:
    listed = re.findall(r"^\| `([\w.]+)` \|", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))
