"""Norms and feed-forward blocks of Llama-like models in one forward and one backward pass each, for training.

In: a model that PEFT has adapted. Out: the same model; its RMS norms and SwiGLU blocks are of a subclass of their own
class, with the same parameters, names and saved files.
Knows nothing of training loops.

Frozen weights need no gradients, so most of what autograd keeps for these layers is never used: a norm keeps its input
in fp32 twice, a block keeps four matrices of the inner size. Here a norm keeps its input as it came and one number a
token, a block two matrices; gate's and up's LoRA products are made together. Whatever is not this plain case
(evaluation, trained norms, dropout, several adapters, quantized layers) is computed by the class above.

M tokens, H hidden size, I inner size, r rank.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fitune.adapters.fast_lora import FastLinear, grad_of_b

# Classes of transformers whose forward is weight · (x / rms(x)), the normalized value rounded before the product, and
# down(silu(gate(x)) · up(x)); tests/adapters/test_lean_layers.py compares each with its own class.
FAMILIES = ("Llama", "Mistral", "Mixtral", "Qwen2", "Qwen3", "SmolLM3", "Granite")
NORMS = tuple(f"{family}RMSNorm" for family in FAMILIES)
BLOCKS = tuple(f"{family}MLP" for family in FAMILIES)
SILU = ("SiLU", "SiLUActivation")


def use_lean_layers(model: nn.Module) -> int:
    """Let the norms and blocks that are known be computed leanly.

    Returns:
        How many there are.
    """
    count = 0
    for module in model.modules():
        kind = type(module)
        if not kind.__module__.startswith("transformers."):
            continue
        if kind.__name__ in NORMS:
            module.__class__ = _lean(kind, LeanNorm)
        elif kind.__name__ in BLOCKS and type(cast(Any, module).act_fn).__name__ in SILU:
            module.__class__ = _lean(kind, LeanBlock)
        else:
            continue
        count += 1
    return count


@cache
def _lean(kind: type, lean: type) -> type:
    return type(kind.__name__, (lean, kind), {"__module__": kind.__module__, "__doc__": lean.__doc__})


class LeanNorm(nn.Module):
    """An RMS norm (Zhang & Sennrich 2019, arXiv 1910.07467) with a frozen weight."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not self.training or self.weight.requires_grad or not torch.is_grad_enabled():
            return super().forward(hidden_states)
        return _Norm.apply(hidden_states, self.weight, self.variance_epsilon)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.to(torch.float32)
        inverse = wide.pow(2).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        grad = (grads[0] * weight).to(torch.float32)
        wide = x.to(torch.float32)
        # y = x·s with s = (mean x² + ε)^-½, so dx = s·g − x·s³·mean(g·x).
        slope = (grad * wide).mean(-1, keepdim=True).mul_(inverse.pow(3))
        return grad.mul_(inverse).addcmul_(wide, slope, value=-1).to(x.dtype), None, None


class LeanBlock(nn.Module):
    """A SwiGLU block (Shazeer 2020, arXiv 2002.05202) with frozen weights and LoRA on all three."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        layers = (self.gate_proj, self.up_proj, self.down_proj)
        if not self.training or not torch.is_grad_enabled():
            return super().forward(x)
        parts = [layer.plain_parts(x) if isinstance(layer, FastLinear) else None for layer in layers]
        if any(part is None or part.bias is not None for part in parts):
            return super().forward(x)
        gate, up, down = cast(list[Any], parts)
        with torch.autocast(x.device.type, enabled=False):
            return _Block.apply(
                x.to(gate.dtype), gate.weight, up.weight, down.weight,
                gate.a, gate.b, up.a, up.b, down.a, down.b, (gate.scale, up.scale, down.scale),
            )  # fmt: skip


class _Block(torch.autograd.Function):
    """down(silu(gate(x)) · up(x)), each with its LoRA."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate_w: Tensor, up_w: Tensor, down_w: Tensor,
        gate_a: Tensor, gate_b: Tensor, up_a: Tensor, up_b: Tensor, down_a: Tensor, down_b: Tensor,
        scales: tuple[float, float, float],
    ) -> Tensor:  # fmt: skip
        dtype, linear = x.dtype, nn.functional.linear
        rows = x.reshape(-1, x.shape[-1])
        weights = [weight.to(dtype) for weight in (gate_w, up_w, down_w)]
        both_a = torch.cat([gate_a, up_a]).to(dtype)
        bs = [b.to(dtype) for b in (gate_b, up_b, down_b)]
        down_a_cast = down_a.to(dtype)
        both_inner, rank = rows @ both_a.t(), len(gate_a)
        gate = linear(rows, weights[0]).addmm_(both_inner[:, :rank], bs[0].t(), alpha=scales[0])
        up = linear(rows, weights[1]).addmm_(both_inner[:, rank:], bs[1].t(), alpha=scales[1])
        inner = nn.functional.silu(gate).mul_(up)
        down_inner = inner @ down_a_cast.t()
        result = linear(inner, weights[2]).addmm_(down_inner, bs[2].t(), alpha=scales[2])
        ctx.save_for_backward(rows, gate, up, both_inner, down_inner, *weights, both_a, down_a_cast, *bs)
        ctx.scales, ctx.shape, ctx.rank, ctx.types = scales, x.shape, rank, (gate_a.dtype, gate_b.dtype)
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, gate, up, both_inner, down_inner, *rest = ctx.saved_tensors
        gate_w, up_w, down_w, both_a, down_a, gate_b, up_b, down_b = rest
        (gate_scale, up_scale, down_scale), rank, (a_type, b_type) = ctx.scales, ctx.rank, ctx.types
        grad = grads[0].reshape(-1, len(down_w))
        active = nn.functional.silu(gate)  # made again: 1 % of the block's time, a third of what it keeps
        grad_low = (grad @ down_b).mul_(down_scale)
        grad_down_a = (grad_low.t() @ (active * up)).to(a_type)
        grad_down_b = grad_of_b(grad, down_inner, down_scale, b_type)
        grad_inner = (grad @ down_w).addmm_(grad_low, down_a)
        grad_up = grad_inner * active
        grad_gate = torch.ops.aten.silu_backward(grad_inner.mul_(up), gate)
        grad_both = torch.cat([(grad_gate @ gate_b).mul_(gate_scale), (grad_up @ up_b).mul_(up_scale)], 1)
        grad_both_a = (grad_both.t() @ rows).to(a_type)
        grad_gate_b = grad_of_b(grad_gate, both_inner[:, :rank], gate_scale, b_type)
        grad_up_b = grad_of_b(grad_up, both_inner[:, rank:], up_scale, b_type)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_gate @ gate_w).addmm_(grad_up, up_w).addmm_(grad_both, both_a).view(ctx.shape)
        low = (grad_both_a[:rank], grad_gate_b, grad_both_a[rank:], grad_up_b, grad_down_a, grad_down_b)
        return grad_x, None, None, None, *low, None
