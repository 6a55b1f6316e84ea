"""The integer table: exact draws, exact moments, nothing else that describes the noise."""

from __future__ import annotations

import itertools
import json
import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpzo.errors import DpzoError
from dpzo.noise import families, mixture, published
from dpzo.noise.table import RATIO_BITS, SIDE_BITS, LatticeNoise
from dpzo.noise.tabulate import ScalarLaw, Side, table, tabulate
from dpzo.privacy import SecretRandom

DRAWS = 1_000_000
FALSE_ALARM = 1e-7
LAWS: list[ScalarLaw] = [
    families.laplace(0.6),
    families.gaussian(0.8),
    families.GeneralisedNormal(0.9, 1.4),
    families.Huber(0.6, 1.2),
    families.Staircase(2.0, 0.34),
    families.TruncatedLaplace(1.0, 10.5),
    published.published("2").mixture,
]


def tiny(ratio: Fraction = Fraction(1, 2), block: int = 1) -> LatticeNoise:
    """Half-weights 3, 2, 2, 1 of 8; the last two repeat at `ratio`; a clip norm is two cells."""
    unit = 2 ** (SIDE_BITS - 4)
    return LatticeNoise(
        (4 * unit, 6 * unit, 3 * unit, 3 * unit), int(ratio * 2**RATIO_BITS), 2, block, 2 * block, "by hand"
    )


def chi_square_p(noise: LatticeNoise, cells: npt.NDArray[np.int64]) -> float:
    """χ² of signed cells against the table's exact masses; far cells pooled, each with at least 20 expected."""
    masses, pooled = noise.shape.masses, int(np.argmax(noise.shape.masses * len(cells) < 20.0)) or len(noise.weights)
    pooled = min(pooled, len(noise.weights) - noise.period)
    inner = np.concatenate([masses[pooled - 1 : 0 : -1], masses[:pooled]])
    outer = (1.0 - inner.sum()) / 2.0
    counts = np.bincount(cells[np.abs(cells) < pooled] + pooled - 1, minlength=2 * pooled - 1)
    found = [int((cells <= -pooled).sum()), *counts.tolist(), int((cells >= pooled).sum())]
    expected = np.array([outer, *inner, outer]) * len(cells)
    if expected[0] < 5.0:
        assert found[0] + found[-1] <= 60
        found, expected = found[1:-1], expected[1:-1] * (sum(found[1:-1]) / expected[1:-1].sum())
    return float(stats.chisquare(found, expected * (sum(found) / expected.sum())).pvalue)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name.split(",")[0])
def test_draws_have_the_masses_of_the_table(law: ScalarLaw) -> None:
    noise = table(law, cells=16)
    cells = noise.draw_cells(SecretRandom().word_array(2 * DRAWS).reshape(-1, 2))
    assert chi_square_p(noise, cells) > FALSE_ALARM
    # Power: the same draws against a law 3 % wider or narrower are rejected.
    if not isinstance(law, families.Staircase):
        x = np.arange(-len(noise.weights) + 1, len(noise.weights))
        spread = float((cells.astype(np.float64) ** 2).mean()) / noise.shape.shift**2
        kurtosis = float((cells.astype(np.float64) ** 4).mean() / (cells.astype(np.float64) ** 2).mean() ** 2)
        error = noise.shape.variance * math.sqrt((kurtosis - 1.0) / DRAWS)
        assert abs(spread - noise.shape.variance) < 6.0 * error < 0.03 * noise.shape.variance
        assert x[-1] >= np.abs(cells).max()


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_a_scale_wrong_by_three_percent_is_seen(factor: float) -> None:
    cells = table(families.Huber(0.6, 1.2), cells=16).draw_cells(SecretRandom().word_array(2 * DRAWS).reshape(-1, 2))
    assert chi_square_p(table(families.Huber(0.6 * factor, 1.2), cells=16), cells) < FALSE_ALARM


