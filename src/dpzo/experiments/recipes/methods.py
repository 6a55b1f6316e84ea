"""The methods by name, as changes of one config: kind and number of directions, noise, and training algorithm.

Everything else (T for many directions, B, C, φ, η) comes from `dpzo.config.defaults`, except the rates of the
first-order baselines, which were chosen once per part on other tasks (docs/recipes.md has the pilot's figures).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, cast

from dpzo.config.defaults import DEFAULTS, Part
from dpzo.config.reading import with_values
from dpzo.config.schema import RunConfig
from dpzo.errors import DpzoError
from dpzo.experiments.recipes.packaged import packaged_encoder
from dpzo.noise.mixture_plan import mixture_names, mixture_noise
from dpzo.privacy import PrivacyPlan

LmoName = Literal["lmo-sgd", "lmo-adam", "lmo-sgd-l2", "lmo-adam-l2"]
BaselineName = Literal["dpgd-0th", "dp-sgd", "dp-adam", "mezo", "adamw", "zero-shot"] | LmoName

LMO: Mapping[str, tuple[Literal["sgd", "adam"], Literal["l1", "l2"]]] = {
    "lmo-sgd": ("sgd", "l1"),
    "lmo-adam": ("adam", "l1"),
    "lmo-sgd-l2": ("sgd", "l2"),
    "lmo-adam-l2": ("adam", "l2"),
}
"""Gradients with a published mixture as noise: the rule, and the norm that clips (L2 as in the paper)."""
LMO_SET = "0.3"

WITHOUT_DIRECTIONS: frozenset[str] = frozenset({"dp-sgd", "dp-adam", "adamw", "zero-shot", *LMO})
WITHOUT_NOISE: frozenset[str] = frozenset({"mezo", "adamw", "zero-shot"})
VECTOR_NOISE: frozenset[str] = frozenset({"dpgd-0th", "dp-sgd", "dp-adam"})

SMALL_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
"""Hub name of the encoder that `dpzo[demo]` brings as a package; where that is installed, it is used."""
SMALL_CAUSAL = "facebook/opt-125m"

FEW_DIRECTIONS, LONGER = 8, 5
"""Below so many directions a step, T is so many times the default: one noisy direction moves little (the papers take
10 000 steps with K = 1 against 1 000 with K = 64)."""

ALMOST_NO_NOISE = 1e-2
"""Noise multiplier in the plan of a method that adds none: what its defaults are derived at."""


@dataclass(frozen=True)
class DescentRates:
    """The rates of a first-order method: `clip_norm` of a gradient, None for a method that does not clip.

    `learning_rate` None: `drift_rate`, by the plan.
    """

    learning_rate: float | None
    clip_norm: float | None = None


FIRST_ORDER: Mapping[str, Mapping[Part, DescentRates]] = {
    "dp-sgd": {
        "head": DescentRates(None, 0.5),
        "lora": DescentRates(None, 0.5),
        "full": DescentRates(None, 0.5),
    },
    "dp-adam": {
        "head": DescentRates(0.03, 0.5),
        "lora": DescentRates(3e-3, 0.5),
        "full": DescentRates(3e-4, 0.5),
    },
    "adamw": {"head": DescentRates(0.01), "lora": DescentRates(1e-3), "full": DescentRates(1e-4)},
}
FIRST_ORDER = {**FIRST_ORDER, **{name: FIRST_ORDER[f"dp-{rule}"] for name, (rule, _) in LMO.items()}}
FIRST_ORDER_AVERAGE = 0.5
"""The head's are the best of the pilot's grid, in the mean over ε and both of its tasks, averaging the last half of the
iterates (for dp-sgd the clip is, and the rate by the plan does as well); those of the other parts are not piloted."""


@dataclass(frozen=True)
class MethodSpec:
    """A method as `dpzo compare` runs it: fields it sets, and the baseline that trains (None: the private loop).

    `noisy`: whether it has an ε. `num_directions`: None for methods without directions.
    """

    name: str
    summary: str
    baseline: BaselineName | None = None
    noisy: bool = True
    num_directions: int | None = None
    privacy: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


METHODS: Mapping[str, MethodSpec] = {
    spec.name: spec
    for spec in (
        MethodSpec("dp-zo", "one Gaussian direction, Gaussian noise", None, True, 1, {}, {"directions": "gaussian"}),
        MethodSpec(
            "dpzero", "one direction on the sphere, Gaussian noise", None, True, 1, {}, {"directions": "sphere"}
        ),
        MethodSpec(
            "laplace",
            "one Gaussian direction, Laplace noise; pure ε at δ = 0",
            None,
            True,
            1,
            {"mechanism": "laplace"},
            {"directions": "gaussian"},
        ),
        MethodSpec("dpgd-0th", "one direction on the sphere, noise on every coordinate", "dpgd-0th", True, 1),
        MethodSpec("dp-sgd", "clipped gradients, SGD", "dp-sgd"),
        MethodSpec("dp-adam", "clipped gradients, Adam", "dp-adam"),
        MethodSpec("adamw", "gradients, no privacy", "adamw", False),
        MethodSpec("zero-shot", "no training", "zero-shot", False),
    )
}
"""Methods with a fixed name; `dp-aggzo-K` and `mezo`, `mezo-K` are made for any K, `lmo-…` for any published set."""


def find_method(name: str) -> MethodSpec | None:
    """The method of that name, or None."""
    if name in METHODS:
        return METHODS[name]
    if name.startswith("lmo-"):
        return _lmo_method(name)
    match = re.fullmatch(r"(dp-aggzo|mezo)(?:-([1-9][0-9]{0,5}))?", name)
    if match is None or (match[1] == "dp-aggzo" and match[2] is None):
        return None
    directions = 1 if match[2] is None else int(match[2])
    gaussian = {"directions": "gaussian"}
    if match[1] == "mezo":
        return MethodSpec(name, f"{directions} directions, no privacy", "mezo", False, directions, {}, gaussian)
    return MethodSpec(name, f"{directions} directions clipped jointly", None, True, directions, {}, gaussian)


def _lmo_method(name: str) -> MethodSpec | None:
    """lmo-RULE or lmo-RULE-l2, then a published set: lmo-sgd-l2-0.7-as-coded. The set gives the shape, ε the scale."""
    match = re.fullmatch(r"(lmo-(?:sgd|adam)(?:-l2)?)(?:-(.+))?", name)
    if match is None:
        return None
    mechanism = f"lmo-{LMO_SET if match[2] is None else match[2]}"
    if mechanism not in mixture_names():
        return None
    rule, route = LMO[match[1]]
    summary = f"gradients clipped in {route.upper()}, {rule.upper()}, noise {mechanism}"
    return MethodSpec(name, summary, cast(BaselineName, match[1]), privacy={"mechanism": mechanism})


def method_names() -> tuple[str, ...]:
    """The accepted names, with K for a number and SET for a published set of LMO noise."""
    return (*METHODS, "dp-aggzo-K", "mezo", "mezo-K", *LMO, *(f"{name}-SET" for name in LMO))


def with_method(config: RunConfig, spec: MethodSpec, part: Part) -> RunConfig:
    """`config` with the fields that the method sets; fields that neither sets stay open for the defaults."""
    directions = spec.num_directions
    privacy: dict[str, Any] = dict(spec.privacy)
    privacy["num_directions"] = 1 if directions is None else directions
    privacy["steps"] = default_steps(part, spec.baseline, directions)
    if not spec.noisy:
        privacy |= {"epsilon": None, "noise_multiplier": ALMOST_NO_NOISE}
    if spec.baseline == "mezo":  # nothing is clipped, so rates are derived from typical unclipped slopes
        privacy["clip_norm"] = DEFAULTS[part].unclipped * math.sqrt(privacy["num_directions"])
    return with_rates(with_values(config, privacy=privacy, training=dict(spec.training)), spec.baseline, part)


def drift_rate(part: Part, dimension: int, plan: PrivacyPlan) -> float:
    """DP-SGD's default η: its noise then moves an element in a run as far as the private loop's noise may.

    η = min(drift·B/(√T·σC), longest/C), both shrunk as `dpzo.config.defaults` does, for noise of std σC/B on every
    element. `plan` has the gradient's clip_norm C. Public: a function of the plan and of shapes.
    """
    chosen = DEFAULTS[part]
    noise = plan.noise_multiplier * plan.clip_norm / plan.expected_batch_size
    rate = min(chosen.drift / (math.sqrt(plan.steps) * noise), chosen.longest / plan.clip_norm)
    return chosen.shrink(dimension) * rate


def default_steps(part: Part, baseline: BaselineName | None, num_directions: int | None) -> int:
    """T: the part's default, and `LONGER` times that for a method of fewer than `FEW_DIRECTIONS` directions a step."""
    few = num_directions is not None and num_directions < FEW_DIRECTIONS and baseline not in WITHOUT_DIRECTIONS
    return DEFAULTS[part].steps * (LONGER if few else 1)


