"""The published parameter sets of LMO-DP: the label of each, and the ε that its noise gives for a scalar.

Labels are ε at δ = 1e-10 for one release, by a formula used beyond its radius. `truth` is correct: pure ε and ε at
δ = 1e-10 of one release (closed forms), and of T = 192 Poisson releases at q = 2048/67350 (the paper's SST-2) by
`noise.lattice_pld`, for scalar rows clipped to 1. `truth_as_sampled` is the same for the noise that the published
sampler draws, which uses the exponential's rate as a scale. For vectors see `noise.mixture_vectors`.
Source of the parameters: Yang et al. 2024 (LMO-DP), figures, table 3 and code; every figure of `truth` is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from dpzo.errors import DpzoError
from dpzo.noise.mixture import LaplaceMixture

DELTA = 1e-10
SAMPLING_PROB = 2048 / 67350
STEPS = 192


@dataclass(frozen=True)
class Truth:
    """ε of a scalar release: pure; at δ = 1e-10; at δ = 1e-10 after 192 releases at q = 2048/67350."""

    pure: float
    once: float
    composed: float


@dataclass(frozen=True)
class PublishedSet:
    """One set: its label, the distribution that the paper accounts, and its ε as written and as sampled."""

    label: str
    mixture: LaplaceMixture
    truth: Truth
    truth_as_sampled: Truth

    @property
    def claimed_epsilon(self) -> float:
        """The ε in the label."""
        return float(self.label.split()[-1])


def published(label: str) -> PublishedSet:
    """The set called `label`. Errors: DpzoError that lists the labels."""
    if label not in PUBLISHED:
        raise DpzoError(f"no published parameter set {label!r}: use one of {', '.join(PUBLISHED)}")
    return PUBLISHED[label]


def _set(label: str, law: tuple[float, ...], written: tuple[float, ...], sampled: tuple[float, ...]) -> PublishedSet:
    return PublishedSet(label, LaplaceMixture(*law), Truth(*written), Truth(*sampled))


# Parameters: a1, k, θ, a3, λ, a4, low, high.
PUBLISHED = {
    row.label: row
    for row in (
        _set("0.15", (0.1, 1, 7.5, 0.1, 0.5, 0.1, 0, 1), (1.23095, 1.23093, 2.3445), (1.13915, 1.13913, 2.0066)),
        _set("0.2", (0.1, 1, 0.5, 0.1, 5, 0.1, 0, 1), (0.14869, 0.14869, 0.2806), (0.83671, 0.83669, 1.4273)),
        _set("0.3", (0.1, 1, 0.5, 0.1, 5, 0.1, 1, 2), (0.2347, 0.2347, 0.5128), (0.88182, 0.8818, 1.6315)),
        _set("0.4", (0.1, 1, 0.5, 0.1, 5, 0.1, 2, 3), (0.32951, 0.32951, 0.7525), (0.94254, 0.94253, 1.8614)),
        _set("0.5", (0.1, 1, 0.5, 0.1, 5, 0.1, 3, 4), (0.4268, 0.4268, 0.9959), (1.01303, 1.01301, 2.1081)),
        _set("0.6", (0.1, 1, 0.5, 0.1, 5, 0.1, 4, 5), (0.52514, 0.52513, 1.2433), (1.09002, 1.09001, 2.3685)),
        _set("0.7", (0.1, 1, 0.5, 0.1, 5, 0.1, 5, 6), (0.62401, 0.62401, 1.4956), (1.17159, 1.17158, 2.6414)),
        _set("0.8", (0.1, 1, 0.5, 0.1, 5, 0.1, 6, 7), (0.7232, 0.7232, 1.7536), (1.25649, 1.25648, 2.9268)),
        _set("0.9", (0.1, 1, 0.5, 0.1, 5, 0.1, 7, 8), (0.82258, 0.82258, 2.0186), (1.34388, 1.34387, 3.2251)),
        _set("1.0", (0.1, 1, 0.5, 0.1, 5, 0.1, 8, 9), (0.9221, 0.9221, 2.2916), (1.4332, 1.43319, 3.5371)),
        _set("2", (0.1, 2, 1, 0.1, 5, 0.2, 7, 8), (1.72157, 1.72157, 4.8791), (2.18384, 2.18383, 6.6352)),
        _set("3", (0.1, 2, 1, 0.1, 5, 0.9, 2, 3), (2.46199, 2.46199, 8.297), (2.90165, 2.90165, 10.848)),
        _set("4", (0.1, 2, 2, 0.1, 1, 0.9, 1, 2), (1.8565, 1.8565, 5.2198), (1.8565, 1.8565, 5.2198)),
        _set("5", (0.1, 1, 7.5, 0.9, 1, 0.7, 6, 7), (5.86711, 5.8671, 49.9491), (5.86711, 5.8671, 49.9491)),
        _set("useful 0.3", (0.1, 1, 7.5, 0.9, 1, 0.1, 1, 2), (1.8887, 1.88868, 4.3873), (1.8887, 1.88868, 4.3873)),
        _set("useful 0.7", (0.1, 1, 7.5, 0.9, 1, 0.1, 5, 6), (2.16697, 2.16695, 5.7303), (2.16697, 2.16695, 5.7303)),
        _set("useful 2", (0.1, 1, 7.5, 0.9, 1, 0.2, 8, 9), (3.15367, 3.15366, 11.9926), (3.15367, 3.15366, 11.9926)),
        _set("useful 3", (0.3, 2, 3, 0.1, 5, 0.3, 8, 9), (4.06906, 4.06905, 20.9771), (4.47331, 4.4733, 25.9832)),
    )
}
