"""Experts stored in few bits, by the quantizations of `QUANTIZATIONS`, and computed from there.

In: a mixture and a quantization. Out: the same model; each fused parameter is held by a quantized linear layer beside it.
This is ours until bitsandbytes and PEFT know fused parameters together: bitsandbytes 0.50 has a parametrization for them,
from which PEFT 0.21 cannot take its own away again.

The experts of a product lie below one another, a matrix of (E·out, in) that is packed as one layer: `gate_up_proj_packed`
beside gate_up_proj, which stays as zeros that take no memory (one number, expanded). PEFT adds an adapter to these zeros,
so that what the parameter shows is the update s·B·A alone. The products are computed through transformers' interface for
experts: a stack is unpacked for the forward pass and again for the backward pass, and never held between the two.

E experts, S pairs of a token and one of its experts, sorted by expert, K experts a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.integrations.moe import (
    _grouped_linear as grouped_linear,  # pyright: ignore[reportPrivateUsage]
)

from fitune.models.mixture.experts import PACKED, expert_modules, is_placeholder
from fitune.models.quantization.quantization import Layer, Quantization

IMPLEMENTATION = "fitune_packed"


class Packing(NamedTuple):
    """How stacks are packed: the quantization, the type of the products, whether scales are quantized too."""

    kind: Quantization
    compute: torch.dtype
    double_quant: bool


def pack_experts(model: PreTrainedModel, packing: Packing, device: str | int | None) -> int:
    """Store every expert that the interface for experts computes in few bits.

    Args:
        device: where the packed weights go, stack by stack; None leaves empty layers, for a model on meta.

    Returns:
        How many stacks were packed.
    """
    found = list(stacks_to_pack(model, packing.kind))
    for _, module, name in found:
        stack = module.get_parameter(name)
        module.register_parameter(name, pack_stack(module, name, stack.data, packing, device))
    compute_packed(model)
    return len(found)


def stacks_to_pack(model: nn.Module, kind: Quantization) -> Iterator[tuple[str, nn.Module, str]]:
    """(name of the module, the module, name of the parameter) of every stack that can be computed from few bits."""
    for name, module in expert_modules(model):
        if getattr(module, "is_transposed", None) is None:
            continue
        for own, stack in module.named_parameters(recurse=False):
            if stack.ndim == 3 and not is_placeholder(stack) and stack.numel() % kind.cpu_inputs == 0:
                yield name, module, own


def compute_packed(model: PreTrainedModel) -> None:
    """Have the products of a model with packed stacks computed from them."""
    if any(name.endswith(PACKED) for name, _ in model.named_modules()):
        ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, packed_forward)
        model.set_experts_implementation(IMPLEMENTATION)


def pack_stack(
    module: nn.Module, name: str, stack: Tensor, packing: Packing, device: torch.device | str | int | None
) -> nn.Parameter:
    """Put the packed layer beside a stack; returns the zeros that take the stack's place.

    Args:
        device: as in `pack_experts`.
    """
    # Blocks of scales run on over the rows, so rows of a block each hold the same; a CPU unpacks others wrongly.
    whole = packing.kind.cpu_inputs
    inputs = whole if stack.shape[2] % whole else stack.shape[2]
    rows = stack.numel() // inputs
    layer = Layer(
        inputs=inputs, outputs=rows, bias=False, compute=packing.compute, double_quant=packing.double_quant
    )  # fmt: skip
    with torch.device("meta"):
        made: Any = packing.kind.make_layer(layer)
    if device is not None:
        made.weight = packing.kind.pack(stack.reshape(rows, inputs).contiguous(), made, device)
    made.requires_grad_(False)
    made.kind = packing.kind
    place = stack.device if device is None else device
    zeros = torch.zeros(1, dtype=packing.compute, device=place).expand(stack.shape)
    module.add_module(name + PACKED, made)
    return nn.Parameter(zeros, requires_grad=False)


def unpacked(module: nn.Module, name: str) -> Tensor:
    """The stack that a packed layer stands for, (E, out, in), or (E, in, out) where it is stored so."""
    layer: Any = module.get_submodule(name + PACKED)
    shape = _placeholder(module, name).shape
    return layer.kind.unpack(layer.weight.data, layer.kind.state(layer)).reshape(shape)


def packed_forward(self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Σ over a token's K experts of weight · expert(token), the tokens of an expert together.

    Args:
        self: a module of experts whose stacks are packed; of others transformers computes the products.
    """
    experts: Any = self
    if not any(name.endswith(PACKED) for name, _ in self.named_children()):
        return ALL_EXPERTS_FUNCTIONS["grouped_mm"](self, hidden_states, top_k_index, top_k_weights)
    chosen, order = top_k_index.reshape(-1).sort(stable=True)
    counted = chosen.float() if chosen.device.type in ("cpu", "mps") else chosen.int()
    per_expert = torch.histc(counted, bins=experts.num_experts, min=0, max=experts.num_experts - 1)
    ends = per_expert.cumsum(0, dtype=torch.int32)
    tokens_S = order // top_k_index.shape[-1]
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    inner = _product(self, first, hidden_states[tokens_S], ends, chosen)
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    outer = _product(self, "down_proj", inner, ends, chosen)
    if experts.has_post_expert_norm:
        outer = experts.post_expert_norm(outer)
    weighed = outer * top_k_weights.reshape(-1)[order, None]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return weighed[back].view(*top_k_index.shape, -1).sum(1).to(hidden_states.dtype)


