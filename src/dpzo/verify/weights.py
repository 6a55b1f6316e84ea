"""Are the shipped weights the ones that base model and journal give? Rebuilt and compared, bit for bit."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpzo.errors import DpzoError
from dpzo.models.fingerprint import plain_tensors
from dpzo.models.quiet import silent_libraries
from dpzo.models.saving import ADAPTER_CONFIG, ENCODER, canonical_adapter_config
from dpzo.privacy import Release
from dpzo.run import checkpoint, modules
from dpzo.run import folders as runs
from dpzo.run import loop as trainer
from dpzo.run.build import RunParts, rebuild
from dpzo.run.checkpoint import CHECKPOINT, stated
from dpzo.run.environment import environment
from dpzo.run.journal import Transcript
from dpzo.run.trained_model import MODEL
from dpzo.verify.base_files import require_readable
from dpzo.verify.report import Check, failed, inapplicable, passed
from dpzo.verify.tensors import files_differ
from dpzo.zo import StepDirections, TrainableParameters, Update

NAMES = ("base", "checkpoint", "weights")


def check_weights(run: Path, transcript: Transcript, base: str | None) -> Iterator[Check]:
    """The checks of `NAMES`: base model, checkpoint, and the files of model/, by one replay.

    Needs the memory of a replay and, in the system's temporary folder, as much disk as model/ takes.
    """
    header = transcript.header["base"]
    try:
        require_readable(header["name"] if base is None else base)
    except DpzoError as error:
        yield failed("base", str(error))
        return
    with silent_libraries():
        try:
            parts = rebuild(transcript, base)
        except DpzoError as error:
            what = f"{header['name']}: " if base is None else f"--base {base}: "
            said = (
                str(error).removeprefix("--base ").removeprefix("--model ").removeprefix(what.removeprefix("--base "))
            )
            yield failed("base", f"{what}does not load as this run's base model: {said}")
            return
        found, named = parts.subject.loaded.base_fingerprint, header["fingerprint"]
        if found != named:
            what = header["name"] if base is None else base
            yield failed("base", f"{what} is not the model of the run: fingerprint {found[:16]}…, header {named[:16]}…")
            return
        yield passed("base", f"{header['name']}, fingerprint {found[:16]}… as in the header")
        watcher = _Watcher(run / CHECKPOINT, parts.job.parameters, transcript, parts.job.update)
        trainer.replay(replace(parts.job, update=watcher), transcript, observe=watcher.observe)
        yield watcher.verdict()
        yield _model_check(run, transcript, parts, base)


def _model_check(run: Path, transcript: Transcript, parts: RunParts, base: str | None) -> Check:
    model = run / MODEL
    finished = transcript.num_steps == parts.job.plan.steps
    if not model.exists():
        why = "there is no model/" if finished else "the run is not finished"
        return inapplicable("weights", f"{why}; the journal replays up to its last step")
    if not finished:
        return failed("weights", "model/ is present, but the journal stops before the plan's last step")
    with tempfile.TemporaryDirectory() as folder:
        runs.save_model(parts, Path(folder), flat=_is_flat(model))
        lost = missing_tensors(Path(folder) / MODEL, parts.job.parameters.tensors())
        if lost is not None:
            return failed("weights", f"model/ would not contain the trained tensor {lost}")
        name = str(transcript.header["config"]["model"]["name"])
        bad = _first_difference(model, Path(folder) / MODEL, {} if base is None else {base: name})
    if bad is None:
        return passed("weights", "every file of model/ equals what the base model and the journal give, bit for bit")
    other = _other_versions(transcript)
    return failed("weights", bad + (f" (run: {other}; rebuild with its versions)" if other else ""))


def _is_flat(model: Path) -> bool:
    """Whether an encoder lies beside its head, as version 0.1.0 wrote it; every file is compared either way."""
    return (model / "head.safetensors").is_file() and not (model / ENCODER).exists()


def missing_tensors(folder: Path, trained: Mapping[str, Tensor]) -> str | None:
    """The first trained tensor of which no file of `folder` holds the bits, under whatever name; None when all are."""
    stored: set[bytes] = set()
    for path in sorted(folder.rglob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as file:
            stored.update(_digest(file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 (not a mapping)
    plain = plain_tensors(trained)
    return next((name for name in sorted(plain) if _digest(plain[name]) not in stored), None)


def _digest(tensor: Tensor) -> bytes:
    bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(bits.data).digest()


def check_module(run: Path, transcript: Transcript, module: nn.Module | None) -> Iterator[Check]:
    """The same for a run of `dpzo.fit`: `module` holds θ_0 and, afterwards, θ_T."""
    yield from ()
    if module is None:
        how = "the model was given in Python: dpzo.load(run).verify(module=…) rebuilds it"
        yield from (inapplicable(name, how) for name in NAMES)
        return
    try:
        modules.replay(module, run)
    except DpzoError as error:
        yield failed("base", str(error))
        return
    yield passed("base", f"fingerprint {transcript.header['base']['fingerprint'][:16]}… as in the header")
    path = run / modules.WEIGHTS
    if not path.is_file():
        yield inapplicable("weights", f"there is no {modules.WEIGHTS} in the folder")
        return
    known = dict(module.named_parameters())
    rebuilt = {name: known[name].detach() for name, _, _ in transcript.header["parameters"]}
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / modules.WEIGHTS
        whole.write_bytes(modules.stored(rebuilt))
        bad = files_differ(path, whole)
    yield (
        passed("weights", f"{path.name} equals what the journal gives, bit for bit")
        if bad is None
        else failed("weights", bad)
    )


@dataclass
class _Watcher:
    """The run's update, with an eye on the state after the step at which the checkpoint was taken."""

    path: Path
    parameters: TrainableParameters
    transcript: Transcript
    update: Update
    done: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    found: Check | None = None

    def __post_init__(self) -> None:
        self.step, self.hash = _checkpoint_facts(self.path)

    def init(self, parameters: TrainableParameters) -> dict[str, Tensor]:
        self.state = self.update.init(parameters)
        self._compare()
        return self.state

    def apply(
        self,
        parameters: TrainableParameters,
        state: dict[str, Tensor],
        directions: StepDirections,
        values: NDArray[np.float64],
        step: int,
    ) -> None:
        self.update.apply(parameters, state, directions, values, step)

    def finish(self, parameters: TrainableParameters, state: Mapping[str, Tensor]) -> None:
        self.update.finish(parameters, state)

    def observe(self, release: Release | None) -> None:
        self.done += 1
        self._compare()

    def _compare(self) -> None:
        if self.done == self.step:
            with tempfile.TemporaryDirectory() as folder:
                checkpoint.save(Path(folder), self.parameters, self.state, self.step, self.hash)
                ours = checkpoint.metadata(Path(folder) / CHECKPOINT)
                old = checkpoint.metadata(self.path).keys() != ours.keys()
                wanted = checkpoint.metadata_of_0_1(ours) if old else ours
                bad = files_differ(self.path, Path(folder) / CHECKPOINT, wanted)
            good = passed("checkpoint", f"equals the state after {self.step} steps, bit for bit")
            self.found = good if bad is None else failed("checkpoint", bad)

    def verdict(self) -> Check:
        if not self.path.exists():
            return inapplicable("checkpoint", "not in the folder")
        if self.found is None:
            return failed("checkpoint", f"{CHECKPOINT} is damaged, or belongs to a step that is not in the journal")
        hashes = [hashed for entry, hashed in self.transcript.entries() if entry.step == self.step - 1]
        if hashes and hashes != [self.hash]:
            return failed("checkpoint", f"{CHECKPOINT} names another journal's hash at step {self.step}")
        return self.found


