"""`dpzo.fit` on a plain nn.Module: learns, journals, resumes, replays, refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dpzo
from dpzo.errors import DpzoError
from dpzo.privacy import PrivacyPlan
from dpzo.solve import solve_plan

ROWS = torch.Generator().manual_seed(3)
X = torch.randn(300, 4, generator=ROWS)
Y = X @ torch.tensor([1.0, -2.0, 0.5, 0.0])
SETTINGS = dpzo.Settings(learning_rate=0.05, microbatch_size=16, checkpoint_every=10)


def model() -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, 4, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    return layer


def loss(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return (module(batch["x"]).squeeze(-1) - batch["y"]) ** 2


def plan(steps: int = 60, epsilon: float = 8.0) -> PrivacyPlan:
    return solve_plan(
        num_examples=300,
        expected_batch_size=75,
        steps=steps,
        delta=1e-5,
        epsilon=epsilon,
        clip_norm=8.0,
        num_directions=4,
    )


def test_it_learns_and_a_replay_has_the_same_bits(tmp_path: Path) -> None:
    trained = model()
    before = float(loss(trained, {"x": X, "y": Y}).detach().mean())
    card = dpzo.fit(trained, loss, {"x": X, "y": Y}, plan=plan(), settings=SETTINGS, output=tmp_path / "run")
    assert float(loss(trained, {"x": X, "y": Y}).mean()) < 0.2 * before
    assert card["guarantee"]
    assert card["epsilon"] == plan().epsilon
    assert card["mechanism"]["loss_difference_clip"] == pytest.approx(2 * SETTINGS.smoothing * 8.0)
    rebuilt = model()
    dpzo.replay(rebuilt, tmp_path / "run")
    assert torch.equal(rebuilt.weight, trained.weight)
    assert torch.equal(rebuilt.bias, trained.bias)


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    seen: list[object] = []

    def interrupt(release: object) -> None:
        seen.append(release)
        if len(seen) == 25:
            raise Enough

    run = tmp_path / "run"
    with pytest.raises(Enough):
        dpzo.fit(model(), loss, {"x": X, "y": Y}, plan=plan(), settings=SETTINGS, output=run, observe=interrupt)
    trained = model()
    card = dpzo.fit(trained, loss, {"x": X, "y": Y}, plan=plan(), settings=SETTINGS, output=run)
    assert card["steps"] == {**card["steps"], "spent": 60, "burnt": 0}
    rebuilt = model()
    dpzo.replay(rebuilt, run)
    assert torch.equal(rebuilt.weight, trained.weight)


def test_another_start_is_refused(tmp_path: Path) -> None:
    dpzo.fit(model(), loss, {"x": X, "y": Y}, plan=plan(5), settings=SETTINGS, output=tmp_path / "run")
    other = model()
    with torch.no_grad():
        other.bias.fill_(1.0)
    with pytest.raises(DpzoError, match="base"):
        dpzo.replay(other, tmp_path / "run")


def test_rows_that_feel_their_neighbours_are_refused(tmp_path: Path) -> None:
    def coupled(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        losses = loss(module, batch)
        return losses - losses.mean()

    with pytest.raises(DpzoError, match="neighbours"):
        dpzo.fit(model(), coupled, {"x": X, "y": Y}, plan=plan(5), settings=SETTINGS, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mean_loss_is_refused(tmp_path: Path) -> None:
    def mean(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return loss(module, batch).mean()

    with pytest.raises(DpzoError, match="one number a row"):
        dpzo.fit(model(), mean, {"x": X, "y": Y}, plan=plan(5), settings=SETTINGS, output=tmp_path / "run")


def test_uneven_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DpzoError, match="one row a unit"):
        dpzo.fit(model(), loss, {"x": X, "y": Y[:5]}, plan=plan(5), settings=SETTINGS, output=tmp_path / "run")


def test_a_nan_row_counts_zero(tmp_path: Path) -> None:
    poisoned = X.clone()
    poisoned[7] = float("nan")
    trained = model()
    dpzo.fit(trained, loss, {"x": poisoned, "y": Y}, plan=plan(20), settings=SETTINGS, output=tmp_path / "run")
    assert torch.isfinite(trained.weight).all()


def test_public_names_are_lazy_and_complete() -> None:
    for name in dpzo.__all__:
        assert getattr(dpzo, name).__module__.startswith("dpzo")
    assert set(dpzo.__all__) <= set(dir(dpzo))
    with pytest.raises(AttributeError):
        dpzo.nothing  # noqa: B018


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "forward"},
        {"update": "adam", "momentum": 0.8},
        {"shrinkage": "snr", "ema": 0.5},
        {"directions": "orthogonal"},
    ],
    ids=["forward", "adam", "shrunk", "orthogonal"],
)
def test_free_options_replay_and_keep_the_plan(tmp_path: Path, options: dict[str, Any]) -> None:
    settings = replace(SETTINGS, **options)
    trained = model()
    card = dpzo.fit(trained, loss, {"x": X, "y": Y}, plan=plan(20), settings=settings, output=tmp_path / "run")
    assert card["epsilon"] == plan(20).epsilon
    rebuilt = model()
    dpzo.replay(rebuilt, tmp_path / "run")
    assert torch.equal(rebuilt.weight, trained.weight)
    plain = model()
    dpzo.fit(plain, loss, {"x": X, "y": Y}, plan=plan(20), settings=SETTINGS, output=tmp_path / "plain")
    sides = 1 if settings.estimator == "forward" else 2
    assert card["mechanism"]["loss_difference_clip"] == pytest.approx(sides * settings.smoothing * 8.0)


def test_an_unknown_estimator_is_refused(tmp_path: Path) -> None:
    settings = replace(SETTINGS, estimator="backward")
    with pytest.raises(DpzoError, match="estimator: must be one of central, forward"):
        dpzo.fit(model(), loss, {"x": X, "y": Y}, plan=plan(5), settings=settings, output=tmp_path / "run")
