"""`dpzo.fit` on a plain nn.Module: learns, journals, resumes, replays, refuses."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import dpzo
from dpzo import zo
from dpzo.config.solve import solve_plan
from dpzo.errors import DpzoError
from dpzo.privacy import PrivacyPlan

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
    dpzo.replay(tmp_path / "run", rebuilt)
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
    dpzo.replay(run, rebuilt)
    assert torch.equal(rebuilt.weight, trained.weight)


def test_another_start_is_refused(tmp_path: Path) -> None:
    dpzo.fit(model(), loss, {"x": X, "y": Y}, plan=plan(5), settings=SETTINGS, output=tmp_path / "run")
    other = model()
    with torch.no_grad():
        other.bias.fill_(1.0)
    with pytest.raises(DpzoError, match="base"):
        dpzo.replay(tmp_path / "run", other)


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
    dpzo.replay(tmp_path / "run", rebuilt)
    assert torch.equal(rebuilt.weight, trained.weight)
    plain = model()
    dpzo.fit(plain, loss, {"x": X, "y": Y}, plan=plan(20), settings=SETTINGS, output=tmp_path / "plain")
    sides = 1 if settings.estimator == "forward" else 2
    assert card["mechanism"]["loss_difference_clip"] == pytest.approx(sides * settings.smoothing * 8.0)


def test_an_unknown_estimator_is_refused(tmp_path: Path) -> None:
    settings = replace(SETTINGS, estimator="backward")
    with pytest.raises(DpzoError, match="estimator: must be one of central, forward"):
        dpzo.fit(model(), loss, {"x": X, "y": Y}, plan=plan(5), settings=settings, output=tmp_path / "run")


def small(steps: int = 3) -> PrivacyPlan:
    return solve_plan(
        num_examples=40, expected_batch_size=20, steps=steps, delta=1e-3, noise_multiplier=1.0, clip_norm=8.0
    )


SMALL = {"x": X[:40], "y": Y[:40]}
FEW = dpzo.Settings(learning_rate=0.05, microbatch_size=8)
ISOLATION = "A record's loss does not depend on the other records of its batch"


def isolation_of(card: dict[str, Any]) -> tuple[str, str]:
    ((statement, verdict),) = [
        (a["statement"], a["verdict"]) for a in card["assumptions"] if a["statement"].startswith(ISOLATION)
    ]
    return statement, verdict


def test_what_is_not_ours_is_assumed_and_never_passed(tmp_path: Path) -> None:
    card = dpzo.fit(model(), loss, SMALL, plan=small(), settings=FEW, output=tmp_path / "run")
    statement, verdict = isolation_of(card)
    assert verdict == "assumed"
    assert "checked on synthetic rows" in statement
    page = (tmp_path / "run" / "privacy_card.md").read_text()
    assert f"- **assumed**: {ISOLATION}" in page
    assert "local.yaml" not in page + (tmp_path / "run" / "privacy_card.json").read_text()


class Stateful(nn.Linear):
    """A linear model that keeps something of what it was called on."""

    def __init__(self, kind: str) -> None:
        super().__init__(4, 1)
        self.kind, self.calls = kind, 0
        self.register_buffer("largest", torch.zeros(()))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()

    def forward(self, x: Tensor) -> Tensor:
        largest = x.abs().nan_to_num().max()
        if self.kind == "buffer":
            self.largest.copy_(torch.maximum(self.largest, largest))
        elif self.kind == "replaced buffer":
            self.largest = torch.maximum(self.largest, largest)
        elif self.kind == "data of a buffer":
            self.largest.data.copy_(torch.maximum(self.largest, largest))
        elif self.kind == "count":
            self.calls += 1
        found = super().forward(x)
        return found * self.largest.clamp(min=1) if "buffer" in self.kind else found


@pytest.mark.parametrize("kind", ["buffer", "replaced buffer", "data of a buffer", "count"])
def test_a_model_that_keeps_state_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DpzoError, match=r"loss: .* changes while it is evaluated"):
        dpzo.fit(Stateful(kind), loss, SMALL, plan=small(), settings=FEW, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def beyond_ten(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    largest = batch["x"].abs().max()
    return loss(module, batch) * (largest if 10 < largest < 1e30 else 1.0)


def spread(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    losses = loss(module, batch)
    return losses + 0 * torch.where(batch["x"].isnan().any(), torch.nan, 0.0)


def ranked(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return loss(module, batch) * (1 + (batch["y"] == batch["y"].nan_to_num().max()))


def infinite(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return loss(module, batch) * (1 + batch["x"].isinf().any())


@pytest.mark.parametrize("coupled", [beyond_ten, spread, ranked, infinite])
def test_losses_that_feel_hostile_neighbours_are_refused(tmp_path: Path, coupled: Any) -> None:
    with pytest.raises(DpzoError, match="neighbours"):
        dpzo.fit(model(), coupled, SMALL, plan=small(), settings=FEW, output=tmp_path / "run")


def test_a_wide_integer_feature_is_tried_too(tmp_path: Path) -> None:
    def coupled(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        count = batch["n"].max()
        return loss(module, batch) * (count if count > 10 else 1)

    examples = {**SMALL, "n": torch.ones(40, dtype=torch.int64)}
    with pytest.raises(DpzoError, match="neighbours"):
        dpzo.fit(model(), coupled, examples, plan=small(), settings=FEW, output=tmp_path / "run")


def test_the_check_runs_through_the_estimator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def centred(*arguments: Any) -> Any:
        rows = zo.central_difference(*arguments)
        return rows - rows.mean(axis=0) if len(rows) else rows

    monkeypatch.setitem(zo.ESTIMATORS, "centred", centred)
    settings = replace(FEW, estimator="centred")
    with pytest.raises(DpzoError, match="neighbours"):
        dpzo.fit(model(), loss, SMALL, plan=small(), settings=settings, output=tmp_path / "run")


BAD = 7


def classes(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(module(batch["x"]), batch["label"], reduction="none")


def classifier() -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, 4, 3)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    return layer


def test_a_label_out_of_range_counts_zero_and_says_nothing(
    tmp_path: Path, linear: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    """The attack: such a record burnt the steps that it was in, and its label stood in the message."""
    label = torch.arange(40) % 3
    weights = []
    for name, value in (("raises", 4711), ("absent", -100)):  # cross_entropy's ignore_index: a loss of 0 at every θ
        label[BAD], trained, seen = value, classifier(), list[Any]()
        card = dpzo.fit(
            trained, classes, {"x": X[:40], "label": label}, plan=small(8), settings=FEW, output=tmp_path / name,
            observe=seen.append, nonprivate_randomness=linear.Draws(),
        )  # fmt: skip
        assert (card["steps"]["spent"], card["steps"]["burnt"]) == (8, 0)
        assert None not in seen
        weights.append(trained.weight.clone())
    assert torch.equal(*weights)
    assert capfd.readouterr() == ("", "")
    assert all(b"4711" not in path.read_bytes() for path in (tmp_path / "raises").glob("privacy_card.*"))


def test_buffers_are_as_before_after_an_exception(tmp_path: Path) -> None:
    """A model that writes to a buffer, and only when it is about to raise: the next record does not see it."""

    class Raising(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 1)
            self.register_buffer("mark", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            assert float(self.mark) == 0
            if (x == 4711).any():
                self.mark.fill_(1.0)
                raise ValueError(f"record {x}")
            return super().forward(x)

    examples = {"x": X[:40].clone(), "y": Y[:40]}
    examples["x"][BAD] = 4711.0
    module = Raising()
    before = module.weight.detach().clone()
    dpzo.fit(module, loss, examples, plan=small(8), settings=FEW, output=tmp_path / "run")
    assert float(module.mark) == 0
    assert not torch.equal(module.weight, before)


def test_an_exception_on_public_rows_is_told(tmp_path: Path) -> None:
    def misspelt(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return loss(module, {"x": batch["X"]})

    with pytest.raises(DpzoError, match="loss: raises KeyError on public rows of the shapes and types"):
        dpzo.fit(model(), misspelt, SMALL, plan=small(), settings=FEW, output=tmp_path / "run")


class Two(nn.Module):
    """A frozen body under a head, as PEFT leaves a model."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 1)
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters()):
                parameter.fill_(0.1 * (index + 1))
        self.body.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_frozen_parameters_are_neither_trained_nor_published(tmp_path: Path) -> None:
    module, run = Two(), tmp_path / "run"
    frozen = {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}
    dpzo.fit(module, loss, SMALL, plan=small(), settings=FEW, output=run)
    now = dict(module.named_parameters())
    assert all(torch.equal(now[name], before) for name, before in frozen.items())
    assert load_file(run / "trained.safetensors").keys() == {"head.weight", "head.bias"}
    rebuilt = Two()
    dpzo.replay(run, rebuilt)
    assert torch.equal(rebuilt.head.weight, module.head.weight)
    dpzo.fit(module, loss, SMALL, plan=small(), settings=FEW, output=tmp_path / "more")  # the same ones again
    assert load_file(tmp_path / "more" / "trained.safetensors").keys() == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("trainable", "said"),
    [
        ("body", "no parameter is left to train"),
        (["body.weight", "head.weight"], "'body.weight' has requires_grad=False"),
        ("(", "is not a regular expression"),
        (["tail.weight"], "no parameter 'tail.weight'"),
        ([], "no parameter is left to train"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, trainable: Any, said: str) -> None:
    settings = replace(FEW, trainable=trainable)
    with pytest.raises(DpzoError, match=said):
        dpzo.fit(Two(), loss, SMALL, plan=small(), settings=settings, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_frozen_whole_is_refused(tmp_path: Path) -> None:
    module = model().requires_grad_(False)
    with pytest.raises(DpzoError, match="no parameter is left to train"):
        dpzo.fit(module, loss, SMALL, plan=small(), settings=FEW, output=tmp_path / "run")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": loss}, "model: must be an nn.Module"),
        ({"loss": 3}, "loss: must be a function"),
        ({"examples": None}, "examples: a NoneType cannot be read"),
        ({"plan": {"epsilon": 3}}, "plan: must be a PrivacyPlan"),
        ({"settings": {"learning_rate": 0.1}}, "settings: must be dpzo.Settings"),
        ({"output": 3}, "output: must be the path"),
        ({"public_examples": {"x": X}}, "public_examples: must have the names"),
        ({"public_examples": {"x": X[:1], "y": Y[:1]}}, "public_examples: give at least two rows"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_words(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    given = {"model": model(), "loss": loss, "examples": SMALL, "plan": small(), "settings": FEW, "output": tmp_path}
    given |= changed
    with pytest.raises(DpzoError, match=said):
        dpzo.fit(given.pop("model"), given.pop("loss"), given.pop("examples"), **given)


@pytest.mark.parametrize("wrong", [{"microbatch_size": 0}, {"smoothing": 0.0}, {"learning_rate": "0.1"}], ids=str)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DpzoError, match=next(iter(wrong))):
        replace(FEW, **wrong)