def test_single_draws_and_bulk_draws_decide_alike() -> None:
    noise = table(published.published("0.3").mixture, block=1)
    words = SecretRandom().word_array(40_000).reshape(-1, 2)
    assert noise.draw(20_000, iter(words.ravel().tolist())) == noise.draw_cells(words).tolist()
    # At the boundaries of cells, where the second word decides.
    edges = np.cumsum([0, *(w for w in noise.weights[:50])], dtype=object)
    close = [((int(e) + k) >> 63, ((int(e) + k) << 1) % 2**64 | s) for e in edges for k in (-1, 0, 1) for s in (0, 1)]
    pairs = np.array([pair for pair in close if pair[0] >= 0], dtype=np.uint64)
    assert noise.draw(len(pairs), iter(pairs.ravel().tolist())) == noise.draw_cells(pairs).tolist()


def test_tails_and_blocks_are_drawn_exactly() -> None:
    """A table whose tail holds most of the mass, so that its geometric law and the offsets in a block are seen."""
    noise = tiny(block=5)
    draws = np.array(noise.draw(200_000, SecretRandom().words()))
    cells = np.floor_divide(draws + 2, 5)
    far = 12
    counts = [int((np.abs(cells) == c).sum()) for c in range(far)] + [int((np.abs(cells) >= far).sum())]
    masses = [float(noise.mass(c)) * (1 if c == 0 else 2) for c in range(far)]
    expected = np.array([*masses, 1.0 - sum(masses)]) * len(draws)
    assert stats.chisquare(counts, expected).pvalue > FALSE_ALARM
    offsets = np.bincount(draws - 5 * cells + 2, minlength=5)
    assert stats.chisquare(offsets).pvalue > FALSE_ALARM
    assert stats.binomtest(int((draws > 0).sum()), int((draws != 0).sum())).pvalue > FALSE_ALARM
    spread = 6.0 * float((draws.astype(float) ** 2).std()) / len(draws) ** 0.5 / noise.bound**2
    assert abs((draws.astype(float) ** 2).mean() / noise.bound**2 - noise.variance) < spread


def test_moments_are_exact() -> None:
    noise = tiny()
    total = sum(noise.mass(c) * (1 if c == 0 else 2) for c in range(400))
    assert float(1 - total) < 1e-50
    variance = sum(2 * c * c * noise.mass(c) for c in range(400)) / noise.bound**2
    assert noise.variance == pytest.approx(float(variance), rel=1e-15)
    assert noise.noise_multiplier == pytest.approx(math.sqrt(variance), rel=1e-15)
    assert noise.shape.variance == pytest.approx(noise.variance, rel=1e-14)
    absolute = sum(2 * c * noise.mass(c) for c in range(400)) / noise.bound
    assert noise.shape.mean_absolute == pytest.approx(float(absolute), rel=1e-14)
    inside = sum(noise.mass(c) for c in range(-3, 4))
    assert noise.shape.usefulness(1.5) == pytest.approx(float(inside), rel=1e-14)
    assert noise.shape.usefulness(300.0) == pytest.approx(1.0, abs=1e-12)
    assert noise.shape.usefulness(-0.1) == 0.0
    # A block of b units adds the variance of a uniform law on b points.
    wide = tiny(block=5)
    assert wide.variance == pytest.approx(noise.variance + 24 / 12 / wide.bound**2, rel=1e-14)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0.0, 2.0), min_size=3, max_size=9), st.floats(0.0, 0.99), st.integers(1, 2))
def test_any_unimodal_law_becomes_a_table_that_is_accounted_alike(
    drops: list[float], ratio: float, period: int
) -> None:
    weights = [math.exp(-sum(drops[:i])) for i in range(len(drops) + 1)]
    # The tail must start below what it follows.
    ratio = min(ratio, weights[-1] / weights[-period] * 0.99)
    with localcontext() as context:
        context.prec = 60
        noise = tabulate(
            Side([Decimal(w) * Decimal("0.999") ** i for i, w in enumerate(weights)], Decimal(ratio), period),
            4,
            3,
            "law",
        )
    assert sum(noise.weights) == 2**SIDE_BITS
    shape = noise.shape
    for cell in range(len(noise.weights)):
        assert shape.masses[cell] == pytest.approx(float(noise.mass(cell)), rel=3e-16)
    assert shape.masses[0] + 2.0 * (shape.masses[1:].sum() + shape.beyond) == pytest.approx(1.0, rel=1e-13)


