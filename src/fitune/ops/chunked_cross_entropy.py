"""Head and cross entropy in chunks: logits of a few hundred positions at a time, never all of them.

In: hidden states where there is something to predict, the head, the entries to predict. Out: one scalar.
Knows nothing of rows, packs or trainers.

With a frozen head the gradient of the hidden states is made in the forward pass, chunk by chunk, so the backward pass
needs no logits either (the idea of Liger Kernel, arXiv 2410.10989, and of Cut Cross-Entropy, arXiv 2411.09009). With a
head that is trained, each chunk is computed again in the backward pass. A frozen head of which a few rows are trained
(new tokens) counts as frozen: the gradient of these rows is made in the forward pass too.

M positions, E entries (a position before a branching predicts several tokens), H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fitune.ops.autograd_context import Context, once_differentiable
from fitune.ops.trained_tokens import TrainedRows, put_columns, trained_rows_of, without_rows

# Logits of a chunk: on a CPU 32 MiB in fp32, on a GPU 256 MiB.
CPU_CHUNK_LOGITS = 2**23
GPU_CHUNK_LOGITS = 2**26
# As torch.utils.checkpoint.checkpoint: a function, its arguments, use_reentrant=False.
Recompute = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Entries:
    """What is to be predicted, sorted by position."""

    rows: Tensor
    """E places in the M hidden states, ascending; each of 0 … M − 1 at least once."""
    targets: Tensor
    """E token ids; no (row, target) pair twice."""
    weights: Tensor
    """E weights in fp32."""
    row_weights: Tensor
    """M sums of the weights of a row."""


@dataclass(frozen=True, eq=False)
class Head:
    """The way from hidden states to logits: a module, then a factor, then soft-capping."""

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    @property
    def weight(self) -> Tensor:
        """V×H; trained rows are not in it."""
        return cast(Tensor, without_rows(self.module).weight)

    @property
    def vocabulary(self) -> int:
        """V."""
        return getattr(self.module, "out_features", None) or self.weight.shape[0]

    @property
    def trained_rows(self) -> TrainedRows | None:
        """Those of a frozen layer, where nothing else of it is trained."""
        return trained_rows_of(self.module)

    @property
    def frozen_linear(self) -> bool:
        """Whether this is a plain linear layer, nothing of which is trained but rows of new tokens."""
        inner = without_rows(self.module)
        plain = type(inner) is torch.nn.Linear and (inner is self.module or self.trained_rows is not None)
        return plain and not any(value.requires_grad for value in inner.parameters())


def chunked_cross_entropy(
    hidden_MH: Tensor,
    head: Head,
    entries: Entries,
    label_smoothing: float = 0.0,
    chunk_logits: int | None = None,
    recompute: Recompute = checkpoint,
) -> Tensor:
    """Weighted sum of the entries' cross entropies, in fp32.

    Args:
        chunk_logits: logits of a chunk at most; None takes the device's own, which the meta device does not have.
        label_smoothing: ε of Szegedy et al. 2016 (arXiv 1512.00567, section 7), as in torch's cross_entropy.
        recompute: calls a chunk of a trained head so that its logits are made again in the backward pass.
    """
    if len(entries.rows) == 0:
        return hidden_MH.float().sum() * 0.0
    if chunk_logits is None:
        chunk_logits = GPU_CHUNK_LOGITS if hidden_MH.device.type == "cuda" else CPU_CHUNK_LOGITS
    if not head.frozen_linear:
        return _recomputed(hidden_MH, head, entries, label_smoothing, chunk_logits, recompute)
    weight, bias = head.weight, cast("Tensor | None", without_rows(head.module).bias)
    new = head.trained_rows
    dtype = weight.dtype
    if torch.is_autocast_enabled(hidden_MH.device.type):
        dtype = torch.get_autocast_dtype(hidden_MH.device.type)
    bias = None if bias is None else bias.to(dtype)
    # Rounded to the matrix's own type first, as if they stood in it.
    rows = (None, None) if new is None else (new.ids, new.values.to(weight.dtype).to(dtype))
    with torch.autocast(hidden_MH.device.type, enabled=False):
        return _FrozenHead.apply(
            hidden_MH.to(dtype), weight.to(dtype), bias, *rows, head, entries, label_smoothing, chunk_logits
        )


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        new_ids: Tensor | None,
        new_rows: Tensor | None,
        head: Head,
        entries: Entries,
        smoothing: float,
        chunk_logits: int,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[4]
        grad = torch.empty_like(hidden) if needs_grad else None
        grad_new = None if new_rows is None else torch.zeros_like(new_rows, dtype=torch.float32)
        vocabulary = len(weight)
        for rows, here in _chunks(hidden, head, entries, chunk_logits):
            at = (entries.rows[here] - rows.start, entries.targets[here])
            weights, row_weights = entries.weights[here], entries.row_weights[rows]
            logits = torch.nn.functional.linear(hidden[rows], weight, bias)
            if new_ids is not None and new_rows is not None:
                put_columns(logits, hidden[rows], new_ids, new_rows)
            logprobs, slope = _logprobs(logits, head)
            del logits
            total -= (weights * logprobs[at]).sum() * (1 - smoothing)
            if smoothing:
                total -= (row_weights * logprobs.sum(-1)).sum() * (smoothing / vocabulary)
            if grad is None:
                continue
            # d loss / d logit = Σ weights · softmax − the smoothed targets, times the slope of what follows the head.
            delta = logprobs.exp_().mul_(row_weights[:, None])
            if smoothing:
                delta -= (row_weights * (smoothing / vocabulary))[:, None]
            delta[at] -= weights * (1 - smoothing)
            if slope is not None:
                delta *= slope
            delta = delta.to(weight.dtype)
            if new_ids is None or new_rows is None or grad_new is None:
                torch.mm(delta, weight, out=grad[rows])
                continue
            of_new = delta.index_select(1, new_ids)
            torch.mm(delta.index_fill_(1, new_ids, 0.0), weight, out=grad[rows])
            grad[rows].addmm_(of_new, new_rows)
            grad_new += of_new.t() @ hidden[rows]
        ctx.save_for_backward(grad, None if new_rows is None or grad_new is None else grad_new.to(new_rows.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *outer: Tensor) -> tuple[Tensor | None, ...]:
        grad, grad_new = cast("tuple[Tensor, Tensor | None]", ctx.saved_tensors)
        of_new = None if grad_new is None else _times(grad_new, outer[0])
        return _times(grad, outer[0]), None, None, None, of_new, *[None] * 4


def _times(grad: Tensor, outer: Tensor) -> Tensor:
    return grad * outer.to(grad.dtype) if grad.dtype == torch.float32 else (grad * outer).to(grad.dtype)


def _logprobs(logits: Tensor, head: Head) -> tuple[Tensor, Tensor | float | None]:
    """Log-probabilities in fp32 and the slope of the factor and the soft-capping (None when there are neither)."""
    if head.softcap is None and head.scale == 1.0:
        return torch.log_softmax(logits, -1, dtype=torch.float32), None
    scaled = logits.float().mul_(head.scale)
    if head.softcap is None:
        return torch.log_softmax(scaled, -1), head.scale
    capped = scaled.div_(head.softcap).tanh_()
    return torch.log_softmax(capped * head.softcap, -1), capped.square_().neg_().add_(1).mul_(head.scale)


def transformed(logits: Tensor, head: Head) -> Tensor:
    """Logits in fp32 after the head's factor and soft-capping."""
    logits = logits.float()
    if head.scale != 1.0:
        logits = logits * head.scale
    return logits if head.softcap is None else torch.tanh(logits / head.softcap) * head.softcap


