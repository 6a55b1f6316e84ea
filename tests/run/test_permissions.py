"""What commands leave is their owner's alone, under the usual umask; homes, caches and TMPDIR get nothing else."""

from __future__ import annotations

import stat
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dpzo.data.owned import make_folders, owner_only


def open_to_others(place: Any) -> dict[str, str]:
    """Files and folders that commands made and that others may read, write or enter, with their modes."""
    theirs = ("homes/home" + "/.config", "homes/xdg_cache_home/matplotlib")  # matplotlib's own, without a word of ours
    found = {}
    for path in place.files():
        name, mode = str(path.relative_to(place.scratch)), stat.S_IMODE(path.lstat().st_mode)
        if mode & 0o077 and not name.startswith(theirs) and not is_torch_cache(path):
            found[name] = oct(mode)
    return found


def is_torch_cache(path: Path) -> bool:
    """The folder that torch makes for compiled kernels when some of its modules are imported; nothing is put there."""
    return path.name.startswith("torchinductor_") and not any(path.iterdir())


def test_a_run_leaves_nothing_to_others(everyday: Any) -> None:
    assert open_to_others(everyday) == {}
    names = {str(path.relative_to(everyday.scratch)) for path in everyday.files()}
    run = {"journal.jsonl", "count.json", "config.yaml", "plan.json", "privacy_card.md", "journal.sig", "model"}
    assert {f"made/here/run/{name}" for name in run} <= names
    assert "replayed/run/model" in names
    assert len([name for name in names if name.endswith(".safetensors")]) >= 2


def test_homes_and_temporary_folders_stay_empty(everyday: Any) -> None:
    for name in ("TMPDIR", "HOME", "HF_HOME", "XDG_CACHE_HOME"):
        assert [path for path in everyday.home(name).rglob("*") if path.is_file() or path.is_symlink()] == [], name


@pytest.mark.slow
def test_recipes_comparisons_searches_and_audits_leave_nothing_to_others(
    everyday: Any, everyday_steps: ModuleType, tiny_bert: Path
) -> None:
    codes, _, told = everyday.run(*everyday_steps.long_steps(tiny_bert))
    assert codes == [0, 0, 0, 0], told
    assert open_to_others(everyday) == {}
    cache = everyday.home("XDG_CACHE_HOME")
    assert [path.suffix for path in (cache / "dpzo" / "noise").iterdir()] == [".json"]
    assert {path.name for path in cache.iterdir()} <= {"dpzo", "matplotlib"}
    for name in ("TMPDIR", "HF_HOME"):
        assert [path for path in everyday.home(name).rglob("*") if path.is_file()] == [], name
    assert everyday.tried() == []


def test_the_walk_sees_what_is_open(everyday_steps: ModuleType, tmp_path: Path) -> None:
    place = everyday_steps.Workplace(tmp_path)
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run" / "file").touch(mode=0o600)
    assert open_to_others(place) == {}
    (tmp_path / "run" / "file").chmod(0o640)
    (tmp_path / "run").chmod(0o711)
    assert open_to_others(place) == {"run": "0o711", "run/file": "0o640"}


def test_new_folders_and_files_are_the_owners_and_old_ones_stay(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir(mode=0o750)
    make_folders(tmp_path / "old" / "a" / "b")
    make_folders(tmp_path / "old" / "a" / "b")
    with owner_only():
        (tmp_path / "inside").touch()
    (tmp_path / "after").touch()
    modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    after = modes.pop("after")
    assert modes == {"old": 0o750, "old/a": 0o700, "old/a/b": 0o700, "inside": 0o600}
    assert after & 0o400
    with pytest.raises(KeyError), owner_only():
        raise KeyError
    (tmp_path / "last").touch()
    assert stat.S_IMODE((tmp_path / "last").stat().st_mode) == after
