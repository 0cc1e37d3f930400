"""LoRA's linear layers with one forward and one backward pass of their own; everything else of them is PEFT's.

In: a `LoraConfig`, before PEFT builds the model from it. Out: the same layers, of a subclass of `peft.tuners.lora.Linear`
with the same names, parameters, saved files, merge and unmerge.
Knows nothing of training loops.

PEFT's forward makes, for each of a layer's products, casts of the input and the result, a product with the scale and a
sum: about a dozen passes over memory forward and backward, which on small models take longer than LoRA's arithmetic.
Here the update is accumulated into the base's result by the matrix product itself, and layers that read the same input
have their products with A made together.

M tokens, R sum of the ranks of layers that read the same input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn

from fitune.ops.autograd_context import ShapedContext, once_differentiable

Setting = tuple[tuple[float, ...], tuple[torch.dtype, torch.dtype]]
"""Scales of the layers; types of A and B."""


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
    config._register_custom_module({nn.Linear: FastLinear})  # pyright: ignore[reportPrivateUsage]
    return True


class PlainParts(NamedTuple):
    """W, its bias, A, B and the scale of h = W·x + b + s·B·A·x, and the type in which it is multiplied."""

    dtype: torch.dtype
    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: float

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """W, bias, A and B, as `Products.of` takes them."""
        return self.weight, self.bias, self.a, self.b


class FastLinear(Linear):
    """`peft.tuners.lora.Linear`; the plain case is computed by `_LoraProduct`, all others by PEFT."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        parts = self.plain_parts(x) if not args and not kwargs else None
        if parts is None:
            return super().forward(x, *args, **kwargs)
        with torch.autocast(x.device.type, enabled=False):
            return _LoraProduct.apply(x.to(parts.dtype), parts.scale, *parts.tensors)

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
        bias = cast("Tensor | None", base.bias)
        trained = base.weight.requires_grad or (bias is not None and bias.requires_grad)
        return None if trained or type(base) is not nn.Linear else name


class Products(NamedTuple):
    """Layers W·x + b + s·B·A·x that read the same x, with W and b frozen, in the type of the products."""

    scales: tuple[float, ...]
    trained_types: tuple[torch.dtype, torch.dtype]
    """Of A and B, and so of their gradients."""
    a: Tensor
    """R×in: all A, one below the other."""
    weights: tuple[Tensor, ...]
    bs: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, dtype: torch.dtype, scales: Sequence[float], tensors: Sequence[Tensor | None]) -> Products:
        """From W, bias, A and B of each layer."""
        weights, biases, all_a, bs = (tensors[which::4] for which in range(4))
        a, b = cast(Tensor, all_a[0]), cast(Tensor, bs[0])
        return cls(
            tuple(scales), (a.dtype, b.dtype),
            (a if len(all_a) == 1 else torch.cat(cast(list[Tensor], all_a))).to(dtype),
            tuple(cast(Tensor, weight).to(dtype) for weight in weights),
            tuple(cast(Tensor, b).to(dtype) for b in bs),
            tuple(None if bias is None else bias.to(dtype) for bias in biases),
        )  # fmt: skip

    @property
    def ranks(self) -> list[int]:
        """Of each layer; R is their sum."""
        return [b.shape[1] for b in self.bs]

    @property
    def setting(self) -> Setting:
        """What is no tensor."""
        return self.scales, self.trained_types

    @property
    def saved(self) -> tuple[Tensor, ...]:
        """The tensors that `backward` needs, for autograd to keep."""
        return self.a, *self.weights, *self.bs

    @classmethod
    def again(cls, setting: Setting, saved: Sequence[Tensor]) -> Products:
        """The products of which autograd kept ``saved``."""
        scales, trained_types = setting
        count = len(scales)
        weights, bs = tuple(saved[1 : 1 + count]), tuple(saved[1 + count :])
        return cls(scales, trained_types, saved[0], weights, bs, (None,) * count)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Results M×out, and the products of ``x`` (M×in) with A, M×R."""
        inner = x @ self.a.t()
        lows = inner.split(self.ranks, 1)
        results = [
            nn.functional.linear(x, weight, bias).addmm_(low, b.t(), alpha=scale)
            for weight, bias, b, low, scale in zip(
                self.weights, self.biases, self.bs, lows, self.scales, strict=True
            )
        ]  # fmt: skip
        return results, inner

    def backward(
        self, grads: Sequence[Tensor], x: Tensor, inner: Tensor, of_x: bool = True
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Gradient of x (None unless ``of_x``), and those of W, bias, A and B of each layer, as `of` takes them."""
        lows = [(grad @ b).mul_(scale) for grad, b, scale in zip(grads, self.bs, self.scales, strict=True)]
        low = lows[0] if len(lows) == 1 else torch.cat(lows, 1)
        grads_of_a = (low.t() @ x).to(self.trained_types[0]).split(self.ranks)
        trained: list[Tensor | None] = []
        for grad, part, scale, of_a in zip(grads, inner.split(self.ranks, 1), self.scales, grads_of_a, strict=True):
            # Made as its transpose, whose product takes two thirds of the time on a CPU.
            of_b = (part.t() @ grad).t().to(self.trained_types[1], memory_format=torch.contiguous_format)
            trained += [None, None, of_a, of_b.mul_(scale) if scale != 1 else of_b]
        if not of_x:
            return None, trained
        grad_x = grads[0] @ self.weights[0]
        for grad, weight in zip(grads[1:], self.weights[1:], strict=True):
            grad_x.addmm_(grad, weight)
        return grad_x.addmm_(low, self.a), trained


class ProductContext(ShapedContext, Protocol):
    """Of a function that computes `Products`."""

    setting: Setting


class _LoraProduct(torch.autograd.Function):
    """One layer by itself."""

    @staticmethod
    def forward(ctx: ProductContext, x: Tensor, scale: float, *tensors: Tensor | None) -> Tensor:
        products, rows = Products.of(x.dtype, (scale,), tensors), x.reshape(-1, x.shape[-1])
        (result,), inner = products.forward(rows)
        ctx.save_for_backward(rows, inner, *products.saved)
        ctx.setting, ctx.shape = products.setting, x.shape
        # As torch's own matmul: no view, which the model could not change in place (Gemma 3n does).
        return torch.ops.aten._unsafe_view.default(result, [*x.shape[:-1], result.shape[-1]])

    @staticmethod
    @once_differentiable
    def backward(ctx: ProductContext, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, *saved = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        grad_x, trained = Products.again(ctx.setting, saved).backward([grad], rows, inner, ctx.needs_input_grad[0])
        return None if grad_x is None else grad_x.view(ctx.shape), None, *trained
