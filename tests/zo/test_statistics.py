"""Moments and tails of each kind, with enough draws to reject a scale that is 3 % off (and a std 0.3 % off)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from dpzo.zo.directions import DirectionScheme
from dpzo.zo.initial import public_normal, public_uniform
from dpzo.zo.kinds import KINDS

DRAWS = 2_000_000


def draws(kind: str, seed: int = 17) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    out = torch.empty(DRAWS)
    DirectionScheme(kind, seed, 1, (DRAWS,)).at(5).fill(0, 0, out)
    return out.double().numpy()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_mean_variance_and_neighbour_correlations(kind: str) -> None:
    z = draws(kind)
    assert abs(z.mean()) < 4.5 / math.sqrt(DRAWS)
    assert abs(z.std() - 1) < 0.003
    for lag in (1, 2, 3, 4, 31, 32, 127, 128):
        assert abs((z[lag:] * z[:-lag]).mean()) < 4.5 / math.sqrt(DRAWS), lag


def test_signs_are_signs_and_their_bytes_are_uniform() -> None:
    z = draws("rademacher")
    assert set(np.unique(z)) == {-1.0, 1.0}
    octets = np.packbits(z > 0)
    assert stats.chisquare(np.bincount(octets, minlength=256)).pvalue > 1e-5


def test_gaussian_cells_and_tails_have_their_exact_masses() -> None:
    z = draws("gaussian")
    edges = np.array([-np.inf, *np.linspace(-4.5, 4.5, 61), np.inf])
    masses = np.diff(stats.norm.cdf(edges))
    counts = np.histogram(z, edges)[0]
    assert stats.chisquare(counts, masses / masses.sum() * DRAWS).pvalue > 1e-5
    assert stats.kstest(z, "norm").pvalue > 1e-5
    assert stats.kstest(z * 1.03, "norm").pvalue < 1e-9
    assert stats.kstest(z * 0.97, "norm").pvalue < 1e-9
    assert (z**4).mean() == pytest.approx(3, abs=5 * math.sqrt(96 / DRAWS))
    assert 4.5 < np.abs(z).max() < 6.8


def test_gaussian_matches_box_muller_in_float64() -> None:
    """The polynomials: elementwise error against the library's functions on the same words."""
    from dpzo.zo.kernels import reference, spec

    scheme = DirectionScheme("gaussian", 3, 1, (400_000,))
    z = torch.empty(400_000)
    scheme.at(0).fill(0, 0, z)
    stream = scheme.at(0).stream(0, 0)
    assert stream.law == spec.NORMALS
    words = reference.uniform_words(stream, 0, 400_000, torch.device("cpu")).double().view(-1, 2)
    radius = torch.sqrt(-2 * torch.log((words[:, 0] + 0.5) / 2**32))
    # the angle's word counts quarter turns from its top bits, the rest signed around the quarter's middle axis
    raw = words[:, 1].long()
    quarter, rest = raw >> 30, (raw << 2) & 0xFFFFFFFF
    rest = torch.where(rest >= 1 << 31, rest - (1 << 32), rest) >> 8
    angle = (quarter.double() + (rest.double() + 0.5) / 2**24) * (math.pi / 2)
    exact = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1).flatten()
    # near u = 1 the radius vanishes and fp32 resolves 1 − u only to 2^-24, which bounds the error there
    assert (z.double() - exact).abs().max() < 4e-4
    assert (z.double() - exact)[radius.repeat_interleave(2) > 0.1].abs().max() < 2e-6


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_second_moment_is_the_identity(kind: str) -> None:
    """E[zzᵀ] over 40 000 directions of 6 elements in two parameters; the sphere's norm is √d each time.

    One direction a step of the orthogonal ones: eight of them would sum to the identity whatever their law.
    """
    used = (5,) if kind == "orthogonal" else range(200)
    scheme = DirectionScheme(kind, 23, used[-1] + 1, (4, 2))
    rows = np.empty((40_000, 6))
    first, second = torch.empty(4), torch.empty(2)
    for step in range(len(rows) // len(used)):
        at = scheme.at(step)
        for place, k in enumerate(used):
            at.fill(k, 0, first)
            at.fill(k, 1, second)
            rows[len(used) * step + place] = [*first.tolist(), *second.tolist()]
    moment = rows.T @ rows / len(rows)
    assert np.abs(moment - np.eye(6)).max() < 5 * math.sqrt(2 / len(rows))
    if kind == "sphere":
        assert np.allclose(np.linalg.norm(rows, axis=1), math.sqrt(6), rtol=2e-5)


def test_initialisation_has_its_law_and_is_pinned() -> None:
    uniform = public_uniform(1, "head.weight", 1_000_000, -0.5, 1.5).double().numpy()
    assert uniform.min() >= -0.5
    assert uniform.max() <= 1.5
    assert stats.kstest(uniform, "uniform", args=(-0.5, 2.0)).pvalue > 1e-5
    normal = public_normal(1, "head.weight", 1_000_000, 0.02).double().numpy()
    assert normal.std() == pytest.approx(0.02, rel=0.003)
    assert torch.equal(public_uniform(1, "a", 700_000, 0, 1)[:9], public_uniform(1, "a", 9, 0, 1))
    assert torch.equal(public_normal(1, "a", 999, 1), public_normal(1, "a", 999, 1, "reference"))
    assert not torch.equal(public_uniform(1, "a", 9, 0, 1), public_uniform(1, "b", 9, 0, 1))


def test_bits_are_pinned() -> None:
    """The first elements of each kind, so a change of any operation shows up even if both kernels change together."""
    got = {}
    for kind in KINDS:
        out = torch.empty(6)
        DirectionScheme(kind, 2**63 + 5, 2, (6, 9)).at(12).fill(1, 0, out)
        got[kind] = [float(v).hex() for v in out]
    assert got == PINNED


PINNED: dict[str, list[str]] = {
    "rademacher": [
        "-0x1.0000000000000p+0",
        "-0x1.0000000000000p+0",
        "-0x1.0000000000000p+0",
        "-0x1.0000000000000p+0",
        "0x1.0000000000000p+0",
        "0x1.0000000000000p+0",
    ],
    "gaussian": [
        "-0x1.e40f1e0000000p-3",
        "0x1.ce4f8a0000000p-2",
        "0x1.62eba40000000p-1",
        "0x1.56e13a0000000p+0",
        "0x1.a891f80000000p-2",
        "0x1.3a871a0000000p-2",
    ],
    "sphere": [
        "0x1.86f8aa0000000p-2",
        "-0x1.1196760000000p+0",
        "0x1.20b2b40000000p+0",
        "-0x1.2e56220000000p-2",
        "-0x1.271da40000000p-1",
        "-0x1.9c263e0000000p-3",
    ],
    "orthogonal": [
        "-0x1.0000000000000p+0",
        "0x1.0000000000000p+0",
        "0x1.0000000000000p+0",
        "-0x1.0000000000000p+0",
        "0x1.0000000000000p+0",
        "0x1.0000000000000p+0",
    ],
}
