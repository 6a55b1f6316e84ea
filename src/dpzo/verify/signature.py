"""A detached signature of what a run ships: two plain files beside the journal, checked without dpzo.

`journal.sums` holds the SHA-256 of the journal, its head, config, plan, count, card and every file of the model, as
`sha256sum` writes them; `journal.sig` is OpenSSH's signature of it (`ssh-keygen -Y sign -n dpzo`). local.yaml and
journal.key, which are the owner's alone, and the checkpoint, which is no result, are in neither.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from dpzo.errors import DpzoError
from dpzo.report import CARD_JSON, CARD_MARKDOWN, PRIVATE_USES
from dpzo.run.checkpoint import CHECKPOINT
from dpzo.run.folders import PLAN
from dpzo.run.journal import HEAD, JOURNAL, read, write_durably
from dpzo.run.local import LOCAL
from dpzo.run.modules import WEIGHTS
from dpzo.run.output import CONFIG, COUNT
from dpzo.run.step_key import STEP_KEY
from dpzo.run.trained_model import MODEL
from dpzo.verify.report import Check, failed, inapplicable, passed

SUMS, SIGNATURE = "journal.sums", "journal.sig"
NAMESPACE = "dpzo"
_SHIPPED = (JOURNAL, HEAD, CONFIG, PLAN, COUNT, CARD_JSON, CARD_MARKDOWN, PRIVATE_USES, WEIGHTS)
_NEVER = (CHECKPOINT, LOCAL, STEP_KEY)
_BLOCK = 1 << 22
_TOO_OLD = "needs ssh-keygen of OpenSSH 8.1 or later, which was not found"


def sign(run: Path, key: Path) -> Path:
    """Sign what `run` ships by the private (or agent's public) key file `key`; returns the signature's path.

    Raises DpzoError when the journal does not verify, ssh-keygen is missing or it refuses the key.
    """
    read(run)
    if not key.is_file():
        raise DpzoError(f"--key {key}: no such file; ssh-keygen -t ed25519 -f FILE creates a key")
    sums = "".join(f"{_sha256(run / name)}  {name}\n" for name in shipped(run)).encode()
    done = _keygen("sign", "-f", str(key), "-n", NAMESPACE, content=sums)
    if done.returncode != 0 or not done.stdout.startswith(b"-----BEGIN SSH SIGNATURE-----"):
        raise DpzoError(f"--key {key}: ssh-keygen cannot sign with it ({_last_words(done)})")
    (run / SIGNATURE).unlink(missing_ok=True)  # never a signature beside sums that it is not of
    write_durably(run / SUMS, sums)
    write_durably(run / SIGNATURE, done.stdout)
    return run / SIGNATURE


def check_signature(run: Path, key: Path | None) -> Check:
    """Whether the files are those whose sums are signed, and by `key` where one is given."""
    public = [] if key is None else _public_keys(key)
    if not (run / SUMS).exists() and not (run / SIGNATURE).exists():
        said = f"not signed: there is no {SIGNATURE}"
        return inapplicable("signature", said) if key is None else failed("signature", said)
    for name in (SUMS, SIGNATURE):
        if not (run / name).is_file():
            return failed("signature", f"{name} is missing; journal.sums and journal.sig belong together")
    content = (run / SUMS).read_bytes()
    try:
        bad = _first_other_file(run, content)
    except DpzoError as error:  # a link, or a name that no list of sums can hold
        bad = str(error).replace(f"{run}/", "")
    if bad is not None:
        return failed("signature", bad)
    if key is None:
        return _by_whom(run, content)
    with tempfile.TemporaryDirectory() as folder:
        allowed = Path(folder) / "allowed_signers"
        allowed.write_text("".join(f'signer namespaces="{NAMESPACE}" {line}\n' for line in public))
        who = ("-f", str(allowed), "-I", "signer", "-n", NAMESPACE, "-s", str(run / SIGNATURE))
        done = _keygen("verify", *who, content=content)
    if done.returncode != 0:
        return failed("signature", f"{SIGNATURE} is not a signature of {SUMS} by {key.name} ({_last_words(done)})")
    return passed("signature", f"{_fingerprint(done)} signed the files listed in {SUMS}, which are unchanged")


def shipped(run: Path) -> list[str]:
    """The files of a run that are signed, by name, sorted. Raises DpzoError for a link or a name on two lines."""
    found = [name for name in _SHIPPED if (run / name).exists()]
    found += [path.relative_to(run).as_posix() for path in (run / MODEL).rglob("*") if not path.is_dir()]
    for name in found:
        if (run / name).is_symlink():
            raise DpzoError(f"{run / name}: is a symbolic link, whose target may change; replace it with the file")
        if "\n" in name or "\\" in name:
            raise DpzoError(f"{run / name}: its name contains a line break or a backslash; rename it")
    return sorted(found)


def _first_other_file(run: Path, sums: bytes) -> str | None:
    """The first file that is not as `sums` has it, or None."""
    listed: dict[str, str] = {}
    for number, line in enumerate(sums.decode("utf-8", "replace").splitlines(), start=1):
        digest, _, name = line.partition("  ")
        path = Path(name)
        if len(digest) != 64 or not name or path.is_absolute() or ".." in path.parts or name in _NEVER:
            return f"{SUMS}: line {number} is not a checksum of a run's file"
        listed[name] = digest
    for name, digest in listed.items():
        if not (run / name).is_file() or (run / name).is_symlink():
            return f"{name} is listed in {SUMS} but missing"
        if _sha256(run / name) != digest:
            return f"{name} is not the file that was signed: its SHA-256 differs from {SUMS}"
    unlisted = [name for name in shipped(run) if name not in listed]
    return f"{unlisted[0]} was not there when the run was signed" if unlisted else None


def _by_whom(run: Path, content: bytes) -> Check:
    try:
        done = _keygen("check-novalidate", "-n", NAMESPACE, "-s", str(run / SIGNATURE), content=content)
    except DpzoError:
        return inapplicable("signature", f"the files match {SUMS}; {SIGNATURE} {_TOO_OLD}")
    if done.returncode != 0:
        return failed("signature", f"{SIGNATURE} is not a valid signature of {SUMS} ({_last_words(done)})")
    return inapplicable(
        "signature", f"signed by {_fingerprint(done)}; give the signer's public key with --key to check whose it is"
    )


def _public_keys(key: Path) -> list[str]:
    """The lines of a file of OpenSSH public keys."""
    try:
        lines = [line.strip() for line in key.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise DpzoError(f"--key {key}: not a readable file of public keys; give the signer's .pub file") from None
    if any("PRIVATE KEY" in line for line in lines):
        raise DpzoError(f"--key {key}: is a private key; give the signer's public one ({key.name}.pub)")
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines or not all(line.startswith(("ssh-", "ecdsa-", "sk-")) for line in lines):
        raise DpzoError(f"--key {key}: is not an OpenSSH public key; give the signer's .pub file")
    return lines


def _keygen(action: str, *arguments: str, content: bytes) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise DpzoError(f"--key: {_TOO_OLD}")
    return subprocess.run([program, "-Y", action, *arguments], input=content, capture_output=True, check=False)


def _last_words(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = [line.strip() for line in (done.stderr + done.stdout).decode("utf-8", "replace").splitlines()]
    return next((line for line in lines if line and not line.startswith("@")), "no reason given")


def _fingerprint(done: subprocess.CompletedProcess[bytes]) -> str:
    """The signer's key as ssh-keygen names it: its kind and SHA-256."""
    said = done.stdout.decode("utf-8", "replace").strip()
    return said.rpartition(" with ")[2] or "an unnamed key"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
