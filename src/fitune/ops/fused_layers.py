"""Layers of Llama-like models in one forward and one backward pass each, for training.

In: a model that PEFT has adapted. Out: the same model; its RMS norms, SwiGLU blocks and decoder layers are of a subclass
of their own class, with the same parameters, names and saved files.
Knows nothing of training loops.

Frozen weights need no gradients, so most of what autograd keeps for these layers is never used: a norm keeps its input
in fp32 twice, a block keeps four matrices of the inner size. Here a norm keeps its input as it came and one number a
token, a block two matrices, a decoder layer its inputs instead of its norms' outputs; products that read the same input
are made together, and sums with the residual in place. Whatever is not this plain case (evaluation, trained norms,
dropout, several adapters) is computed by the class above.

In tiles (`use_tiles`) a layer's products and its block are computed for some thousand tokens at a time, forward and
backward, and what a tile keeps between the two is made again: no tensor of tokens × inner size exists, at the price of
one more forward pass of the products. Sums over tokens, which are gradients of A and B, are added tile by tile in fp32.

M tokens, H hidden size, I inner size, n heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fitune.models.base_model import attention_of
from fitune.ops.autograd_context import Context, ShapedContext, once_differentiable
from fitune.ops.fused_lora import FastLora, Part, PlainParts, ProductContext, Products, Setting

# Classes of transformers whose forward is weight · (x / rms(x)), the normalized value rounded before the product;
# down(silu(gate(x)) · up(x)); and h + o(attention(q, k, v of norm(h))) followed by h + block(norm(h)), with rotary
# positions. tests/adapters/test_lean_layers.py compares each with its own class.
FAMILIES = ("Llama", "Mistral", "Mixtral", "Qwen2", "Qwen3", "SmolLM3", "Granite")
NORMS = tuple(f"{family}RMSNorm" for family in FAMILIES)
BLOCKS = tuple(f"{family}MLP" for family in FAMILIES)
LAYERS = tuple(f"{family}DecoderLayer" for family in ("Llama", "Mistral", "Qwen2"))
ATTENTIONS = tuple(name.replace("DecoderLayer", "Attention") for name in LAYERS)
SILU = ("SiLU", "SiLUActivation")
# Tokens of a tile: enough that unpacking a 4-bit weight takes a tenth of the product with it.
TILE = 2048
MOST_TILES = 16
# What a decoder layer's cache of keys and values is called, in turn.
CACHES = ("cache", "past_key_values")


def use_lean_layers(model: nn.Module) -> int:
    """Let the norms, blocks and decoder layers that are known be computed leanly.

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
        elif kind.__name__ in BLOCKS and type(getattr(module, "act_fn", None)).__name__ in SILU:
            module.__class__ = _lean(kind, LeanBlock)
        elif kind.__name__ in ATTENTIONS:
            module.__class__ = _lean(kind, LeanAttention)
        elif kind.__name__ in LAYERS:
            module.__class__ = _lean(kind, LeanLayer)
        else:
            continue
        count += 1
    return count


def use_tiles(model: nn.Module, tokens: int = TILE) -> int:
    """Let the blocks and decoder layers that `use_lean_layers` knows be computed in tiles of so many tokens or more.

    Returns:
        How many there are.
    """
    layers = [module for module in model.modules() if isinstance(module, LeanBlock | LeanAttention)]
    for layer in layers:
        layer.tile = tokens
    return len(layers)


