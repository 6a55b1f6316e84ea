"""Private fine-tuning of any `nn.Module` with a per-example loss: the same door, without a tokenizer.

`fit` trains in place and leaves a run folder (journal, plan, card, trained weights); `replay` rebuilds the weights
from the journal. Text models have a richer entry in `dpzo.runs`, which the command line uses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor, nn

from dpzo import checkpoint
from dpzo import train as trainer
from dpzo.environment import environment
from dpzo.errors import DpzoError
from dpzo.folder import make_folder, require_new
from dpzo.journal import JOURNAL, read, write_durably
from dpzo.lm import fingerprint, fingerprint_tensors
from dpzo.lm.isolation import check_isolation
from dpzo.privacy import PrivacyPlan, Release
from dpzo.report import write_card
from dpzo.train import Job, RandomnessAt, journal_header
from dpzo.zo import (
    ESTIMATORS,
    SCHEDULES,
    DirectionScheme,
    TrainableParameters,
    Update,
    build_update,
    public_normal,
    shifted,
    update_facts,
)

Examples = Mapping[str, Tensor]
Loss = Callable[[nn.Module, dict[str, Tensor]], Tensor]
WEIGHTS = "trained.safetensors"


@dataclass(frozen=True)
class Settings:
    """The public choices of a run; every one is in the journal's header.

    `trainable`: names, or a regular expression searched in them. `smoothing` φ in parameter units. `average`: the
    fraction of last steps whose weights are averaged (0: the last weights). `estimator`: a key of `zo.ESTIMATORS`;
    `update`, `momentum`, `shrinkage`, `ema` (0: none) as for `zo.build_update`: none of them changes the plan.
    """

    learning_rate: float
    smoothing: float = 1e-3
    trainable: str | Collection[str] = "."
    seed: int = 0
    directions: str = "rademacher"
    estimator: str = "central"
    update: str = "sgd"
    momentum: float = 0.9
    shrinkage: str = "none"
    ema: float = 0.0
    schedule: str = "constant"
    warmup_steps: int = 0
    average: float = 0.0
    microbatch_size: int = 32
    checkpoint_every: int = 500
    tuning: str = "not declared"


def fit(
    model: nn.Module,
    loss: Loss,
    examples: Examples,
    *,
    plan: PrivacyPlan,
    settings: Settings,
    output: str | Path,
    public_examples: Examples | None = None,
    observe: Callable[[Release | None], None] = lambda release: None,
    nonprivate_randomness: RandomnessAt | None = None,
) -> dict[str, Any]:
    """Train `model` privately, in place; returns the privacy card. A folder that holds this run is resumed.

    - `examples`: name → tensor with one row a unit, (N, …); `loss(model, batch)` → (m,) losses of a batch of rows of a
      fixed size m = `settings.microbatch_size`, each a function of the weights and of its own row alone. The last batch
      is filled with zero rows.
    - `public_examples`: a few rows of the same form that may be seen, to check at start-up that a row's loss does not
      feel its neighbours. Without them synthetic rows are made (normal floats, 0/1 integers).
    - Guarantee: (plan.epsilon, plan.delta) for what the run publishes, under the card's assumptions.

    Raises DpzoError for whatever the caller can mend, `train.Stopped` after Ctrl-C or SIGTERM.
    """
    folder = Path(output)
    model.eval()
    job = _job(model, loss, examples, plan, settings, public_examples, nonprivate_randomness is None)
    objective = _Rows(model, loss, examples, settings.microbatch_size)
    arguments: dict[str, Any] = {"observe": observe, "nonprivate_randomness": nonprivate_randomness}
    if (folder / JOURNAL).exists():
        trainer.resume(job, objective, len(objective), folder, **arguments)
    else:
        require_new(folder)
        make_folder(folder)
        write_durably(folder / "plan.json", (json.dumps(plan.summary(), indent=2) + "\n").encode())
        trainer.fit(job, objective, len(objective), folder, **arguments)
    trained = job.parameters.tensors()
    write_durably(folder / WEIGHTS, safetensors.torch.save(trained, {"fingerprint": fingerprint_tensors(trained)}))
    checkpoint.discard(folder)
    return write_card(folder, read(folder))


def replay(model: nn.Module, run: str | Path) -> str:
    """Rebuild θ_T in `model` (which must hold θ_0) from a run's journal alone; returns the trained weights' hash.

    Raises DpzoError if the journal does not verify or was written for another model.
    """
    transcript = read(Path(run))
    header = transcript.header
    settings = Settings(**header["settings"])  # a journal of an older version leaves the newer ones at their defaults
    plan = PrivacyPlan.from_dict(header["plan"])
    model.eval()
    parameters, scheme, update = _parts(model, plan, settings)
    public = {**header, "base": _base(model), "parameters": _described(parameters)}
    has_guarantee = header["secret_randomness"]
    job = Job(plan, parameters, scheme, settings.smoothing, update, journal_header(plan, has_guarantee, public))
    trainer.replay(job, transcript)
    return fingerprint_tensors(parameters.tensors())


class _Rows:
    """Losses of rows in micro-batches of one size, the last one filled with zero rows."""

    def __init__(self, model: nn.Module, loss: Loss, examples: Examples, microbatch_size: int) -> None:
        lengths = {len(tensor) for tensor in examples.values()}
        if len(lengths) != 1:
            raise DpzoError("examples: give one or more tensors, all with one row a unit")
        (self._length,) = lengths
        self._model, self._loss, self._examples, self._size = model, loss, dict(examples), microbatch_size

    def __len__(self) -> int:
        return self._length

    def losses(self, units: npt.NDArray[np.int64], /) -> npt.NDArray[np.float64]:
        """(B,) float64 losses of the units at the model's present weights."""
        found = np.zeros(len(units))
        for start in range(0, len(units), self._size):
            chosen = torch.from_numpy(units[start : start + self._size].copy())
            batch = {name: self._filled(tensor, chosen) for name, tensor in self._examples.items()}
            with torch.no_grad():
                values = self._loss(self._model, batch)
            if values.shape != (self._size,):
                raise DpzoError("loss: must return one number a row, shape (microbatch_size,), not a mean")
            found[start : start + len(chosen)] = values[: len(chosen)].double().cpu().numpy()
        return found

    def _filled(self, tensor: Tensor, chosen: Tensor) -> Tensor:
        rows = tensor.new_zeros((self._size, *tensor.shape[1:]))
        rows[: len(chosen)] = tensor[chosen]
        return rows


