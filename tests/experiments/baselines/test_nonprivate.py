"""Without privacy the same job learns what a private one can only approach."""

from dataclasses import replace
from types import ModuleType

import numpy as np
import torch

from dpzo.experiments.baselines import train_without_privacy


def test_it_repeats_and_lowers_the_loss(linear: ModuleType) -> None:
    results = []
    for _ in range(2):
        job = linear.make_job(steps=40)
        objective, num_units = linear.Squares(job.parameters.module), linear.NUM_UNITS
        before = objective.losses(np.arange(num_units)).mean()
        train_without_privacy(job, objective, num_units)
        after = objective.losses(np.arange(num_units)).mean()
        assert after < 0.5 * before
        results.append(job.parameters.state())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_clipped_it_makes_the_private_run_s_steps_without_its_noise(linear: ModuleType) -> None:
    """A clip that holds every row back bounds the whole way: T steps of at most η·B·C·√K/(K·qN) along signs."""
    job = linear.make_job(steps=5)
    small = replace(job, plan=replace(job.plan, clip_norm=1e-3))
    objective = linear.Squares(job.parameters.module)
    start = job.parameters.state()
    ways = []
    for clipped in (False, True):
        small.parameters.load(start)
        train_without_privacy(small, objective, linear.NUM_UNITS, clipped=clipped)
        moved = small.parameters.state()
        ways.append(sum(float((moved[name] - start[name]).abs().sum()) for name in start))
    assert 0 < ways[1] < ways[0] / 10
