"""DPZero and its paper's baselines: MeZO, DPGD-0th, zero-shot; RoBERTa-large at 512 records per class, and OPT."""

from __future__ import annotations

from typing import Any

from dpzo.config.schema import RunConfig
from dpzo.experiments.recipes import theory
from dpzo.experiments.recipes.base import (
    K_SHOT_EXAMPLES,
    K_SHOT_LAYOUT,
    ROBERTA_LARGE,
    ZHANG,
    Published,
    Recipe,
    full_config,
)
from dpzo.experiments.recipes.conversions import dpzero_noise_multiplier
from dpzo.experiments.recipes.methods import ALMOST_NO_NOISE

ROBERTA_TASKS = ("sst2", "sst5", "snli", "mnli", "rte", "trec")
OPT_TASKS = {"sst2": "accuracy", "boolq": "accuracy", "squad": "F1", "drop": "F1"}

# Accuracy and its standard error over 3 seeds, tasks in the order of ROBERTA_TASKS.
DPZERO = {
    2.0: ((91.8, 0.1), (47.1, 0.9), (73.6, 0.9), (62.7, 0.9), (70.4, 0.7), (82.0, 1.6)),
    6.0: ((92.2, 0.3), (49.3, 0.6), (77.8, 1.0), (67.4, 0.3), (71.9, 0.9), (87.6, 0.9)),
}
MEZO = ((92.5, 0.3), (50.8, 0.8), (80.4, 0.6), (69.2, 0.3), (72.8, 1.0), (88.9, 0.1))
ZERO_SHOT = (79.0, 35.5, 50.2, 48.8, 51.4, 32.0)
# MeZO, DPZero at ε = 6, at ε = 2, zero-shot; tasks in the order of OPT_TASKS.
OPT = {
    "1.3b": ((88.2, 88.2, 86.8, 53.6), (63.2, 62.4, 61.6, 45.3), (73.5, 72.6, 70.1, 26.8), (24.4, 24.7, 23.9, 11.1)),
    "2.7b": ((91.9, 91.5, 90.5, 56.3), (65.3, 65.4, 63.7, 47.7), (76.3, 75.7, 71.9, 29.8), (25.5, 24.6, 23.1, 9.7)),
    "6.7b": ((93.0, 92.6, 90.6, 61.2), (67.4, 66.8, 63.7, 59.4), (79.7, 79.5, 77.1, 36.5), (28.8, 28.4, 27.6, 17.8)),
}
# The code's multiplier at ε = 2 and 6: RDP with q = B/(512 · labels), which TREC does not have.
CODE_NOISE = {
    "sst2": (13.47, 5.151),
    "rte": (13.47, 5.151),
    "snli": (9.001, 3.479),
    "mnli": (9.001, 3.479),
    "sst5": (5.438, 2.166),
    "trec": (4.551, 1.847),
}
OPT_CODE_NOISE = (2.543, 1.146)

_CODE = (
    "the published code shuffles epochs, accounts for Poisson batches with add/remove and doubles the noise for "
    "replace-one, and draws noise from the direction seed: its ε does not hold; here batches are Poisson, the noise is "
    "secret and solved for ε, about half of the published noise"
)
_RATE = "C: 200, the published default of the grid 50 to 400"
_OPT_GRID = "η: 1e-7 of the grid 1e-6, 1e-7; C: {clip} of the grid 10 to 200 (its SST-2 example takes 300)"
_DRAW = "N = 1000 is declared: give it a file or folder that holds 1000 training records"
_SEEDS = "mean of 3 seeds; on the GPU of the paper (RTX 3090)"
_OPT_SEEDS = "the three runs share their directions and noise seed; no standard error is given"


def roberta(task: str, epsilon: float) -> Recipe:
    """RoBERTa-large with prompts, all parameters, 512 records per class."""
    place = ROBERTA_TASKS.index(task)
    value, error = DPZERO[epsilon][place]
    return Recipe(
        name=f"dpzero-roberta-large-{task}-eps{epsilon:g}",
        method="DPZero",
        paper=ZHANG,
        table="RoBERTa-large, 512 a class",
        published=Published("accuracy", value, error, _SEEDS),
        config=roberta_config(task, {"epsilon": epsilon}),
        epsilon=epsilon,
        published_noise=dpzero_noise_multiplier(CODE_NOISE[task][0 if epsilon == 2 else 1]),
        caveats=(_CODE, _RATE, *_trec(task)),
    )


