"""Structured directions: what each searches, its bits however it is asked for, and whole runs that replay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from dpzo.errors import DpzoError
from dpzo.run import loop as train
from dpzo.run.header import journal_header
from dpzo.run.journal import read
from dpzo.zo import (
    ESTIMATORS,
    SCHEDULES,
    DirectionScheme,
    LowRank,
    PublicBasis,
    RandomMask,
    Sgd,
    TrainableParameters,
    direction_scheme,
    load_basis,
    public_basis,
    public_normal,
    shifted,
)
from dpzo.zo.directions import Backend

BACKENDS: tuple[Backend, ...] = ("numba", "reference")
SHAPES: tuple[tuple[int, ...], ...] = ((7, 5), (11,), (3, 4, 2))


def make(shapes: tuple[tuple[int, ...], ...] = SHAPES, dtype: torch.dtype = torch.float32) -> TrainableParameters:
    values = (public_normal(2, i, math.prod(shape), 0.5).view(shape).to(dtype) for i, shape in enumerate(shapes))
    return TrainableParameters(nn.ParameterList(values), [str(i) for i in range(len(shapes))])


def vectors(count: int, parameters: TrainableParameters, seed: int = 5) -> dict[str, Tensor]:
    """Public vectors, far from orthogonal, one name a parameter."""
    named = zip(parameters.names, parameters.shapes, parameters.sizes, strict=True)
    return {n: (public_normal(seed, n, count * size, 1.0) + 0.5).view(count, *shape) for n, shape, size in named}


def schemes(kind: str = "gaussian", count: int = 3) -> dict[str, DirectionScheme]:
    parameters = make()
    return {
        "mask": direction_scheme(kind, 4, count, parameters, keep_fraction=0.4),
        "low-rank": direction_scheme(kind, 4, count, parameters, rank=2),
        "basis": replace(
            direction_scheme(kind, 4, count, parameters), structure=public_basis(vectors(6, parameters), parameters)
        ),
    }


def whole(scheme: DirectionScheme, k: int, step: int = 0, backend: Backend = "numba") -> NDArray[np.float32]:
    parts = [torch.empty(size) for size in scheme.sizes]
    for index, part in enumerate(parts):
        scheme.at(step, backend).fill(k, index, part)
    return torch.cat(parts).numpy()


# --- bits


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["mask", "low-rank", "basis"]),
    st.sampled_from(["rademacher", "gaussian"]),
    st.lists(st.integers(0, 35), max_size=4),
    st.floats(-1e3, 1e3, width=32),
    st.integers(0, 2**32 - 1),
)
def test_shards_backends_and_fused_passes_agree_bit_for_bit(
    name: str, kind: str, cuts: list[int], scale: float, step: int
) -> None:
    scheme = schemes(kind)[name]
    expected = whole(scheme, 1, step)[:35]
    base = public_normal(1, "base", 35, 1.0)
    coefficients = [scale, -0.3, 1e-3]
    for backend in BACKENDS:
        at, out = scheme.at(step, backend), torch.full((35,), math.nan)
        edges = sorted({0, 35, *cuts})
        for low, high in pairwise(edges):
            at.fill(1, 0, out[low:high], low)
        assert np.array_equal(out.numpy(), expected)
        at.add(1, 0, base, scale, out)
        assert np.array_equal(out.numpy(), base.numpy() + np.float32(scale) * expected)
        acc = base.clone()
        at.accumulate(1, 0, scale, acc)
        assert torch.equal(acc, out)
        mixed = np.zeros(35, np.float32)
        for k, coefficient in enumerate(coefficients):
            mixed = mixed + np.float32(coefficient) * whole(scheme, k, step)[:35]
        at.combine(0, coefficients, out)
        assert np.array_equal(out.numpy(), mixed)


@pytest.mark.parametrize("name", ["mask", "low-rank", "basis"])
def test_blocks_do_not_show(name: str) -> None:
    """A matrix longer than a block, in fp32 and in 16 bits, against whole fills."""
    shapes = ((300, 700),)
    parameters = make(shapes)
    structure = {
        "mask": lambda: RandomMask(0.1),
        "low-rank": lambda: LowRank(3),
        "basis": lambda: public_basis(vectors(2, parameters), parameters),
    }[name]()
    scheme = DirectionScheme("gaussian", 4, 1, parameters.sizes, structure, shapes)
    u, theta, out = whole(scheme, 0), parameters.flat(0), torch.empty(210_000)
    expected = theta.numpy() + np.float32(0.25) * u
    scheme.at(0).shift(0, 0, theta, 0.25, out)
    assert np.array_equal(out.numpy(), expected)
    narrow = torch.empty(210_000, dtype=torch.bfloat16)
    scheme.at(0).shift(0, 0, theta.bfloat16(), 0.25, narrow)
    wide = theta.bfloat16().float() + torch.from_numpy(np.float32(0.25) * u)
    assert torch.equal(narrow, wide.bfloat16())


def test_without_a_structure_nothing_changes() -> None:
    parameters = make()
    plain = DirectionScheme("sphere", 4, 2, parameters.sizes)
    built = direction_scheme("sphere", 4, 2, parameters)
    assert np.array_equal(whole(plain, 1), whole(built, 1))
    assert built.description == {"scheme": "philox4x32-10/v1", "kind": "sphere", "seed": 4}
    assert built.effective_dimension == built.dimension == 70


def test_changing_any_part_of_the_address_changes_the_direction() -> None:
    for name, scheme in schemes().items():
        base = whole(scheme, 0)
        moved = base != 0
        plain = replace(scheme, structure=None)
        others = [
            whole(scheme, 1),
            whole(scheme, 0, step=1),
            whole(replace(scheme, seed=5), 0),
            *([] if name == "mask" else [whole(plain, 0)]),
        ]
        for other in others:
            full = slice(0, 35)  # low-rank directions keep a vector's own
            assert (base != other)[full][moved[full]].any(), name


@pytest.mark.parametrize("name", ["mask", "low-rank", "basis"])
def test_bits_are_pinned(name: str) -> None:
    got = [float(v).hex() for v in whole(schemes()[name], 2, 9)[[0, 2, 9, 69]]]
    assert got == PINNED[name]


# --- laws


def moment(scheme: DirectionScheme, draws: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """E[uuᵀ] over `draws` directions, and its elementwise standard errors."""
    d, per = scheme.dimension, scheme.num_directions
    first, second = np.zeros((d, d)), np.zeros((d, d))
    for step in range(draws // per):
        for k in range(per):
            u = whole(scheme, k, step).astype(np.float64)
            outer = np.outer(u, u)
            first += outer
            second += outer**2
    count = draws // per * per
    mean = first / count
    return mean, np.sqrt(np.maximum(second / count - mean**2, 0) / count) + 1e-6


SMALL: tuple[tuple[int, ...], ...] = ((3, 3), (2,))


def projector(basis: PublicBasis) -> NDArray[np.float64]:
    rows = np.concatenate([part.double().numpy() for part in basis.vectors if part is not None], axis=1)
    return rows.T @ rows


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_the_second_moment_is_the_stated_one(kind: str) -> None:
    parameters = make(SMALL)
    mask = direction_scheme(kind, 9, 20, parameters, keep_fraction=0.5)
    kept = (np.abs(whole(mask, 0)) > 0).astype(float)
    basis = public_basis(vectors(4, parameters), parameters)
    cases = [
        (mask, np.diag(kept)),
        (direction_scheme(kind, 9, 20, parameters, rank=1), np.eye(11)),
        (direction_scheme(kind, 9, 20, parameters, rank=2), np.eye(11)),
        (DirectionScheme(kind, 9, 20, parameters.sizes, basis), projector(basis)),
    ]
    for scheme, expected in cases:
        mean, error = moment(scheme, 6000)
        assert (np.abs(mean - expected) < 5 * error).all(), scheme.structure
        assert error.max() < 0.05
        assert np.trace(expected) == pytest.approx(scheme.effective_dimension, abs=1e-5)


@pytest.mark.parametrize("kind", ["sphere", "orthogonal"])
def test_a_basis_takes_every_kind(kind: str) -> None:
    parameters = make(SMALL)
    basis = public_basis(vectors(4, parameters), parameters)
    scheme = DirectionScheme(kind, 9, 4, parameters.sizes, basis)
    u = np.stack([whole(scheme, k, 3) for k in range(4)]).astype(np.float64)
    assert np.allclose((u**2).sum(axis=1), 4, rtol=1e-5)
    assert np.allclose(u @ projector(basis), u, atol=1e-5)
    if kind == "orthogonal":  # in the span, not in R^d
        assert np.allclose(u @ u.T, 4 * np.eye(4), atol=1e-5)
        gradient = np.linspace(1, 2, 11)
        assert np.allclose(u.T @ (u @ gradient) / 4, projector(basis) @ gradient, atol=1e-4)
        with pytest.raises(DpzoError, match="in 4 dimensions; choose at most 4"):
            replace(scheme, num_directions=5)


def test_the_variance_of_a_masked_or_projected_estimate_has_the_effective_dimension() -> None:
    """E‖ĝ − Pg‖² = (n − 1)/K·‖Pg‖² for signs, n the elements kept."""
    parameters = make(((60,),))
    scheme = direction_scheme("rademacher", 3, 2, parameters, keep_fraction=0.3)
    gradient = np.linspace(1, 2, 60)
    kept = np.abs(whole(scheme, 0)) > 0
    n, errors = int(kept.sum()), []
    assert scheme.effective_dimension == n
    for step in range(3000):
        u = np.stack([whole(scheme, k, step) for k in range(2)]).astype(np.float64)
        errors.append((((u.T @ (u @ gradient)) / 2 - gradient * kept) ** 2).sum())
    expected = (n - 1) / 2 * (gradient[kept] ** 2).sum()
    assert np.mean(errors) == pytest.approx(expected, abs=4.5 * np.std(errors) / math.sqrt(3000))
    assert np.std(errors) / math.sqrt(3000) < 0.03 * expected


# --- the mask


def test_a_mask_is_the_same_at_all_steps_and_directions_and_keeps_its_fraction() -> None:
    parameters = make(((200_000,), (3,)))
    for fraction in (0.02, 0.5, 0.97):
        scheme = direction_scheme("rademacher", 8, 2, parameters, keep_fraction=fraction)
        kept = whole(scheme, 0) != 0
        for k, step in ((1, 0), (0, 7), (1, 2**32 - 1)):
            assert np.array_equal(whole(scheme, k, step) != 0, kept)
        assert abs(kept.mean() - fraction) < 4.5 * math.sqrt(fraction * (1 - fraction) / 200_003)
        assert scheme.effective_dimension == kept.sum()
        plain = whole(replace(scheme, structure=None), 1, 3)
        assert np.array_equal(whole(scheme, 1, 3), np.where(kept, plain, np.float32(0)))
    assert not np.array_equal(whole(replace(scheme, seed=9), 0) != 0, kept)


def test_what_is_masked_keeps_its_bits() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        parameters = make(((500,),), dtype)
        scheme = direction_scheme("gaussian", 8, 2, parameters, keep_fraction=0.3)
        before, kept = parameters.flat(0).clone(), whole(scheme, 0) != 0
        with shifted(parameters, scheme.at(0), 0, 0.1):
            there = next(iter(parameters)).detach().clone()
        assert torch.equal(there[~kept], before[~kept])
        Sgd(SCHEDULES["constant"](0.5, 10, 0), 4.0).apply(parameters, {}, scheme.at(0), np.array([3.0, -1.0]), 0)
        after = parameters.flat(0)
        assert torch.equal(after[~kept], before[~kept])
        assert (after[kept] != before[kept]).float().mean() > 0.9


# --- low rank


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_low_rank_is_the_documented_sum(kind: str, rank: int) -> None:
    shapes = ((9, 6), (11,), (6, 5, 2), (4, 9))
    scheme = direction_scheme(kind, 4, 2, make(shapes), rank=rank)
    at, found = scheme.at(6), whole(scheme, 1, 6)
    offset = 0
    for index, shape in enumerate(shapes):
        size, height, width = math.prod(shape), shape[0], math.prod(shape[1:])
        part, offset = found[offset : offset + size], offset + size
        if len(shape) < 2 or min(height, width) <= rank:
            plain = torch.empty(size)
            replace(scheme, structure=None).at(6).fill(1, index, plain)
            assert np.array_equal(part, plain.numpy())
            continue
        a, b = torch.empty(rank * height), torch.empty(rank * width)
        at.draw("rows", 1, index, a)
        at.draw("columns", 1, index, b)
        total = np.zeros((height, width), np.float32)
        for r in range(rank):
            total = total + np.outer(a[r * height : (r + 1) * height], b[r * width : (r + 1) * width])
        expected = np.float32(1 / math.sqrt(rank)) * total
        assert np.array_equal(part.reshape(height, width), expected)
        assert np.linalg.matrix_rank(part.reshape(height, width)) <= rank


# --- the basis


def test_a_basis_is_orthonormal_spans_what_was_given_and_names_its_bits() -> None:
    parameters = make()
    given = vectors(5, parameters)
    basis = public_basis(given, parameters)
    rows = np.concatenate([part.double().numpy() for part in basis.vectors if part is not None], axis=1)
    assert np.allclose(rows @ rows.T, np.eye(5), atol=2e-7)
    stacked = np.concatenate([given[n].reshape(5, -1).double().numpy() for n in parameters.names], axis=1)
    assert np.allclose(stacked @ projector(basis), stacked, atol=1e-5)
    assert np.allclose(np.triu(stacked @ rows.T, 1), 0, atol=1e-5)  # vector r lies in the span of the first r + 1
    assert basis.describe() == {"name": "basis", "rank": 5, "sha256": basis.digest}
    assert public_basis(dict(reversed(given.items())), parameters).digest == basis.digest
    assert public_basis(vectors(5, parameters, seed=6), parameters).digest != basis.digest
    assert public_basis({"0": given["0"]}, parameters).digest != basis.digest


def test_parameters_outside_the_basis_do_not_move() -> None:
    parameters = make()
    basis = public_basis({"2": vectors(3, parameters)["2"]}, parameters)
    u = whole(DirectionScheme("gaussian", 1, 1, parameters.sizes, basis), 0)
    assert not u[:46].any()
    assert u[46:].all()


def test_parameters_of_one_element_and_of_none() -> None:
    shapes: tuple[tuple[int, ...], ...] = ((), (0, 3), (4, 5))
    parameters = make(shapes)
    structures = (RandomMask(0.5), LowRank(2), public_basis(vectors(3, parameters), parameters))
    for structure in structures:
        u = whole(DirectionScheme("gaussian", 1, 2, parameters.sizes, structure, shapes), 1)
        assert u.shape == (21,)
        assert np.isfinite(u).all()
        assert u.any()


def bad(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> dict[str, Tensor]:
    return change(vectors(2, make()))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (bad(lambda t: {**t, "head": t["0"]}), "'head', which is not trained"),
        (bad(lambda t: {}), "holds no tensor"),
        (bad(lambda t: {**t, "1": t["1"][:1]}), "differ in the number of vectors"),
        (bad(lambda t: {**t, "1": torch.tensor(1.0)}), "differ in the number of vectors"),
        (bad(lambda t: {n: v[:0] for n, v in t.items()}), "differ in the number of vectors"),
        (
            bad(lambda t: {**t, "2": t["2"].reshape(2, 24)}),
            r"'2' must be floating-point numbers of shape \(2, 3, 4, 2\)",
        ),
        (bad(lambda t: {**t, "1": t["1"].long()}), "'1' must be floating-point"),
        (bad(lambda t: {**t, "1": t["1"] * math.nan}), "NaN"),
        (
            bad(lambda t: {n: v * torch.tensor([1.0, 0.0]).view(2, *[1] * (v.dim() - 1)) for n, v in t.items()}),
            "vector 1",
        ),
        (bad(lambda t: {n: v[[0, 0]] for n, v in t.items()}), "vector 1 is zero or a combination"),
    ],
)
def test_a_basis_that_does_not_fit_is_refused(tensors: dict[str, Tensor], words: str) -> None:
    with pytest.raises(DpzoError, match=f"^basis: .*{words}"):
        public_basis(tensors, make())


def test_a_basis_comes_from_a_file(tmp_path: Path) -> None:
    parameters = make()
    path = tmp_path / "basis.safetensors"
    given = vectors(3, parameters)
    save_file(given, path)
    assert load_basis(path, parameters).digest == public_basis(given, parameters).digest
    scheme = direction_scheme("gaussian", 1, 2, parameters, basis=path)
    digest = load_basis(path, parameters).digest
    assert scheme.description["structure"] == {"name": "basis", "rank": 3, "sha256": digest}
    with pytest.raises(DpzoError, match="absent is missing"):
        load_basis(tmp_path / "absent", parameters)
    with pytest.raises(DpzoError, match="basis"):
        load_basis(tmp_path, parameters)
    path.write_bytes(b"not tensors at all")
    with pytest.raises(DpzoError, match="not a safetensors file"):
        load_basis(path, parameters)


# --- what does not go together


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("sphere", {"keep_fraction": 0.5}, "mask: it does not go with sphere"),
        ("orthogonal", {"keep_fraction": 0.5}, "mask: it does not go with orthogonal"),
        ("sphere", {"rank": 2}, "direction_rank: it does not go with sphere"),
        ("orthogonal", {"rank": 2}, "direction_rank: it does not go with orthogonal"),
        ("gaussian", {"rank": 2, "keep_fraction": 0.5}, "mask and direction_rank exclude each other"),
        ("gaussian", {"rank": 2, "basis": Path("b")}, "direction_rank and basis exclude each other"),
        ("gaussian", {"keep_fraction": 0.0}, "mask: 0.0 is outside"),
        ("gaussian", {"keep_fraction": 1.0}, "mask: 1.0 is outside"),
        ("gaussian", {"keep_fraction": 1e-9}, "keeps no element"),
        ("gaussian", {"rank": 0}, "direction_rank: 0"),
        ("gaussian", {"rank": 5}, "no trainable parameter is a matrix with both sides above 5"),
    ],
)
def test_nonsense_is_refused_in_a_line(kind: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DpzoError, match=words) as caught:
        direction_scheme(kind, 1, 2, make(), **options)
    assert "\n" not in str(caught.value)


def test_misuse_is_refused() -> None:
    parameters = make()
    with pytest.raises(ValueError, match="shapes"):
        DirectionScheme("gaussian", 1, 1, parameters.sizes, LowRank(2))
    with pytest.raises(ValueError, match="differ"):
        DirectionScheme("gaussian", 1, 1, (3,), None, ((4,),))
    with pytest.raises(ValueError, match="other parameters"):
        DirectionScheme("gaussian", 1, 1, (70,), public_basis(vectors(2, parameters), parameters))
    with pytest.raises(IndexError):
        schemes()["mask"].at(0).fill(0, 0, torch.empty(36))
    with pytest.raises(IndexError):
        schemes()["basis"].at(0).fill(3, 0, torch.empty(35))


# --- whole runs


@dataclass(frozen=True)
class Fit:
    """Squared error of a two-layer network on forty fixed records."""

    module: nn.Module

    def losses(self, units: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        x = public_normal(1, "x", 240, 1.0).view(40, 6)[units]
        return np.asarray(((self.module(x)[:, 0] - x.sum(dim=1).tanh()) ** 2).double().numpy())


OPTIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "plain": ("rademacher", "central", {}),
    "forward": ("rademacher", "forward", {}),
    "orthogonal": ("orthogonal", "central", {}),
    "orthogonal forward": ("orthogonal", "forward", {}),
    "mask": ("gaussian", "central", {"keep_fraction": 0.6}),
    "low-rank": ("gaussian", "central", {"rank": 2}),
    "basis": ("sphere", "forward", {"basis": 8}),
}


def job_of(option: str, linear: ModuleType) -> train.Job:
    kind, estimator, settings = OPTIONS[option]
    module = nn.Sequential(nn.utils.skip_init(nn.Linear, 6, 5), nn.Tanh(), nn.utils.skip_init(nn.Linear, 5, 3))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(public_normal(7, name, parameter.numel(), 0.3).view(parameter.shape))
    parameters = TrainableParameters(module, [name for name, _ in module.named_parameters()])
    plan = linear.make_plan(num_directions=4)
    if "basis" in settings:
        basis = public_basis(vectors(settings["basis"], parameters), parameters)
        scheme = DirectionScheme(kind, 3, 4, parameters.sizes, basis)
    else:
        scheme = direction_scheme(kind, 3, 4, parameters, **settings)
    return train.Job(
        plan=plan,
        parameters=parameters,
        scheme=scheme,
        smoothing=1e-2,
        update=Sgd(SCHEDULES["cosine"](0.05, plan.steps, 1), plan.expected_batch_size),
        header=journal_header(plan, False, {"directions": scheme.description, "estimator": estimator}),
        checkpoint_every=5,
        estimator=ESTIMATORS[estimator],
    )


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_a_run_replays_and_resumes_bit_for_bit_and_spends_the_same(
    option: str, linear: ModuleType, tmp_path: Path
) -> None:
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    job, start = job_of(option, linear), job_of(option, linear).parameters.state()
    train.fit(job, Fit(job.parameters.module), 40, tmp_path / "whole", nonprivate_randomness=linear.Noise)
    fitted = linear.fingerprint(job)
    assert any(not torch.equal(job.parameters.state()[name], start[name]) for name in start)

    again = job_of(option, linear)
    train.replay(again, read(tmp_path / "whole"))
    assert linear.fingerprint(again) == fitted

    stopped = job_of(option, linear)
    target, noise, stop = Fit(stopped.parameters.module), linear.Noise, linear.at(7, train.Stopped("here"))
    with pytest.raises(train.Stopped):
        train.fit(stopped, target, 40, tmp_path / "stopped", nonprivate_randomness=noise, observe=stop)
    resumed = job_of(option, linear)
    train.resume(resumed, Fit(resumed.parameters.module), 40, tmp_path / "stopped", nonprivate_randomness=linear.Noise)
    assert linear.fingerprint(resumed) == fitted

    plain = job_of("plain", linear)
    assert job.plan.event == plain.plan.event
    assert job.plan.epsilon == plain.plan.epsilon
    assert job.header["plan"] == plain.header["plan"]
    assert read(tmp_path / "whole").num_steps == plain.plan.steps
    if option != "plain":
        with pytest.raises(DpzoError, match=r"its (directions|estimator) is not the one found now"):
            train.replay(plain, read(tmp_path / "whole"))


PINNED: dict[str, list[str]] = {
    "mask": [
        "0x0.0p+0",
        "0x1.0cf0b40000000p+0",
        "-0x1.cc378c0000000p+0",
        "0x1.82b1320000000p-3",
    ],
    "low-rank": [
        "-0x1.703e860000000p-2",
        "0x1.a292e40000000p-3",
        "-0x1.3473ee0000000p-1",
        "-0x1.67e8160000000p-3",
    ],
    "basis": [
        "0x1.3151e80000000p-2",
        "-0x1.e91c500000000p-3",
        "0x1.cd9c640000000p-3",
        "-0x1.8cd5180000000p-4",
    ],
}
