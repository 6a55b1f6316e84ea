"""Read a data set of the Hugging Face hub, fetched by a child process into a temporary folder.

`datasets` keeps fetched and converted data in caches that outlive a run and that others may read. It therefore runs in
a child process with all caches in one owner-only folder. The saved files are opened, and the folder is then removed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dpzo.data.arrow import Wanted, chosen_split, saved_rows
from dpzo.data.tasks.tables import Row
from dpzo.errors import DpzoError

HUB = "hub:"
HUB_SECONDS = 8.0
"""A hub that has not answered by then counts as out of reach."""


@dataclass(frozen=True)
class HubName:
    """`hub:organisation/name`, or `hub:organisation/name:configuration`."""

    name: str
    configuration: str | None

    def __str__(self) -> str:
        return HUB + self.name + ("" if self.configuration is None else f":{self.configuration}")


def parse_hub(place: str) -> HubName | None:
    """The hub name that a --data value is, or None for a path. Errors: DpzoError for a name that can be none."""
    if not place.startswith(HUB):
        return None
    name, colon, configuration = place.removeprefix(HUB).partition(":")
    parts = name.split("/")
    if not 1 <= len(parts) <= 2 or not all(parts) or not name.isprintable() or (colon and not configuration):
        raise DpzoError("--data hub:…: write hub:organisation/name, or hub:organisation/name:configuration")
    return HubName(name, configuration if colon else None)


def hub_rows(
    hub: HubName, columns: Wanted, split: str | None, default_split: str, revision: str | None
) -> Iterator[Row]:
    """Yield (record number from 1, {column: value}) of one split at one revision (the hub's newest when None).

    Nothing stays on disk: the folder with the fetched data has mode 0700 and is removed when its files are open, so
    every run fetches anew.

    Errors: DpzoError, in one line, for a hub out of reach, an unknown name, configuration, split or revision.
    """
    _ask(hub, revision)
    folder = Path(tempfile.mkdtemp(prefix="dpzo-hub-"))  # mode 0700
    try:
        saved = _fetched(hub, folder, split, default_split, revision)
        yield from saved_rows(
            saved, columns, None, default_split, name=Path(str(hub)), opened=lambda: shutil.rmtree(folder)
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ask(hub: HubName, revision: str | None) -> None:
    """Ask the hub once, within seconds: the library itself tries for half a minute before it gives up."""
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        huggingface_hub.HfApi().dataset_info(hub.name, revision=revision, timeout=HUB_SECONDS)
    except HFValidationError:
        reason = "is no hub name; write hub:organisation/name"
    except GatedRepoError:
        reason = "the hub gives it only to those who accepted its terms; accept them there and log in: hf auth login"
    except RevisionNotFoundError:
        reason = "has no such --data-revision; name a branch, a tag or a commit of it"
    except RepositoryNotFoundError:
        reason = "the hub knows no such data set (or it is private: hf auth login); check the spelling"
    except Exception as error:
        reason = (
            f"the hub does not answer ({type(error).__name__}); check the network, or save the data set elsewhere with "
            "datasets' save_to_disk and give that folder"
        )
    else:
        return
    raise DpzoError(f"--data {hub}: {reason}")


def _fetched(hub: HubName, folder: Path, split: str | None, default_split: str, revision: str | None) -> Path:
    from huggingface_hub import constants

    caches = {
        "HF_HOME": folder / "home",
        "HF_HUB_CACHE": folder / "hub",
        "HF_XET_CACHE": folder / "xet",
        "HF_ASSETS_CACHE": folder / "assets",
        "HF_DATASETS_CACHE": folder / "datasets",
        "HF_MODULES_CACHE": folder / "modules",
        "XDG_CACHE_HOME": folder / "cache",
        "TMPDIR": folder / "tmp",
    }
    (folder / "tmp").mkdir(mode=0o700)
    environment = {**os.environ, **{name: str(path) for name, path in caches.items()}}
    environment.setdefault("HF_TOKEN_PATH", constants.HF_TOKEN_PATH)
    asked = {
        "name": hub.name,
        "configuration": hub.configuration,
        "split": split,
        "default": default_split,
        "revision": revision,
        "output": str(folder / "saved"),
        "answer": str(folder / "answer.json"),
    }
    # Its output may quote a record, so it is discarded; the child answers in a file.
    done = subprocess.run(
        [sys.executable, "-m", "dpzo.data.hub_child"],
        input=json.dumps(asked).encode(),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    try:
        answer = json.loads((folder / "answer.json").read_text())
    except (OSError, ValueError):
        raise DpzoError(f"--data {hub}: fetching it ended with status {done.returncode}; try again") from None
    if "splits" in answer:
        chosen_split(str(hub), answer["splits"], split, default_split)
    if "configurations" in answer:
        there = ", ".join(answer["configurations"])
        raise DpzoError(f"--data {hub}: name one of its configurations, as in hub:{hub.name}:NAME; it has {there}")
    if "error" in answer:
        kind = answer["error"]
        mend = (
            "pip install 'dpzo[data]'"
            if kind == "ModuleNotFoundError"
            else "check the name and --data-revision, or save it yourself with save_to_disk and give that folder"
        )
        raise DpzoError(f"--data {hub}: datasets cannot load it ({kind}); {mend}")
    return folder / "saved"
