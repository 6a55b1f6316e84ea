"""Directions: published vectors, one address per element, bits independent of how they are asked for."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpzo.errors import DpzoError
from dpzo.zo.directions import Backend, DirectionScheme, StepDirections
from dpzo.zo.initial import public_normal, public_uniform
from dpzo.zo.kernels import reference, spec
from dpzo.zo.kinds import KINDS

BACKENDS: list[Backend] = ["numba", "reference"]


def whole(directions: StepDirections, k: int, parameter: int) -> Tensor:
    out = torch.empty(directions.scheme.sizes[parameter])
    directions.fill(k, parameter, out)
    return out


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_vectors(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    """Source: kat_vectors of Random123, rows `philox4x32 10`."""
    words = reference.philox([torch.tensor([c]) for c in counter], key)
    assert tuple(int(w) for w in words) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_signs_are_the_bits_of_the_documented_counter(backend: Backend) -> None:
    seed, step, k, parameter, block = 0x0123456789ABCDEF, 77, 5, 2, 3
    scheme = DirectionScheme("rademacher", seed, 6, (1, 1, 128 * 5))
    counter = [block, parameter << 12, step, k | 1 << 24]
    words = reference.philox([torch.tensor([c]) for c in counter], (0x89ABCDEF, 0x01234567))
    out = torch.empty(128)
    scheme.at(step, backend).fill(k, parameter, out, start=128 * block)
    expected = [-1.0 if int(words[j // 32]) >> j % 32 & 1 else 1.0 for j in range(128)]
    assert out.tolist() == expected


def test_blocks_beyond_two_to_the_32_use_the_spare_bits() -> None:
    start = (1 << 36) + 4
    scheme = DirectionScheme("gaussian", 1, 1, (1 << 37,))
    got = {backend: torch.empty(64) for backend in BACKENDS}
    for backend in BACKENDS:
        scheme.at(0, backend).fill(0, 0, got[backend], start=start)
    low = torch.empty(64)
    scheme.at(0).fill(0, 0, low, start=start % (1 << 34))
    assert torch.equal(got["numba"], got["reference"])
    assert not torch.equal(got["numba"], low)


addresses = st.tuples(
    st.sampled_from(sorted(KINDS)),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 7),
    st.integers(0, 2),
    st.integers(0, 700),
    st.integers(0, 5000),
    st.floats(-1e3, 1e3, width=32),
)


@settings(max_examples=60, deadline=None)
@given(addresses)
def test_numba_equals_the_reference_bit_for_bit(
    address: tuple[str, int, int, int, int, int, int, float],
) -> None:
    kind, seed, step, k, parameter, start, length, scale = address
    scheme = DirectionScheme(kind, seed, 8, (600, 6000, 5701))
    length = min(length, scheme.sizes[parameter] - start) if start < scheme.sizes[parameter] else 0
    start = min(start, scheme.sizes[parameter])
    base = torch.linspace(-2, 3, length) if length else torch.empty(0)
    results: list[list[Tensor]] = []
    for backend in BACKENDS:
        at = scheme.at(step, backend)
        z, shifted, acc, mixed = torch.empty(length), torch.empty(length), base.clone(), torch.empty(length)
        at.fill(k, parameter, z, start)
        at.add(k, parameter, base, scale, shifted, start)
        at.accumulate(k, parameter, scale, acc, start)
        at.combine(parameter, [scale / (i + 1) for i in range(8)], mixed, start)
        factor = torch.tensor(at.scale_factor(k), dtype=torch.float64)
        results.append([z, shifted, acc, mixed, factor])
        assert torch.equal(shifted, acc)
    for ours, oracle in zip(*results, strict=True):
        assert torch.equal(ours, oracle)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_fused_pass_is_two_rounded_operations(kind: str) -> None:
    """A fused multiply-add would differ in about one element of 600 here (and does not for signs)."""
    size, start = 1_000_003, 61
    at = DirectionScheme(kind, 9, 1, (size + start,)).at(3)
    base = public_normal(2, "base", size, 0.7)
    z, out = torch.empty(size), torch.empty(size)
    at.fill(0, 0, z, start)
    at.add(0, 0, base, 1e-1, out, start)
    product = z.numpy() * np.float32(1e-1)
    assert np.array_equal(out.numpy(), base.numpy() + product)
    fused = (base.double() + z.double() * float(np.float32(1e-1))).float()
    assert kind in ("rademacher", "orthogonal") or not torch.equal(fused, out)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.integers(0, 20_000), max_size=6),
    st.sampled_from(BACKENDS),
)
def test_shards_equal_the_whole(kind: str, cuts: list[int], backend: Backend) -> None:
    at = DirectionScheme(kind, 5, 2, (20_000, 3)).at(11, backend)
    expected = whole(at, 1, 0)
    out = torch.full((20_000,), float("nan"))
    edges = sorted({0, 20_000, *cuts})
    for low, high in reversed(list(pairwise(edges))):
        at.fill(1, 0, out[low:high], start=low)
    assert torch.equal(out, expected)


def test_the_sphere_factor_does_not_know_how_the_sum_was_split() -> None:
    scheme = DirectionScheme("sphere", 5, 1, (10_001, 77))
    from dpzo.zo.kernels import cpu

    at = scheme.at(2)
    stream = at.stream(0, 0)
    split = sum(cpu.square_sum(stream, low, min(37, 10_001 - low)) for low in range(0, 10_001, 37))
    assert split == cpu.square_sum(stream, 0, 10_001) == reference.square_sum(stream, 0, 10_001)
    joint = torch.cat([whole(at, 0, 0), whole(at, 0, 1)]).double()
    assert joint.norm().item() == pytest.approx(scheme.dimension**0.5, rel=2e-7)


def test_changing_any_coordinate_of_the_address_changes_the_direction() -> None:
    scheme = DirectionScheme("gaussian", 3, 4, (256, 256))
    base = whole(scheme.at(0), 0, 0)
    others = {
        "seed low": whole(replace(scheme, seed=4).at(0), 0, 0),
        "seed high": whole(replace(scheme, seed=3 + (1 << 63)).at(0), 0, 0),
        "step": whole(scheme.at(1), 0, 0),
        "k": whole(scheme.at(0), 1, 0),
        "parameter": whole(scheme.at(0), 0, 1),
        "init": public_normal(3, 0, 256, 1.0),
        "other init": public_normal(3, "0", 256, 1.0),
    }
    tensors = [base, *others.values()]
    for i, one in enumerate(tensors):
        for other in tensors[:i]:
            assert not torch.isclose(one, other).any()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(set(KINDS) - {"orthogonal"})),  # whose directions share their signs
            st.integers(0, 2**64 - 1),
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**20),
            st.integers(0, 9),
        ),
        min_size=2,
        max_size=2,
        unique=True,
    )
)
def test_two_directions_never_share_a_counter(addresses: list[tuple[str, int, int, int, int]]) -> None:
    words = []
    for kind, seed, step, k, parameter in addresses:
        stream = DirectionScheme(kind, seed, 2**20 + 1, (1,) * 10).at(step).stream(k, parameter)
        words.append((stream.key0, stream.key1, stream.parameter, stream.c2, stream.c3))
        assert all(0 <= word < 1 << 32 for word in words[-1])
        assert stream.parameter < 1 << 20
    assert words[0] != words[1]


def test_purposes_are_distinct_bytes() -> None:
    assert len(set(spec.PURPOSES.values())) == len(spec.PURPOSES)
    assert all(0 < tag < 256 for tag in spec.PURPOSES.values())


def test_global_generators_are_untouched() -> None:
    before = (torch.get_rng_state(), repr(np.random.get_state()), random.getstate())  # noqa: NPY002 - the one watched
    for kind in KINDS:
        for backend in BACKENDS:
            whole(DirectionScheme(kind, 1, 1, (1000,)).at(0, backend), 0, 0)
    public_uniform(1, "a", 100, -1, 1)
    public_normal(1, "a", 100, 1)
    after = (torch.get_rng_state(), repr(np.random.get_state()), random.getstate())  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("normal", 1, 1, (1,)), "directions"),
        (("gaussian", -1, 1, (1,)), "seed"),
        (("gaussian", 2**64, 1, (1,)), "seed"),
        (("gaussian", 1, 0, (1,)), "num_directions"),
        (("gaussian", 1, 1, ()), "trainable"),
        (("gaussian", 1, 1, (0,)), "trainable"),
    ],
)
def test_values_out_of_range_are_refused(arguments: tuple[str, int, int, tuple[int, ...]], word: str) -> None:
    with pytest.raises(DpzoError, match=word):
        DirectionScheme(*arguments)


def test_misuse_is_refused() -> None:
    at = DirectionScheme("gaussian", 1, 1, (10,)).at(0)
    with pytest.raises(IndexError):
        at.fill(0, 0, torch.empty(10), start=1)
    with pytest.raises(IndexError):
        at.fill(1, 0, torch.empty(10))
    with pytest.raises(ValueError, match="flat"):
        at.fill(0, 0, torch.empty(2, 5))
    with pytest.raises(ValueError, match="coefficients"):
        at.combine(0, [1.0, 2.0], torch.empty(10))
    with pytest.raises(DpzoError, match="step"):
        at.scheme.at(2**32)
    with pytest.raises(DpzoError, match="backend"):
        DirectionScheme("gaussian", 1, 1, (10,)).at(0, "cuda").fill(0, 0, torch.empty(1))  # type: ignore[arg-type]


def test_kernels_compile_where_no_folder_can_hold_a_cache() -> None:
    """A function without a source file has nowhere to be cached, like an installation that is read-only throughout."""
    from dpzo.zo.kernels import blocks_cpu

    namespace: dict[str, Callable[[int], int]] = {}
    exec("def twice(x):\n    return 2 * x", namespace)
    assert blocks_cpu.jit(namespace["twice"])(4) == 8


def test_threads_may_generate_at_the_same_time() -> None:
    at = DirectionScheme("gaussian", 5, 4, (100_000,)).at(1)
    alone = [whole(at, k, 0) for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda k: whole(at, k, 0), range(4)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
