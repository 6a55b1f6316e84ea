"""Checkpoints: used when the journal vouches for them, and otherwise as if they were not there."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch

from dpzo.errors import DpzoError
from dpzo.run import checkpoint
from dpzo.run import loop as train
from dpzo.run.checkpoint import CHECKPOINT
from dpzo.run.journal import Transcript, read

STEPS = 12


@pytest.fixture
def stopped(linear: ModuleType, tmp_path: Path) -> Path:
    """A run that stopped after 12 of 20 steps' releases, with a checkpoint after step 10."""
    job = linear.make_job(20)

    def stop(release: object) -> None:
        if read_steps(tmp_path) == STEPS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.fit(
            job, linear.objective(job), linear.NUM_UNITS, tmp_path, observe=stop, nonprivate_randomness=linear.Draws()
        )
    return tmp_path


def read_steps(folder: Path) -> int:
    return read(folder).num_steps


def load(linear: ModuleType, folder: Path, **options: Any) -> tuple[checkpoint.Restored, Any]:
    job = linear.make_job(20, **options)
    return checkpoint.load(folder, job.parameters, job.update, read(folder)), job


Voucher = dict[str, Any]


def content(folder: Path) -> tuple[dict[str, torch.Tensor], Voucher]:
    """Tensors, and what the checkpoint says of itself."""
    with safetensors.safe_open(folder / CHECKPOINT, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["dpzo"])


def put(folder: Path, tensors: dict[str, torch.Tensor], voucher: Voucher | None) -> None:
    metadata = None if voucher is None else {"dpzo": json.dumps(voucher)}
    safetensors.torch.save_file(tensors, folder / CHECKPOINT, metadata=metadata)


def test_a_checkpoint_gives_back_weights_and_the_state_of_the_update(linear: ModuleType, stopped: Path) -> None:
    restored, job = load(linear, stopped)
    assert restored.step == 10
    assert int(restored.tensors["tail.count"]) == 0
    rebuilt = linear.make_job(20)
    state = rebuilt.update.init(rebuilt.parameters)
    for entry, _ in list(read(stopped).entries())[:10]:
        rebuilt.update.apply(rebuilt.parameters, state, rebuilt.scheme.at(entry.step), entry.slopes(), entry.step)
    assert linear.fingerprint(job) == linear.fingerprint(rebuilt)
    assert stat.S_IMODE((stopped / CHECKPOINT).stat().st_mode) == 0o600


def test_a_checkpoint_with_a_flipped_bit_is_disregarded(linear: ModuleType, stopped: Path) -> None:
    """Its header is whole and the journal vouches for its step, yet these are not the weights of that step."""
    path = stopped / CHECKPOINT
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in (start, (start + len(whole)) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(bytes(changed))
        assert load(linear, stopped)[0].step == 0
    path.write_bytes(whole)
    (stopped / f"{CHECKPOINT}.new").write_bytes(b"of a process that was killed while it saved")
    assert load(linear, stopped)[0].step == 10
    assert not (stopped / f"{CHECKPOINT}.new").exists()


def _other_hash(tensors: dict[str, torch.Tensor], metadata: Voucher) -> None:
    metadata["hash"] = "0" * 64


def _other_step(tensors: dict[str, torch.Tensor], metadata: Voucher) -> None:
    metadata["step"] = 9


def _step_0(tensors: dict[str, torch.Tensor], metadata: Voucher) -> None:
    metadata["step"] = 0


def _step_ahead(tensors: dict[str, torch.Tensor], metadata: Voucher) -> None:
    metadata["step"] = 19


def _no_number(tensors: dict[str, torch.Tensor], metadata: Voucher) -> None:
    metadata["step"] = "ten"


def _no_hash(tensors: dict[str, torch.Tensor], metadata: Voucher) -> None:
    del metadata["hash"]


def _a_weight_less(tensors: dict[str, torch.Tensor], metadata: Voucher) -> None:
    del tensors["parameter/bias"]


def _another_shape(tensors: dict[str, torch.Tensor], metadata: Voucher) -> None:
    tensors["parameter/weight"] = tensors["parameter/weight"].T.contiguous()


def _another_type(tensors: dict[str, torch.Tensor], metadata: Voucher) -> None:
    tensors["parameter/weight"] = tensors["parameter/weight"].double()


def _no_state(tensors: dict[str, torch.Tensor], metadata: Voucher) -> None:
    for name in [name for name in tensors if name.startswith("update/")]:
        del tensors[name]


CHANGES = [
    _other_hash,
    _other_step,
    _step_0,
    _step_ahead,
    _no_number,
    _no_hash,
    _a_weight_less,
    _another_shape,
    _another_type,
    _no_state,
]


@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__.strip("_") for change in CHANGES])
def test_a_checkpoint_that_does_not_fit_is_as_none(linear: ModuleType, stopped: Path, change: Any) -> None:
    tensors, metadata = content(stopped)
    change(tensors, metadata)
    put(stopped, tensors, metadata)
    _assert_ignored(linear, stopped)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "noise", "plain", "folder"])
def test_a_damaged_checkpoint_is_as_none(linear: ModuleType, stopped: Path, damage: str) -> None:
    path = stopped / CHECKPOINT
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "plain":
        put(stopped, {"a": torch.zeros(1)}, None)
    elif damage != "missing":
        path.write_bytes({"empty": b"", "cut": whole[:-5], "noise": bytes(range(256)) * 4}[damage])
    _assert_ignored(linear, stopped)


def _assert_ignored(linear: ModuleType, folder: Path) -> None:
    restored, job = load(linear, folder)
    assert restored.step == 0
    assert linear.fingerprint(job) == linear.fingerprint(linear.make_job(20))
    assert all(bool((tensor == 0).all()) for tensor in restored.tensors.values())


def test_the_checkpoint_of_another_run_is_as_none(linear: ModuleType, stopped: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other")
    job = linear.make_job(20, seed=4)
    train.fit(job, linear.objective(job), linear.NUM_UNITS, other, nonprivate_randomness=linear.Draws())
    (stopped / CHECKPOINT).write_bytes((other / CHECKPOINT).read_bytes())
    _assert_ignored(linear, stopped)


def test_no_space_is_named_and_the_old_checkpoint_stays(
    linear: ModuleType, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (stopped / CHECKPOINT).read_bytes()

    def refuse(tensors: object, path: Path, metadata: object = None) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", refuse)
    job = linear.make_job(20)
    with pytest.raises(DpzoError, match=r"checkpoint\.safetensors: could not be written; the journal is intact"):
        checkpoint.save(stopped, job.parameters, {}, 12, "hash")
    assert (stopped / CHECKPOINT).read_bytes() == before
    assert [path.name for path in stopped.glob("*.new")] == []


def test_a_transcript_without_steps_vouches_for_nothing(linear: ModuleType, stopped: Path) -> None:
    found = read(stopped)
    empty = Transcript(found.path, found.header, 0, found.last_hash, True, False, found.size)
    job = linear.make_job(20)
    assert checkpoint.load(stopped, job.parameters, job.update, empty).step == 0