def _product(module: nn.Module, name: str, x: Tensor, ends: Tensor, chosen: Tensor) -> Tensor:
    """x·Wᵀ of each expert, its bias and its adapter's update among it."""
    experts: Any = module
    result: Tensor = _GroupedProduct.apply(x, ends, module, name)
    if is_parametrized(module, name):
        result = result + _update(module, name, x.to(result.dtype), ends)
    if experts.has_bias:
        result = result + getattr(experts, f"{name}_bias")[chosen].to(result.dtype)
    return result


def _update(module: nn.Module, name: str, x: Tensor, ends: Tensor) -> Tensor:
    """An adapter's part: by its two factors where PEFT keeps them apart and their rows are aligned, else by ΔW."""
    experts: Any = module
    transposed: bool = experts.is_transposed
    proxies: Any = experts.parametrizations[name]
    left, right = getattr(proxies[0], "lhs", None), getattr(proxies[0], "rhs", None)
    if len(proxies) > 1 or left is None or right is None or right.shape[1] * right.element_size() % 16:
        return grouped_linear(x, getattr(experts, name), ends, is_transposed=transposed)
    first, second = (left, right) if transposed else (right, left)
    low = grouped_linear(x, first.contiguous(), ends, is_transposed=transposed)
    return grouped_linear(low, second.contiguous(), ends, is_transposed=transposed) * proxies[0].scaling


def _placeholder(module: nn.Module, name: str) -> Tensor:
    """The zeros in a stack's place, under an adapter or not."""
    if is_parametrized(module, name):
        return cast(Tensor, cast(Any, module).parametrizations[name].original)
    return module.get_parameter(name)


class _GroupedProduct(torch.autograd.Function):
    """x·Wᵀ with a frozen W that is unpacked in each pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ends: Tensor, module: nn.Module, name: str) -> Tensor:
        ctx.save_for_backward(ends)
        ctx.module, ctx.name, ctx.dtype = module, name, x.dtype
        return grouped_linear(x, unpacked(module, name), ends, is_transposed=cast(Any, module).is_transposed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (ends,) = ctx.saved_tensors
        weight = unpacked(ctx.module, ctx.name)
        grad = grouped_linear(grads[0].contiguous(), weight, ends, is_transposed=not ctx.module.is_transposed)
        return grad.to(ctx.dtype), None, None, None
