"""`dpzo verify` and `dpzo sign` as a user sees them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Dpzo = Callable[..., Any]
MARK = "zqj7xk"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_is_verified_on_one_screen(dpzo: Dpzo, run: Path) -> None:
    said = dpzo("verify", run)
    assert said.code == 0, said.out
    lines = said.out.splitlines()
    assert lines[-1] == "verified: all applicable checks passed"
    assert len(lines) == 20
    assert [line.split()[0] for line in lines[:3]] == ["journal", "folder", "steps"]
    assert all(line[19:26].strip() in ("ok", "-") for line in lines[:14])
    assert all(line.startswith("not checked: ") for line in lines[14:-1])
    assert MARK not in said.out + said.err


def test_what_limits_the_claim_is_on_the_card_and_in_the_last_line(
    dpzo: Dpzo, arguments: Callable[..., list[object]], records: Path, tmp_path: Path
) -> None:
    """δ ≥ 1/N is warned of, and an evaluation on private data counted: the card and verify state both."""
    run = tmp_path / "run"
    trained = dpzo(*arguments(run, delta=0.05))
    assert "warning: --delta 0.05 is not below 1/N = 0.025" in trained.err
    scored = dpzo("evaluate", run, "--data", records, "--data-is", "private")
    assert scored.code == 0, scored.err
    assert (run / "private_uses.json").read_text() == '{\n  "evaluation": 1\n}\n'
    page = (run / "privacy_card.md").read_text()
    for finding in ("δ = 0.05 is not below 1/N = 0.025", "Once evaluated on private data: no ε covers the results"):
        assert f"- {finding}" in page
    said = dpzo("verify", run)
    assert said.code == 0, said.out
    (run / "private_uses.json").unlink()  # the card still says that there was one
    assert dpzo("verify", run).code == 1


def test_a_changed_card_is_named_and_the_exit_code_says_so(dpzo: Dpzo, run: Path) -> None:
    card = run / "privacy_card.md"
    card.write_text(card.read_text().replace("single record", "whole company"))
    said = dpzo("verify", run)
    assert said.code == 1
    assert "card               FAILED  privacy_card.md, line" in said.out
    assert "NOT verified; first failure: card: privacy_card.md, line 3, character " in said.out.splitlines()[-1]
    quiet = dpzo("verify", run, "--json")
    assert quiet.code == 1
    assert quiet.err == ""
    fields = json.loads(quiet.out)
    assert fields["ok"] is False
    assert fields["first_bad"].startswith("card: privacy_card.md, line")
    assert {check["name"] for check in fields["checks"] if check["ok"] is False} == {"card"}


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_sign_and_verify(dpzo: Dpzo, run: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    said = dpzo("sign", run, "--key", key)
    assert said.code == 0
    assert said.out == f"signature: {run / 'journal.sig'}; publish your public key with the run\n"
    said = dpzo("verify", run, "--key", f"{key}.pub", "--json")
    assert said.code == 0
    (signed,) = (check for check in json.loads(said.out)["checks"] if check["name"] == "signature")
    assert signed["ok"] is True
    assert "signed the files listed in journal.sums" in signed["detail"]


def test_what_is_no_run_and_no_key_is_told_in_a_line(dpzo: Dpzo, run: Path, tmp_path: Path) -> None:
    for arguments, fragment in (
        (("verify", tmp_path), "no readable journal.jsonl here"),
        (("verify", run, "--key", run / "plan.json"), "is not an OpenSSH public key"),
        (("verify", run, "--base", tmp_path / "nowhere"), None),
        (("sign", tmp_path, "--key", tmp_path / "key"), "no readable journal.jsonl here"),
        (("sign", run, "--key", tmp_path / "key"), "no such file"),
    ):
        said = dpzo(*arguments)
        if fragment is None:  # a base that cannot be loaded is a check that fails, not a mistake of the command
            assert said.code == 1
            assert "no such folder" in said.out
            continue
        assert said.code == 2
        assert said.out == ""
        assert [line for line in said.err.splitlines() if "error:" in line] == said.err.splitlines()[-1:]
        assert fragment in said.err
