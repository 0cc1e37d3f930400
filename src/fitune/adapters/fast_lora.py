"""LoRA's linear layer with one forward and one backward pass of its own; everything else of it is PEFT's.

In: a `LoraConfig`, before PEFT builds the model from it. Out: the same layers, of a subclass of `peft.tuners.lora.Linear`
with the same names, parameters, saved files, merge and unmerge.
Knows nothing of training loops.

PEFT's forward makes, for each of a layer's products, casts of the input and the result, a product with the scale and a
sum: about a dozen passes over memory forward and backward, which on small models take longer than LoRA's arithmetic.
Here the update is accumulated into the base's result by the matrix product itself.

M tokens, r rank.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def use_fast_lora(config: LoraConfig, model: nn.Module) -> bool:
    """Have PEFT build `FastLinear` for plain linear layers, through its interface for custom LoRA layers.

    Returns:
        False when the model has layers that only look like plain linear ones (quantized, sharded) or transposed ones
        beside them (GPT-2's Conv1D): PEFT's choices would be overruled for these too, so nothing is changed.
    """
    if config.fan_in_fan_out or any(
        isinstance(module, nn.Linear) and type(module) is not nn.Linear for module in model.modules()
    ):
        return False
    config._register_custom_module({nn.Linear: FastLinear})
    return True


class PlainParts(NamedTuple):
    """W, its bias, A, B and the scale of h = W·x + b + s·B·A·x, and the type in which it is multiplied."""

    dtype: torch.dtype
    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: float


class FastLinear(Linear):
    """`peft.tuners.lora.Linear`; the plain case is computed by `_LoraProduct`, all others by PEFT."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        parts = self.plain_parts(x) if not args and not kwargs else None
        if parts is None:
            return super().forward(x, *args, **kwargs)
        with torch.autocast(x.device.type, enabled=False):
            return _LoraProduct.apply(x.to(parts.dtype), parts.weight, parts.bias, parts.a, parts.b, parts.scale)

    def plain_parts(self, x: Tensor) -> PlainParts | None:
        """What the product with ``x`` is made of; None when PEFT has to make it."""
        name = self._plain_adapter()
        if name is None:
            return None
        base = cast(nn.Linear, self.get_base_layer())
        a, b = cast(Tensor, self.lora_A[name].weight), cast(Tensor, self.lora_B[name].weight)
        dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        elif not dtype == base.weight.dtype == a.dtype == b.dtype:
            return None  # PEFT multiplies a 16-bit input by fp32 adapters in fp32
        return PlainParts(dtype, base.weight, base.bias, a, b, self.scaling[name])

    def _plain_adapter(self) -> str | None:
        """The one active adapter when nothing but h = W·x + s·B·A·x is asked of it, in training.

        Answers are left to PEFT, so that they are bit for bit those of the saved adapter in plain PEFT.
        """
        if not self.training or self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name = self.active_adapters[0]
        base = self.get_base_layer()
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias.get(name, False):
            return None
        dropout = self.lora_dropout[name]
        if self.training and not isinstance(dropout, nn.Identity) and getattr(dropout, "p", 1.0) > 0:
            return None
        trained = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
        return None if trained or type(base) is not nn.Linear else name


class _LoraProduct(torch.autograd.Function):
    """W·x + b + s·B·A·x with W and b frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        dtype = x.dtype
        rows, weight, a_cast, b_cast = x.reshape(-1, x.shape[-1]), weight.to(dtype), a.to(dtype), b.to(dtype)
        result = torch.nn.functional.linear(rows, weight, None if bias is None else bias.to(dtype))
        inner = rows @ a_cast.t()
        result.addmm_(inner, b_cast.t(), alpha=scale)
        ctx.save_for_backward(rows, weight, a_cast, b_cast, inner)
        ctx.scale, ctx.shape, ctx.types = scale, x.shape, (a.dtype, b.dtype)
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, inner = ctx.saved_tensors
        grad = grads[0].reshape(-1, weight.shape[0])
        grad_x = grad_a = grad_b = None
        grad_inner = (grad @ b).mul_(ctx.scale)
        if ctx.needs_input_grad[3]:
            grad_a = (grad_inner.t() @ rows).to(ctx.types[0])
        if ctx.needs_input_grad[4]:
            grad_b = grad_of_b(grad, inner, ctx.scale, ctx.types[1])
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_inner, a).view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None


def grad_of_b(grad: Tensor, inner: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Gradient of B (out×r): made as its transpose, whose product takes two thirds of the time on a CPU."""
    made = (inner.t() @ grad).t().to(dtype, memory_format=torch.contiguous_format)
    return made.mul_(scale) if scale != 1 else made
