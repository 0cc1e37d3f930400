"""New tokens beside a frozen vocabulary: PEFT's trained rows of an embedding and a head, without a copy of the matrix.

In: a model with PEFT's `TrainableTokensLayer`s. Out: the same layers, of a subclass with the same names, parameters, saved
files, merge and unmerge.
Knows nothing of training loops.

PEFT writes the rows into a copy of the whole matrix at every pass, for the embedding and for a tied head again, and the
gradient of that copy is as large once more: 1 GB each on a vocabulary of 128k and 4,096 dimensions. Here the frozen
matrix is read as it is, and what belongs to the k trained rows is put in its place: the rows looked up, the k columns
of the logits. The numbers are PEFT's; sums of the head's gradients are taken in another order.

N tokens, k trained rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn
from torch.nn import functional as F

from fitune.ops.autograd_context import Context, once_differentiable


class TrainedRows(NamedTuple):
    """Rows of a frozen matrix that are trained."""

    ids: Tensor
    """k token ids."""
    values: Tensor
    """k×H, in the type of training."""


def use_trained_tokens(model: nn.Module) -> int:
    """Let PEFT's layers of trained rows be computed without a copy of their matrix; returns how many there are."""
    layers = [module for module in model.modules() if type(module) is TrainableTokensLayer]
    for layer in layers:
        layer.__class__ = TrainedTokens
    return len(layers)


class TrainedTokens(TrainableTokensLayer):
    """An embedding or a head with trained rows; whatever is not the plain case is computed by PEFT."""

    _ids_kept: tuple[list[int], Tensor] | None = None

    def forward_adapters(self, x: Tensor, active_adapters: Sequence[str], *args: object, **kwargs: object) -> Tensor:
        rows = self.trained_rows(active_adapters)
        if rows is None or args or kwargs:
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        base = self.base_layer
        values = rows.values.to(cast(Tensor, base.weight).dtype)
        if isinstance(base, nn.Embedding):
            scale = self._get_embed_scale()
            scaled = values if scale is None else values * scale.to(values.dtype)
            return _Replaced.apply(base(x), scaled, x, rows.ids)
        return self._logits(x, cast(Tensor, base.weight), rows.ids, values)

    def _logits(self, x: Tensor, weight: Tensor, ids: Tensor, values: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            return _Logits.apply(x.to(dtype), weight.to(dtype), ids, values.to(dtype))

    def trained_rows(self, active_adapters: Sequence[str] | None = None) -> TrainedRows | None:
        """The rows of the one adapter that is active; None when PEFT has to compute this layer.

        Args:
            active_adapters: None asks the layer itself.
        """
        names = self.active_adapters if active_adapters is None else active_adapters
        if self.disable_adapters or self.merged or len(names) != 1 or names[0] not in self.token_indices:
            return None
        base = self.base_layer
        weight = cast(Tensor, base.weight)
        plain = type(base) is nn.Linear and cast("Tensor | None", base.bias) is None
        if isinstance(base, nn.Embedding):
            plain = base.max_norm is None and not base.sparse and base.padding_idx not in self.token_indices[names[0]]
        if not plain or weight.requires_grad:
            return None
        return TrainedRows(self._ids(names[0], weight.device), cast(Tensor, self.trainable_tokens_delta[names[0]]))

    def _ids(self, name: str, device: torch.device) -> Tensor:
        """The adapter's token ids on the device, copied there once."""
        kept, wanted = self._ids_kept, cast("list[int]", self.token_indices[name])
        if kept is None or kept[0] is not wanted or kept[1].device != device:
            kept = self._ids_kept = (wanted, torch.tensor(wanted, device=device))
        return kept[1]


def trained_rows_of(module: nn.Module) -> TrainedRows | None:
    """The trained rows of what PEFT has put in a layer's place; None for a module without any, or that PEFT computes."""
    layer = getattr(module, "token_adapter", None)
    return layer.trained_rows() if isinstance(layer, TrainedTokens) else None


def without_rows(module: nn.Module) -> nn.Module:
    """The layer that PEFT wrapped for its trained rows; any other module itself."""
    layer = getattr(module, "token_adapter", None)
    return layer.base_layer if isinstance(layer, TrainedTokens) else module


class _Replaced(torch.autograd.Function):
    """Embeddings of x, those of the trained ids from their own rows."""

    @staticmethod
    def forward(ctx: Context, looked_up: Tensor, values: Tensor, x: Tensor, ids: Tensor) -> Tensor:
        which = x[..., None] == ids
        ctx.save_for_backward(which)
        own = values.index_select(0, which.to(torch.uint8).argmax(-1).flatten()).view(looked_up.shape)
        return torch.where(which.any(-1)[..., None], own, looked_up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (which,) = ctx.saved_tensors
        return None, which.flatten(0, -2).to(grads[0].dtype).t() @ grads[0].flatten(0, -2), None, None


class _Logits(torch.autograd.Function):
    """x·Wᵀ, the columns of the trained ids from their own rows."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, ids: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, ids, values)
        return put_columns(F.linear(x, weight), x, ids, values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, ids, values = ctx.saved_tensors
        grad, rows = grads[0].flatten(0, -2), x.flatten(0, -2)
        of_rows = grad.index_select(1, ids)
        # W has other rows in these places.
        grad_x = (grad @ weight).addmm_(of_rows, values - weight.index_select(0, ids))
        return grad_x.view(x.shape), None, None, of_rows.t() @ rows


def put_columns(logits: Tensor, x: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """The logits, …×V, with the trained ids' columns in place; in place."""
    return logits.index_copy_(-1, ids, F.linear(x, values))
