"""Canaries in a real run: found in a journal as the theory says, and a planted fault is flagged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from dpzo.audit.canaries import Place, WithCanaries, places, scores, steepness
from dpzo.audit.transcript import audit_transcript
from dpzo.config.solve import solve_plan
from dpzo.errors import DpzoError
from dpzo.privacy import FullBatch, NeighboringRelation, PrivacyPlan
from dpzo.privacy.mechanisms import Gaussian
from dpzo.run import loop as train
from dpzo.run.header import journal_header
from dpzo.run.journal import read
from dpzo.run.loop import Job
from dpzo.zo import SCHEDULES, DirectionScheme, Sgd, TrainableParameters, central_difference, shifted

UNITS = 400


class Quadratic:
    """½(x·θ − y)² of public synthetic units, whose rows are short beside a canary's."""

    def __init__(self, parameters: TrainableParameters) -> None:
        draw = np.random.Generator(np.random.PCG64(1))
        self.x, self.y = draw.normal(size=(UNITS, 600)) / 25, 0.02 * draw.normal(size=UNITS)
        self.parameters = parameters

    def losses(self, units: npt.NDArray[np.int64], /) -> npt.NDArray[np.float64]:
        theta = np.concatenate([p.detach().view(-1).double().numpy() for p in self.parameters])
        found: npt.NDArray[np.float64] = 0.5 * (self.x[units] @ theta - self.y[units]) ** 2
        return found


def job_of(plan: PrivacyPlan) -> Job:
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(20, 20, bias=False), "b": torch.nn.Linear(10, 20, bias=False)})
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    parameters = TrainableParameters(module, ["a.weight", "b.weight"])
    scheme = DirectionScheme("rademacher", 3, plan.num_directions, parameters.sizes)
    update = Sgd(SCHEDULES["constant"](0.01, plan.steps, 0), plan.expected_batch_size)
    return Job(plan, parameters, scheme, 1e-3, update, journal_header(plan, True, {}), checkpoint_every=10_000)


def plan_of(**given: Any) -> PrivacyPlan:
    return solve_plan(**{"num_examples": UNITS, "expected_batch_size": UNITS, "delta": 1e-5, "steps": 20, **given})


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_a_canarys_row_is_as_long_as_rows_may_be_and_is_predicted(mechanism: str, tmp_path: Path) -> None:
    plan = plan_of(noise_multiplier=1e-3, mechanism=mechanism, num_directions=4, steps=1, clip_norm=2.0)
    job = job_of(plan)
    job.parameters.materialise = "all"
    at = [Place(0, 399), Place(1, 0)]
    loud = WithCanaries(Quadratic(job.parameters), UNITS, job.parameters, at[:1], steepness(plan))
    assert loud.losses(np.array([0, UNITS])).shape == (2,)
    with torch.no_grad():
        rows = central_difference(loud, job.parameters, np.array([UNITS]), job.scheme.at(0), 1e-3)
    assert np.linalg.norm(rows[0], ord=plan.mechanism.order) > 100 * plan.clip_norm
    z = np.array([_element(job.scheme, k, at[0]) for k in range(4)])
    assert (np.sign(rows[0]) == np.sign(z)).all()

    class Nobody:
        def losses(self, units: npt.NDArray[np.int64], /) -> npt.NDArray[np.float64]:
            return np.zeros(len(units))

    alone = replace(loud, objective=Nobody(), num_units=0)
    train.fit(job, alone, 1, tmp_path)
    found = scores(read(tmp_path), plan, job.scheme, at)
    own = plan.clip_norm * z / np.linalg.norm(z, ord=plan.mechanism.order)
    std = plan.noise_multiplier * plan.clip_norm
    assert found[0] == pytest.approx(np.linalg.norm(own) / std, rel=0.02)
    assert abs(found[1]) < abs(found[0]) + 10


def _element(scheme: DirectionScheme, k: int, place: Place) -> float:
    z = torch.empty(1)
    scheme.at(0).fill(k, place.parameter, z, place.element)
    return float(z)


