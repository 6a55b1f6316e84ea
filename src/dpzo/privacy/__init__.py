"""The audit core: secret randomness, clipping, exact noise, the privacy channel, and the plan that accounts for it."""

from dpzo.privacy.channel import BudgetExhausted, PrivateChannel, Release
from dpzo.privacy.events import (
    ComposedEvent,
    Event,
    GaussianEvent,
    LaplaceEvent,
    LatticeEvent,
    NeighboringRelation,
    PoissonSampledEvent,
)
from dpzo.privacy.mechanisms import MECHANISMS, Gaussian, Laplace, Lattice, Mechanism, clip_rows, lattice
from dpzo.privacy.plan import PrivacyPlan
from dpzo.privacy.randomness import Randomness, SecretRandom
from dpzo.privacy.sampling import SAMPLERS, FullBatch, PoissonSampling, Sampler

__all__ = [
    "MECHANISMS",
    "SAMPLERS",
    "BudgetExhausted",
    "ComposedEvent",
    "Event",
    "FullBatch",
    "Gaussian",
    "GaussianEvent",
    "Laplace",
    "LaplaceEvent",
    "Lattice",
    "LatticeEvent",
    "Mechanism",
    "NeighboringRelation",
    "PoissonSampledEvent",
    "PoissonSampling",
    "PrivacyPlan",
    "PrivateChannel",
    "Randomness",
    "Release",
    "Sampler",
    "SecretRandom",
    "clip_rows",
    "lattice",
]
