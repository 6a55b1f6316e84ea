"""A folder with the files that the pages name, and the site, built once."""

from __future__ import annotations

import csv
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LABELS = ("refund", "delivery", "other")


def _tickets(path: Path, rows: int) -> None:
    """Made-up messages with text, label and patient."""
    said = {"refund": "please return my money for order", "delivery": "where is parcel", "other": "thank you, number"}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "patient"])
        for i in range(rows):
            label = LABELS[i % 3]
            writer.writerow([f"{said[label]} {i}", label, f"p{i // 2}"])


@pytest.fixture(scope="session")
def prepared(tiny_bert: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files. Copied for each page, so that no page sees what another left."""
    folder = tmp_path_factory.mktemp("pages")
    for name, model in (("my-encoder", tiny_bert), ("my-llama", tiny_llama)):
        (folder / name).symlink_to(model)
    _tickets(folder / "tickets.csv", 60)
    _tickets(folder / "public_test.csv", 30)
    return folder


@pytest.fixture
def workplace(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the files to stand in, with a cache and a home of its own, and Ctrl-C as a terminal gives it."""
    folder = Path(shutil.copytree(prepared, tmp_path / "work", symlinks=True))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield folder
    signal.signal(signal.SIGINT, before)


def build(docs: Path, site: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """As `make docs` builds: a warning ends it."""
    scratch = ["--doctree-dir", str(site.with_name("doctrees")), "--fail-on-warning", "--keep-going", "--quiet"]
    command = [sys.executable, "-m", "sphinx", *scratch, *options, str(docs), str(site)]
    return subprocess.run(command, cwd=docs, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("documentation") / "site"
    built = build(ROOT / "docs", folder)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture
def broken(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """What a build prints for a page whose links lead nowhere."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# One\n\n[two](two.md) [here](#three) ![four](figures/four.svg)\n")
    return build(tmp_path / "docs", tmp_path / "site", "--conf-dir", str(ROOT / "docs"))
