"""Training on this machine's CPU: config and scenario → by how much the process will grow.

In: a transformers config, a `Scenario`, the length of a row. Out: bytes of resident memory above what the process held
just before the base was loaded, imports done: `fitune.training.memory_report` measures the same. Coarser than a card's plan:
the C library gives memory back when it likes, and libraries touch more of their pages as they are used.
Importing this module does not import torch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fitune.planning.scenario import Scenario

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from fitune.planning.trace.trace import Trace
    from fitune.planning.trace_cache import TraceValues

MIB = 2**20
# glibc's malloc: a block from here on is mapped by itself and given back when freed (DEFAULT_MMAP_THRESHOLD_MAX of
# malloc.c, reached after the first such block was freed); the heap's free end is given back from twice as much on.
MAPPED_FROM = 32 * MIB
TRIM_FROM = 2 * MAPPED_FROM
ALIGNMENT, HEADER = 64, 16  # torch asks for 64 B (c10/core/alignment.h); malloc keeps 16 B beside a block


@dataclass(frozen=True)
class CpuPlan:
    """Growth of the process, bytes."""

    growth_peak_bytes: int
    """`allocated_peak_bytes`, holes of the heap, and `process_bytes`."""
    allocated_peak_bytes: int
    """Tensors alive together, the mapped weights among them."""
    process_bytes: int
    """What libraries take when they are used for the first time, whatever the model."""
    parts: dict[str, int]
    """Category → bytes of tensors at their peak."""
    moment: str


def predict_cpu(config: PretrainedConfig | dict[str, object], scenario: Scenario, row_tokens: int | None = None) -> int:
    """Peak growth of the process's resident memory in a CPU run, in bytes.

    From just before the base is loaded (imports done, rows prepared) to the end of training: VmHWM then, less VmRSS
    before.

    Args:
        config: a transformers config object, or its values as a dict with "model_type".
        scenario: the run, as `fitune.training.plan_scenario.scenario_of` makes it. ``rows`` "packed": ``seq_len`` is the
            largest pack.
        row_tokens: tokens of a typical row of a pack; None takes the pack for one row.

    Raises:
        PlanError: the architecture's code cannot be traced.
    """
    return plan_cpu(config, scenario, row_tokens).growth_peak_bytes


def plan_cpu(
    config: PretrainedConfig | dict[str, object], scenario: Scenario, row_tokens: int | None = None
) -> CpuPlan:
    """`predict_cpu` with its parts; traced once, then out of the cache."""
    from fitune.planning import trace_cache

    values = trace_cache.values_of(config)
    path = trace_cache.folder() / f"{trace_cache.content_key(values, scenario, (0, row_tokens or 0))}.json.gz"
    traced = trace_cache.read(path)
    if traced is None:

        def on_cpu(made: PretrainedConfig) -> Trace:
            from fitune.planning.trace.cpu_dry_run import trace_cpu

            return trace_cpu(made, scenario, row_tokens)

        traced = trace_cache.trace_model(values, on_cpu)
        trace_cache.write(path, traced)
    return assemble_cpu(traced)


# Growth of a process that trains a model of 2 layers of 64, less its tensors: 335 - 118 MB (benchmarks/memory/cpu.py
# --floor, torch 2.15, 2026-11-25): code, threads and objects, about 105 MB, and kernels for the 128 shapes that
# models/hardware.py keeps, 0.6 MB each.
PROCESS_BYTES = 217_000_000


def assemble_cpu(traced: TraceValues) -> CpuPlan:
    """A trace's plain values → the plan."""
    peak, live, position = replay_heap(traced["order"], traced["sizes"])
    parts: dict[str, int] = {}
    for index in live:
        name = traced["categories"][index]
        parts[name] = parts.get(name, 0) + traced["sizes"][index]
    moment = traced["moment_names"][traced["moments"][position]]
    return CpuPlan(
        growth_peak_bytes=peak + PROCESS_BYTES,
        allocated_peak_bytes=sum(parts.values()),
        process_bytes=PROCESS_BYTES,
        parts=parts,
        moment=moment,
    )


def replay_heap(order: Sequence[int], sizes: Sequence[int]) -> tuple[int, list[int], int]:
    """Highest resident bytes of a trace under glibc's malloc, the storages alive then, and the event.

    Args:
        order, sizes: as in `fitune.planning.trace.recorder.Recorder`.
    """
    heap = Heap()
    live: dict[int, int | None] = {}
    mapped = peak = position = trimmed = 0
    kept: list[int] = []
    for place, event in enumerate(order):
        if event == 0:  # malloc_trim: holes are no memory until they are used again, the smallest that will do first
            trimmed = heap.free
        if event > 0:
            size = sizes[event - 1]
            if size >= MAPPED_FROM:
                mapped, live[event] = mapped + size, None
            else:
                live[event] = heap.allocate(size)
            trimmed = min(trimmed, heap.free)
            if mapped + heap.top - trimmed > peak:
                peak, position = mapped + heap.top - trimmed, place
                kept = []
        elif event < 0:
            if not kept and position >= 0:
                kept = [number - 1 for number in live]  # as they were at the last new peak
            address = live.pop(-event)
            if address is None:
                mapped -= sizes[-event - 1]
            else:
                heap.release(address)
    return peak, kept or [number - 1 for number in live], position


class Heap:
    """malloc's heap: best fit, neighbours merge, the free end goes back when it is long."""

    def __init__(self) -> None:
        self.top = self.free = 0
        self.used: dict[int, int] = {}
        self.starts: dict[int, int] = {}  # free: address → size
        self.ends: dict[int, int] = {}  # free: end → address
        self.order: list[tuple[int, int]] = []  # free: (size, address), sorted

    def allocate(self, num_bytes: int) -> int:
        """The address of a block."""
        size = -(-(max(num_bytes, 1) + HEADER) // ALIGNMENT) * ALIGNMENT
        place = bisect_left(self.order, (size, -1))
        if place < len(self.order):
            have, address = self.order[place]
            self._take(address)
            if have > size:
                self._give(address + size, have - size)
        else:
            address = self.ends.get(self.top)
            if address is None:
                address = self.top
            else:
                self._take(address)
            self.top = address + size
        self.used[address] = size
        return address

    def release(self, address: int) -> None:
        """The block is free again."""
        size = self.used.pop(address)
        if (before := self.ends.get(address)) is not None:
            size += self._take(before)
            address = before
        if address + size in self.starts:
            size += self._take(address + size)
        if address + size == self.top and size >= TRIM_FROM:
            self.top = address
        else:
            self._give(address, size)

    def _give(self, address: int, size: int) -> None:
        self.starts[address], self.ends[address + size] = size, address
        insort(self.order, (size, address))
        self.free += size

    def _take(self, address: int) -> int:
        size = self.starts.pop(address)
        del self.ends[address + size]
        del self.order[bisect_left(self.order, (size, address))]
        self.free -= size
        return size
