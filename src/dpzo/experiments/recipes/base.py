"""A recipe: one published experiment as one full config, its source, and its published figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from dpzo.config.reading import load_config, parse_config, with_values
from dpzo.config.resolve import part_of, resolve_privacy
from dpzo.config.schema import RunConfig
from dpzo.config.solve import solve_plan
from dpzo.data.tasks import find_task
from dpzo.errors import DpzoError
from dpzo.experiments.recipes.methods import (
    ALMOST_NO_NOISE,
    LMO,
    SMALL_CAUSAL,
    SMALL_ENCODER,
    WITHOUT_NOISE,
    BaselineName,
    default_steps,
    require_served,
    with_rates,
)
from dpzo.noise.mixture_plan import MixturePlan, solve_mixture_plan
from dpzo.privacy import PrivacyPlan
from dpzo.privacy.plan import relation_named

Scale = Literal["paper", "small"]
SCALES: tuple[Scale, ...] = ("paper", "small")

TANG = "Tang et al., DP-ZO, TMLR 2025"
ZHANG = "Zhang et al., DPZero, ICML 2024"
BAO = "Bao et al., DP-AggZO, USENIX Security 2025"
YANG = "Yang et al., LMO-DP, arXiv 2405.18776"
TUNING = "none here: values of the paper, which chose them on its own data and did not count that"

K_SHOT_LAYOUT = "k-512/seed-42"
K_SHOT_EXAMPLES = {"sst2": 1024, "sst5": 2560, "snli": 1536, "mnli": 1536, "rte": 1024, "trec": 2646}
"""Units of the papers' 512-a-class splits. TREC's is not 3072: two of its classes have fewer than 512."""

ROBERTA_LARGE = "FacebookAI/roberta-large"
ROBERTA_BASE = "FacebookAI/roberta-base"
SMALL_LENGTHS = {"classification": 64, "completion": 256}


@dataclass(frozen=True)
class Published:
    """A published figure, in points of `metric`; `value` None if there is no figure; `note` then says why."""

    metric: str
    value: float | None
    standard_error: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Experiment:
    """A runnable experiment: one config, run by the private loop (`baseline` None) or by a baseline that reads it.

    `changed`: the changes made by a smaller scale, in words.
    """

    config: RunConfig
    baseline: BaselineName | None
    changed: tuple[str, ...] = ()

    def with_options(
        self, *, epsilon: float | None = None, seed: int | None = None, assignments: Sequence[str] = ()
    ) -> Experiment:
        """The same with another ε (the noise is then solved for it), public seed, and `group.field=value` assignments.

        Raises DpzoError for an invalid field, an ε for a method without noise, or noise that the method cannot add.
        """
        config = self.config
        if epsilon is not None:
            if self.baseline in WITHOUT_NOISE:
                raise DpzoError(f"--epsilon: {self.baseline} adds no noise, so that no ε belongs to it; leave it out")
            config = with_values(config, privacy={"epsilon": epsilon, "noise_multiplier": None})
        if seed is not None:
            config = with_values(config, training={"seed": seed})
        config = with_assignments(config, assignments)
        require_served(self.baseline, config)
        return replace(self, config=config)

    def num_examples(self) -> int:
        """N, if it is public: declared, or the published size of the layout that the task prefers."""
        return _num_examples(self.config)

    def plan(self) -> PrivacyPlan:
        """The plan of a run, with its noise solved; open fields as the defaults fill them. Loads no model.

        For mixture noise on a vector this is the plan of Gaussian noise of the same standard deviation, from which the
        job is built; `account` has the ε of such a run.
        """
        settings = self._settings()
        if self.baseline in LMO:
            noise = self.account().noise_multiplier
            settings |= {"epsilon": None, "noise_multiplier": noise, "mechanism": "gaussian"}
        return _solved(settings.pop("num_directions"), settings.pop("clip_norm"), **settings)

    def account(self) -> PrivacyPlan | MixturePlan:
        """The plan that gives the ε of a run; for mixture noise on a vector, the mixture's plan."""
        if self.baseline is None or self.baseline not in LMO:
            return self.plan()
        settings = self._settings()
        del settings["num_directions"]
        return _mixture(route=LMO[self.baseline][1], **settings)

    def _settings(self) -> dict[str, Any]:
        number = self.num_examples()
        filled = resolve_privacy(self.config, part_of(self.config.model.trainable), number)
        return {
            "num_directions": filled.num_directions,
            "clip_norm": filled.clip_norm,
            "num_examples": number,
            "expected_batch_size": filled.expected_batch_size,
            "steps": filled.steps,
            "delta": filled.delta,
            "epsilon": filled.epsilon,
            "noise_multiplier": filled.noise_multiplier,
            "mechanism": filled.mechanism,
            "relation": relation_named(filled.relation),
        }


