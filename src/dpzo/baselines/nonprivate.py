"""Zeroth-order training without privacy (MeZO): the ceiling of the same steps, for public data only."""

from __future__ import annotations

import numpy as np

from dpzo.train import Job
from dpzo.zo import Objective, central_difference


def train_without_privacy(job: Job, public: Objective, num_units: int, seed: int = 0) -> None:
    """The job's steps on the job's directions, with public batches, no clipping and no noise. Parameters hold θ_T.

    Batches are Poisson with the plan's probability, from a public seed, and the sum of their rows is divided by the
    expected batch size, so that the difference to a private run is the price of clipping and noise. No guarantee: for
    data that is public. Source: Malladi et al., MeZO, 2023 (with per-example losses).
    """
    batches = np.random.Generator(np.random.PCG64(seed))
    state = job.update.init(job.parameters)
    for step in range(job.plan.steps):
        units = np.flatnonzero(batches.random(num_units) < job.plan.sampler.sampling_prob)
        directions = job.scheme.at(step)
        rows = central_difference(public, job.parameters, units, directions, job.smoothing)
        job.update.apply(job.parameters, state, directions, rows.sum(axis=0), step)
    job.update.finish(job.parameters, state)
