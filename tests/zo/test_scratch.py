"""Buffers for shifted weights: reused, in turns where that is bounded, never more than allowed."""

from __future__ import annotations

import pytest
import torch

from dpzo.zo.parameters import TrainableParameters
from dpzo.zo.scratch import RING_BYTES, Scratch

CPU = torch.device("cpu")


def places(scratch: Scratch, sizes: list[int], *, rested: bool = True) -> list[int]:
    found = []
    for size in sizes:
        buffer = scratch.take(size, CPU, rested=rested)
        assert buffer.numel() >= size
        found.append(buffer.data_ptr())
        scratch.give(buffer)
    return found


def test_without_a_ring_one_buffer_serves_all_that_fits() -> None:
    scratch = Scratch()
    assert len(set(places(scratch, [100, 100, 40, 25, 3, 100]))) == 1
    assert scratch.held == 400
    places(scratch, [101])
    assert scratch.held == 404  # in place of the smaller one


def test_buffers_take_turns_as_far_as_the_ring_goes() -> None:
    scratch = Scratch(ring_bytes=4 * 350)
    turns = places(scratch, [100] * 9)
    assert turns == turns[:3] * 3
    assert len(set(turns)) == 3
    assert scratch.held == 1200
    assert places(scratch, [60] * 3) == turns[:3]  # close enough in size to take part
    scratch = Scratch(ring_bytes=1 << 20)
    turns = places(scratch, [100] * 9)
    assert len(set(turns)) == 4
    assert turns[4:8] == turns[:4]


def test_the_last_one_given_back_serves_again_where_none_has_to_rest() -> None:
    scratch = Scratch(ring_bytes=1 << 20)
    first, *_, last = places(scratch, [100] * 4)
    assert places(scratch, [100, 30, 100], rested=False) == [last] * 3
    assert places(scratch, [100], rested=True) == [first]
    assert places(scratch, [100], rested=False) == [first]
    larger = places(scratch, [101], rested=False)
    assert larger[0] not in (first, last)
    assert places(scratch, [100, 2], rested=False) == larger * 2
    assert scratch.held == 4 * 501


def test_the_ring_is_the_bound_unless_one_buffer_is_larger() -> None:
    scratch = Scratch(ring_bytes=4 * 300)
    for size in (10, 250, 60, 299, 120, 7, 300, 30):
        places(scratch, [size] * 3)
        assert scratch.held <= 4 * 300
    places(scratch, [1000])
    assert scratch.held == 4000
    places(scratch, [300, 300, 250])
    assert scratch.held == 4000


def test_buffers_in_use_are_never_handed_out_twice() -> None:
    scratch = Scratch(ring_bytes=4 * 300)
    taken = [scratch.take(size, CPU, rested=True) for size in (100, 100, 50, 300)]
    assert len({buffer.data_ptr() for buffer in taken}) == 4
    assert scratch.held == 4 * 550
    for buffer in taken:
        scratch.give(buffer)
    again = [scratch.take(size, CPU, rested=True) for size in (100, 100, 50, 300)]
    assert [buffer.data_ptr() for buffer in again] == [buffer.data_ptr() for buffer in taken]  # nothing new
    scratch.clear()
    assert scratch.held == 4 * 550  # all are in use
    for buffer in again:
        scratch.give(buffer)
    scratch.clear()
    assert scratch.held == 0


def test_dtypes_do_not_mix() -> None:
    scratch = Scratch()
    wide = scratch.take(10, CPU)
    scratch.give(wide)
    half = scratch.take(10, CPU, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert scratch.held == 20  # the other made room


def test_a_ring_is_never_larger_than_the_largest_parameter() -> None:
    small, large = torch.nn.Linear(8, 8), torch.nn.Linear(8, 1)
    large.weight = torch.nn.Parameter(torch.empty(1, 1).expand(5000, 5000).contiguous(), requires_grad=False)
    for module, bound in ((small, 4 * 64), (large, RING_BYTES)):
        scratch = TrainableParameters(module, ["weight"]).scratch
        for _ in range(6):
            scratch.give(scratch.take(bound // 40, CPU, rested=True))
            scratch.give(scratch.take(bound // 8, CPU, rested=True))
            assert scratch.held <= bound


def test_blocks_do_not_nest() -> None:
    scratch = Scratch()
    with scratch.lend(), pytest.raises(RuntimeError, match="nest"), scratch.lend():
        raise AssertionError("unreachable")
