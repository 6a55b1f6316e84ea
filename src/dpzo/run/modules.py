"""Private fine-tuning of any `nn.Module` with a per-example loss, through the same privacy channel.

`fit` trains in place and writes a run folder (journal, plan, card, trained weights); `replay` rebuilds the weights
from the journal. For language models, `dpzo.run.folders` offers more options; the command line uses it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import safetensors.torch
import torch
from torch import nn

from dpzo.config.plain import refusing
from dpzo.config.solve import plan_summary
from dpzo.errors import DpzoError
from dpzo.forecast import planned_passes
from dpzo.models import fingerprint, fingerprint_tensors
from dpzo.models.quiet import silent_libraries
from dpzo.privacy import PrivacyPlan, Release
from dpzo.report import write_card
from dpzo.run import loop as trainer
from dpzo.run.examples import Examples, read_examples
from dpzo.run.header import check_header, described, journal_header, run_header
from dpzo.run.journal import JOURNAL, read, write_durably
from dpzo.run.loop import Job, RandomnessAt
from dpzo.run.output import make_folder, no_run, require_new
from dpzo.run.row_objective import IsolationCheck, Loss, RowObjective, synthetic_examples
from dpzo.zo import (
    ESTIMATORS,
    SCHEDULES,
    DirectionScheme,
    TrainableParameters,
    Update,
    build_update,
    update_facts,
)

WEIGHTS = "trained.safetensors"


@dataclass(frozen=True)
class Settings:
    """The public settings of a run; the journal's header records each of them.

    Args:
        learning_rate: Learning rate η, in parameter units per unit slope.
        smoothing: Perturbation scale φ, in parameter units.
        trainable: Parameter names, or a regular expression that is searched in the names; only parameters with
            `requires_grad` set are trained.
        seed: Public seed of the directions, 0 … 2⁶⁴ − 1.
        directions: Kind of direction, a key of `zo.KINDS`.
        estimator: A key of `zo.ESTIMATORS`.
        update: Update rule, as for `zo.build_update`; like `momentum`, `shrinkage` and `ema`, it does not change the
            plan.
        momentum: Decay of `momentum`, and of Adam's first moment.
        shrinkage: As for `zo.build_update`.
        ema: Decay of the exponential average of the weights (0: none).
        schedule: Learning-rate schedule, a key of `zo.SCHEDULES`.
        warmup_steps: Steps of linear warm-up.
        average: Fraction of final steps whose weights are averaged (0: the last weights).
        microbatch_size: Rows per forward pass.
        constant_time: Every evaluation runs the planned number of micro-batches, padded with zero rows if the batch is
            smaller (docs/threat_model.md describes what this hides).
        checkpoint_every: Steps between checkpoints.
        tuning: How the hyper-parameters were chosen, for the card.

    Raises:
        DpzoError: for a value out of range or an unknown name.
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
    constant_time: bool = False
    checkpoint_every: int = 500
    tuning: str = "not declared"

    def __post_init__(self) -> None:
        size = self.microbatch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise DpzoError("microbatch_size: must be a whole number of at least 1")
        if not isinstance(self.constant_time, bool):
            raise DpzoError("constant_time: must be True or False")
        for name, value in (("learning_rate", self.learning_rate), ("smoothing", self.smoothing)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise DpzoError(f"{name}: must be a positive finite number")


def fit(
    model: nn.Module,
    loss: Loss,
    examples: object,
    *,
    plan: PrivacyPlan,
    settings: Settings,
    output: str | Path,
    public_examples: object = None,
    observe: Callable[[Release | None], None] = lambda release: None,
    nonprivate_randomness: RandomnessAt | None = None,
) -> dict[str, Any]:
    """Train any `nn.Module` privately, in place, with a per-example loss.

    The published output is (plan.epsilon, plan.delta)-differentially private for every privacy unit, under the
    assumptions that the card lists. Row isolation is one of these assumptions, because dpzo does not control the loss.

    Args:
        model: The module at its initial weights. Parameters with `requires_grad=False` are not trained or published.
            `fit` clears `requires_grad` on every parameter; another `fit` of the same model trains the same ones.
        loss: `loss(model, batch)` returns the (m,) per-example losses of a batch of m = `settings.microbatch_size`
            rows, each a function of the weights and its own row alone. The last batch is padded with zero rows. A row
            whose loss raises an exception counts as 0 without a message, which would reveal something of that row.
        examples: The private data, one row per unit: a dict of tensors, arrays or lists; a list of dicts or of pairs;
            a pair (x, y); a `Dataset` with a length; a `DataLoader`; a `datasets.Dataset`; or a pandas DataFrame.
        plan: The privacy plan, from `dpzo.solve_plan`.
        settings: The public settings of the run.
        output: A new folder, or the folder of this run to resume it.
        public_examples: Public rows of the same form, to check before training that a row's loss does not depend on
            the other rows in its batch. By default synthetic rows are used (normal floats, 0/1 integers).
        observe: Called with each release, and with None for a burnt step.
        nonprivate_randomness: For tests; such a run claims no guarantee.

    Returns:
        The privacy card. `dpzo.load(output)` opens the run.

    Raises:
        DpzoError: for a user error, including a loss whose rows are not isolated.
        dpzo.Stopped: after Ctrl-C or SIGTERM; the same call resumes the run.

    Example:
        ```python
        plan = dpzo.solve_plan(num_examples=400, expected_batch_size=100, steps=50, delta=1e-5, epsilon=4)
        card = dpzo.fit(model, loss, {"x": x, "y": y}, plan=plan, settings=dpzo.Settings(0.05), output="run")
        ```
    """
    _require_types(model, loss, plan, settings, output)
    folder, floats = Path(output), _float_dtype(model)
    model.eval()
    private = read_examples(examples, floats)
    public = (
        synthetic_examples(private, 2 * settings.microbatch_size)
        if public_examples is None
        else _public(read_examples(public_examples, floats, "public_examples"), private)
    )
    begun = (folder / JOURNAL).exists()
    names = _journal_names(folder) if begun else _trainable_names(model, settings.trainable)
    with silent_libraries():
        job = _job(model, loss, public, names, plan, settings, nonprivate_randomness is None)
        objective = RowObjective(model, loss, private, settings.microbatch_size, _planned_passes(plan, settings))
        arguments: dict[str, Any] = {"observe": observe, "nonprivate_randomness": nonprivate_randomness}
        if begun:
            trainer.resume(job, objective, len(objective), folder, **arguments)
        else:
            require_new(folder)
            make_folder(folder)
            write_durably(folder / "plan.json", (json.dumps(plan_summary(plan), indent=2) + "\n").encode())
            trainer.fit(job, objective, len(objective), folder, **arguments)
    write_durably(folder / WEIGHTS, stored(job.parameters.tensors()))
    return write_card(folder, read(folder))


def stored(trained: dict[str, torch.Tensor]) -> bytes:
    """The content of trained.safetensors."""
    return safetensors.torch.save(trained, {"fingerprint": fingerprint_tensors(trained)})


def stored_fingerprint(run: Path) -> str | None:
    """The hash of the trained weights in the folder, or None if there are none. DpzoError for a damaged file."""
    path = run / WEIGHTS
    if not path.is_file():
        return None
    try:
        return fingerprint_tensors(safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError):
        raise DpzoError(f"{path}: damaged; dpzo.fit writes it anew") from None


def replay(model: nn.Module, run: str | Path) -> str:
    """Rebuild θ_T in `model` (which must hold θ_0) from a run's journal alone; return the hash of the trained weights.

    Raises DpzoError if the journal does not verify or was written for another model.
    """
    transcript = read(Path(run))
    header = transcript.header
    check_header(header)
    settings = Settings(**header["settings"])  # settings that an older version did not record keep their defaults
    plan = PrivacyPlan.from_dict(header["plan"])
    model.eval()
    parameters, scheme, update = _parts(model, _journal_names(Path(run)), plan, settings)
    derived = {
        "base": _base(model),
        "tuning": settings.tuning,
        "directions": scheme.description,
        "estimator": settings.estimator,
        "update": _update_facts(settings),
        "parameters": described(parameters),
    }
    facts = journal_header(plan, header["secret_randomness"], {**header, **derived})
    job = Job(plan, parameters, scheme, settings.smoothing, update, facts)
    trainer.replay(job, transcript)
    return fingerprint_tensors(parameters.tensors())


def _job(
    model: nn.Module,
    loss: Loss,
    public: Examples,
    names: Sequence[str],
    plan: PrivacyPlan,
    settings: Settings,
    has_guarantee: bool,
) -> Job:
    parameters, scheme, update = _parts(model, names, plan, settings)
    estimator = ESTIMATORS[settings.estimator]
    check = IsolationCheck(model, loss, parameters, scheme, estimator, settings.smoothing, settings.microbatch_size)
    check.require(public)
    chosen = {**vars(settings), "trainable": _plain(settings.trainable)}
    if not settings.constant_time:
        del chosen["constant_time"]  # headers of version 0.1.0 do not have it, and such a run may be resumed
    planned = _planned_passes(plan, settings)
    header = run_header(
        plan,
        has_guarantee=has_guarantee,
        base=_base(model),
        tuning=settings.tuning,
        parameters=parameters,
        scheme=scheme,
        estimator=settings.estimator,
        update=_update_facts(settings),
        evaluation={
            "microbatch_size": settings.microbatch_size,
            "isolation": "assumed",  # the loss is the user's
            **({"planned_passes": planned} if planned else {}),
        },
        num_examples_source="declared",
        unit_column=None,
        settings=chosen,
    )
    return Job(
        plan=plan,
        parameters=parameters,
        scheme=scheme,
        smoothing=settings.smoothing,
        update=update,
        estimator=estimator,
        header=header,
        checkpoint_every=settings.checkpoint_every,
    )


def _update_facts(settings: Settings) -> dict[str, Any]:
    facts = update_facts(
        settings.update,
        momentum=settings.momentum,
        shrinkage=settings.shrinkage,
        ema=settings.ema if settings.ema > 0 else None,
    )
    return {**facts, "average": settings.average, "schedule": settings.schedule}


def _planned_passes(plan: PrivacyPlan, settings: Settings) -> int:
    if not settings.constant_time:
        return 0
    return planned_passes(plan.expected_batch_size, plan.num_examples, plan.steps, settings.microbatch_size)


def _parts(
    model: nn.Module, names: Sequence[str], plan: PrivacyPlan, settings: Settings
) -> tuple[TrainableParameters, DirectionScheme, Update]:
    # Held whole: how this module reads its weights is unknown, and both ways give the same bits.
    parameters = TrainableParameters(model, names, materialise="all")
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


def _require_types(model: object, loss: object, plan: object, settings: object, output: object) -> None:
    wrong = {
        "model: must be an nn.Module": isinstance(model, nn.Module),
        "loss: must be a function loss(model, batch) of a module and a dict of tensors": callable(loss),
        "plan: must be a PrivacyPlan, as dpzo.solve_plan gives it": isinstance(plan, PrivacyPlan),
        "settings: must be dpzo.Settings, such as dpzo.Settings(learning_rate=0.05)": isinstance(settings, Settings),
        "output: must be the path of a new folder": isinstance(output, str | os.PathLike),
    }
    for said, is_right in wrong.items():
        if not is_right:
            raise DpzoError(said)


_TRAINED: WeakKeyDictionary[nn.Module, tuple[str, ...]] = WeakKeyDictionary()
"""Names that were trainable when `fit` first received a module: training clears `requires_grad` on all parameters."""


def _trainable_names(model: nn.Module, trainable: str | Collection[str]) -> list[str]:
    """The selected parameters that have `requires_grad` set. Raises DpzoError if there are none."""
    learnable = [name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    learnable = learnable or list(_TRAINED.get(model, ()))
    if isinstance(trainable, str):
        try:
            chosen = [name for name in learnable if re.search(trainable, name)]
        except re.error:
            raise DpzoError("trainable: is not a regular expression; give names or a pattern such as 'head'") from None
    else:
        chosen = list(trainable)
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    frozen = [name for name in chosen if name in known and name not in learnable]
    if frozen:
        raise DpzoError(
            f"trainable: {frozen[0]!r} has requires_grad=False; call requires_grad_() on it, or leave it out"
        )
    if not chosen:
        raise DpzoError(
            "trainable: no parameter is left to train: none of those chosen has requires_grad=True; set it, or choose "
            "other parameters"
        )
    _TRAINED[model] = tuple(learnable)
    return chosen


def _journal_names(run: Path) -> list[str]:
    """The trained parameters of a run as its journal names them."""
    with refusing(no_run(run / JOURNAL)):
        return [str(name) for name, _, _ in read(run).header["parameters"]]


def _float_dtype(model: nn.Module) -> torch.dtype:
    """The model's floating-point dtype, to which examples that are not yet tensors are converted."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def _public(public: Examples, private: Examples) -> Examples:
    """Return `public` if its rows have the same form as the private ones."""
    forms = [{name: (tensor.dtype, tensor.shape[1:]) for name, tensor in rows.items()} for rows in (public, private)]
    if forms[0] != forms[1]:
        raise DpzoError("public_examples: must have the names, row shapes and dtypes of the examples")
    if len(next(iter(public.values()))) < 2:
        raise DpzoError("public_examples: give at least two rows, or none for synthetic ones")
    return public


def _base(model: nn.Module) -> dict[str, str]:
    return {"name": type(model).__name__, "fingerprint": fingerprint(model)}


def _plain(trainable: str | Collection[str]) -> str | list[str]:
    return trainable if isinstance(trainable, str) else list(trainable)
