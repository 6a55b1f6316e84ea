"""LiRA against real runs, which have only the model's answers to tell: by heart without privacy, guessing with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import dpzo
from dpzo.audit.membership import Membership, confidence_scores, lira
from dpzo.privacy import Gaussian, PoissonSampling, PrivacyPlan

RUNS, RECORDS, WIDTH, CLASSES = 8, 60, 100, 4


def by_heart(x: Tensor, y: Tensor, folder: Path) -> nn.Linear:
    model = nn.Linear(WIDTH, CLASSES)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.requires_grad_(False)


def private(x: Tensor, y: Tensor, folder: Path) -> nn.Linear:
    model = nn.Linear(WIDTH, CLASSES)
    plan = PrivacyPlan(len(x), PoissonSampling(0.5), Gaussian(8.0), 1.0, 20, 4, 1e-3)
    assert plan.epsilon < 2.0

    def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    dpzo.fit(model, losses, {"x": x, "y": y}, plan=plan, settings=dpzo.Settings(0.1), output=folder)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("train", [by_heart, private])
def test_members_are_found_without_privacy_and_not_with_it(
    train: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random labels: all that a model gets right of them, it has from their own records."""
    monkeypatch.setattr("os.fsync", lambda file: None)
    draw = torch.Generator().manual_seed(1)
    x = functional.normalize(torch.randn(RECORDS, WIDTH, generator=draw), dim=1)
    y = torch.randint(0, CLASSES, (RECORDS,), generator=draw)
    halves = np.random.Generator(np.random.PCG64(5))
    members = np.stack([halves.permutation(RECORDS) < RECORDS // 2 for _ in range(RUNS)])
    scores = []
    for run, inside in enumerate(members):
        own = torch.from_numpy(np.flatnonzero(inside))
        torch.manual_seed(run)
        assert callable(train)
        model = train(x[own], y[own], tmp_path / str(run))
        with torch.no_grad():
            scores.append(confidence_scores(model(x).double().numpy(), y.numpy()))
    found: Membership = lira(np.stack(scores), members)
    if train is by_heart:
        assert found.area > 0.95
        assert found.found_at(0.01) > 0.5
    else:  # 240 members and as many others: the area under a guess's curve has a standard deviation of 0.026
        assert abs(found.area - 0.5) < 0.17
        assert found.found_at(0.01) < 0.15
