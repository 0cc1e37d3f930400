"""Config and scenario → the plan: three figures, the parts of the peak, and its moment.

In: a transformers config (object or dict), a `Scenario`, the card. Out: a frozen `Plan`.
Knows nothing of settings, of where a config came from, or of how a plan is shown. torch is imported only when a
trace is not in the cache.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fitune.plan.allocator import AllocatorResult, replay
from fitune.plan.cache import cached_trace
from fitune.plan.scenario import Scenario


@dataclass(frozen=True)
class Card:
    """What the plan must know of a GPU. The catalogue's `Gpu` has the same four attributes."""

    name: str
    usable_bytes: int
    """What a process may take in all: memory less what driver and ECC keep."""
    capability: tuple[int, int]
    context_bytes: int
    """The CUDA context: in no figure of torch, but in nvidia-smi's."""


@dataclass(frozen=True)
class Plan:
    """A memory plan. The three figures are never mixed: allocated ≤ reserved ≤ smi."""

    allocated_peak_bytes: int
    """torch.cuda.max_memory_allocated: the tensors alive together."""
    reserved_peak_bytes: int
    """torch.cuda.max_memory_reserved: what the caching allocator holds for them."""
    smi_peak_bytes: int
    """What nvidia-smi shows for the process: reserved + CUDA context + managed memory on the card."""
    parts: dict[str, int]
    """Category → bytes at the moment of the allocated peak; their sum is allocated_peak_bytes."""
    moment: str
    """The moment of the peak: "step 2, backward of layer 23 of 24, attention"."""
    phases: dict[str, dict[str, int | str]]
    """Phase → {allocated_bytes, reserved_bytes, moment}: load, step 1, step 2, evaluation, generation, checkpoint."""
    fits: bool
    """Whether the card holds it; the allocator gives cached blocks back before it fails."""
    trained_parameters: int = 0
    total_parameters: int = 0
    work: dict[str, float] = field(default_factory=dict)
    """Of one micro-batch's forward and backward: {"flops", "moved_bytes", "kernels"}; and "optimizer_moved_bytes"."""
    seconds_per_step: float | None = None
    """Filled in by `fitune.plan.time`."""
    notes: tuple[str, ...] = ()
    """Assumptions that the user should hear."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
