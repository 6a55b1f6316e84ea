"""First-order baselines of the papers: DP-AdamW and AdamW, on all parameters and by LoRA."""

from __future__ import annotations

from typing import Any

from dpzo.config.schema import RunConfig
from dpzo.experiments.recipes.base import BAO, ZHANG, Published, Recipe
from dpzo.experiments.recipes.dpzero import OPT_TASKS, ROBERTA_TASKS, opt_config, roberta_config
from dpzo.experiments.recipes.methods import ALMOST_NO_NOISE

# Accuracy and its standard error over 3 seeds, tasks in the order of ROBERTA_TASKS.
DP_ADAMW = {
    ("full", 2.0): ((90.5, 1.5), (47.5, 0.5), (74.6, 1.0), (70.3, 0.8), (72.8, 0.9), (85.0, 0.5)),
    ("full", 6.0): ((91.6, 1.2), (49.0, 0.3), (81.5, 1.4), (76.3, 0.9), (77.3, 1.1), (89.9, 0.8)),
    ("lora", 2.0): ((90.2, 1.2), (47.1, 0.4), (74.7, 1.6), (65.7, 0.9), (69.2, 1.1), (83.2, 2.3)),
    ("lora", 6.0): ((91.0, 1.3), (48.8, 0.5), (81.0, 1.5), (72.8, 1.8), (74.7, 1.3), (89.2, 0.8)),
}
ADAMW = {
    "full": ((93.1, 0.3), (56.6, 0.3), (86.4, 0.8), (81.4, 0.9), (83.6, 1.6), (95.9, 0.2)),
    "lora": ((93.3, 0.4), (55.3, 1.0), (85.9, 0.7), (82.2, 0.7), (84.2, 0.4), (94.6, 0.4)),
}
OPT = {("sst2", 2.0): 91.0, ("sst2", 6.0): 91.3, ("squad", 2.0): 78.0, ("squad", 6.0): 79.2}

_FLOATS = "floating-point noise: its ε holds in real arithmetic only"
_GRID = "η: 5e-4 of the grid 5e-5 to 1e-3; C: 1 of the grid 0.1 to 10; which were chosen is not held"
_DECAY = "Adam without weight decay here"
_SEEDS = "mean of 3 seeds"


def dp_adamw(trainable: str, task: str, epsilon: float) -> Recipe:
    """RoBERTa-large with prompts, 512 records per class, 1000 steps."""
    value, error = DP_ADAMW[trainable, epsilon][ROBERTA_TASKS.index(task)]
    return Recipe(
        name=f"dp-{_word(trainable)}-roberta-large-{task}-eps{epsilon:g}",
        method=f"DP-AdamW, {trainable}",
        paper=ZHANG,
        table="RoBERTa-large, 512 a class: first-order baselines",
        published=Published("accuracy", value, error, _SEEDS),
        config=_roberta(trainable, task, {"epsilon": epsilon, "clip_norm": 1.0}, 5e-4),
        epsilon=epsilon,
        baseline="dp-adam",
        caveats=(_FLOATS, _GRID, _DECAY),
    )


def adamw(trainable: str, task: str) -> Recipe:
    """The same without privacy: the upper reference of first-order training."""
    value, error = ADAMW[trainable][ROBERTA_TASKS.index(task)]
    return Recipe(
        name=f"{_word(trainable)}-roberta-large-{task}",
        method=f"AdamW, {trainable}",
        paper=ZHANG,
        table="RoBERTa-large, 512 a class: first-order baselines",
        published=Published("accuracy", value, error, _SEEDS),
        config=_roberta(trainable, task, {"noise_multiplier": ALMOST_NO_NOISE, "clip_norm": 1.0}, 5e-5),
        epsilon=None,
        baseline="adamw",
        caveats=("no privacy of any kind: for public data", "η: 5e-5; the value chosen from a grid is not held"),
    )


def opt_1_3b(task: str, epsilon: float) -> Recipe:
    """OPT-1.3B, all parameters, 1000 records."""
    return Recipe(
        name=f"dp-adamw-opt-1.3b-{task}-eps{epsilon:g}",
        method="DP-AdamW, full",
        paper=BAO,
        table="OPT-1.3B: DP-AdamW",
        published=Published(OPT_TASKS[task], OPT[task, epsilon], note="one seed"),
        config=opt_config(
            "1.3b",
            task,
            {"epsilon": epsilon, "clip_norm": 10.0, "expected_batch_size": 64, "steps": 160},
            {"learning_rate": 5e-5},
            dtype="float32",
        ),
        epsilon=epsilon,
        baseline="dp-adam",
        caveats=(
            _FLOATS,
            "10 passes over the data of the grid 1 to 25, C: 10 of 1 to 200, η: 5e-5 of 1e-5 to 1e-4; B is ours",
            "N = 1000 is declared: give it a file or folder that holds 1000 training records",
        ),
    )


def _roberta(trainable: str, task: str, privacy: dict[str, Any], learning_rate: float) -> RunConfig:
    lora = {"trainable": "lora", "lora_rank": 8, "lora_alpha": 16}
    return roberta_config(
        task,
        {"steps": 1000, **privacy},
        {"learning_rate": learning_rate},
        lora if trainable == "lora" else {"trainable": "full"},
    )


def _word(trainable: str) -> str:
    return "lora" if trainable == "lora" else "adamw"


RECIPES = (
    *(dp_adamw(part, task, epsilon) for part, epsilon in DP_ADAMW for task in ROBERTA_TASKS),
    *(adamw(part, task) for part in ADAMW for task in ROBERTA_TASKS),
    *(opt_1_3b(task, epsilon) for task, epsilon in OPT),
)