def opt(size: str, task: str, epsilon: float) -> Recipe:
    """OPT in fp16, all parameters, 1000 records."""
    row = OPT[size][list(OPT_TASKS).index(task)]
    clip = 200.0 if task == "sst2" else 100.0
    return Recipe(
        name=f"dpzero-opt-{size}-{task}-eps{epsilon:g}",
        method="DPZero",
        paper=ZHANG,
        table="OPT, 1000 records",
        published=Published(OPT_TASKS[task], row[1 if epsilon == 6 else 2], note=_OPT_SEEDS),
        config=opt_config(size, task, {"epsilon": epsilon, "clip_norm": clip}),
        epsilon=epsilon,
        published_noise=dpzero_noise_multiplier(OPT_CODE_NOISE[0 if epsilon == 2 else 1]),
        caveats=(_CODE, _OPT_GRID.format(clip=f"{clip:g}"), _DRAW),
    )


def theorem(epsilon: float) -> Recipe:
    """Theorem 3 as stated: full batch, sphere, replace-one, noise by composition; the constants are declared here."""
    task = "sst2"
    told = theory.dpzero(
        num_examples=K_SHOT_EXAMPLES[task],
        dimension=355_000_000,
        lipschitz=25.0,
        smoothness=1000.0,
        effective_rank=100.0,
        epsilon=epsilon,
        delta=1e-5,
    )
    config = roberta_config(
        task,
        {
            "noise_multiplier": told.noise_multiplier,
            "expected_batch_size": told.num_examples,
            "steps": told.steps,
            "clip_norm": told.clip_norm,
            "relation": "replace_one",
        },
        {"directions": "sphere", "learning_rate": told.learning_rate},
    )
    return Recipe(
        name=f"dpzero-theorem-roberta-large-{task}-eps{epsilon:g}",
        method="DPZero, theorem 3",
        paper=ZHANG,
        table="theorem 3 (algorithm 2)",
        published=Published("accuracy", None, note="a theorem; no run of it is published"),
        config=config,
        epsilon=epsilon,
        published_noise=told.noise_multiplier,
        caveats=(
            "L = 25, ℓ = 1000 and r = 100 are declared by us: nobody knows a network's",
            f"φ: 1e-3; the theorem's bound, {told.smoothing:.1g}, is far below what fp32 can resolve",
        ),
    )


def mezo_roberta(task: str) -> Recipe:
    """The upper reference: the same steps without clipping and noise."""
    value, error = MEZO[ROBERTA_TASKS.index(task)]
    return Recipe(
        name=f"mezo-roberta-large-{task}",
        method="MeZO",
        paper=ZHANG,
        table="RoBERTa-large, 512 a class: MeZO, 10 000 steps",
        published=Published("accuracy", value, error, _SEEDS),
        config=roberta_config(task, {"noise_multiplier": ALMOST_NO_NOISE}),
        epsilon=None,
        baseline="mezo",
        caveats=("no privacy of any kind: for public data",),
    )


def mezo_opt(size: str, task: str) -> Recipe:
    """The like for OPT."""
    return Recipe(
        name=f"mezo-opt-{size}-{task}",
        method="MeZO",
        paper=ZHANG,
        table="OPT, 1000 records: MeZO",
        published=Published(OPT_TASKS[task], OPT[size][list(OPT_TASKS).index(task)][0], note=_OPT_SEEDS),
        config=opt_config(size, task, {"noise_multiplier": ALMOST_NO_NOISE, "clip_norm": 100.0}, dtype="float32"),
        epsilon=None,
        baseline="mezo",
        caveats=("no privacy of any kind: for public data", _DRAW, "fp32 here; the paper's runs are fp16"),
    )


