"""DP-AggZO: K directions per step, the row of K slopes clipped jointly, K noisy numbers released as one query."""

from __future__ import annotations

from dataclasses import dataclass

from dpzo.config.schema import RunConfig
from dpzo.experiments.recipes.base import BAO, Published, Recipe
from dpzo.experiments.recipes.conversions import joint_clip
from dpzo.experiments.recipes.dpzero import opt_config, roberta_config

_COUNT = (
    "the paper spends 5 % of ε on a private N; here N is declared and the whole ε trains (--set "
    "privacy.num_examples=private --set privacy.relation=add_or_remove_one spends it)"
)
_CODE = "the published commands draw the noise from the direction seed, so that their ε does not hold"
_DRAW = "N = 1000 is declared: give it a file or folder that holds 1000 training records"


@dataclass(frozen=True)
class Row:
    """One line of the authors' list of commands. `clip`: their c, of the row divided by K; `score`: theirs."""

    task: str
    epsilon: float
    steps: int
    directions: int
    learning_rate: float
    clip: float
    score: float | None
    note: str = ""
    suffix: str = ""
    batch: int = 64


ROBERTA = (
    Row("mnli", 2, 500, 64, 6e-4, 1, 72, "80 minutes on an RTX 4090", "-fast", 32),
    Row("mnli", 2, 1000, 64, 8e-5, 5, 74, "71 on an RTX 4090"),
    Row("mnli", 2, 1000, 64, 5e-4, 1, 74, "71 on an RTX 4090", "-c1"),
    Row("mnli", 6, 1000, 64, 3.2e-5, 25, 76),
    Row("mnli", 6, 1000, 256, 1e-4, 2.5, None, "no figure beside this command"),
    Row("mnli", 6, 1000, 512, 2e-4, 1, None, "slightly above K = 64"),
    Row("mnli", 6, 1000, 512, 2e-3, 0.1, None, "slightly above K = 64", "-c0.1"),
    Row("mnli", 1, 1000, 64, 4e-5, 5, 69),
    Row("mnli", 0.5, 500, 64, 2e-4, 1, 63.5),
    Row("rte", 6, 1000, 64, 4e-5, 15, 75),
    Row("trec", 6, 1000, 64, 3.2e-5, 25, 93),
    Row("sst5", 6, 1000, 64, 1e-5, 25, 51.3),
    Row("mnli", 2, 5000, 1, 2e-6, 200, 65),
    Row("mnli", 6, 5000, 1, 2e-6, 200, None, "below 70"),
    Row("rte", 6, 1000, 1, 1e-6, 200, 61),
)
OPT = (
    Row("squad", 2, 1000, 16, 1e-5, 7.5, 76),
    Row("squad", 2, 1000, 64, 6e-5, 2, 78),
)


def roberta(row: Row) -> Recipe:
    """RoBERTa-large with prompts, all parameters, 512 records per class."""
    config = roberta_config(row.task, _privacy(row), {"learning_rate": row.learning_rate})
    return _recipe("roberta-large", "accuracy", row, config, (_COUNT, _CODE))


def opt(row: Row) -> Recipe:
    """OPT-1.3B in fp16, all parameters, 1000 records."""
    config = opt_config("1.3b", row.task, _privacy(row), {"learning_rate": row.learning_rate})
    return _recipe("opt-1.3b", "F1", row, config, (_COUNT, _CODE, _DRAW))


def _recipe(model: str, metric: str, row: Row, config: RunConfig, caveats: tuple[str, ...]) -> Recipe:
    return Recipe(
        name=f"dp-aggzo-{model}-{row.task}-eps{row.epsilon:g}-k{row.directions}{row.suffix}",
        method=f"DP-AggZO, K = {row.directions}" + (" (the K = 1 baseline)" if row.directions == 1 else ""),
        paper=BAO,
        table="the authors' commands and the figures beside them",
        published=Published(metric, row.score, note=("one seed, depends on the GPU; " + row.note).rstrip("; ")),
        config=config,
        epsilon=float(row.epsilon),
        caveats=caveats,
    )


def _privacy(row: Row) -> dict[str, object]:
    return {
        "epsilon": float(row.epsilon),
        "expected_batch_size": row.batch,
        "steps": row.steps,
        "num_directions": row.directions,
        "clip_norm": joint_clip(row.clip, row.directions),
    }


RECIPES = (*map(roberta, ROBERTA), *map(opt, OPT))
