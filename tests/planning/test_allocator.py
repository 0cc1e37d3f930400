"""The caching allocator's rules, each against a figure worked out by hand from its source (CUDACachingAllocator.cpp)."""

from __future__ import annotations

import pytest

from fitune.planning.simulate.allocator import MIB, CachingAllocator, replay


@pytest.mark.parametrize(
    ("num_bytes", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),  # rounds up to 512 B, in a segment of the small pool
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),  # the largest of the small pool
        (MIB + 1, MIB + 512, 20 * MIB),  # the large pool's smallest segment
        (10 * MIB, 10 * MIB, 10 * MIB),  # from 10 MiB on a segment of its own, rounded to 2 MiB
        (11 * MIB, 11 * MIB + MIB, 12 * MIB),  # the rest, 1 MiB, is not more than 1 MiB: it stays in the block
        (21 * MIB - 512, 22 * MIB - MIB - 512, 22 * MIB),  # the rest is more than 1 MiB: split off
    ],
)
def test_one_tensor(num_bytes: int, allocated: int, reserved: int) -> None:
    allocator = CachingAllocator()
    allocator.allocate(num_bytes)
    assert (allocator.allocated, allocator.reserved) == (allocated, reserved)


def test_an_empty_tensor_takes_nothing() -> None:
    allocator = CachingAllocator()
    assert allocator.allocate(0) is None
    assert allocator.reserved == 0


def test_a_freed_block_is_taken_again_and_the_best_fit_wins() -> None:
    allocator = CachingAllocator()
    large, small = allocator.allocate(40 * MIB), allocator.allocate(24 * MIB)
    allocator.release(large)
    allocator.release(small)
    block = allocator.allocate(22 * MIB)
    assert block is not None and small is not None and block.address == small.address
    assert allocator.reserved == 64 * MIB


def test_neighbours_merge() -> None:
    allocator = CachingAllocator()
    whole = allocator.allocate(60 * MIB)
    allocator.release(whole)
    parts = [allocator.allocate(20 * MIB) for _ in range(3)]
    assert allocator.reserved == 60 * MIB
    for index in (0, 2, 1):
        allocator.release(parts[index])
    allocator.allocate(60 * MIB)
    assert allocator.reserved == 60 * MIB


def test_a_hole_that_is_too_small_needs_a_new_segment_unless_segments_expand() -> None:
    order, sizes = [1, 2, -1, 3], [30 * MIB, 30 * MIB, 40 * MIB]
    plain = replay(order, sizes, [(0, "load")])
    expandable = replay(order, sizes, [(0, "load")], expandable_segments=True)
    assert plain.allocated_peak_bytes == expandable.allocated_peak_bytes == 70 * MIB
    assert plain.reserved_peak_bytes == 100 * MIB
    assert expandable.reserved_peak_bytes == 100 * MIB  # the hole lies before the live tensor


def test_expandable_segments_grow_by_what_is_missing() -> None:
    order, sizes = [1, 2, -2, 3], [20 * MIB, 20 * MIB, 40 * MIB]
    result = replay(order, sizes, [(0, "load")], expandable_segments=True)
    assert result.reserved_peak_bytes == 60 * MIB
    assert replay(order, sizes, [(0, "load")]).reserved_peak_bytes == 80 * MIB


def test_cached_segments_go_back_when_the_card_is_full() -> None:
    order, sizes = [1, -1, 2], [40 * MIB, 60 * MIB]
    roomy, tight = (replay(order, sizes, [(0, "load")], capacity) for capacity in (100 * MIB, 64 * MIB))
    assert (roomy.reserved_peak_bytes, roomy.released_times, roomy.fits) == (100 * MIB, 0, True)
    assert (tight.reserved_peak_bytes, tight.released_times, tight.fits) == (60 * MIB, 1, True)
    assert not replay(order, sizes, [(0, "load")], 50 * MIB).fits


def test_what_is_alive_at_the_peak_adds_up_to_it() -> None:
    order, sizes = [1, 2, -1, 3, 4, -2], [3 * MIB, 700, 12 * MIB + 5, 2**20]
    result = replay(order, sizes, [(0, "load"), (2, "step 1")])
    assert sum(result.live_at_peak.values()) == result.allocated_peak_bytes
    assert set(result.phases) == {"load", "step 1"}
