"""An objective that no gradient reaches, of a user's own making, through the same door."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import dpzo
from dpzo.config.solve import solve_plan
from dpzo.run.modules import Settings, fit, replay


def wrong(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(m,) fp32: 1 where the sign of the score is not the label's. Its gradient is 0 wherever it exists."""
    with torch.no_grad():
        score = model(batch["x"])[:, 0]
    return (torch.sign(score) != batch["y"]).float()


def model() -> nn.Module:
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-0.5, 0.1, 0.1]]))
    return layer


def test_steps_on_a_verdict_learn_and_replay(tmp_path: Path) -> None:
    assert callable(dpzo.fit)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(400, 3)
        layer = model()
    examples = {"x": x, "y": torch.sign(x[:, 0])}
    plan = solve_plan(
        num_examples=400,
        expected_batch_size=200,
        steps=60,
        delta=1e-3,
        noise_multiplier=0.5,
        clip_norm=4.0,
        num_directions=4,
    )
    before = float(wrong(layer, examples).mean())
    settings = Settings(learning_rate=0.3, smoothing=0.2, microbatch_size=50)
    fit(layer, wrong, examples, plan=plan, settings=settings, output=tmp_path / "run")
    after = float(wrong(layer, examples).mean())
    assert before > 0.9
    assert after < 0.3
    fresh = model()
    replay(fresh, tmp_path / "run")
    assert torch.equal(next(fresh.parameters()), next(layer.parameters()))
