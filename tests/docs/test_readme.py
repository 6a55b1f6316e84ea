"""The README's Python runs as printed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_python_quickstart_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(code.strip().splitlines()) == 5
    exec(compile(code, "README.md", "exec"), {})
    claim, verified = capsys.readouterr().out.splitlines()
    assert "differentially private at ε =" in claim
    assert verified.startswith("True ")
    assert (workplace / "run2" / "model").is_dir()