def test_a_table_survives_json_and_has_one_fingerprint() -> None:
    noise = table(families.Huber(0.6, 1.2))
    again = LatticeNoise.from_dict(json.loads(json.dumps(noise.to_dict())))
    assert again == noise
    assert again.fingerprint == noise.fingerprint
    renamed = LatticeNoise.from_dict({**noise.to_dict(), "origin": "another name"})
    assert renamed.fingerprint == noise.fingerprint
    assert table(families.Huber(0.6, 1.2000001)).fingerprint != noise.fingerprint
    assert table(families.Huber(0.6, 1.2), block=1).fingerprint != noise.fingerprint


def test_tables_are_the_same_on_every_machine() -> None:
    """Decimal arithmetic only: the fingerprints are constants."""
    found = [table(law, cells=16).fingerprint[:16] for law in LAWS]
    assert found == FINGERPRINTS


FINGERPRINTS = [
    "0ca3a5c5d1a45ef2",
    "dbfe693e8c558962",
    "a5d31d6c63816d7d",
    "f0af27f602da5e48",
    "c89ed0ee12907361",
    "f9f3d7cd10e7a500",
    "968af1fd26a8f6b6",
]


def test_every_family_makes_a_clip_norm_of_a_thousand_units() -> None:
    for cells in (8, 64, 999, 1000, 1001):
        noise = table(families.laplace(0.2), cells=cells)
        assert noise.bound >= 1000
        assert noise.bound == cells * noise.block
        assert noise.cells_per_bound == cells


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": ["4", "3", "2", "1"]}, "sum to"),
        ({"weights": ["4", "3", "2", "-1"]}, "negative"),
        ({"weights": ["zz"]}, "unreadable"),
        ({"weights": 3}, "unreadable"),
        ({"ratio": f"{2**RATIO_BITS:x}"}, "ratio"),
        ({"block": 2}, "odd"),
        ({"bound": 0}, "odd"),
        ({"period": 0}, "period"),
        ({"period": 9}, "period"),
        ({"format": 2}, "format"),
    ],
)
def test_a_broken_table_is_refused_in_one_line(change: dict[str, object], words: str) -> None:
    with pytest.raises(DpzoError, match=words) as caught:
        LatticeNoise.from_dict({**tiny().to_dict(), **change})
    assert "\n" not in str(caught.value)
    with pytest.raises(DpzoError, match="unreadable"):
        LatticeNoise.from_dict({})


def test_tables_that_are_not_unimodal_are_refused() -> None:
    unit = 2 ** (SIDE_BITS - 4)
    for weights in ((4, 3, 6, 3), (2, 6, 4, 4), (4, 4, 2, 6), (1, 5, 5, 5)):
        with pytest.raises(DpzoError, match="not unimodal"):
            LatticeNoise(tuple(w * unit for w in weights), 0, 1, 1, 2)
    with pytest.raises(DpzoError, match="not unimodal"):
        # A second period that starts above the end of the first.
        LatticeNoise(tuple(w * unit for w in (4, 6, 5, 1)), 2**RATIO_BITS - 1, 2, 1, 2)


def test_the_mixture_table_is_within_its_certified_distance() -> None:
    law: mixture.LaplaceMixture = published.published("3").mixture
    noise = table(law, cells=8)
    edges = [0.0, *((c + 0.5) / 8 for c in range(len(noise.weights)))]
    survival = [law.survival(edge) for edge in edges]
    inside = [near - far for near, far in itertools.pairwise(survival)]
    gap = sum(abs(float(noise.mass(c)) * (1 if c == 0 else 2) - m) for c, m in enumerate(inside))
    assert gap / 2.0 <= noise.distance + 1e-13
    assert noise.distance < 1e-18
