"""Attention of a tree pack by matrix products: group by group, block of queries by block of queries.

In: query, key, value of one layer and a `TreeLayout`. Out: the attention's result for each node.
Knows nothing of transformers.

Why not scaled_dot_product_attention: on a CPU its bf16 kernel takes 10 ms for 8 rows of 44 queries and 68 keys where
plain batched products take 2 ms (torch 2.15, one core with AVX-512 bf16; forward and backward; docs/tried.md).
All query heads of a key/value head are rows of one product, so no key is copied for grouped-query attention. Scores
exist for one block at a time; the backward pass computes them again unless they are few.

KV key/value heads, G query heads for each, D head size, N nodes, U units of a group, Q queries and K keys of a unit.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from fitune.ops.autograd_context import Context, once_differentiable
from fitune.ops.tree_attention_layout import Group, TreeLayout

# Queries of a block: long rows skip the keys after a block, so half the square is never computed.
BLOCK_QUERIES = 128
# Up to so many keys, the softmax weights are kept for the backward pass: at 128 keys and 9 heads a node keeps 1,152
# numbers, next to about 10,000 other activations of a layer.
KEEP_KEYS = 128


def grouped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TreeLayout,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention of each node to its ancestors and itself.

    Args:
        query: 1×(KV·G)×N×D; key, value: 1×KV×N×D.
        scale: factor of the scores.
        softcap: scores become ``softcap · tanh(score / softcap)`` (Gemma 2).
        window: a node sees only so many nodes before and including itself.

    Returns:
        1×N×(KV·G)×D.
    """
    kv_heads, num_nodes = key.shape[1], key.shape[2]
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    # Rows of these matrices are (node, kv head) pairs: taking rows also puts the heads in front.
    rows = [part.transpose(1, 2).reshape(num_nodes * kv_heads, -1) for part in (query, key, value)]
    with torch.autocast(query.device.type, enabled=False):
        result = _GroupedAttention.apply(*rows, layout, kv_heads, scale, softcap, window)
    return result.view(1, num_nodes, query.shape[1], value.shape[3])


def remember(layout: TreeLayout, query: Tensor, key: Tensor, window: int | None = None) -> None:
    """Make now what `grouped_attention` would make of ``layout`` on its first call: masks and indices, in
    ``layout.kept``. The memory plan calls it on a layout that has values, then moves all to the meta device.

    Args:
        query, key: rows of heads, (N·KV)×(G·D) and (N·KV)×D, whose values are not read.
    """
    kv_heads = len(key) // layout.num_nodes
    for number, group in enumerate(layout.groups):
        _head_rows(layout, ("queries", number), group.query_nodes, kv_heads, group.num_queries)
        _head_rows(layout, ("keys", number), group.key_nodes, kv_heads, group.num_keys)
        list(_blocks(layout, number, kv_heads, query, key, window))
    _head_rows(layout, "places", layout.places, kv_heads)


class _AttentionContext(Context, Protocol):
    setting: tuple[TreeLayout, int, float, float | None, int | None]


