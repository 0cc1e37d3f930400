"""The experts of a mixture: fused 3-D parameters, the routers before them, and PEFT's layout of a LoRA over them.

In: a model, or the tensors of an adapter. Out: names, shares, and A and B of each expert.

transformers 5 keeps all experts of a layer in one module named …Experts, with a parameter for each product: gate_up_proj
(gate and up are one product) and down_proj, (E, out, in), or (E, in, out) where the module says `is_transposed`.

E experts, R rank of one of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

# Modules that choose or weigh experts, by the last or the last but one part of their names.
ROUTERS = ("gate", "router", "shared_expert_gate")
PACKED = "_packed"
"""Ending of the layer that holds a fused parameter in few bits; see packed_experts.py."""
# Names that products of experts had before they were fused: Mixtral's, and those of the other families.
FUSED = {**dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), "gate_up_proj"), "w2": "down_proj"}


def expert_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of every module that holds fused experts."""
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Experts") and any(_fused_in(module)):
            yield name, module


def expert_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Full name → fused parameter, in the model's order; empty for a model without experts."""
    return {
        f"{name}.{own}": parameter
        for name, module in expert_modules(model)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    }


def expert_share(model: nn.Module) -> float:
    """Experts' parameters over all parameters."""
    fused = sum(parameter.numel() for parameter in expert_parameters(model).values())
    return fused / max(sum(parameter.numel() for parameter in model.parameters()), 1)


def is_placeholder(parameter: Tensor) -> bool:
    """Whether a fused parameter is zeros without memory, since its values are packed beside it."""
    return parameter.ndim == 3 and parameter.numel() > 1 and not any(parameter.stride())


def is_router(name: str) -> bool:
    """Whether a linear layer of a mixture chooses experts, or weighs them."""
    return any(part in ROUTERS for part in name.split(".")[-2:])


def experts_of_a(a: Tensor, rank: int) -> Tensor:
    """(E, R, in) from a saved A, (E·R, in): the rows of an expert lie together."""
    return a.reshape(-1, rank, a.shape[-1])


def experts_of_b(b: Tensor, rank: int) -> Tensor:
    """(E, out, R) from a saved B, (out, R·E): the columns of a direction lie together."""
    return b.reshape(b.shape[0], rank, -1).permute(2, 0, 1)


def saved_a(a: Tensor) -> Tensor:
    """Back from `experts_of_a`."""
    return a.reshape(-1, a.shape[-1]).contiguous()


def saved_b(b: Tensor) -> Tensor:
    """Back from `experts_of_b`."""
    return b.permute(1, 2, 0).reshape(b.shape[1], -1).contiguous()


def _fused_in(module: nn.Module) -> Iterator[bool]:
    return (parameter.ndim == 3 for _, parameter in module.named_parameters(recurse=False))
