"""Files inside archives, read in memory: nothing is unpacked to the disk, where a copy would outlive the run."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path
from typing import IO, Any, cast

MARK = "!"
"""Between an archive and what it holds: `splits.tar.xz!RTE/train.tsv`."""

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


def member_of(path: Path) -> tuple[Path, str] | None:
    """(archive, member) of a path such as `a.zip!b/c.txt`; None for an ordinary path, also one whose name has a `!`."""
    text = str(path)
    archive, mark, member = text.partition(MARK)
    if not mark or not archive.lower().endswith((*_TAR, ".zip")) or path.exists():
        return None
    return Path(archive), member


def is_there(path: Path) -> bool:
    """Whether a file, or the archive that should hold it, exists. Archives are not opened: that costs seconds."""
    inside = member_of(path)
    return (path if inside is None else inside[0]).is_file()


def open_binary(path: Path) -> IO[bytes]:
    """Open a file, a `.gz` file or a member of a tar or zip archive for reading.

    Errors: OSError (FileNotFoundError for an archive without the member), EOFError, lzma.LZMAError, tarfile.TarError,
    zipfile.BadZipFile. A member is held in memory as a whole.
    """
    inside = member_of(path)
    if inside is None:
        if path.name.lower().endswith(".gz"):
            compressed: Any = gzip.open(path, "rb")  # noqa: SIM115  it is handed on
            return cast(IO[bytes], compressed)
        return path.open("rb")
    archive, name = inside
    raw = _zip_member(archive, name) if archive.name.lower().endswith(".zip") else _tar_member(archive, name)
    return io.BytesIO(gzip.decompress(raw) if name.lower().endswith(".gz") else raw)


BROKEN = (gzip.BadGzipFile, EOFError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
"""What a damaged archive raises."""


def _zip_member(archive: Path, name: str) -> bytes:
    with zipfile.ZipFile(archive) as found:
        try:
            return found.read(name)
        except KeyError:
            raise FileNotFoundError from None


def _tar_member(archive: Path, name: str) -> bytes:
    # As a stream: the archive is decompressed up to the member and no further.
    with tarfile.open(archive, "r|*") as found:
        for member in found:
            if member.name.removeprefix("./") == name and member.isfile():
                content = found.extractfile(member)
                if content is not None:
                    return content.read()
    raise FileNotFoundError
