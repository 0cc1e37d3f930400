"""Peak memory of a run: measured, and beside what the plan had said of it.

In: a device, a plan's figures. Out: measured bytes; predicted and measured side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psutil
import torch

from fitune.models.hardware import peak_memory_bytes
from fitune.sizes import size_in

GPU_TOLERANCE = 0.05
# Process memory is coarser: the C allocator keeps what was freed, libraries make threads and buffers when first called.
CPU_TOLERANCE = 0.15
# On a CPU a difference below this says nothing: thread stacks, code pages that are first touched in the run.
CPU_NOISE_BYTES = 200 * 2**20
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Meter:
    """A measurement that has begun."""

    device: str
    start_bytes: int
    """Resident size of the process when it began; 0 on a GPU, where torch counts its own."""

    def measured(self) -> dict[str, int]:
        """The peak since the beginning: allocated_bytes and reserved_bytes on a GPU, resident_growth_bytes elsewhere."""
        if self.device == "cuda":
            return {
                "allocated_bytes": torch.cuda.max_memory_allocated(),
                "reserved_bytes": torch.cuda.max_memory_reserved(),
            }
        peak = _peak_resident_bytes()
        return {
            "resident_growth_bytes": max(peak - self.start_bytes, 0),
            "resident_start_bytes": self.start_bytes,
            "resident_peak_bytes": peak,
        }


def begin_measuring(device: str) -> Meter:
    """Set the peak to what is held now."""
    if device == "cuda":
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return Meter(device, 0)
    with suppress(OSError):  # another system: the peak is the process' own, from its start
        CLEAR_REFS.write_text("5")  # Linux: the peak of the resident size is set back to its present value (proc(5))
    return Meter(device, psutil.Process().memory_info().rss)


def _peak_resident_bytes() -> int:
    """VmHWM, which `begin_measuring` sets back; the process' own peak where there is none."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return peak_memory_bytes("cpu")


@dataclass(frozen=True)
class Comparison:
    """Predicted and measured, side by side."""

    rows: tuple[tuple[str, int, int], ...]
    """(what, predicted bytes, measured bytes); the first one is judged."""
    tolerance: float
    noise_bytes: int = 0
    coarse: bool = False
    """The growth of a process, not an allocator's own count."""

    @property
    def difference(self) -> float:
        """(measured - predicted) / predicted of the first row."""
        _, predicted, measured = self.rows[0]
        return (measured - predicted) / max(predicted, 1)

    @property
    def agrees(self) -> bool:
        """Whether they differ by no more than the tolerance."""
        _, predicted, measured = self.rows[0]
        return abs(measured - predicted) <= max(self.tolerance * predicted, self.noise_bytes)

    def lines(self) -> list[str]:
        """For the screen."""
        whole = max(max(row[1:]) for row in self.rows)
        return [
            f"peak memory, {what}: predicted {size_in(predicted, whole)}, measured {size_in(measured, whole)} "
            f"({(measured - predicted) / max(predicted, 1):+.1%})"
            for what, predicted, measured in self.rows
        ]

    def warning(self) -> str | None:
        """What to say when they part; on a CPU, where less does no harm, only of more."""
        if self.agrees or (self.coarse and self.difference < 0):
            return None
        side = "more" if self.difference > 0 else "less"
        return (
            f"the run took {abs(self.difference):.0%} {side} memory than planned (tolerance {self.tolerance:.0%}); "
            f"{'raise memory.margin, and ' if self.difference > 0 else ''}please report it with the run's manifest.json"
        )

    def to_dict(self) -> dict[str, object]:
        """For the manifest."""
        return {"difference": round(self.difference, 4), "tolerance": self.tolerance, "agrees": self.agrees}


def compare(predicted: Mapping[str, object], measured: Mapping[str, int]) -> Comparison | None:
    """What was planned beside what was measured; None when they have no figure in common.

    Args:
        predicted, measured: with the keys that `Meter.measured` gives.
    """
    gpu = "allocated_bytes" in measured
    names = {
        "allocated_bytes": "allocated",
        "reserved_bytes": "reserved",
        "resident_growth_bytes": "growth of process RSS",
    }
    both = predicted.keys() & measured.keys()
    rows = tuple((words, cast(int, predicted[key]), measured[key]) for key, words in names.items() if key in both)
    if not rows:
        return None
    return Comparison(rows, GPU_TOLERANCE) if gpu else Comparison(rows, CPU_TOLERANCE, CPU_NOISE_BYTES, coarse=True)
