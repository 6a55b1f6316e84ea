"""The README's Python runs as printed, and its file tree is the real one."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_python_quickstart_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(code.strip().splitlines()) == 5
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "differentially private at ε =" in capsys.readouterr().out


def test_file_tree_names_what_exists_and_all_of_it() -> None:
    tree = README.split("## The files")[1]
    named = {line.split()[0] for line in tree.splitlines() if re.match(r"^  [a-z_]+(\.py|/) ", line)}
    package = ROOT / "src" / "dpzo"
    real = {
        path.name + ("/" if path.is_dir() else "")
        for path in package.iterdir()
        if path.name not in ("__pycache__", "py.typed", "__main__.py")
    }
    assert named == real
