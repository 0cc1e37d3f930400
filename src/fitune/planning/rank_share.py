"""One rank's plan under FSDP2, from the plan of the whole model: its pieces in place of what is sharded.

In: a `Plan` of what one rank computes, the model's config, its `Scenario`, the number of ranks. Out: a `Plan`.
Weights, gradients and states are counted piece by piece, from the same shapes that trainers/parallel/sharding.py cuts;
activations are those of the traced plan. NCCL's own buffers are in no figure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fitune.ops.optimizers import PLANNED
from fitune.planning.predict import Plan
from fitune.planning.scenario import Scenario

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

NOT_COUNTED = "per rank: NCCL's own buffers, some hundred MiB, are not counted; the step's communication is in no time"


@dataclass(frozen=True)
class ShareBytes:
    """What one rank holds, in bytes."""

    weights: int
    """Frozen and trained values, adapters among them."""
    gradients: int
    states: int
    largest_layer: int
    """All of the largest layer, as it is gathered."""
    largest_gradients: int
    """Gradients of that layer's trained values in fp32, before they are reduced."""


def share_of(model: nn.Module, layers: Sequence[nn.Module], ranks: int, optimizer: str) -> ShareBytes:
    """Bytes of rank 0: of each parameter of a layer the first of ``ranks`` pieces along its first axis, of others all.

    Args:
        model: with its adapters and its trained parameters marked; meta tensors do.
        layers: the modules whose parameters are cut.
        optimizer: one of `PLANNED`.
    """
    import torch

    inside = {id(value) for layer in layers for value in layer.parameters()}

    def piece(value: torch.Tensor) -> torch.Tensor:
        shape = list(value.shape)
        if id(value) in inside and ranks > 1:
            shape[0] = -(-shape[0] // ranks)
        return torch.empty(shape, dtype=value.dtype, device="meta")

    def size(values: Sequence[torch.Tensor]) -> int:
        return sum(value.numel() * value.element_size() for value in values)

    values = list(model.parameters())
    trained = [piece(value) for value in values if value.requires_grad]
    each = [list(layer.parameters()) for layer in layers]
    return ShareBytes(
        weights=size([piece(value) for value in values]),
        gradients=size(trained),
        states=PLANNED[optimizer].states_of(trained).total,
        largest_layer=max((size(one) for one in each), default=0),
        largest_gradients=max((sum(4 * v.numel() for v in one if v.requires_grad) for one in each), default=0),
    )


def plan_of_rank(plan: Plan, config: dict[str, object], scenario: Scenario, ranks: int, room_bytes: int | None) -> Plan:
    """The plan of one of ``ranks`` under FSDP2.

    Args:
        plan: of the rows that one rank takes, over the whole model.
        room_bytes: what the card has; None where it is not known.
    """
    from fitune.models.towers import decoder_layers, text_model
    from fitune.planning.trace.dry_run import Program
    from fitune.planning.trace_cache import as_config

    program = Program(as_config(config), scenario, "meta")
    program.load()
    layers = decoder_layers(text_model(program.bare()))
    whole, own = (share_of(program.model, layers, count, scenario.optimizer) for count in (1, ranks))
    parts = dict(plan.parts)
    saved = 0
    for names, less in (
        (("weights", "adapters"), whole.weights - own.weights),
        (("gradients",), whole.gradients - own.gradients),
        (("optimizer states",), whole.states - own.states),
    ):
        for name in names:
            taken = min(less, parts.get(name, 0))
            less -= taken
            saved += taken
            if taken:
                parts[name] -= taken
    # The layer at hand and the next, which is gathered meanwhile; its gradients before and after they are reduced.
    more = {"gathered layers": 2 * own.largest_layer, "reduced gradients": 2 * own.largest_gradients}
    change = sum(more.values()) - saved
    smi = plan.smi_peak_bytes + change

    def moved(name: str, phase: dict[str, int | str]) -> dict[str, int | str]:
        by = -min(saved, whole.weights - own.weights) if name == "load" else change
        return {key: value if isinstance(value, str) else max(value + by, 0) for key, value in phase.items()}

    return replace(
        plan,
        allocated_peak_bytes=plan.allocated_peak_bytes + change,
        reserved_peak_bytes=plan.reserved_peak_bytes + change,
        smi_peak_bytes=smi,
        parts=dict(sorted({**parts, **more}.items(), key=lambda item: -item[1])),
        phases={name: moved(name, phase) for name, phase in plan.phases.items()},
        fits=room_bytes is not None and smi <= room_bytes,
        notes=(*plan.notes, NOT_COUNTED),
    )
