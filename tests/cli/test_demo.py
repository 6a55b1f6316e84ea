"""The demo from beginning to replay, on a tiny encoder and fewer messages than a newcomer sees."""

from pathlib import Path

import pytest

from dpzo.cli import demo
from dpzo.data.tasks import demo_messages
from dpzo.errors import DpzoError


def test_the_demo_tells_its_whole_story(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "demo_model", lambda: tiny_bert)
    monkeypatch.setattr(demo, "demo_messages", lambda: demo_messages(0, 240, 60))
    demo.run_demo(tmp_path / "kept")
    said = " ".join(capsys.readouterr().out.split())
    assert "240 made-up support messages" in said
    assert "test accuracy: before" in said
    assert "after, at ε = 2" in said
    assert "the same steps without noise" in said
    assert "Privacy card" in said
    assert "replayed from base model and journal alone: equal, bit for bit" in said
    assert {path.name for path in (tmp_path / "kept").iterdir()} >= {"data", "run", "replayed"}
    with pytest.raises(DpzoError, match="--output"):
        demo.run_demo(tmp_path / "kept")