def _recomputed(
    hidden: Tensor, head: Head, entries: Entries, smoothing: float, chunk_logits: int, recompute: Recompute
) -> Tensor:
    """Any head, trained or not: the chunk's logits are made again in the backward pass."""

    def chunk_loss(part: Tensor, rows: Tensor, targets: Tensor, weights: Tensor, row_weights: Tensor) -> Tensor:
        logprobs = torch.log_softmax(transformed(head.module(part), head), -1)
        loss = -(weights * logprobs[rows, targets]).sum()
        if not smoothing:
            return loss
        spread = -(row_weights * logprobs.mean(-1)).sum()
        return (1 - smoothing) * loss + smoothing * spread

    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for rows, here in _chunks(hidden, head, entries, chunk_logits):
        arguments = (
            hidden[rows],
            entries.rows[here] - rows.start,
            entries.targets[here],
            entries.weights[here],
            entries.row_weights[rows],
        )
        total = total + recompute(chunk_loss, *arguments, use_reentrant=False)
    return total


def _chunks(hidden: Tensor, head: Head, entries: Entries, chunk_logits: int) -> Iterator[tuple[slice, slice]]:
    """Runs of rows, each with the entries that belong to it."""
    count = len(hidden)
    chunks = max(1, -(-count * head.vocabulary // chunk_logits))
    size = -(-count // chunks)
    starts = list(range(0, count, size))
    bounds = torch.searchsorted(entries.rows, torch.tensor([*starts, count], device=entries.rows.device)).tolist()
    for start, first, last in zip(starts, bounds[:-1], bounds[1:], strict=True):
        yield slice(start, min(start + size, count)), slice(first, last)
