"""Config and scenario → the plan: three figures, the parts of the peak, and its moment.

In: a transformers config (object or dict), a `Scenario`, the card. Out: a frozen `Plan`.
Knows nothing of settings, of where a config came from, or of how a plan is shown. torch is imported only when a
trace is not in the cache.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from fitune.planning.scenario import Scenario
from fitune.planning.simulate.allocator import replay
from fitune.planning.trace_cache import TraceValues, cached_trace, values_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from fitune.planning.gpus.catalogue import Gpu


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
    """Whether the card holds it; the allocator gives cached blocks back before it fails. False where it is not known."""
    host_bytes: int = 0
    """Pinned memory of the host that layer inputs take at most; it crosses PCIe twice in each micro-batch."""
    trained_parameters: int = 0
    total_parameters: int = 0
    work: dict[str, list[list[str | int]]] = field(default_factory=dict[str, list[list[str | int]]])
    """Of one micro-batch's forward and backward: {"operators": [[kind, flops, moved bytes, how often], …]}."""
    seconds_per_step: float | None = None
    """Filled in by `fitune.planning.gpus.step_time`."""
    traced: bool = True
    """False: figures of the closed form, because the model's code cannot be traced."""
    notes: tuple[str, ...] = ()
    """Assumptions that the user should hear."""

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)


def predict(
    config: PretrainedConfig | dict[str, object],
    scenario: Scenario,
    gpu: Card | Gpu,
    expandable_segments: bool = False,
    only_plans: bool = False,
) -> Plan:
    """The plan of ``scenario`` for ``config``'s model on ``gpu``.

    Args:
        config: a transformers config object, or its values as a dict with "model_type".
        gpu: the card, by its four attributes or out of the catalogue.
        expandable_segments: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.
        only_plans: this process will not train; see `cached_trace`.

    Raises:
        NotTraced: the architecture's code cannot be traced; the message names the call.
    """
    traced = cached_trace(values_of(config), scenario, (gpu.capability[0], gpu.capability[1]), only_plans)
    return assemble(traced, gpu, expandable_segments)


def assemble(traced: TraceValues, gpu: Card | Gpu, expandable_segments: bool = False) -> Plan:
    """A trace's plain values and a card → the plan."""
    order, sizes, categories = traced["order"], traced["sizes"], traced["categories"]
    capacity = gpu.usable_bytes - gpu.context_bytes - traced["managed_bytes"]
    phases = [(position, name) for position, name in traced["phases"]]
    result = replay(order, sizes, phases, capacity, expandable_segments)
    parts: dict[str, int] = {}
    for index, num_bytes in result.live_at_peak.items():
        parts[categories[index]] = parts.get(categories[index], 0) + num_bytes
    names = traced["moment_names"]

    def moment(position: int) -> str:
        return names[traced["moments"][position]]

    shown: dict[str, dict[str, int | str]] = {
        name: {
            "allocated_bytes": peak.allocated,
            "reserved_bytes": peak.reserved,
            "smi_bytes": peak.reserved + gpu.context_bytes,
            "moment": moment(peak.position),
        }
        for name, peak in result.phases.items()
    }
    managed = traced["managed_bytes"]
    return Plan(
        allocated_peak_bytes=result.allocated_peak_bytes,
        reserved_peak_bytes=result.reserved_peak_bytes,
        smi_peak_bytes=result.reserved_peak_bytes + gpu.context_bytes + managed,
        parts=dict(sorted(parts.items(), key=lambda item: -item[1])),
        moment=moment(result.peak_position),
        phases=shown,
        fits=result.fits,
        host_bytes=traced["host_bytes"],
        trained_parameters=traced["trained_parameters"],
        total_parameters=traced["total_parameters"],
        work=traced["work"],
        notes=tuple(traced["notes"]),
    )
