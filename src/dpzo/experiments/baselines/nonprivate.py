"""Training without privacy, and no training: the upper and lower references of a comparison. For public data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpzo.experiments.baselines.cards import NO_PRIVACY_LACKS, baseline_card
from dpzo.experiments.baselines.first_order import settings_of
from dpzo.experiments.baselines.method import Outcome
from dpzo.privacy.mechanisms import clip_rows, lattice
from dpzo.run.loop import Job
from dpzo.zo import Objective, central_difference


def train_without_privacy(job: Job, public: Objective, num_units: int, seed: int = 0, *, clipped: bool = False) -> None:
    """The job's steps on the job's directions, with public batches and no noise. Parameters hold θ_T.

    Batches are Poisson with the plan's probability, from a public seed, and the sum of their rows is divided by the
    expected batch size, so that the difference to a private run is the cost of clipping and noise; with `clipped` rows
    are bounded as there, and it is the cost of noise alone (a rate made for clipped rows may be too large for others).
    No guarantee: for public data only. Source: Malladi et al., MeZO, 2023 (with per-example losses).
    """
    grid = lattice(job.plan.mechanism, job.plan.clip_norm, job.plan.num_directions)
    batches = np.random.Generator(np.random.PCG64(seed))
    state = job.update.init(job.parameters)
    for step in range(job.plan.steps):
        units = np.flatnonzero(batches.random(num_units) < job.plan.sampler.sampling_prob)
        directions = job.scheme.at(step)
        rows = central_difference(public, job.parameters, units, directions, job.smoothing)
        slopes = clip_rows(rows, grid) * grid.unit if clipped else rows
        job.update.apply(job.parameters, state, directions, slopes.sum(axis=0), step)
    job.update.finish(job.parameters, state)


@dataclass(frozen=True)
class NonprivateZerothOrder:
    """`train_without_privacy` as a method: the job's own directions, smoothing and update. `seed`: of the batches."""

    seed: int = 0

    @property
    def name(self) -> str:
        """mezo."""
        return "mezo"

    def run(self, job: Job, objective: Objective, num_units: int, /) -> Outcome:
        """Train in place; no guarantee."""
        train_without_privacy(job, objective, num_units, self.seed)
        settings = settings_of(self)
        return Outcome(baseline_card(self.name, settings, job.plan, job.header, level="none", lacks=NO_PRIVACY_LACKS))


@dataclass(frozen=True)
class ZeroShot:
    """The unchanged base model: no data is read."""

    @property
    def name(self) -> str:
        """zero-shot."""
        return "zero-shot"

    def run(self, job: Job, objective: Objective, num_units: int, /) -> Outcome:
        """Leave the parameters unchanged."""
        del objective, num_units
        return Outcome(baseline_card(self.name, {}, job.plan, job.header, level="zero-shot", lacks=()))
