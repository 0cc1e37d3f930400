"""CUDA's caching allocator, replayed: the order of allocations and frees → allocated and reserved bytes.

In: sizes in the order in which tensors appear and die. Out: peaks, what was alive at the peak, whether it fits.
Knows nothing of models or torch; imports nothing but the standard library.

The rules are those of c10/cuda/CUDACachingAllocator.cpp (torch 2.5 to 2.15, default settings): sizes round up to
512 B; requests up to 1 MiB live in 2 MiB segments, up to 10 MiB in 20 MiB segments, larger ones in a segment of their
own size rounded to 2 MiB; the smallest free block that is large enough is taken (lowest address among equals) and split
when the rest is at least 512 B (small pool) or more than 1 MiB (large pool); neighbours merge when freed; when the card
is full, segments without a live block go back to the driver and the request is tried again.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

KIB, MIB, GIB = 2**10, 2**20, 2**30
SMALLEST = 512
SMALL_LIMIT = MIB
SMALL_SEGMENT = 2 * MIB
MEDIUM_LIMIT = 10 * MIB
MEDIUM_SEGMENT = 20 * MIB
LARGE_STEP = 2 * MIB


class Block:
    """A piece of a segment."""

    __slots__ = ("address", "after", "before", "free", "size", "small")

    def __init__(self, address: int, size: int, small: bool):
        self.address, self.size, self.small = address, size, small
        self.free = True
        self.before: Block | None = None
        self.after: Block | None = None


@dataclass
class Peak:
    """Highest values of one phase, and where."""

    allocated: int = 0
    reserved: int = 0
    position: int = 0
    """Index of the event after which `allocated` was reached."""


@dataclass(frozen=True)
class AllocatorResult:
    """What the replay found."""

    allocated_peak_bytes: int
    reserved_peak_bytes: int
    peak_position: int
    phases: dict[str, Peak] = field(default_factory=dict)
    fits: bool = True
    released_times: int = 0
    """How often cached segments had to go back to the driver: each costs time."""
    live_at_peak: dict[int, int] = field(default_factory=dict)
    """Storage → bytes of its block at the peak: what "allocated" counts, rounding included."""


class CachingAllocator:
    """State of the allocator on one stream.

    Args:
        capacity_bytes: what the process may reserve; None is without end.
        expandable_segments: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, one growing segment a pool.
    """

    def __init__(self, capacity_bytes: int | None = None, expandable_segments: bool = False):
        self.capacity = capacity_bytes
        self.expandable = expandable_segments
        self.allocated = 0
        self.reserved = 0
        self.fits = True
        self.released_times = 0
        self.next_address = 0
        # (size, address) sorted, and the block at an address; one of each for the large and the small pool
        self.orders: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
        self.blocks: dict[int, Block] = {}
        self.tails: list[Block | None] = [None, None]

    def allocate(self, num_bytes: int) -> Block | None:
        """A block for a tensor of ``num_bytes``; None for an empty tensor, which takes no memory."""
        if num_bytes <= 0:
            return None
        size = -(-num_bytes // SMALLEST) * SMALLEST
        small = size <= SMALL_LIMIT
        order = self.orders[small]
        place = bisect_left(order, (size, -1))
        if place < len(order):
            block = self.blocks[order.pop(place)[1]]
        else:
            block = self._grow(size, small) if self.expandable else self._new_segment(size, small)
        block.free = False
        rest = block.size - size
        # An expandable segment splits as the small pool does (should_split in the allocator's source).
        if rest >= SMALLEST if small or self.expandable else rest > SMALL_LIMIT:
            self._split(block, size)
        self.allocated += block.size
        return block

    def release(self, block: Block | None) -> None:
        """The tensor of ``block`` has died."""
        if block is None:
            return
        self.allocated -= block.size
        if block.after is not None and block.after.free:
            self._absorb(block, block.after)
        if block.before is not None and block.before.free:
            before = block.before
            self._leave_order(before)
            self._join(before, block)
            block = before
        block.free = True
        insort(self.orders[block.small], (block.size, block.address))

    def empty_cache(self) -> None:
        """torch.cuda.empty_cache: segments without a live block go back to the driver."""
        for small in (0, 1):
            kept = []
            for size, address in self.orders[small]:
                block = self.blocks[address]
                if self.expandable:
                    given = self._unmap(block)
                    if not given:
                        kept.append((size, address))
                    continue
                if block.before is None and block.after is None:
                    self.reserved -= size
                    del self.blocks[address]
                else:
                    kept.append((size, address))
            self.orders[small][:] = kept

    # ---- inside

    def _new_segment(self, size: int, small: bool) -> Block:
        if small:
            segment = SMALL_SEGMENT
        elif size < MEDIUM_LIMIT:
            segment = MEDIUM_SEGMENT
        else:
            segment = -(-size // LARGE_STEP) * LARGE_STEP
        self._reserve(segment)
        block = Block(self.next_address, segment, small)
        self.next_address += segment + LARGE_STEP  # a gap: blocks of two segments never merge
        self.blocks[block.address] = block
        return block

    def _grow(self, size: int, small: bool) -> Block:
        """Map more pages behind the last block of the pool's one segment."""
        page = SMALL_SEGMENT if small else MEDIUM_SEGMENT
        tail = self.tails[small]
        have = tail.size if tail is not None and tail.free else 0
        more = -(-(size - have) // page) * page
        self._reserve(more)
        tail = self.tails[small]  # giving back may have unmapped it
        if tail is not None and tail.free:
            self._leave_order(tail)
            tail.size += more
            return tail
        start = tail.address + tail.size if tail is not None else (0 if small else 2**50)
        block = Block(start, more, small)
        if tail is not None:
            self._link(tail, block)
        self.blocks[block.address] = block
        self.tails[small] = block
        return block

    def _unmap(self, block: Block) -> bool:
        """Give a free tail of an expandable segment back, whole pages only; other holes are kept (as if full)."""
        page = SMALL_SEGMENT if block.small else MEDIUM_SEGMENT
        if self.tails[block.small] is not block or block.before is None or block.size % page:
            return False
        self.reserved -= block.size
        self.tails[block.small] = block.before
        block.before.after = None
        del self.blocks[block.address]
        return True

    def _reserve(self, size: int) -> None:
        if self.capacity is not None and self.fits and self.reserved + size > self.capacity:
            self.empty_cache()
            self.released_times += 1
            if self.reserved + size > self.capacity:
                self.fits = False  # the real run ends here; the replay goes on to say how much is missing
        self.reserved += size

    def _split(self, block: Block, size: int) -> None:
        rest = Block(block.address + size, block.size - size, block.small)
        self._link(rest, block.after)
        self._link(block, rest)
        block.size = size
        if self.tails[block.small] is block:
            self.tails[block.small] = rest
        self.blocks[rest.address] = rest
        insort(self.orders[block.small], (rest.size, rest.address))

    def _absorb(self, block: Block, after: Block) -> None:
        """The free block behind becomes part of ``block``."""
        self._leave_order(after)
        self._join(block, after)

    def _join(self, block: Block, after: Block) -> None:
        block.size += after.size
        self._link(block, after.after)
        del self.blocks[after.address]
        if self.tails[block.small] is after:
            self.tails[block.small] = block

    def _leave_order(self, block: Block) -> None:
        order = self.orders[block.small]
        del order[bisect_left(order, (block.size, block.address))]

    @staticmethod
    def _link(block: Block, after: Block | None) -> None:
        block.after = after
        if after is not None:
            after.before = block


def replay(
    order: Sequence[int],
    sizes: Sequence[int],
    phases: Iterable[tuple[int, str]],
    capacity_bytes: int | None = None,
    expandable_segments: bool = False,
    reset_phase: str | None = None,
) -> AllocatorResult:
    """Run a trace's events through the allocator.

    Args:
        order: +i+1 when storage i appears, -i-1 when it dies, 0 for torch.cuda.empty_cache.
        sizes: bytes of storage i.
        phases: (position in order, name) of each phase's beginning, in order.
        capacity_bytes: what the process may reserve.
        reset_phase: peaks count from this phase on, as after torch.cuda.reset_peak_memory_stats; None is from the
            beginning.
    """
    allocator = CachingAllocator(capacity_bytes, expandable_segments)
    starts = [*phases]
    bounds = [position for position, _ in starts[1:]] + [len(order)]
    live: dict[int, Block | None] = {}
    peaks: dict[str, Peak] = {}
    begin = starts[0][0] if starts else 0
    for (_, name), end in zip(starts, bounds, strict=True):
        peak = peaks.setdefault(name, Peak())
        peak.reserved = max(peak.reserved, allocator.reserved)
        if allocator.allocated > peak.allocated:  # what is there when the phase begins
            peak.allocated, peak.position = allocator.allocated, max(begin - 1, 0)
        for position in range(begin, end):
            event = order[position]
            if event > 0:
                live[event] = allocator.allocate(sizes[event - 1])
                if allocator.allocated > peak.allocated:
                    peak.allocated, peak.position = allocator.allocated, position
                if allocator.reserved > peak.reserved:
                    peak.reserved = allocator.reserved
            elif event < 0:
                allocator.release(live.pop(-event))
            else:
                allocator.empty_cache()
        begin = end
    names = list(peaks)
    counted = [peaks[name] for name in names[names.index(reset_phase) if reset_phase else 0 :]]
    highest = max(counted, key=lambda peak: peak.allocated)
    return AllocatorResult(
        allocated_peak_bytes=highest.allocated,
        reserved_peak_bytes=max(peak.reserved for peak in counted),
        peak_position=highest.position,
        phases=peaks,
        fits=allocator.fits,
        released_times=allocator.released_times,
        live_at_peak=live_blocks(order, sizes, highest.position, capacity_bytes, expandable_segments),
    )


def live_blocks(
    order: Sequence[int], sizes: Sequence[int], position: int, capacity_bytes: int | None, expandable_segments: bool
) -> dict[int, int]:
    """Storage → bytes of its block after event ``position``."""
    allocator = CachingAllocator(capacity_bytes, expandable_segments)
    live: dict[int, Block | None] = {}
    for event in order[: position + 1]:
        if event > 0:
            live[event] = allocator.allocate(sizes[event - 1])
        elif event < 0:
            allocator.release(live.pop(-event))
        else:
            allocator.empty_cache()
    return {event - 1: block.size for event, block in live.items() if block is not None}
