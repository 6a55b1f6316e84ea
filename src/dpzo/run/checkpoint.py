"""Checkpoints: the public state after a step, so that resuming replays hundreds of steps instead of thousands.

A checkpoint is post-processing of releases and costs no privacy budget. It is used only if its hash equals the
journal's at that step and its tensors are the saved ones. If it is missing, incomplete, damaged or from another run,
the resume replays more steps and has the same result.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from dpzo.errors import DpzoError
from dpzo.run.journal import Transcript, sync_folder
from dpzo.zo import TrainableParameters, Update

CHECKPOINT = "checkpoint.safetensors"
_VOUCHER = "dpzo"


@dataclass(frozen=True)
class Restored:
    """The state at which a resume starts: parameters hold θ_step, `tensors` the update's state after `step` steps."""

    step: int
    tensors: dict[str, torch.Tensor]


def save(
    folder: Path, parameters: TrainableParameters, state: dict[str, torch.Tensor], step: int, chain_hash: str
) -> None:
    """Replace the run's checkpoint by (θ, update state) after `step` steps; atomic and synced."""
    tensors = {f"parameter/{name}": tensor for name, tensor in parameters.tensors().items()}
    tensors |= {f"update/{name}": tensor.contiguous() for name, tensor in state.items()}
    # One entry: the library writes several in an order that changes from call to call.
    metadata = {_VOUCHER: json.dumps({"step": step, "hash": chain_hash, "content": _content(tensors)})}
    path = folder / CHECKPOINT
    scratch = path.with_name(CHECKPOINT + ".new")
    try:
        safetensors.torch.save_file(tensors, scratch, metadata=metadata)
        scratch.chmod(0o600)
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
        sync_folder(folder)
    except (OSError, safetensors.SafetensorError):
        scratch.unlink(missing_ok=True)
        raise DpzoError(f"{path}: could not be written; the journal is intact: make room, then dpzo resume") from None


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a readable checkpoint."""
    with safetensors.safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def metadata_of_0_1(present: dict[str, str]) -> dict[str, str]:
    """The metadata of a checkpoint as version 0.1.0 wrote it, from what `save` writes."""
    voucher = json.loads(present[_VOUCHER])
    return {"step": str(voucher["step"]), "hash": voucher["hash"], "content": voucher["content"]}


def discard(folder: Path) -> None:
    """Remove the checkpoint, if there is one."""
    (folder / CHECKPOINT).unlink(missing_ok=True)


def load(folder: Path, parameters: TrainableParameters, update: Update, transcript: Transcript) -> Restored:
    """Load the checkpoint into `parameters` if it matches the journal; otherwise keep θ_0 and start at step 0."""
    fresh = update.init(parameters)
    with suppress(OSError):
        (folder / f"{CHECKPOINT}.new").unlink()  # left by a process that was killed while saving
    try:
        with safetensors.safe_open(folder / CHECKPOINT, framework="pt") as file:
            step, chain_hash, content = _stated(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        return Restored(0, fresh)
    theta = {n.removeprefix("parameter/"): t for n, t in tensors.items() if n.startswith("parameter/")}
    state = {n.removeprefix("update/"): t for n, t in tensors.items() if n.startswith("update/")}
    fits = _shapes(theta) == _shapes(parameters.tensors()) and _shapes(state) == _shapes(fresh)
    if not fits or not _vouched(transcript, step, chain_hash) or _content(tensors) != content:
        return Restored(0, fresh)
    parameters.load(theta)
    return Restored(step, {name: tensor.to(fresh[name].device) for name, tensor in state.items()})


def stated(path: Path) -> tuple[int, str]:
    """The step and the chain hash that a checkpoint names. Errors of the file, KeyError, TypeError or ValueError."""
    with safetensors.safe_open(path, framework="pt") as file:
        step, chain_hash, _ = _stated(file.metadata())
    return step, chain_hash


def _stated(metadata: Mapping[str, str]) -> tuple[int, str, str]:
    """Step, chain hash and content's hash; version 0.1.0 wrote them as three entries."""
    voucher = json.loads(metadata[_VOUCHER]) if _VOUCHER in metadata else metadata
    return int(voucher["step"]), str(voucher["hash"]), str(voucher["content"])


def _vouched(transcript: Transcript, step: int, chain_hash: str) -> bool:
    """Whether the journal's chain has this hash after `step` steps."""
    if step == 0:
        return False
    return any(entry.step == step - 1 and hashed == chain_hash for entry, hashed in transcript.entries())


def _content(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, types, shapes and bits, to detect corruption on disk."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