def _checkpoint_facts(path: Path) -> tuple[int, str]:
    """Step and hash that a checkpoint names; −1 when it cannot be read."""
    try:
        return stated(path)
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        return -1, ""


def _first_difference(shipped: Path, rebuilt: Path, renamed: Mapping[str, str]) -> str | None:
    """The first file of `shipped` that is not as in `rebuilt`, weights before the rest; None when all are.

    `renamed`: the base's name in what was rebuilt → its name in the run.
    """
    wanted, found = _files(rebuilt), _files(shipped)
    for name in sorted(wanted | found, key=lambda name: (not name.endswith(".safetensors"), name)):
        here = f"{shipped.name}/{name}"
        if name not in found:
            return f"{here} is missing"
        if name not in wanted or (shipped / name).is_symlink():
            return f"{here} is unexpected: a replay writes no such file"
        if name.endswith(".safetensors"):
            bad = files_differ(shipped / name, rebuilt / name)
            if bad is not None:
                return f"{shipped.name}/{bad}"
        elif (shipped / name).is_dir():
            if not (rebuilt / name).is_dir():
                return f"{here} is a folder, but a replay writes a file"
        elif (shipped / name).stat().st_size > 2 * (rebuilt / name).stat().st_size + _SLACK:
            return f"{here} differs from what a replay writes: it is far larger"
        elif _canonical(name, (shipped / name).read_bytes()) != _renamed((rebuilt / name).read_bytes(), renamed):
            return f"{here} differs from what a replay writes"
    return None


def _canonical(name: str, content: bytes) -> bytes:
    """`content`, with the sets of an adapter_config.json in order where PEFT itself wrote the file (version 0.1.0)."""
    if name != ADAPTER_CONFIG:
        return content
    try:
        # Only the order of its sets may differ: a second key of the same name, or a comment, may not.
        as_written = json.dumps(json.loads(content), indent=2, sort_keys=True).encode()
        return canonical_adapter_config(content) if as_written == content else content
    except (ValueError, TypeError, RecursionError):
        return content


_SLACK = 1 << 16
"""Bytes by which another name of the base model may lengthen a file."""


def _files(folder: Path) -> set[str]:
    """Every entry, folders too: an empty folder has a name, and a name may say something."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def _renamed(content: bytes, renamed: Mapping[str, str]) -> bytes:
    """The base model is named as JSON writes a name, or as Python does."""
    for old, new in renamed.items():
        for spell in (lambda name: json.dumps(name)[1:-1], lambda name: repr(name)[1:-1], str):
            content = content.replace(spell(old).encode(), spell(new).encode())
    return content


def _other_versions(transcript: Transcript) -> str:
    """The versions behind the run's files that are not the ones found here."""
    mine, theirs = environment(), transcript.header.get("environment", {})
    names = ("dpzo", "torch", "transformers", "peft", "safetensors")
    return ", ".join(f"{name} {theirs[name]}" for name in names if name in theirs and theirs[name] != mine[name])
