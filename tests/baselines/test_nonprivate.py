"""Without privacy the same job learns what a private one can only approach."""

from types import ModuleType

import numpy as np
import torch

from dpzo.baselines import train_without_privacy


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