def test_places_are_different_and_within() -> None:
    scheme = DirectionScheme("rademacher", 0, 1, (5, 0, 7, 3))
    found = places(scheme, 15, np.random.Generator(np.random.PCG64(0)))
    assert sorted((p.parameter, p.element) for p in found) == [
        *((0, i) for i in range(5)),
        *((2, i) for i in range(7)),
        *((3, i) for i in range(3)),
    ]


def test_a_sound_run_is_not_flagged_and_shows_something() -> None:
    """So little noise that the secret draw cannot hide the canaries: over 200 runs the bound lay at 1.8 ± 0.4."""
    plan = plan_of(epsilon=40.0, num_directions=16)
    job = job_of(plan)
    found = audit_transcript(job, Quadratic(job.parameters), UNITS, canaries=400)
    assert [report.method for report in found] == ["one_run", "one_run_gaussian"]
    for report in found:
        assert not report.flagged
        assert report.draws == 400
    assert 0.0 < found[1].epsilon_lower < plan.epsilon
    assert "guesses right" in found[0].note


def test_the_run_is_a_real_one() -> None:
    """Units are learned from beside the canaries, θ ends at θ_T, and the journal says what was done to it."""
    job = job_of(plan_of(epsilon=8.0))
    seen: list[dict[str, Any]] = []

    def fit(job: Job, objective: Any, num_units: int, folder: Path) -> None:
        train.fit(job, objective, num_units, folder)
        seen.append({"header": read(folder).header, "units": num_units})

    held = job.parameters.materialise
    audit_transcript(job, Quadratic(job.parameters), UNITS, canaries=40, fit=fit)
    assert seen[0]["header"]["nonprivate_uses"] == ["canaries of an audit"]
    assert UNITS < seen[0]["units"] < UNITS + 40
    assert any(float(p.detach().abs().max()) > 0 for p in job.parameters)
    assert job.parameters.materialise == held


@pytest.mark.slow
def test_too_little_noise_is_flagged() -> None:
    """The loop that is audited adds a fiftieth of the noise that the claim is computed from."""
    plan = plan_of(epsilon=1.0, num_directions=64)

    def cheat(job: Job, objective: Any, num_units: int, folder: Path) -> None:
        weak = replace(job.plan, mechanism=Gaussian(job.plan.mechanism.scale / 50))
        train.fit(replace(job, plan=weak), objective, num_units, folder)

    job = job_of(plan)
    found = audit_transcript(job, Quadratic(job.parameters), UNITS, canaries=200, fit=cheat)
    assert found[1].flagged  # the binomial bound sees too few guesses to accuse once in a million


def test_what_cannot_be_audited_so_is_refused() -> None:
    job = job_of(plan_of(epsilon=2.0))
    for canaries, said in ((5, "at least 20"), (10_000, "600 are trained")):
        with pytest.raises(DpzoError, match=said):
            audit_transcript(job, Quadratic(job.parameters), UNITS, canaries=canaries)
    swapped = replace(job, plan=replace(job.plan, relation=NeighboringRelation.REPLACE_ONE, sampler=FullBatch()))
    with pytest.raises(DpzoError, match="replace_one"):
        audit_transcript(swapped, Quadratic(job.parameters), UNITS, canaries=40)


def test_canaries_read_the_shifted_weights() -> None:
    job = job_of(plan_of(epsilon=2.0))
    job.parameters.materialise = "all"
    loud = WithCanaries(Quadratic(job.parameters), UNITS, job.parameters, [Place(1, 7)], 10.0)
    with torch.no_grad():
        here = loud.losses(np.array([UNITS]))[0]
        with shifted(job.parameters, job.scheme.at(0), 0, 0.5):
            there = loud.losses(np.array([UNITS]))[0]
    assert there - here == pytest.approx(10.0 * 0.5 * _element(job.scheme, 0, Place(1, 7)))
