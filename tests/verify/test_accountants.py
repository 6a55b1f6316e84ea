"""The second accountants bracket the claim, and a claim that is 5 % off lies outside."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpzo.noise.families import Huber, Staircase
from dpzo.noise.tabled import Tabled
from dpzo.noise.tabulate import table
from dpzo.privacy import (
    FullBatch,
    Gaussian,
    Laplace,
    NeighboringRelation,
    PoissonSampling,
    PrivacyPlan,
    Release,
    lattice,
)
from dpzo.privacy.mechanisms import Mechanism
from dpzo.run.header import journal_header
from dpzo.run.journal import Journal, Transcript, read
from dpzo.verify.accountants import Bracket, renyi_bound, second_bracket
from dpzo.verify.papers import check_releases, first_other_line

REPLACED = NeighboringRelation.REPLACE_ONE
PRV = pytest.mark.skipif(importlib.util.find_spec("prv_accountant") is None, reason="needs dpzo[verify]")


def plan(noise: Mechanism, q: float, steps: int, delta: float = 1e-5, **changes: Any) -> PrivacyPlan:
    sampler = FullBatch() if q == 1 else PoissonSampling(q)
    return PrivacyPlan(1000, sampler, noise, 1.0, steps, changes.pop("num_directions", 1), delta, **changes)


CASES = {
    "sampled Gaussian, little noise": plan(Gaussian(0.8), 0.01, 100),
    "sampled Gaussian": plan(Gaussian(1.0), 0.01, 1000, num_directions=16),
    "sampled Gaussian, much noise": plan(Gaussian(20.0), 0.016, 200),
    "small δ": plan(Gaussian(1.0), 0.01, 1000, 1e-10),
    "Gaussian": plan(Gaussian(2.0), 1, 50),
    "Gaussian, replaced": plan(Gaussian(30.0), 1, 100, relation=REPLACED),
    "pure Laplace": plan(Laplace(80.0), 0.05, 100, 0.0, num_directions=4),
    "pure Laplace, replaced": plan(Laplace(80.0), 0.05, 100, 0.0, relation=REPLACED),
    "sampled Laplace": plan(Laplace(6.0), 0.05, 100),
    "Gaussian, sampled and replaced": plan(Gaussian(3.0), 0.05, 100, num_directions=8, relation=REPLACED),
    "Laplace in several coordinates": plan(Laplace(6.0), 0.05, 100, num_directions=4),
    "Laplace, replaced": plan(Laplace(20.0), 1, 20, relation=REPLACED),
    "a table": plan(Tabled(table(Huber(3.0, 1.0))), 1, 10),
    "a table, replaced": plan(Tabled(table(Staircase(2.0, 0.5))), 1, 10, relation=REPLACED),
    "a sampled table": plan(Tabled(table(Huber(3.0, 1.0))), 0.1, 100),
}


@PRV
@pytest.mark.parametrize("case", CASES)
def test_the_claim_lies_within_and_others_do_not(case: str) -> None:
    bracket = second_bracket(CASES[case])
    assert isinstance(bracket, Bracket)
    claim = CASES[case].epsilon
    assert bracket.low <= claim <= bracket.high
    assert 0.95 * claim < bracket.low
    assert 1.05 * claim > bracket.high
    assert claim <= renyi_bound(CASES[case]) * 1.000001


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (plan(Laplace(6.0), 0.05, 100, relation=REPLACED), "dp-accounting does not support replace_one for Laplace"),
        (plan(Laplace(6.0), 0.05, 100, 1e-14), "too small for the Fourier transform"),
        (plan(Tabled(table(Huber(3.0, 1.0))), 1, 10, 0.0), "no second accountant reads tables at δ = 0"),
        (plan(Tabled(table(Huber(3.0, 1.0))), 0.01, 10**6), "too large for dp-accounting's general PLD"),
        (plan(Gaussian(3.0), 0.05, 100, 1e-30), "prv-accountant fails on these numbers"),
    ],
)
@PRV
def test_where_there_is_none_the_reason_is_given(made: PrivacyPlan, reason: str) -> None:
    bracket = second_bracket(made)
    assert isinstance(bracket, str)
    assert reason in bracket


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpzo.verify.accountants.importlib.util.find_spec", lambda name: None)
    assert second_bracket(CASES["Gaussian"]) == "prv-accountant is not installed: pip install 'dpzo[verify]'"


@pytest.mark.parametrize(
    ("shipped", "wanted", "place"),
    [
        (b"a\nb", "a\nb", None),
        (b"a\nb", "a", "line 2: 'b', the journal gives nothing"),
        (b"a", "a\nb", "line 2: nothing, the journal gives 'b'"),
        (b'"epsilon": 2.0000000001,', '"epsilon": 2.0,', None),
        (
            b'"epsilon": 2.001,',
            '"epsilon": 2.0,',
            "line 1: '\"epsilon\": 2.001,', the journal gives '\"epsilon\": 2.0,'",
        ),
        (b'"delta": 2.0000000001,', '"delta": 2.0,', "line 1"),
        (b'"epsilon": null,', '"epsilon": 2.0,', "line 1"),
        (b"\xff\x1b[2J", "a", r"line 1: '\xff\x1b[2J'"),
    ],
)
def test_the_first_other_line(shipped: bytes, wanted: str, place: str | None) -> None:
    found = first_other_line(shipped, wanted)
    if place is None:
        assert found is None
    else:
        assert found is not None
        assert found.replace("\\\\", "\\").startswith(place)


def transcript(folder: Path, made: PrivacyPlan, share: float, signal: float = 0.0) -> Transcript:
    """A journal of noise at `share` of the planned scale, beside a signal that answers to what was released before."""
    draw = np.random.default_rng(11)
    grid = lattice(made.mechanism, made.clip_norm, made.num_directions)
    journal = Journal.create(folder, journal_header(made, True, {}))
    last = 0
    for step in range(made.steps):
        size = share * 2**grid.bits
        law = draw.normal if isinstance(made.mechanism, Gaussian) else draw.laplace
        pull = -int(signal * np.sign(last)) * grid.bound
        values = [int(np.floor(law(0.0, size))) + pull for _ in range(made.num_directions)]
        journal.append(Release(step, tuple(values), grid.unit))
        last = values[0]
    journal.close(clean=True)
    return read(folder)


@pytest.mark.parametrize("noise", [Gaussian(3.0), Laplace(3.0)])
def test_half_the_noise_is_seen_and_the_right_noise_is_not_blamed(
    noise: Mechanism, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)  # a thousand of them take their time
    made = plan(noise, 0.1, 200)
    shares = {0.0: False, 0.5: False, 1.0: True, 2.0: True}
    for share, right in shares.items():
        folder = tmp_path / str(share)
        folder.mkdir()
        check = check_releases(transcript(folder, made, share), made)
        assert check.ok is right, check.detail
        assert right or "too little noise" in check.detail
    folder = tmp_path / "signal"
    folder.mkdir()
    assert check_releases(transcript(folder, made, 1.0, signal=1.0), made).ok


def test_a_single_silent_step_is_not_blamed_and_a_table_is_not_judged(tmp_path: Path) -> None:
    made = plan(Gaussian(3.0), 0.1, 1)
    assert check_releases(transcript(tmp_path, made, 0.5), made).ok
    folder = tmp_path / "table"
    folder.mkdir()
    tabled = plan(Tabled(table(Huber(3.0, 1.0))), 0.1, 50)
    check = check_releases(transcript(folder, tabled, 0.0), tabled)
    assert check.ok
    assert "no less noise" not in check.detail