class _GroupedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _AttentionContext,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: TreeLayout,
        kv_heads: int,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        ctx.setting = (layout, kv_heads, scale, softcap, window)
        kept: list[Tensor] = []
        results: list[Tensor] = []
        for number, group in enumerate(layout.groups):
            q, k, v = _units(query, key, value, layout, number, kv_heads)
            result = q.new_empty((*q.shape[:2], v.shape[2]))
            for block in _blocks(layout, number, kv_heads, query, key, window):
                weights = _weights(q, k, block, scale, softcap)[0]
                result[:, block.rows] = torch.bmm(weights, v[:, : block.num_keys])
                if group.num_keys <= KEEP_KEYS and softcap is None:
                    kept.append(weights)
            results.append(result.view(-1, query.shape[1] // key.shape[1] * v.shape[2]))
        ctx.save_for_backward(query, key, value, *kept)
        return _joined(results).index_select(0, _head_rows(layout, "places", layout.places, kv_heads))

    @staticmethod
    @once_differentiable
    def backward(ctx: _AttentionContext, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = outer
        query, key, value, *kept = ctx.saved_tensors
        layout, kv_heads, scale, softcap, window = ctx.setting
        places = _head_rows(layout, "places", layout.places, kv_heads)
        laid = sum(group.num_units * group.num_queries for group in layout.groups) * kv_heads
        # Places of padding stay zero, so padded queries add nothing to any gradient.
        grads = grad.new_zeros((laid, grad.shape[1])).index_copy_(0, places, grad)
        grads = grads.split([group.num_units * group.num_queries * kv_heads for group in layout.groups])
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        kept_weights = iter(kept)
        for number, group in enumerate(layout.groups):
            q, k, v = _units(query, key, value, layout, number, kv_heads)
            grad_result = grads[number].reshape(*q.shape[:2], v.shape[2])
            blocks = list(_blocks(layout, number, kv_heads, query, key, window))
            whole = len(blocks) == 1 and blocks[0].num_keys == group.num_keys
            sums = None if whole else (torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v))
            for block in blocks:
                keys, slope = k[:, : block.num_keys], None
                if group.num_keys <= KEEP_KEYS and softcap is None:
                    weights = next(kept_weights)
                else:
                    weights, slope = _weights(q, k, block, scale, softcap)
                grad_rows = grad_result[:, block.rows]
                grad_weights = torch.bmm(grad_rows, v[:, : block.num_keys].transpose(1, 2))
                grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                if slope is not None:
                    grad_scores = grad_scores.mul_(slope)
                block_q = _scaled_bmm(grad_scores, keys, scale)
                block_k = _scaled_bmm(grad_scores.transpose(1, 2), q[:, block.rows], scale)
                block_v = torch.bmm(weights.transpose(1, 2), grad_rows)
                if sums is None:
                    parts.append((block_q, block_k, block_v))
                    continue
                sums[0][:, block.rows] = block_q
                sums[1][:, : block.num_keys] += block_k
                sums[2][:, : block.num_keys] += block_v
            if sums is not None:
                parts.append(sums)
        grad_query, grad_key, grad_value = (
            [part[which].reshape(-1, source.shape[1]) for part in parts]
            for which, source in enumerate((query, key, value))
        )
        return (
            _joined(grad_query).index_select(0, places),
            _to_nodes(grad_key, layout, kv_heads),
            _to_nodes(grad_value, layout, kv_heads),
            *[None] * 5,
        )


class _Block(NamedTuple):
    """Some consecutive queries of every unit of a group, and the keys that any of them may see."""

    rows: slice
    num_keys: int
    mask: Tensor | None
    """0 where seen, −∞ where not; None when every query sees all of the keys."""


def _blocks(
    layout: TreeLayout, number: int, kv_heads: int, query: Tensor, key: Tensor, window: int | None
) -> Iterator[_Block]:
    """The blocks of a group."""
    group, fold = layout.groups[number], query.shape[1] // key.shape[1]
    for start in range(0, group.num_queries, BLOCK_QUERIES):
        stop = min(start + BLOCK_QUERIES, group.num_queries)
        num_keys = min(max(group.shifts) + stop, group.num_keys)
        name = ("mask", number, start, kv_heads, fold, window, query.dtype)
        if name not in layout.kept:
            layout.kept[name] = _additive(group, slice(start, stop), num_keys, kv_heads, fold, window, query.dtype)
        yield _Block(slice(start * fold, stop * fold), num_keys, layout.kept[name])


def _additive(
    group: Group, queries: slice, num_keys: int, kv_heads: int, fold: int, window: int | None, dtype: torch.dtype
) -> Tensor | None:
    """0 where seen, −∞ where not: (1 or U·KV)×(queries·G)×keys; None when there is nothing to hide."""
    seen = group.visible(window)[:, queries, :num_keys]
    if bool(seen.all()):
        return None
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
    mask = mask.repeat_interleave(fold, dim=1)
    return mask if len(mask) == 1 else mask.repeat_interleave(kv_heads, dim=0)


def _weights(q: Tensor, k: Tensor, block: _Block, scale: float, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """Softmax weights of a block; with soft-capping also its slope, for the backward pass.

    The softmax is taken in fp32: on a CPU that takes two thirds of the time that it takes in bf16, casts included.
    """
    queries, keys = q[:, block.rows], k[:, : block.num_keys].transpose(1, 2)
    slope = None
    if softcap is None:
        # Mask, scale and product in one: a sum with the mask by itself takes as long as the product.
        scores = _scaled_bmm(queries, keys, scale, block.mask)
    else:
        capped = torch.tanh(_scaled_bmm(queries, keys, scale / softcap))
        scores, slope = capped * softcap, 1 - capped * capped
        if block.mask is not None:
            scores += block.mask
    return torch.softmax(scores, -1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype), slope


def _scaled_bmm(a: Tensor, b: Tensor, scale: float, plus: Tensor | None = None) -> Tensor:
    """scale · a·b + plus, in one pass."""
    if plus is not None:
        return torch.baddbmm(plus, a, b, alpha=scale)
    return torch.baddbmm(a[:, :1, :1], a, b, beta=0, alpha=scale)  # with β = 0 the first argument is not read


def _units(
    query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, number: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A group's queries (U·KV)×(Q·G)×D, keys and values (U·KV)×K×D."""
    group = layout.groups[number]
    queries = _head_rows(layout, ("queries", number), group.query_nodes, kv_heads, group.num_queries)
    keys = _head_rows(layout, ("keys", number), group.key_nodes, kv_heads, group.num_keys)
    batch = group.num_units * kv_heads
    return (
        query.index_select(0, queries).view(batch, -1, key.shape[1]),
        key.index_select(0, keys).view(batch, group.num_keys, -1),
        value.index_select(0, keys).view(batch, group.num_keys, -1),
    )


def _head_rows(layout: TreeLayout, name: Hashable, nodes: Tensor, kv_heads: int, length: int | None = None) -> Tensor:
    """Numbers of the (node, kv head) rows: heads in front of ``length`` nodes of a unit, or for the places of nodes in
    results that were laid so."""
    key = (name, kv_heads)
    if key not in layout.kept:
        heads = torch.arange(kv_heads, device=nodes.device)
        if length is not None:
            rows = nodes.view(-1, 1, length) * kv_heads + heads[:, None]
        else:
            rows = _laid_with_heads(layout, nodes, heads)
        layout.kept[key] = rows.reshape(-1)
    return cast(Tensor, layout.kept[key])


def _laid_with_heads(layout: TreeLayout, places: Tensor, heads: Tensor) -> Tensor:
    """Place of (node, head) when each unit lies as KV×Q instead of Q."""
    rows = torch.empty((len(places), len(heads)), dtype=torch.long, device=places.device)
    start = 0
    for group in layout.groups:
        size = group.num_units * group.num_queries
        here = (places >= start) & (places < start + size)
        unit = (places[here] - start).div(group.num_queries, rounding_mode="floor")
        offset = places[here] - start - unit * group.num_queries
        rows[here] = start * len(heads) + (unit[:, None] * len(heads) + heads) * group.num_queries + offset[:, None]
        start += size
    return rows


def _to_nodes(parts: list[Tensor], layout: TreeLayout, kv_heads: int) -> Tensor:
    """Gradients of the keys of all units, summed for each node."""
    if not layout.shares:
        return _joined(parts).index_select(0, _head_rows(layout, "places", layout.places, kv_heads))
    wide = torch.promote_types(parts[0].dtype, torch.float32)
    total = torch.zeros((layout.num_nodes * kv_heads, parts[0].shape[1]), dtype=wide, device=parts[0].device)
    for number, part in enumerate(parts):
        total.index_add_(0, cast(Tensor, layout.kept[(("keys", number), kv_heads)]), part.to(wide))
    return total.to(parts[0].dtype)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