def zero_shot_roberta(task: str) -> Recipe:
    """The lower reference: the unchanged base model, evaluated with the prompt."""
    return Recipe(
        name=f"zero-shot-roberta-large-{task}",
        method="zero-shot",
        paper=ZHANG,
        table="RoBERTa-large, zero-shot",
        published=Published("accuracy", ZERO_SHOT[ROBERTA_TASKS.index(task)]),
        config=roberta_config(task, {"noise_multiplier": ALMOST_NO_NOISE}),
        epsilon=None,
        baseline="zero-shot",
    )


def zero_shot_opt(size: str, task: str) -> Recipe:
    """The like for OPT."""
    return Recipe(
        name=f"zero-shot-opt-{size}-{task}",
        method="zero-shot",
        paper=ZHANG,
        table="OPT, zero-shot",
        published=Published(OPT_TASKS[task], OPT[size][list(OPT_TASKS).index(task)][3]),
        config=opt_config(size, task, {"noise_multiplier": ALMOST_NO_NOISE, "clip_norm": 100.0}),
        epsilon=None,
        baseline="zero-shot",
    )


def vector_noise() -> Recipe:
    """DPGD-0th on TREC: the same slopes, but noise on every coordinate."""
    return Recipe(
        name="dpgd-0th-roberta-large-trec-eps2",
        method="DPGD-0th",
        paper=ZHANG,
        table="the comparison on TREC",
        published=Published("accuracy", 67.0, note="one figure is given"),
        config=roberta_config("trec", {"epsilon": 2.0}, {"directions": "sphere"}),
        epsilon=2.0,
        baseline="dpgd-0th",
        caveats=(
            "η, C and T of its run are not held: those of DPZero here; its noise moves the weights √d times as far",
            "floating-point noise: its ε holds in real arithmetic only",
            *_trec("trec"),
        ),
    )


def roberta_config(
    task: str, privacy: dict[str, Any], training: dict[str, Any] | None = None, model: dict[str, Any] | None = None
) -> RunConfig:
    """The paper's setting of RoBERTa-large, with some fields replaced."""
    return full_config(
        model={"name": ROBERTA_LARGE, "trainable": "full", **({} if model is None else model)},
        data={"task": task, "layout": K_SHOT_LAYOUT},
        privacy={
            "delta": 1e-5,
            "num_examples": K_SHOT_EXAMPLES[task],
            "expected_batch_size": 64,
            "steps": 10_000,
            "num_directions": 1,
            "clip_norm": 200.0,
            **privacy,
        },
        training={
            "directions": "gaussian",
            "smoothing": 1e-3,
            "learning_rate": 1e-6,
            "average": 0.0,
            **({} if training is None else training),
        },
    )


def opt_config(
    size: str,
    task: str,
    privacy: dict[str, Any],
    training: dict[str, Any] | None = None,
    dtype: str = "float16",
) -> RunConfig:
    """The paper's setting of OPT, with some fields replaced."""
    return full_config(
        model={"name": f"facebook/opt-{size}", "trainable": "full", "dtype": dtype},
        data={"task": task},
        privacy={
            "delta": 1e-5,
            "num_examples": 1000,
            "expected_batch_size": 8,
            "steps": 20_000,
            "num_directions": 1,
            **privacy,
        },
        training={
            "directions": "gaussian",
            "smoothing": 1e-3,
            "learning_rate": 1e-7,
            "average": 0.0,
            **({} if training is None else training),
        },
    )


def _trec(task: str) -> tuple[str, ...]:
    if task != "trec":
        return ()
    return ("the paper accounts with N = 3072; the split holds 2646 records, so q is 0.0242 and not 0.0208",)


RECIPES = (
    *(roberta(task, epsilon) for epsilon in DPZERO for task in ROBERTA_TASKS),
    *(opt(size, task, epsilon) for size in OPT for task in OPT_TASKS for epsilon in (2.0, 6.0)),
    theorem(2.0),
    vector_noise(),
    *(mezo_roberta(task) for task in ROBERTA_TASKS),
    *(mezo_opt(size, task) for size in OPT for task in OPT_TASKS),
    *(zero_shot_roberta(task) for task in ROBERTA_TASKS),
    *(zero_shot_opt(size, task) for size in OPT for task in OPT_TASKS),
)