@dataclass(frozen=True)
class Recipe:
    """A published experiment. Public; building one loads no model and no library.

    - `config`: every value as published, in dpzo's units. If the paper gives a grid but not the choice, one value of
      the grid, and a caveat says so.
    - `epsilon`: as published; None for a method without a guarantee. `published_noise`: the noise multiplier that the
      paper's code used for that ε, if known; the ε that it gives is computed, not copied.
    - `caveats`: what to know before comparing with the figure.
    """

    name: str
    method: str
    paper: str
    table: str
    published: Published
    config: RunConfig
    epsilon: float | None
    baseline: BaselineName | None = None
    published_noise: float | None = None
    caveats: tuple[str, ...] = ()

    @property
    def claims(self) -> bool:
        """Whether the method adds noise for privacy and so has an ε."""
        return self.epsilon is not None

    def build(self, scale: Scale = "paper", model: str | None = None) -> Experiment:
        """The experiment at a scale, on `model` if given. DpzoError for a scale that does not exist.

        `small` keeps what defines the method (K, directions, mechanism, kind of clip, relation, δ, ε, full batch or
        sampled, estimator, baseline) and sets model, part, length, T, B, C, φ and η to the defaults of a small model.
        For LMO noise it keeps the published scale and not the published ε, which that noise does not have.
        """
        if scale not in SCALES:
            raise DpzoError(f"--scale must be one of {', '.join(SCALES)}")
        if scale == "small":
            return _small(self, model)
        config = self.config if model is None else with_values(self.config, model={"name": model})
        return Experiment(config, self.baseline)

    def noise_as_published(self) -> PrivacyPlan | None:
        """The plan with the published noise at this recipe's sampling: its ε is the correct one for that noise."""
        if self.published_noise is None:
            return None
        noisy = with_values(self.config, privacy={"epsilon": None, "noise_multiplier": self.published_noise})
        return Experiment(noisy, self.baseline).plan()


def _solved(num_directions: int, clip_norm: float, **settings: Any) -> PrivacyPlan:
    """`solve_plan`, called once for all cells of a comparison that agree in everything the noise depends on."""
    if settings["mechanism"] != "gaussian":  # other noise may depend on K
        return _solved_once(num_directions=num_directions, clip_norm=clip_norm, **settings)
    return replace(_solved_once(**settings), num_directions=num_directions, clip_norm=clip_norm)


_solved_once = lru_cache(maxsize=256)(solve_plan)
_mixture = lru_cache(maxsize=256)(solve_mixture_plan)


def with_assignments(config: RunConfig, assignments: Sequence[str]) -> RunConfig:
    """The config with `group.field=value` assignments. DpzoError as `load_config`."""
    if not assignments:
        return config
    tree = config.model_dump()
    return load_config(
        None, {f"{group}.{name}": v for group, fields in tree.items() for name, v in fields.items()}, assignments
    )


def full_config(**groups: dict[str, Any]) -> RunConfig:
    """A config from its groups, with the task's lengths set explicitly and the tuning declared."""
    data, privacy = dict(groups.get("data", {})), dict(groups["privacy"])
    task = find_task(data["task"])
    data.setdefault("max_length", task.max_length)
    data.setdefault("max_answer_tokens", task.max_answer_tokens)
    privacy.setdefault("tuning", TUNING)
    return parse_config({**groups, "data": data, "privacy": privacy})


def _small(recipe: Recipe, model: str | None) -> Experiment:
    paper = recipe.config
    task = find_task(_task_name(paper))
    classes = task.kind == "classification"
    # A causal model given by the user keeps the published part; only the packaged encoder has a head.
    on_encoder = classes and model is None
    trainable = "head" if on_encoder else paper.model.trainable if paper.model.trainable == "full" else "lora"
    known = {each.name for each in task.layouts}
    layout = next((each for each in (K_SHOT_LAYOUT, "carved") if each in known), None)
    name = (SMALL_ENCODER if classes else SMALL_CAUSAL) if model is None else model
    part = part_of(trainable)
    assert paper.privacy.num_directions is not None
    length = SMALL_LENGTHS[task.kind]
    full_batch = paper.privacy.expected_batch_size == paper.privacy.num_examples
    as_published = recipe.baseline in LMO
    privacy: dict[str, Any] = {
        "epsilon": None if as_published else recipe.epsilon,
        "noise_multiplier": paper.privacy.noise_multiplier
        if as_published
        else None
        if recipe.claims
        else ALMOST_NO_NOISE,
        "delta": paper.privacy.delta,
        "num_examples": None,
        "steps": default_steps(part, recipe.baseline, paper.privacy.num_directions),
        "num_directions": paper.privacy.num_directions,
        "mechanism": paper.privacy.mechanism,
        "relation": paper.privacy.relation,
        "tuning": "none: defaults, and the method's own choices",
    }
    if full_batch:
        number = _num_examples(with_values(paper, data={"layout": layout}, privacy={"num_examples": None}))
        privacy |= {"num_examples": number, "expected_batch_size": number}
    kept = ("seed", "directions", "estimator", "schedule", "update", "momentum", "shrinkage")
    training: dict[str, Any] = {key: getattr(paper.training, key) for key in kept}
    config = parse_config(
        {
            "model": {"name": name, "trainable": trainable},
            "data": {"task": task.name, "layout": layout, "max_length": length},
            "privacy": privacy,
            "training": training,
        }
    )
    config = with_rates(config, recipe.baseline, part)
    changed = (
        f"model: {name} ({trainable}) for {paper.model.name} ({paper.model.trainable})",
        f"data: {layout if layout is not None else 'the first layout that the folder holds'}, {length} tokens",
        f"T: {config.privacy.steps} for {paper.privacy.steps}; batch, C, φ and η: the defaults of that part"
        if not full_batch
        else f"T: {config.privacy.steps} for {paper.privacy.steps}; still a full batch; C, φ and η: the defaults",
    )
    return Experiment(config, recipe.baseline, changed)


def _num_examples(config: RunConfig) -> int:
    if isinstance(config.privacy.num_examples, int):
        return config.privacy.num_examples
    task = find_task(_task_name(config))
    named = [layout for layout in task.layouts if config.data.layout in (None, layout.name)]
    return named[0].num_examples["train"]


def _task_name(config: RunConfig) -> str:
    assert isinstance(config.data.task, str)
    return config.data.task