def _job(
    model: nn.Module,
    loss: Loss,
    examples: Examples,
    plan: PrivacyPlan,
    settings: Settings,
    public_examples: Examples | None,
    has_guarantee: bool,
) -> Job:
    parameters, scheme, update = _parts(model, plan, settings)
    size = settings.microbatch_size
    public = _synthetic(examples, 2 * size) if public_examples is None else public_examples
    rows = _Rows(model, loss, public, size)
    if len(rows) < 2:
        raise DpzoError("public_examples: give at least two rows, or none for synthetic ones")
    if not check_isolation(_Beside(rows, parameters, scheme, settings.smoothing), min(size, len(rows)), len(rows)):
        raise DpzoError(
            "loss: a row's loss changes with its neighbours in the batch, so one unit could show in another; make it "
            "per-row (no batch norm, no mean over the batch) or try another microbatch_size or a single thread"
        )
    header = {
        "settings": {**vars(settings), "trainable": _plain(settings.trainable)},
        "base": _base(model),
        "num_examples_source": "declared",
        "unit_column": None,
        "tuning": settings.tuning,
        "directions": scheme.description,
        "estimator": settings.estimator,
        "update": {
            **update_facts(
                settings.update,
                momentum=settings.momentum,
                shrinkage=settings.shrinkage,
                ema=settings.ema if settings.ema > 0 else None,
            ),
            "average": settings.average,
            "schedule": settings.schedule,
        },
        "parameters": _described(parameters),
        "evaluation": {"microbatch_size": size, "isolation": "passed"},
        "nonprivate_uses": [],
        "environment": environment(),
    }
    return Job(
        plan=plan,
        parameters=parameters,
        scheme=scheme,
        smoothing=settings.smoothing,
        update=update,
        estimator=ESTIMATORS[settings.estimator],
        header=journal_header(plan, has_guarantee, header),
        checkpoint_every=settings.checkpoint_every,
    )


@dataclass(frozen=True)
class _Beside:
    """An objective beside θ_0, where weights that start at zero can hide nothing."""

    rows: _Rows
    parameters: TrainableParameters
    scheme: DirectionScheme
    smoothing: float

    def losses(self, units: npt.NDArray[np.int64], /) -> npt.NDArray[np.float64]:
        with shifted(self.parameters, self.scheme.at(0), 0, self.smoothing):
            return self.rows.losses(units)


def _parts(
    model: nn.Module, plan: PrivacyPlan, settings: Settings
) -> tuple[TrainableParameters, DirectionScheme, Update]:
    trainable = settings.trainable
    if isinstance(trainable, str):
        trainable = [name for name, _ in model.named_parameters() if re.search(trainable, name)]
    # Held whole: nothing is known of how this module reads its weights, and both ways give the same bits.
    parameters = TrainableParameters(model, trainable, materialise="all")
    scheme = DirectionScheme(settings.directions, settings.seed, plan.num_directions, parameters.sizes)
    if settings.schedule not in SCHEDULES:
        raise DpzoError(f"schedule: must be one of {', '.join(SCHEDULES)}")
    schedule = SCHEDULES[settings.schedule](settings.learning_rate, plan.steps, settings.warmup_steps)
    if settings.estimator not in ESTIMATORS:
        raise DpzoError(f"estimator: must be one of {', '.join(ESTIMATORS)}")
    update = build_update(
        settings.update,
        schedule=schedule,
        expected_batch_size=plan.expected_batch_size,
        steps=plan.steps,
        noise_std=plan.noise_multiplier * plan.clip_norm,
        momentum=settings.momentum,
        shrinkage=settings.shrinkage,
        ema=settings.ema if settings.ema > 0 else None,
        average=settings.average,
    )
    return parameters, scheme, update


def _synthetic(examples: Examples, size: int) -> Examples:
    """Public rows of the same shapes and types: normal floats, zeros and ones for integers."""

    def rows(name: str, like: Tensor) -> Tensor:
        shape = (size, *like.shape[1:])
        values = public_normal(0, f"isolation/{name}", int(np.prod(shape)), 1.0).reshape(shape)
        if like.is_floating_point():
            return values.to(like.dtype).to(like.device)
        return (values > 0).to(like.dtype).to(like.device)

    return {name: rows(name, tensor) for name, tensor in examples.items()}


def _base(model: nn.Module) -> dict[str, str]:
    return {"name": type(model).__name__, "fingerprint": fingerprint(model)}


def _described(parameters: TrainableParameters) -> list[list[Any]]:
    described = zip(parameters.names, parameters.shapes, parameters.dtypes, strict=True)
    return [[name, list(shape), dtype] for name, shape, dtype in described]


def _plain(trainable: str | Collection[str]) -> str | list[str]:
    return trainable if isinstance(trainable, str) else list(trainable)
