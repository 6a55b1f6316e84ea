"""The bench that runs cells: records and features are prepared once per split, the rest for every cell."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpzo.config.defaults import Part
from dpzo.config.reading import with_values
from dpzo.config.resolve import default_trainable, part_of
from dpzo.config.schema import RunConfig
from dpzo.data.tasks import Records, Task
from dpzo.errors import DpzoError
from dpzo.experiments.compare.cells import Cell, model_shown
from dpzo.experiments.compare.public_data import PublicData, Split
from dpzo.experiments.recipes.base import Experiment
from dpzo.experiments.recipes.methods import FIRST_ORDER
from dpzo.experiments.recipes.running import as_trained, make_baseline
from dpzo.models import FeatureObjective, Shapes, make_objective, peek_architecture
from dpzo.models.quiet import silent_libraries
from dpzo.privacy import PrivacyPlan
from dpzo.report.card import build_card
from dpzo.run import loop as train
from dpzo.run.build import RunFacts, RunParts, start, start_at
from dpzo.run.environment import environment
from dpzo.run.journal import read
from dpzo.run.scoring import judge
from dpzo.run.subject import encode, objective
from dpzo.zo import Objective
from dpzo.zo import evaluations as step_evaluations

EPSILON_SLACK = 2e-3
"""A card's ε may lie this share below the one that was asked for, and not above: the solver's tolerance."""


def part_on(task: Task, model: str, trainable: str | None, revision: str | None = None) -> Part:
    """The part whose defaults apply to `trainable` (None: as a run chooses, by the model's architecture)."""
    if trainable is None:
        prompted = task.mask_template is not None
        trainable = default_trainable(peek_architecture(model, task.kind, prompted=prompted, revision=revision))
    return part_of(trainable)


class Bench:
    """Run cells one after the other on public data in one folder; caches the data of the last task and layout.

    A cell runs like `dpzo train`: assembled from its config, trained by `train.fit` into a separate journal in a
    temporary folder (or by its baseline), scored on held-out records. Shared between cells: records, the features of a
    frozen encoder, which depend on no seed, and the sizes at which isolation has passed for the same model and shape.
    """

    def __init__(self, data: PublicData, tell: Callable[[str], None] = lambda text: None) -> None:
        self.data = data
        self._tell = tell
        self._place: tuple[str, str | None] | None = None
        self._records: dict[tuple[str, str], Records] = {}
        self._features: dict[tuple[str, str], FeatureObjective] = {}
        self._shapes: dict[str, tuple[Shapes, Any]] = {}

    def __repr__(self) -> str:
        return f"Bench({self._place!r})"

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train and score: the filled config, the card, the score, and the cost in evaluations."""
        if self._place != (cell.task, cell.layout):
            self._place, self._records, self._features = (cell.task, cell.layout), {}, {}
        config = cell.config
        number = self.data.num_examples(config)
        plan = Experiment(with_values(config, privacy={"num_examples": number}), cell.baseline).plan()
        parts = self._parts(config, number, plan)
        records = self._read("train", config)
        split = self.data.held_out(config)
        tested = self._read(split, config)
        private = self._objective("train", records, parts)
        if cell.baseline is None:
            card = _train_privately(parts, private, records.num_units)
            _require_epsilon(card, cell.epsilon)
        else:
            method = make_baseline(cell.baseline, parts, config)
            with silent_libraries():
                card = method.run(parts.job, private, records.num_units).card
        seen = self._seen(split, tested, parts)
        filled = as_trained(parts.subject.config, card).model_dump(mode="json")
        filled["model"]["name"] = model_shown(config.model.name)
        card["base_model"] = {**card["base_model"], "name": model_shown(config.model.name)}
        return {
            "config": filled,
            "dimension": parts.job.parameters.dimension,
            "num_examples": number,
            "held_out": {"split": split, "records": len(tested)},
            "card": card,
            "score": judge(parts.subject, tested, seen)(),
            "evaluations_per_record": evaluations(cell, parts),
            "versions": environment(),
        }

    def _parts(self, config: RunConfig, number: int, plan: PrivacyPlan) -> RunParts:
        key = _digest(config, "model", "data") + str(config.training.microbatch_size)
        known, facts = self._shapes.get(key), RunFacts(number, "task", plan=plan)
        if known is None:
            parts = start(config, facts)
            self._shapes[key] = (parts.subject.shapes, parts.job.parameters.materialise)
            return parts
        shapes, materialise = known
        parts = start_at(config, facts, shapes)
        # How shifted weights are held was decided on synthetic tokens for this model, together with its shapes.
        parts.job.parameters.materialise = materialise
        return parts

    def _read(self, split: Split, config: RunConfig) -> Records:
        key = (split, _digest(config, "data"))
        if key not in self._records:
            self._records[key] = self.data.load(split, config)
        return self._records[key]

    def _objective(self, split: str, records: Records, parts: RunParts) -> Objective:
        """The private objective, with a frozen encoder's cached features if this split has them."""
        kept = self._kept(split, parts)
        if kept is not None:
            return kept
        self._tell("preparing the records for the model")
        made = objective(records, parts.subject)
        if isinstance(made, FeatureObjective):
            self._features[split, _digest(parts.subject.config, "model", "data")] = made
        return made

    def _seen(self, split: str, records: Records, parts: RunParts) -> FeatureObjective | None:
        """The held-out records' features; None if the evaluation has to encode them itself."""
        kept = self._kept(split, parts)
        subject = parts.subject
        if kept is not None or subject.shapes.head_block is None:
            return kept
        self._tell("preparing the held-out records")
        made = make_objective(subject.loaded, encode(records, subject), subject.shapes)
        assert isinstance(made, FeatureObjective)
        self._features[split, _digest(subject.config, "model", "data")] = made
        return made

    def _kept(self, split: str, parts: RunParts) -> FeatureObjective | None:
        found = self._features.get((split, _digest(parts.subject.config, "model", "data")))
        if found is None:
            return None
        other = copy.copy(found)
        other.module = parts.subject.loaded.module  # type: ignore[assignment]
        return other


def evaluations(cell: Cell, parts: RunParts) -> dict[str, float]:
    """Passes a training record takes part in on average: `forward` alone, and `backward` (with their forward) ones."""
    plan = parts.job.plan
    often = plan.steps * plan.sampler.sampling_prob
    if cell.baseline == "zero-shot":
        return {"forward": 0.0, "backward": 0.0}
    if cell.baseline in FIRST_ORDER:
        return {"forward": 0.0, "backward": often}
    directions = 1 if cell.baseline == "dpgd-0th" else plan.num_directions
    estimator = parts.subject.config.training.estimator if cell.baseline is None else "central"
    return {"forward": often * step_evaluations(estimator, directions), "backward": 0.0}


def _train_privately(parts: RunParts, private: Objective, num_units: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="dpzo-compare-") as folder, silent_libraries():
        train.fit(parts.job, private, num_units, Path(folder))
        return build_card(read(Path(folder)))


def _require_epsilon(card: dict[str, Any], asked: float | None) -> None:
    """Raise DpzoError if a private cell's card does not guarantee the ε under which the table would list it."""
    found = card["epsilon"]
    if asked is None or found is None or not asked * (1 - EPSILON_SLACK) <= found <= asked:
        raise DpzoError(
            f"--epsilons: a card grants {'no guarantee' if found is None else f'ε = {found:.6g}'} where "
            f"{'none' if asked is None else f'{asked:g}'} was asked; leave privacy.epsilon and noise to --epsilons"
        )


def _digest(config: RunConfig, *groups: str) -> str:
    tree = config.model_dump(mode="json")
    return json.dumps([tree[group] for group in groups], sort_keys=True) + config.data.objective
