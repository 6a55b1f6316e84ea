"""The child of `hub`: load one split with `datasets`, save it to a folder, answer in a file; shows nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Read the request from standard input; write `saved`, or the reason for failure, as names public on the hub."""
    asked = json.load(sys.stdin)
    try:
        answer = fetch(asked)
    except Exception as error:  # its text may quote a record
        answer = {"error": type(error).__name__}
    Path(asked["answer"]).write_text(json.dumps(answer))


def fetch(asked: dict[str, Any]) -> dict[str, Any]:
    """Save the split; or return the existing configurations or splits, if the requested one does not exist."""
    import datasets

    place, revision = asked["name"], asked["revision"]
    configuration = asked["configuration"]
    names = datasets.get_dataset_config_names(place, revision=revision)
    if configuration is None and len(names) > 1 and "default" not in names:
        return {"configurations": names}
    if configuration is not None and configuration not in names:
        return {"configurations": names}
    splits = datasets.get_dataset_split_names(place, configuration, revision=revision)
    split = asked["default"] if asked["split"] is None else asked["split"]
    if split not in splits:
        return {"splits": splits}
    datasets.load_dataset(place, configuration, split=split, revision=revision).save_to_disk(asked["output"])
    return {"saved": True}


if __name__ == "__main__":
    main()
