"""One version, and what the release steps of CONTRIBUTING.md rely on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import dpzo
from dpzo.run.environment import environment

ROOT = Path(__file__).resolve().parents[2]


def test_the_version_is_written_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    source = (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    assert re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE) == [dpzo.__version__]
    assert environment()["dpzo"] == dpzo.__version__


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == dpzo.__version__
    assert citation["license"] == "Apache-2.0"
    assert citation["authors"] == [{"name": "The dpzo authors"}]


def test_the_workflow_tests_the_versions_of_python_that_are_claimed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == claimed
    assert {"run": "make test"} in workflow["jobs"]["test"]["steps"]


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_a_form_of_the_host_is_yaml(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "ISSUE_TEMPLATE" and path.name != "config.yml":
        assert {"name", "description", "body"} <= set(form)
        assert all(field["attributes"] for field in form["body"])


def test_the_hooks_call_what_the_environment_has() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    commands = [hook["entry"].split() for hook in hooks]
    assert {Path(command[0]).name for command in commands} == {"ruff", "lint-imports", "mypy"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for tool, *_ in commands:
        assert tool.startswith(".venv/bin/")
        assert f"$(BIN)/{Path(tool).name}" in makefile


def test_every_link_of_the_pages_beside_the_code_leads_to_a_file() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / target).exists(), f"{name} → {target}"


def test_the_changelog_begins_with_this_version() -> None:
    """In the form of keepachangelog.com: an open section, then versions, the newest first."""
    page = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+?)\]", page, re.MULTILINE)
    assert versions[:2] == ["Unreleased", dpzo.__version__]
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Privacy"}
    assert set(re.findall(r"^### (.+)$", page, re.MULTILINE)) <= kinds
    assert re.search(rf"^## \[{re.escape(dpzo.__version__)}\] - \d{{4}}-\d\d-\d\d$", page, re.MULTILINE)
