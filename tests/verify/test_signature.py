"""Signing a run by OpenSSH: who signed, what was signed, and that the documented commands say the same."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dpzo.errors import DpzoError
from dpzo.privacy import Gaussian, PoissonSampling, PrivacyPlan
from dpzo.run import modules
from dpzo.verify import sign, verify
from dpzo.verify.signature import SIGNATURE, SUMS, check_signature, shipped

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "verifying.md"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the keys `mine` and `another`."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "another"):
        made = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
        subprocess.run(made, check=True)
    return folder


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Path:
    """A signed run of a linear model, with a folder that stands for a saved one."""
    folder = tmp_path_factory.mktemp("signed") / "run"
    draw = torch.Generator().manual_seed(3)
    examples = {"x": torch.randn(40, 3, generator=draw)}
    plan = PrivacyPlan(40, PoissonSampling(0.25), Gaussian(2.0), 1.0, 3, 1, 1e-3)
    module = torch.nn.Linear(3, 1)
    modules.fit(
        module,
        lambda model, batch: model(batch["x"])[:, 0] ** 2,
        examples,
        plan=plan,
        settings=modules.Settings(0.1),
        output=folder,
    )
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "local.yaml").write_text("data: mine\n")
    assert sign(folder, keys / "mine") == folder / SIGNATURE
    return folder


@pytest.fixture
def run(signed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / "run"))


def test_the_signers_key_verifies_and_another_does_not(run: Path, keys: Path) -> None:
    good = check_signature(run, keys / "mine.pub")
    assert good.ok is True
    assert verify(run, key=keys / "mine.pub").checks[-1] == good
    fingerprint = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(keys / "mine.pub")], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    assert fingerprint in good.detail
    assert verify(run, key=keys / "mine.pub").ok
    bad = check_signature(run, keys / "another.pub")
    assert bad.ok is False
    assert "is not a signature of journal.sums by another.pub" in bad.detail
    nobody = check_signature(run, None)
    assert nobody.ok is None
    assert f"signed by ED25519 key {fingerprint}; give the signer's public key" in nobody.detail


def test_either_of_several_keys_will_do(run: Path, keys: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.keys"
    both.write_text("# people\n" + "".join((keys / f"{name}.pub").read_text() for name in ("another", "mine")))
    assert check_signature(run, both).ok is True


def test_what_is_signed_is_what_is_shipped_and_nothing_of_the_owners(run: Path) -> None:
    names = [line.split("  ")[1] for line in (run / SUMS).read_text().splitlines()]
    assert names == sorted(names) == shipped(run)
    assert set(names) == {
        "journal.jsonl",
        "journal.head",
        "plan.json",
        "privacy_card.json",
        "privacy_card.md",
        "trained.safetensors",
        "model/config.json",
    }


@pytest.mark.parametrize("name", ["journal.jsonl", "journal.head", "privacy_card.md", "trained.safetensors"])
def test_a_file_changed_after_signing_is_named(run: Path, keys: Path, name: str) -> None:
    (run / name).write_bytes((run / name).read_bytes() + b" ")
    for key in (keys / "mine.pub", None):
        bad = check_signature(run, key)
        assert bad.ok is False
        assert bad.detail.startswith(f"{name} is not the file that was signed")


def test_a_file_taken_away_or_put_there_is_named(run: Path, keys: Path) -> None:
    (run / "model" / "pytorch_model.bin").write_bytes(b"")
    assert (
        check_signature(run, keys / "mine.pub").detail
        == "model/pytorch_model.bin was not there when the run was signed"
    )
    (run / "model" / "pytorch_model.bin").unlink()
    (run / "plan.json").unlink()
    assert check_signature(run, None).detail == "plan.json is listed in journal.sums but missing"


def test_sums_made_anew_lose_their_signature(run: Path, keys: Path) -> None:
    card = run / "privacy_card.md"
    old = (run / SUMS).read_text()
    before = subprocess.run(["sha256sum", card.name], cwd=run, capture_output=True, text=True, check=True).stdout
    card.write_text("# A better card\n")
    after = subprocess.run(["sha256sum", card.name], cwd=run, capture_output=True, text=True, check=True).stdout
    (run / SUMS).write_text(old.replace(before, after))
    assert check_signature(run, keys / "mine.pub").ok is False
    nobody = check_signature(run, None)
    assert nobody.ok is False
    assert "is not a valid signature of journal.sums" in nobody.detail


@pytest.mark.parametrize("line", ["../secret", "/etc/hostname", "local.yaml", ""])
def test_sums_that_point_elsewhere_are_refused(run: Path, line: str) -> None:
    (run / SUMS).write_text("0" * 64 + f"  {line}\n")
    assert check_signature(run, None).detail == "journal.sums: line 1 is not a checksum of a run's file"


def test_half_a_signature_and_none(run: Path, keys: Path) -> None:
    (run / SIGNATURE).unlink()
    assert check_signature(run, None).detail == "journal.sig is missing; journal.sums and journal.sig belong together"
    (run / SUMS).unlink()
    assert check_signature(run, None).ok is None
    assert check_signature(run, keys / "mine.pub").ok is False
    assert "not signed" in check_signature(run, keys / "mine.pub").detail


def test_signing_again_after_a_change(run: Path, keys: Path) -> None:
    (run / "model" / "config.json").write_text('{"a": 1}')
    assert check_signature(run, keys / "mine.pub").ok is False
    sign(run, keys / "another")
    assert check_signature(run, keys / "another.pub").ok is True


def test_mistakes_about_keys_are_told_in_a_line(run: Path, keys: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("hello")
    wrong.chmod(0o600)
    for key, said in ((wrong, "cannot sign with it"), (tmp_path / "none", "no such file")):
        with pytest.raises(DpzoError, match=said):
            sign(run, key)
    for key, said in (
        (keys / "mine", r"is a private key; give the signer's public one \(mine.pub\)"),
        (wrong, "is not an OpenSSH public key"),
        (tmp_path / "none", "not a readable file of public keys"),
    ):
        with pytest.raises(DpzoError, match=said):
            verify(run, key=key)
    (run / "journal.jsonl").write_text("rubbish")
    with pytest.raises(DpzoError, match="line 1 is not JSON"):
        sign(run, keys / "mine")


def test_a_link_is_not_signed(run: Path, keys: Path) -> None:
    (run / "model" / "config.json").unlink()
    (run / "model" / "config.json").symlink_to(run / "local.yaml")
    with pytest.raises(DpzoError, match="is a symbolic link"):
        sign(run, keys / "mine")
    assert check_signature(run, keys / "mine.pub").ok is False
    checked = check_signature(run, None)  # and one that took a signed file's place is named, not stumbled over
    assert checked.ok is False
    assert "model/config.json" in checked.detail
    (run / "model" / "config.json").unlink()
    (run / "model" / "config.json").write_text("{}")
    (run / "model" / "added\\.json").write_text("{}")
    checked = check_signature(run, None)
    assert checked.ok is False
    assert checked.detail.startswith("model/added")
    assert "a line break or a backslash" in checked.detail


def test_without_ssh_keygen_it_says_so(run: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpzo.verify.signature.shutil.which", lambda name: None)
    assert "needs ssh-keygen" in check_signature(run, None).detail
    with pytest.raises(DpzoError, match="needs ssh-keygen of OpenSSH 8"):
        check_signature(run, keys / "mine.pub")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_documented_commands_check_it_without_dpzo(run: Path, keys: Path) -> None:
    (commands,) = re.findall(r'```sh title="without dpzo"\n(.*?)```', PAGE.read_text(), flags=re.DOTALL)
    shutil.copy(keys / "mine.pub", run / "signer.pub")

    def done() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-e", "-c", commands], cwd=run, capture_output=True, text=True, check=False)

    good = done()
    assert good.returncode == 0, good.stderr
    assert "Good" in good.stdout
    assert "privacy_card.json: OK" in good.stdout
    shutil.copy(keys / "another.pub", run / "signer.pub")
    assert done().returncode != 0
    shutil.copy(keys / "mine.pub", run / "signer.pub")
    card = json.loads((run / "privacy_card.json").read_text())
    (run / "privacy_card.json").write_text(json.dumps(card | {"epsilon": 0.1}))
    bad = done()
    assert bad.returncode != 0
    assert "privacy_card.json: FAILED" in bad.stdout
