"""The accountants against direct numerical integration of the hockey-stick and Rényi integrals."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import mpmath as mp
import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import logsumexp

from dpzo.privacy import accounting
from dpzo.privacy.accounting import curves
from dpzo.privacy.accounting.query import Query
from dpzo.privacy.accounting.renyi import curve
from dpzo.privacy.events import GaussianEvent, LaplaceEvent, NeighboringRelation, PoissonSampledEvent

ZERO, ADD, REPLACE = NeighboringRelation
Array = npt.NDArray[np.float64]


def _densities(mechanism: str, noise: float, centre: float) -> tuple[Array, Array, float]:
    step = noise / 4000.0
    x = np.arange(-60.0 * noise - 2.0, 60.0 * noise + 2.0, step)
    distance = (x - centre) / noise
    if mechanism == "gaussian":
        return x, np.exp(-0.5 * distance**2) / (noise * math.sqrt(2 * math.pi)), step
    return x, np.exp(-np.abs(distance)) / (2 * noise), step


def _renyi(p: Array, q: Array, order: float, cell: float) -> float:
    alive = (p > 0.0) & (q > 0.0)
    terms = order * np.log(p[alive]) + (1.0 - order) * np.log(q[alive])
    return (float(logsumexp(terms)) + math.log(cell)) / (order - 1.0)


def _hockey_stick(p: Array, q: Array, epsilon: float, step: float) -> float:
    return float(np.sum(np.maximum(p - math.exp(epsilon) * q, 0.0)) * step)


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
@pytest.mark.parametrize(("noise", "sampling_prob"), [(0.7, 0.2), (2.0, 0.016), (1.0, 1.0)])
@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_one_release_against_quadrature(
    mechanism: str, noise: float, sampling_prob: float, relation: NeighboringRelation
) -> None:
    _, base, step = _densities(mechanism, noise, 0.0)
    with_unit = sampling_prob * _densities(mechanism, noise, 1.0)[1] + (1 - sampling_prob) * base
    other = base
    if relation is REPLACE:
        other = sampling_prob * _densities(mechanism, noise, -1.0)[1] + (1 - sampling_prob) * base
    kind = GaussianEvent if mechanism == "gaussian" else LaplaceEvent
    event = PoissonSampledEvent(sampling_prob, kind(noise))
    for epsilon in (0.0, 0.01, 0.1, 0.5):
        direct = max(_hockey_stick(with_unit, other, epsilon, step), _hockey_stick(other, with_unit, epsilon, step))
        found = curves.delta(event, epsilon, relation)
        assert found >= direct * (1.0 - 1e-5)
        assert found <= direct * (1.0 + 1e-3) + 1e-9


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
@pytest.mark.parametrize(("noise", "sampling_prob"), [(0.7, 0.2), (3.0, 0.05), (1.3, 1.0)])
def test_renyi_curve_against_quadrature_in_both_directions(mechanism: str, noise: float, sampling_prob: float) -> None:
    _, base, step = _densities(mechanism, noise, 0.0)
    shifted = _densities(mechanism, noise, 1.0)[1]
    mixed = sampling_prob * shifted + (1 - sampling_prob) * base
    orders, bounds = curve(Query(mechanism, noise, 1, sampling_prob, 1), ADD)  # type: ignore[arg-type]
    for wanted in (1.5, 2.0, 3.7, 8.0, 20.0):
        at = int(np.argmin(np.abs(orders - wanted)))
        directions = [_renyi(p, q, wanted, step) for p, q in ((mixed, base), (base, mixed))]
        assert bounds[at] >= max(directions) * (1.0 - 1e-5)
        tight = mechanism == "gaussian" or sampling_prob == 1.0 or wanted == round(wanted)
        if tight:
            assert bounds[at] == pytest.approx(max(directions), rel=1e-4)


def test_renyi_replace_one_against_quadrature() -> None:
    noise, sampling_prob = 1.5, 0.1
    _, base, step = _densities("gaussian", noise, 0.0)
    p, q = (
        sampling_prob * _densities("gaussian", noise, centre)[1] + (1 - sampling_prob) * base for centre in (1.0, -1.0)
    )
    orders, bounds = curve(Query("gaussian", noise, 1, sampling_prob, 1), REPLACE)
    for wanted in (1.5, 4.0, 16.0):
        at = int(np.argmin(np.abs(orders - wanted)))
        direct = _renyi(p, q, wanted, step)
        assert bounds[at] == pytest.approx(direct, rel=1e-4)


def test_renyi_laplace_holds_in_two_coordinates() -> None:
    noise, sampling_prob, wanted = 1.2, 0.3, 4.0
    x = np.arange(-30.0, 31.0, 0.02)
    one = np.exp(-np.abs(x) / noise) / (2 * noise)
    base = np.outer(one, one)
    orders, bounds = curve(Query("laplace", noise, 2, sampling_prob, 1), ADD)
    bound = bounds[int(np.argmin(np.abs(orders - wanted)))]
    for share in (0.0, 0.2, 0.5):
        moved = [np.exp(-np.abs(x - part) / noise) / (2 * noise) for part in (1.0 - share, share)]
        mixed = (1 - sampling_prob) * base + sampling_prob * np.outer(*moved)
        for p, q in ((mixed, base), (base, mixed)):
            # The kinks cost the rectangle rule a few 1e-4.
            assert _renyi(p, q, wanted, 0.02**2) <= bound * (1.0 + 1e-3)


def test_opposite_rows_are_the_worst_replacement_of_a_sampled_gaussian() -> None:
    noise, sampling_prob = 0.8, 0.3
    x = np.arange(-7.0, 7.0, 0.04)
    first, second = np.meshgrid(x, x, indexing="ij")

    def density(row: tuple[float, float]) -> Array:
        def bump(a: float, b: float) -> Array:
            return np.asarray(np.exp(-((first - a) ** 2 + (second - b) ** 2) / (2 * noise**2)))

        return (sampling_prob * bump(*row) + (1 - sampling_prob) * bump(0.0, 0.0)) / (2 * math.pi * noise**2)

    p = density((1.0, 0.0))
    event = PoissonSampledEvent(sampling_prob, GaussianEvent(noise))
    for epsilon in (0.0, 0.2, 0.6, 1.2):
        worst = curves.delta(event, epsilon, REPLACE)
        reached = 0.0
        for angle in np.linspace(0.0, math.pi, 7):
            for length in (0.0, 0.5, 1.0):
                q = density((length * math.cos(angle), length * math.sin(angle)))
                both = [
                    float(np.sum(np.maximum(a - math.exp(epsilon) * b, 0.0))) * 0.04**2 for a, b in ((p, q), (q, p))
                ]
                reached = max(reached, *both)
        assert reached <= worst * (1.0 + 1e-3)
        assert reached >= worst * (1.0 - 1e-2)


def _chance_above(noise: float, shifts: tuple[float, ...], level: float) -> float:
    """E(W − e^level)₊ of the likelihood ratio W of a Laplace vector moved by `shifts`, by mpmath quadrature."""
    head, *rest = shifts

    def gained(x: mp.mpf, level: mp.mpf) -> mp.mpf:
        loss = (abs(x) - abs(x - head)) / noise
        if not rest:
            return max(mp.exp(loss) - mp.exp(level), 0)
        # One coordinate has a closed form: 1 − e^{(level − s)/2} between the ends.
        s, at = mp.mpf(rest[0]) / noise, level - loss
        tail = 0 if at >= s else 1 - mp.exp(at) if at <= -s else 1 - mp.exp((at - s) / 2)
        return mp.exp(loss) * tail

    kinks = sorted({-40 * noise, 0.0, float(head), 40 * noise, *(k * head / 16 for k in range(17))})
    return float(mp.quad(lambda x: gained(x, mp.mpf(level)) * mp.exp(-abs(x) / noise) / (2 * noise), kinks))


@pytest.mark.parametrize("noise", [0.4, 1.0, 5.0])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
def test_a_laplace_row_on_one_coordinate_is_the_worst(noise: float, share: float) -> None:
    """The lemma of docs/guarantees.md: E(W₁W₂ − k)₊ ≤ 1 − √k·e^{−s/2}, by quadrature."""
    for level in np.linspace(-1.0, 1.0, 9) / noise:
        split = _chance_above(noise, (share, 1.0 - share), float(level))
        whole = 1.0 - math.exp((float(level) - 1.0 / noise) / 2.0)
        assert split <= whole + 1e-9
        first, second = sorted((share / noise, (1.0 - share) / noise))
        corrections = max(0.0, level - second + first) / 4 + max(0.0, first - level - second) / 4
        formula = 1.0 - math.exp((level - 1.0 / noise) / 2.0) * (1.0 + first / 2 - corrections)
        assert split == pytest.approx(formula, abs=1e-6)


def _loaded(code: str) -> set[str]:
    source = str(Path(accounting.__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    return set(done.stdout.split())


def test_import_is_light_and_dp_accounting_never_comes() -> None:
    loaded = _loaded("import dpzo.privacy.accounting")
    assert "dpzo.privacy.accounting.pld" in loaded
    assert not {"dp_accounting", "torch", "absl"} & loaded


def test_the_light_import_test_would_notice() -> None:
    assert "dp_accounting" in _loaded("from dp_accounting.pld import privacy_loss_distribution")
    late = "from dpzo.privacy import accounting as a, events as e\n"
    late += "a.epsilon(e.PoissonSampledEvent(0.5, e.GaussianEvent(1.0)), 1e-5, e.NeighboringRelation.ZERO_OUT)"
    assert "dp_accounting" not in _loaded(late)
