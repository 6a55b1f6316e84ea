"""The privacy plan: sampler + mechanism + relation → event, sensitivity, ε. Every ε is computed from a plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dpzo.errors import DpzoError
from dpzo.privacy import accounting
from dpzo.privacy.events import ComposedEvent, NeighboringRelation
from dpzo.privacy.mechanisms import MECHANISMS, Mechanism, lattice, tables
from dpzo.privacy.sampling import SAMPLERS, FullBatch, PoissonSampling, Sampler


@dataclass(frozen=True)
class PrivacyPlan:
    """Everything that the guarantee depends on, fixed before the first step. Public: safe to print, save and publish.

    `epsilon` is computed from these values; it is never an input.

    Args:
        num_examples: N, the number of privacy units. Public.
        sampler: How each step's batch is drawn.
        mechanism: The noise.
        clip_norm: C, in slope units.
        steps: T, the number of releases.
        num_directions: K; does not affect ε under L2 clipping.
        delta: δ of the guarantee.
        relation: The neighboring relation.

    Raises:
        DpzoError: if a value is out of range or the combination is unsupported.
    """

    num_examples: int
    sampler: Sampler
    mechanism: Mechanism
    clip_norm: float
    steps: int
    num_directions: int
    delta: float
    relation: NeighboringRelation = NeighboringRelation.ZERO_OUT

    def __post_init__(self) -> None:
        for name in ("num_examples", "steps", "num_directions"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise DpzoError(f"`{name}` must be a whole number of at least 1")
        if not 0 < self.clip_norm < float("inf"):
            raise DpzoError("`clip_norm` must be a positive finite number (slope units)")
        if not 0 <= self.delta < 1:
            raise DpzoError("`delta` must lie in [0, 1): 0 asks for pure ε, 1e-5 is a usual choice")
        if type(self.mechanism) not in MECHANISMS.values() and type(self.mechanism) is not tables().Tabled:
            raise DpzoError("`mechanism` is of a class that is not in the closed set: use Gaussian, Laplace or Tabled")
        lattice(self.mechanism, self.clip_norm, self.num_directions)
        accounting.accountant(self.event, self.delta, self.relation)  # rejects what no accountant supports

    @property
    def event(self) -> ComposedEvent:
        """T adaptive releases of the sampled mechanism, in units of clip_norm."""
        return ComposedEvent(self.sampler.event(self.mechanism.event(self.num_directions)), self.steps)

    @cached_property
    def epsilon(self) -> float:
        """The ε of the event at this delta, rounded up."""
        return accounting.epsilon(self.event, self.delta, self.relation)

    @property
    def accountant(self) -> str:
        """The name of the accountant that computes `epsilon`."""
        return accounting.accountant(self.event, self.delta, self.relation)

    @property
    def expected_batch_size(self) -> float:
        """q·N: the public normaliser of every update."""
        return self.sampler.sampling_prob * self.num_examples

    @property
    def noise_multiplier(self) -> float:
        """Noise standard deviation ÷ clip_norm."""
        return self.mechanism.noise_multiplier

    @property
    def noise_scale(self) -> float:
        """Scale parameter of the noise in slope units: the standard deviation of Gaussian noise, b of Laplace noise."""
        return self.mechanism.scale * self.clip_norm

    def to_dict(self) -> dict[str, Any]:
        """The exact inputs of the plan, as in a journal's header."""
        return {
            "num_examples": self.num_examples,
            "sampling": self.sampler.name,
            "sampling_prob": self.sampler.sampling_prob,
            "mechanism": self.mechanism.name,
            "scale": self.mechanism.scale,
            **({"noise": self.mechanism.noise.to_dict()} if self.mechanism.name == "lattice" else {}),
            "clip_norm": self.clip_norm,
            "steps": self.steps,
            "num_directions": self.num_directions,
            "delta": self.delta,
            "relation": self.relation.value,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> PrivacyPlan:
        """The plan that `to_dict` wrote. Raises DpzoError on an unknown name."""
        sampling = _known(fields["sampling"], SAMPLERS, "sampling")
        name = _known(fields["mechanism"], {*MECHANISMS, "lattice"}, "mechanism")
        return cls(
            num_examples=fields["num_examples"],
            sampler=FullBatch() if sampling == FullBatch.name else PoissonSampling(fields["sampling_prob"]),
            mechanism=MECHANISMS[name](fields["scale"]) if name in MECHANISMS else tables().tabled(fields["noise"]),
            clip_norm=fields["clip_norm"],
            steps=fields["steps"],
            num_directions=fields["num_directions"],
            delta=fields["delta"],
            relation=relation_named(fields["relation"]),
        )


def relation_named(name: str) -> NeighboringRelation:
    """The relation with this name; DpzoError lists the known names."""
    return NeighboringRelation(_known(name, {r.value for r in NeighboringRelation}, "relation"))


def _known(name: str, names: Collection[str], argument: str) -> str:
    if name not in names:
        raise DpzoError(f"`{argument}` must be one of {', '.join(sorted(names))}")
    return name