def require_served(baseline: BaselineName | None, config: RunConfig) -> None:
    """Reject noise that a baseline cannot add: a vector of all elements is clipped in L2. DpzoError in one line."""
    if baseline in LMO:
        mixture_noise(config.privacy.mechanism)  # the error lists the known ones
    if baseline in VECTOR_NOISE and config.privacy.mechanism != "gaussian":
        raise DpzoError(
            f"--set privacy.mechanism: {config.privacy.mechanism} does not serve {baseline}, whose vectors are clipped "
            "in L2; choose gaussian"
        )


def with_rates(config: RunConfig, baseline: BaselineName | None, part: Part) -> RunConfig:
    """`config` with a first-order baseline's rate and clip if they are open; other fields unchanged."""
    if baseline is None or baseline not in FIRST_ORDER:
        return config
    rates = FIRST_ORDER[baseline][part]
    privacy = {} if config.privacy.clip_norm is not None else {"clip_norm": rates.clip_norm}
    training = {} if config.training.learning_rate is not None else {"learning_rate": rates.learning_rate}
    if config.training.average is None and config.training.ema == 0:
        training["average"] = FIRST_ORDER_AVERAGE
    return with_values(config, privacy=privacy, training=training)


def unknown(option: str, name: str, known: tuple[str, ...], where: str) -> DpzoError:
    """A one-line error for an unknown name: with the nearest known one, or where the list is."""
    near = get_close_matches(name, known, n=1) or [each for each in known if name and each.startswith(name)][:1]
    hint = f"did you mean {near[0]}?" if near else where
    return DpzoError(f"{option}{name}: no such name; {hint}")


def local_model(name: str) -> str:
    """The small encoder's packaged folder for its hub name, checked; other names, or without the package, unchanged.

    Errors: `DpzoError` if the package's files do not have the expected digests.
    """
    if name != SMALL_ENCODER:
        return name
    folder = packaged_encoder()
    return name if folder is None else str(folder)
