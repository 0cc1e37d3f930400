"""LoRA's linear layers with one forward and one backward pass of their own; everything else of them is PEFT's.

In: a `LoraConfig`, before PEFT builds the model from it. Out: the same layers, of a subclass of `peft.tuners.lora.Linear`
with the same names, parameters, saved files, merge and unmerge.
Knows nothing of training loops.

PEFT's forward makes, for each of a layer's products, casts of the input and the result, a product with the scale and a
sum: about a dozen passes over memory forward and backward, which on small models take longer than LoRA's arithmetic.
Here the update is accumulated into the base's result by the matrix product itself, and layers that read the same input
have their products with A made together. A layer that is stored in few bits makes its own product forward, as under PEFT,
and is unpacked for the backward pass; its dense weight is never held between the two.

M tokens, R sum of the ranks of layers that read the same input.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn

from fitune.models.quantization.quantization import Quantization
from fitune.models.quantization.quantize import kind_of
from fitune.ops.autograd_context import ShapedContext, once_differentiable


class PackedWeight(NamedTuple):
    """The weight of a layer that is stored in few bits."""

    layer: nn.Module
    kind: Quantization

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Unpacked, (out, in)."""
        weight = cast(Tensor, self.layer.weight)
        return self.kind.unpack(weight.data, self.kind.state(self.layer)).to(dtype)


Weight = Tensor | PackedWeight
Part = Weight | None
"""Of `PlainParts.tensors`: W, a bias or none, A or B."""


class Setting(NamedTuple):
    """What of `Products` is no tensor."""

    scales: tuple[float, ...]
    trained_types: tuple[torch.dtype, torch.dtype]
    """Of A and B, and so of their gradients."""
    packed: tuple[PackedWeight | None, ...]
    """Of each layer; None for one whose weight is a tensor."""


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


def use_fast_quantized_lora(model: nn.Module) -> int:
    """Let LoRA's layers over quantized ones, and the plain ones beside them, be computed by `FastLora`.

    PEFT chooses its layers by the class of the base, and has no interface for others over a quantized one.

    Returns:
        How many there are; 0 for a base without quantized layers, which is left as it is.
    """
    layers = [
        module for module in model.modules() if isinstance(module, LoraLayer) and type(module).__module__.startswith("peft.")
    ]  # fmt: skip
    packed = [layer for layer in layers if _is_packed(layer.get_base_layer())]
    plain = [layer for layer in layers if isinstance(layer, Linear) and type(layer.get_base_layer()) is nn.Linear]
    for layer in [*packed, *plain] if packed else []:
        made = cast(nn.Module, layer)
        made.__class__ = _fast(type(made))
    return len(packed)


def _is_packed(base: nn.Module) -> bool:
    return isinstance(base, nn.Linear) and kind_of(base) is not None


@cache
def _fast(kind: type[nn.Module]) -> type[nn.Module]:
    if kind is Linear:
        return FastLinear
    return type(f"Fast{kind.__name__}", (FastLora, kind), {"__module__": __name__, "__doc__": FastLora.__doc__})


class PlainParts(NamedTuple):
    """W, its bias, A, B and the scale of h = W·x + b + s·B·A·x, and the type in which it is multiplied."""

    dtype: torch.dtype
    weight: Weight
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: float

    @property
    def tensors(self) -> tuple[Part, ...]:
        """W, bias, A and B, as `Products.of` takes them."""
        return self.weight, self.bias, self.a, self.b


if TYPE_CHECKING:
    _Layer = Linear  # what the classes have that `FastLora` stands before
else:
    _Layer = object


class FastLora(_Layer):
    """A linear layer of PEFT's LoRA; the plain case is computed by `_LoraProduct`, all others by PEFT."""

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
        dtype, kind = x.dtype, kind_of(base)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        elif not dtype == a.dtype == b.dtype or (kind is None and base.weight.dtype != dtype):
            return None  # PEFT multiplies a 16-bit input by fp32 adapters in fp32
        if kind is not None:  # its own product adds the bias
            return PlainParts(dtype, PackedWeight(base, kind), None, a, b, self.scaling[name])
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
        known = type(base) is nn.Linear or _is_packed(base)
        return name if known and not trained else None


class FastLinear(FastLora, Linear):
    """Over a layer whose weight is a tensor."""


class Products(NamedTuple):
    """Layers W·x + b + s·B·A·x that read the same x, with W and b frozen, in the type of the products."""

    scales: tuple[float, ...]
    trained_types: tuple[torch.dtype, torch.dtype]
    """Of A and B, and so of their gradients."""
    a: Tensor
    """R×in: all A, one below the other."""
    weights: tuple[Weight, ...]
    bs: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, dtype: torch.dtype, scales: Sequence[float], tensors: Sequence[Part]) -> Products:
        """From W, bias, A and B of each layer."""
        weights = cast("Sequence[Weight]", tensors[::4])
        biases, all_a, bs = (cast("Sequence[Tensor]", tensors[which::4]) for which in range(1, 4))
        return cls(
            tuple(scales), (all_a[0].dtype, bs[0].dtype),
            (all_a[0] if len(all_a) == 1 else torch.cat(list(all_a))).to(dtype),
            tuple(weight if isinstance(weight, PackedWeight) else weight.to(dtype) for weight in weights),
            tuple(b.to(dtype) for b in bs),
            tuple(None if bias is None else bias.to(dtype) for bias in cast("Sequence[Tensor | None]", biases)),
        )  # fmt: skip

    @property
    def ranks(self) -> list[int]:
        """Of each layer; R is their sum."""
        return [b.shape[1] for b in self.bs]

    @property
    def setting(self) -> Setting:
        """What is no tensor."""
        packed = tuple(weight if isinstance(weight, PackedWeight) else None for weight in self.weights)
        return Setting(self.scales, self.trained_types, packed)

    @property
    def saved(self) -> tuple[Tensor | None, ...]:
        """The tensors that `backward` needs, for autograd to keep; None in the place of a packed weight."""
        weights = (None if isinstance(weight, PackedWeight) else weight for weight in self.weights)
        return self.a, *weights, *self.bs

    @classmethod
    def again(cls, setting: Setting, saved: Sequence[Tensor]) -> Products:
        """The products of which autograd kept ``saved``."""
        count = len(setting.scales)
        bs = tuple(saved[1 + count :])
        weights = tuple(packed or weight for packed, weight in zip(setting.packed, saved[1 : 1 + count], strict=True))
        return cls(setting.scales, setting.trained_types, saved[0], weights, bs, (None,) * count)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Results M×out, and the products of ``x`` (M×in) with A, M×R."""
        inner = x @ self.a.t()
        lows = inner.split(self.ranks, 1)
        results = [
            _product(x, weight, bias).addmm_(low, b.t(), alpha=scale)
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
        grad_x = grads[0] @ _dense(self.weights[0], x.dtype)
        for grad, weight in zip(grads[1:], self.weights[1:], strict=True):
            grad_x.addmm_(grad, _dense(weight, x.dtype))
        return grad_x.addmm_(low, self.a), trained


def _product(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """W·x + b; a quantized layer's own result, the bias among it."""
    return weight.layer(x) if isinstance(weight, PackedWeight) else nn.functional.linear(x, weight, bias)


def _dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    return weight.dense(dtype) if isinstance(weight, PackedWeight) else weight


class ProductContext(ShapedContext, Protocol):
    """Of a function that computes `Products`."""

    setting: Setting


class _LoraProduct(torch.autograd.Function):
    """One layer by itself."""

    @staticmethod
    def forward(ctx: ProductContext, x: Tensor, scale: float, *tensors: Part) -> Tensor:
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