def _tiles(count: int, size: int) -> list[slice]:
    """At most `MOST_TILES` runs of ``count`` tokens, of ``size`` or more; one of all for size 0."""
    step = max(size, -(-count // MOST_TILES)) if size else max(count, 1)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _added(sums: list[Tensor | None] | None, more: list[Tensor | None]) -> list[Tensor | None]:
    """Gradients of the tiles so far and of one more, in the precision of what is trained."""
    if sums is None:
        return more
    return [one if other is None or one is None else one.add_(other) for one, other in zip(sums, more, strict=True)]


@cache
def _lean(kind: type[nn.Module], lean: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (lean, kind), {"__module__": kind.__module__, "__doc__": lean.__doc__})


# ---- norms


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
    def forward(ctx: Context, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        inverse = inverse_rms(x, epsilon)
        ctx.save_for_backward(x, inverse, weight)
        return normed(x, inverse, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return norm_backward(grads[0], *ctx.saved_tensors), None, None


def inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    """(mean x² + ε)^-½ over the last dimension, which is kept, in fp32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide.pow(2).mean(-1, keepdim=True).add_(epsilon).rsqrt_()


def normed(x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    """weight · (x · inverse), the second product rounded first."""
    return weight * (x.to(inverse.dtype) * inverse).to(x.dtype)


def norm_backward(grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    """Gradient of a norm's input."""
    # y = x·s with s = (mean x² + ε)^-½, so dx = s·g − x·s³·mean(g·x).
    grad, wide = (grad * weight).to(inverse.dtype), x.to(inverse.dtype)
    slope = (grad * wide).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(-x.shape[-1])
    # Converted first: on a CPU an operation over two types makes copies of both.
    return (grad * inverse).addcmul_(wide, slope).to(x.dtype)


# ---- blocks


class LeanBlock(nn.Module):
    """A SwiGLU block (Shazeer 2020, arXiv 2002.05202) with frozen weights and LoRA on all three."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    tile = 0
    """Tokens of a tile; 0 computes all at once."""

    def forward(self, x: Tensor, lean: LeanExit | None = None) -> Tensor:
        if lean is not None:
            with torch.autocast(x.device.type, enabled=False):
                return _Exit.apply(x, lean.mixed, *lean.norm, self.tile, _scales(lean.parts), *_tensors(lean.parts))
        parts = plain_parts(x, self.gate_proj, self.up_proj, self.down_proj)
        if not self.training or parts is None:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return _Block.apply(x.to(parts[0].dtype), self.tile, _scales(parts), *_tensors(parts))


class LeanExit(NamedTuple):
    """What a block is given to compute the second half of its decoder layer."""

    mixed: Tensor
    norm: tuple[Tensor, float]
    parts: list[PlainParts]
    """Of o, gate, up and down."""


class _BlockContext(ShapedContext, Protocol):
    setting: tuple[Setting, Setting]
    tile: int


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _BlockContext, x: Tensor, tile: int, scales: tuple[float, ...], *tensors: Part) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        block = _BlockProducts.of(x.dtype, scales, tensors)
        kept: tuple[Tensor, ...] = ()
        if tile:
            result = torch.cat([block.forward(rows[part])[0] for part in _tiles(len(rows), tile)])
        else:
            result, kept = block.forward(rows)
        ctx.save_for_backward(rows, *block.saved, *kept)
        ctx.setting, ctx.shape, ctx.tile = block.setting, x.shape, tile
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: _BlockContext, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, *saved = ctx.saved_tensors
        block, kept = _BlockProducts.again(ctx.setting, saved[:BLOCK_SAVES]), tuple(saved[BLOCK_SAVES:])
        grad, of_x = grads[0].reshape(-1, grads[0].shape[-1]), ctx.needs_input_grad[0]
        parts: list[Tensor | None] = []
        trained: list[Tensor | None] | None = None
        for part in _tiles(len(rows), ctx.tile):
            own = kept or block.forward(rows[part])[1]
            grad_x, more = block.backward(grad[part], rows[part], own, of_x)
            parts.append(grad_x)
            trained = _added(trained, more)
        whole = (
            None if not of_x else cast(Tensor, parts[0] if len(parts) == 1 else torch.cat(cast(list[Tensor], parts)))
        )
        return None if whole is None else whole.view(ctx.shape), None, None, *(trained or [])


# Tensors of `_BlockProducts.saved`: two As, three Ws, three Bs.
BLOCK_SAVES = 8


class _BlockProducts(NamedTuple):
    """down(silu(gate(x)) · up(x)), each with its LoRA; `of`, `setting`, `saved` and `again` as in `Products`."""

    entry: Products
    exit: Products

    @classmethod
    def of(cls, dtype: torch.dtype, scales: Sequence[float], tensors: Sequence[Part]) -> _BlockProducts:
        return cls(Products.of(dtype, scales[:2], tensors[:8]), Products.of(dtype, scales[2:], tensors[8:]))

    @property
    def setting(self) -> tuple[Setting, Setting]:
        return self.entry.setting, self.exit.setting

    @property
    def saved(self) -> tuple[Tensor | None, ...]:
        return *self.entry.saved, *self.exit.saved

    @classmethod
    def again(cls, setting: tuple[Setting, Setting], saved: Sequence[Tensor]) -> _BlockProducts:
        return cls(Products.again(setting[0], saved[:5]), Products.again(setting[1], saved[5:]))

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The result, M×H, and what `backward` needs."""
        (gate, up), inner = self.entry.forward(x)
        (result,), down_inner = self.exit.forward(nn.functional.silu(gate).mul_(up))
        return result, (gate, up, inner, down_inner)

    def backward(
        self, grad: Tensor, x: Tensor, kept: tuple[Tensor, ...], of_x: bool = True
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        gate, up, inner, down_inner = kept
        active = nn.functional.silu(gate)  # made again: 1 % of the block's time, a third of what it keeps
        grad_inner, exit_trained = self.exit.backward([grad], active * up, down_inner)
        grad_inner = cast(Tensor, grad_inner)
        grad_up = active.mul_(grad_inner)
        grad_gate = torch.ops.aten.silu_backward(grad_inner.mul_(up), gate)
        grad_x, entry_trained = self.entry.backward([grad_gate, grad_up], x, inner, of_x)
        return grad_x, entry_trained + exit_trained


# ---- decoder layers


class LeanLayer(nn.Module):
    """A decoder layer with rotary positions, frozen weights and LoRA on all seven linear layers.

    Its two halves are computed by its attention and its block, so that hooks on these see what they take.
    """

    self_attn: nn.Module
    mlp: nn.Module
    input_layernorm: LeanNorm
    post_attention_layernorm: LeanNorm

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        plain = not args and "position_embeddings" in kwargs and all(kwargs.get(name) is None for name in CACHES)
        parts = self._parts(hidden_states) if plain else None
        if parts is None:
            return super().forward(hidden_states, *args, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in CACHES}
        attention = cast(LeanAttention, self.self_attn)
        norms = [(norm.weight, norm.variance_epsilon) for norm in (self.input_layernorm, self.post_attention_layernorm)]
        mixed = attention(hidden_states, lean=LeanEntry(norms[0], parts[:3]), **kwargs)
        read = getattr(kwargs.get("tree_layout"), "read", None)
        if read is not None and attention.layer_idx == attention.config.num_hidden_layers - 1:
            # After the last attention no token meets another one.
            hidden_states, mixed = hidden_states.index_select(1, read), mixed.index_select(1, read)
        return self.mlp(hidden_states, lean=LeanExit(mixed, norms[1], parts[3:]))

    def _parts(self, x: Tensor) -> list[PlainParts] | None:
        """Of q, k, v, o, gate, up and down; None when the class above has to compute this layer."""
        attention, mlp = self.self_attn, self.mlp
        norms = (self.input_layernorm, self.post_attention_layernorm)
        if not (self.training and isinstance(attention, LeanAttention) and isinstance(mlp, LeanBlock)):
            return None
        if attention.interface() is None or any(norm.weight.requires_grad for norm in norms):
            return None
        parts = plain_parts(x, attention.q_proj, attention.k_proj, attention.v_proj)
        more = plain_parts(x, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        # The sums with the residual are made in the type of the products.
        return parts + more if parts and more and parts[0].dtype == x.dtype == norms[0].weight.dtype else None


class LeanEntry(NamedTuple):
    """What an attention is given to compute the first half of its decoder layer."""

    norm: tuple[Tensor, float]
    parts: list[PlainParts]
    """Of q, k and v."""


class LeanAttention(nn.Module):
    """Norm, query, key and value, and attention itself; the products with o are the other half's."""

    config: PretrainedConfig
    layer_idx: int
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    head_dim: int
    attention_dropout: float
    scaling: float
    tile = 0
    """Tokens of a tile; 0 computes all at once."""

    def interface(self) -> Callable[..., tuple[Tensor, Tensor | None]] | None:
        """What transformers has registered for the model's attention; None for eager attention."""
        return ALL_ATTENTION_FUNCTIONS.get(attention_of(self.config))

    def forward(
        self, hidden_states: Tensor, *args: object, lean: LeanEntry | None = None, **kwargs: object
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        if lean is None:
            return super().forward(hidden_states, *args, **kwargs)
        cos, sin = cast(tuple[Tensor, Tensor], kwargs.pop("position_embeddings"))
        with torch.autocast(hidden_states.device.type, enabled=False):
            query, key, value = _Entry.apply(
                hidden_states,
                *lean.norm,
                cos,
                sin,
                self.head_dim,
                self.tile,
                _scales(lean.parts),
                *_tensors(lean.parts),
            )
        if window := _window(self):
            kwargs["sliding_window"] = window
        attend = cast(Callable[..., tuple[Tensor, Tensor | None]], self.interface())
        mixed, _ = attend(
            self, query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), kwargs.pop("attention_mask", None),
            dropout=self.attention_dropout, scaling=self.scaling, **kwargs,
        )  # fmt: skip
        return mixed.flatten(2)


def _window(attention: LeanAttention) -> int | None:
    """The sliding window that the attention's own class would ask for."""
    if type(attention).__name__ == "MistralAttention":
        return getattr(attention.config, "sliding_window", None)
    return getattr(attention, "sliding_window", None)


class _EntryContext(ProductContext, Protocol):
    tile: int


class _Entry(torch.autograd.Function):
    """Query, key (both rotated) and value of norm(h), each batch × tokens × heads × D."""

    @staticmethod
    def forward(
        ctx: _EntryContext, h: Tensor, norm: Tensor, epsilon: float, cos: Tensor, sin: Tensor, size: int, tile: int,
        scales: tuple[float, ...], *tensors: Part,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        rows = h.reshape(-1, h.shape[-1])
        products, inverse = Products.of(h.dtype, scales, tensors), inverse_rms(rows, epsilon)
        inners: list[Tensor] = []
        made: list[list[Tensor]] = []
        for part in _tiles(len(rows), tile):
            results, inner = products.forward(normed(rows[part], inverse[part], norm))
            inners.append(inner)
            made.append(results)
        query, key, value = (_joined(list(each)).view(*h.shape[:-1], -1, size) for each in zip(*made, strict=True))
        ctx.save_for_backward(rows, inverse, norm, cos, sin, _joined(inners), *products.saved)
        ctx.setting, ctx.shape, ctx.tile = products.setting, h.shape, tile
        return rotated(query, cos, sin), rotated(key, cos, sin), value

    @staticmethod
    @once_differentiable
    def backward(ctx: _EntryContext, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, inverse, norm, cos, sin, inner, *saved = ctx.saved_tensors
        query, key, value = grads
        back = -sin
        turned = [grad.reshape(len(rows), -1) for grad in (rotated(query, cos, back), rotated(key, cos, back), value)]
        products, of_h = Products.again(ctx.setting, saved), ctx.needs_input_grad[0]
        parts: list[Tensor] = []
        trained: list[Tensor | None] | None = None
        for part in _tiles(len(rows), ctx.tile):
            x, scale = rows[part], inverse[part]
            grad_x, more = products.backward([grad[part] for grad in turned], normed(x, scale, norm), inner[part], of_h)
            trained = _added(trained, more)
            if grad_x is not None:
                parts.append(norm_backward(grad_x, x, scale, norm))
        return _joined(parts).view(ctx.shape) if of_h else None, *[None] * 7, *(trained or [])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _ExitContext(ShapedContext, Protocol):
    settings: tuple[Setting, tuple[Setting, Setting]]
    tile: int
    epsilon: float


class _Exit(torch.autograd.Function):
    """h' + block(norm(h')) with h' = h + o(attention's result)."""

    @staticmethod
    def forward(
        ctx: _ExitContext, h: Tensor, mixed: Tensor, norm: Tensor, epsilon: float, tile: int, scales: tuple[float, ...],
        *tensors: Part,
    ) -> Tensor:  # fmt: skip
        rows, mixed = h.reshape(-1, h.shape[-1]), mixed.reshape(-1, mixed.shape[-1])
        layer = _ExitProducts.of(h.dtype, scales, tensors, norm, epsilon)
        if tile:
            result = torch.empty_like(rows)
            for part in _tiles(len(rows), tile):
                result[part] = layer.forward(rows[part], mixed[part])[0]
            ctx.save_for_backward(mixed, norm, *layer.saved, rows)
        else:
            result, kept = layer.forward(rows, mixed)
            ctx.save_for_backward(mixed, norm, *layer.saved, *kept)
        ctx.settings, ctx.shape, ctx.tile, ctx.epsilon = layer.settings, h.shape, tile, epsilon
        return result.view(h.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: _ExitContext, *grads: Tensor) -> tuple[Tensor | None, ...]:
        mixed, norm, *saved = ctx.saved_tensors
        layer = _ExitProducts.again(ctx.settings, saved[:EXIT_SAVES], norm, ctx.epsilon)
        kept, grad = saved[EXIT_SAVES:], grads[0].reshape(-1, grads[0].shape[-1])
        if not ctx.tile:
            grad_h, grad_mixed, trained = layer.backward(grad, mixed, kept)
        else:
            grad_h, grad_mixed, found = torch.empty_like(grad), torch.empty_like(mixed), None
            for part in _tiles(len(mixed), ctx.tile):
                _, own = layer.forward(kept[0][part], mixed[part])
                grad_h[part], grad_mixed[part], more = layer.backward(grad[part], mixed[part], own)
                found = _added(found, more)
            trained = found or []
        return grad_h.view(ctx.shape), grad_mixed.view(*ctx.shape[:-1], -1), *[None] * 4, *trained


# Tensors of `_ExitProducts.saved`: A, W and B of o, then the block's.
EXIT_SAVES = 3 + BLOCK_SAVES


class _ExitProducts(NamedTuple):
    """The second half of a decoder layer; `of`, `settings`, `saved` and `again` as in `Products`."""

    output: Products
    block: _BlockProducts
    norm: Tensor
    epsilon: float

    @classmethod
    def of(
        cls, dtype: torch.dtype, scales: Sequence[float], tensors: Sequence[Part], norm: Tensor, epsilon: float
    ) -> _ExitProducts:
        output = Products.of(dtype, scales[:1], tensors[:4])
        return cls(output, _BlockProducts.of(dtype, scales[1:], tensors[4:]), norm, epsilon)

    @property
    def settings(self) -> tuple[Setting, tuple[Setting, Setting]]:
        return self.output.setting, self.block.setting

    @property
    def saved(self) -> tuple[Tensor | None, ...]:
        return *self.output.saved, *self.block.saved

    @classmethod
    def again(
        cls, settings: tuple[Setting, tuple[Setting, Setting]], saved: Sequence[Tensor], norm: Tensor, epsilon: float
    ) -> _ExitProducts:
        output, block = Products.again(settings[0], saved[:3]), _BlockProducts.again(settings[1], saved[3:])
        return cls(output, block, norm, epsilon)

    def forward(self, rows: Tensor, mixed: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The layer's result, M×H, and what `backward` needs."""
        (between,), mixed_inner = self.output.forward(mixed)
        inverse = inverse_rms(between.add_(rows), self.epsilon)
        result, kept = self.block.forward(normed(between, inverse, self.norm))
        return result.add_(between), (mixed_inner, between, inverse, *kept)

    def backward(
        self, grad: Tensor, mixed: Tensor, kept: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Gradients of h, of the attention's result, and of what is trained."""
        mixed_inner, between, inverse, *inner = kept
        grad_x, block_trained = self.block.backward(grad, normed(between, inverse, self.norm), tuple(inner))
        grad_h = norm_backward(cast(Tensor, grad_x), between, inverse, self.norm).add_(grad)
        grad_mixed, output_trained = self.output.backward([grad_h], mixed, mixed_inner)
        return grad_h, cast(Tensor, grad_mixed), [*output_trained, *block_trained]


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864); with −sin their transpose.

    Args:
        x: batch × tokens × n × D; cos, sin: (1 or batch) × tokens × D, whose second half repeats the first.
    """
    half = x.shape[-1] // 2
    cos, sin = cos[:, :, None], sin[:, :, None, :half]
    made = x * cos
    made[..., :half].addcmul_(x[..., half:], sin, value=-1)
    made[..., half:].addcmul_(x[..., :half], sin)
    return made


# ---- what they share


def plain_parts(x: Tensor, *layers: nn.Module) -> list[PlainParts] | None:
    """What the products of ``x`` with ``layers`` are made of; None when one of them is not the plain case."""
    if not torch.is_grad_enabled():
        return None
    parts = [layer.plain_parts(x) if isinstance(layer, FastLora) else None for layer in layers]
    return None if any(part is None for part in parts) else cast(list[PlainParts], parts)


def _scales(parts: Sequence[PlainParts]) -> tuple[float, ...]:
    return tuple(part.scale for part in parts)


def _tensors(parts: Sequence[PlainParts]) -> list[Part]:
    return [tensor for part in parts for tensor in part.tensors]
